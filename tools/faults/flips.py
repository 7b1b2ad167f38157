"""Every bit of some files flipped, one after the other, and every file cut off at every length: what is noticed?

Must not know what is in the files: a target says what looking at them gave.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path


class Verdict(Enum):
    """What came of a look at damaged files."""

    SAID = "said"  # an error of ours, or a fault that is named, and nothing wrong was handed out
    HARMLESS = "harmless"  # no word, and all is as it was written
    CUT_TAIL = "cut_tail"  # no word, and all is as it was at an instant before: no file can tell that of itself
    UNDETECTED = "undetected"  # no word, and something is wrong or missing; or wrong values before the word


@dataclass(frozen=True)
class Target:
    """Files by their path, those that are to be damaged by the kind they are counted as, and the look at them."""

    files: Mapping[str, bytes]
    kinds: Mapping[str, str]
    look: Callable[[Path, Damage], Verdict]


@dataclass(frozen=True)
class Damage:
    """One fault of one file: a flipped bit, or the length that is left of it."""

    file: str
    bit: int | None = None
    length: int | None = None

    def of(self, content: bytes) -> bytes:
        """The damaged content."""
        if self.bit is None:
            return content[: self.length]
        damaged = bytearray(content)
        damaged[self.bit // 8] ^= 1 << self.bit % 8
        return bytes(damaged)

    def __str__(self) -> str:
        if self.bit is None:
            return f"{self.file} cut to {self.length} bytes"
        return f"{self.file}, byte {self.bit // 8}, bit {self.bit % 8}"


@dataclass
class Tally:
    """What the damages of one kind of file came to."""

    nbytes: int = 0
    flips: int = 0
    truncations: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def note(self, damage: Damage, verdict: Verdict, *, most_examples: int = 5) -> None:
        """Count one look."""
        self.flips += damage.bit is not None
        self.truncations += damage.bit is None
        self.verdicts[verdict.value] += 1
        if verdict is Verdict.UNDETECTED and len(self.examples) < most_examples:
            self.examples.append(str(damage))


def damages(file: str, content: bytes, sample: int | None = None, seed: int = 0) -> list[Damage]:
    """All there are, or `sample` flips and as many lengths drawn from them with `seed`."""
    rng = random.Random(seed)
    bits, lengths = range(8 * len(content)), range(len(content))
    chosen_bits = bits if sample is None else sorted(rng.sample(bits, min(sample, len(bits))))
    chosen_lengths = lengths if sample is None else sorted(rng.sample(lengths, min(sample, len(lengths))))
    return [Damage(file, bit=bit) for bit in chosen_bits] + [Damage(file, length=length) for length in chosen_lengths]


def harmed(target: Target, folder: Path, planned: list[Damage]) -> Iterator[tuple[Damage, Verdict]]:
    """Lay the files out in `folder` with each damage in turn, and look."""
    for damage in planned:
        lay_out(target.files, folder, damage)
        yield damage, target.look(folder, damage)
    lay_out(target.files, folder)


def lay_out(files: Mapping[str, bytes], folder: Path, damage: Damage | None = None) -> None:
    """The files and nothing else, one of them damaged."""
    _clear(folder, files)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damage.of(content) if damage is not None and damage.file == name else content)


def collected(folder: Path) -> dict[str, bytes]:
    """The files below a folder, links left out."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def _clear(folder: Path, files: Mapping[str, bytes]) -> None:
    for path in list(folder.rglob("*")):
        if path.is_file() and str(path.relative_to(folder)) not in files:
            path.unlink()


def emptied(folder: Path) -> Path:
    """A new, empty folder in its place."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
