"""What SQLite will find in a write-ahead log (-wal), and whether that is all that once was in it.

SQLite ends without a word at the first frame whose checksum is wrong: after a power cut that is right, after damage it
hides every transaction behind it. So the file is walked first. Reads only, knows no table.

    off  size  field, big-endian
      0     4  magic    0x377f0682, or ...83: the checksums are of little-endian, or of big-endian words
      4     4  version  3007000
      8     4  page size
     12     4  how often the log was started anew (here: never)
     16     8  salt     random; every frame repeats it
     24     8  checksum of the 24 bytes before
    then frames:
      0     4  page number
      4     4  pages in the database after this transaction if this frame is its last one, else 0
      8     8  salt
     16     8  checksum, going on from the frame before: of this frame's first 8 bytes and of the page
     24     n  page

A transaction is written only after the one before it was synced. So what a kill or a power cut can leave is one unsound
transaction, the last; a frame behind its end is proof that it once was sound. Format: https://sqlite.org/walformat.html
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24

_MAGIC = {0x377F0682: "<u4", 0x377F0683: ">u4"}
_VERSION = 3007000
_CHUNK_FRAMES = 512
_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Walked:
    """What is in a log: `commits` sound transactions, and what is to be said about the bytes behind them.

    damage: acknowledged transactions are lost. doubt: the last one is unsound; whether it was acknowledged, the log
    cannot tell. Neither is set by a log that merely ends in the middle of a transaction.
    """

    commits: int = 0
    damage: str | None = None
    doubt: str | None = None


def walk(path: Path, page_bytes: int) -> Walked:
    """Walk the log of a database of pages of `page_bytes`; without a log, or with an empty one, there is nothing in it.

    Raises OSError.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Walked()
    with os.fdopen(file, "rb") as stream:
        header = stream.read(HEADER_BYTES)
        frames = _Frames(header, page_bytes)
        while block := stream.read(_CHUNK_FRAMES * frames.nbytes):
            frames.take(block)
    if len(header) < HEADER_BYTES:
        return Walked()  # the header is synced before the first frame is written
    return frames.verdict()


class _Frames:
    """Goes through the frames in order, and remembers what `verdict` needs."""

    def __init__(self, header: bytes, page_bytes: int) -> None:
        self.nbytes = FRAME_HEADER_BYTES + page_bytes
        self._sound_header = False
        self._order = "<u4"
        self._sums = (0, 0)
        self._salt: bytes | None = None
        if len(header) == HEADER_BYTES:
            self._begin(header, page_bytes)
        self._sound = self._sound_header  # no unsound frame until now
        self._commits = 0
        self._unsound = 0  # whole frames from the first unsound one on
        self._ends = 0  # of transactions among them
        self._followed = False  # something of ours stands behind such an end

    def _begin(self, header: bytes, page_bytes: int) -> None:
        magic, version, pages = (int.from_bytes(header[at : at + 4], "big") for at in (0, 4, 8))
        self._order = _MAGIC.get(magic, "<u4")
        words = np.frombuffer(header[:24], self._order).astype(np.uint64)
        ((first, second),) = _chain(words[None, :], (0, 0))
        sums = int.from_bytes(header[24:28], "big"), int.from_bytes(header[28:32], "big")
        self._sound_header = magic in _MAGIC and version == _VERSION and pages == page_bytes and (first, second) == sums
        if self._sound_header:
            self._sums, self._salt = sums, header[16:24]

    def take(self, block: bytes) -> None:
        """The next whole frames; what is left of a block is the torn end of the file."""
        count, rest = divmod(len(block), self.nbytes)
        frames = np.frombuffer(block, np.uint8, count * self.nbytes).reshape(count, self.nbytes)
        heads = frames[:, :FRAME_HEADER_BYTES].copy().view(">u4")
        if self._salt is None and count:
            self._salt = frames[0, 8:16].tobytes()  # the file's header is unsound: the frames still know each other
        ours = [frames[k, 8:16].tobytes() == self._salt for k in range(count)]
        at = self._take_sound(frames, heads, ours) if self._sound else 0
        for k in range(at, count):
            self._unsound += 1
            self._followed |= bool(self._ends and ours[k])
            self._ends += bool(ours[k] and heads[k, 1])
        self._followed |= bool(self._ends and rest)

    def _take_sound(self, frames: np.ndarray, heads: np.ndarray, ours: list[bool]) -> int:
        words = np.concatenate([frames[:, :8], frames[:, FRAME_HEADER_BYTES:]], axis=1).view(self._order)
        for k, sums in enumerate(_chain(words.astype(np.uint64), self._sums)):
            if not ours[k] or heads[k, 0] == 0 or sums != (int(heads[k, 4]), int(heads[k, 5])):
                self._sound = False
                return k
            self._sums = sums
            self._commits += bool(heads[k, 1])
        return len(frames)

    def verdict(self) -> Walked:
        if self._followed:
            return Walked(self._commits, damage=f"damaged after {self._commits} sound transactions")
        if self._unsound or not self._sound_header:
            why = f"after {self._commits} sound transactions one is torn or damaged, which may have been acknowledged"
            return Walked(self._commits, doubt=why)
        return Walked(self._commits)


def _chain(words: np.ndarray, sums: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The checksum after each row of 32-bit words, going on from the row before.

    SQLite adds word after word: first += word + second, second += word + first, by turns, modulo 2**32. That is
    t[n] = t[n-1] + t[n-2] + word[n]: each word counts with a Fibonacci number, so that a row is one scalar product.
    """
    weights, (f0, f1, f2) = _fibonacci(words.shape[1])
    for own_first, own_second in (words @ weights).tolist():
        first, second = sums
        sums = (own_first + second * f1 + first * f0) & _MASK, (own_second + second * f2 + first * f1) & _MASK
        yield sums


@lru_cache(maxsize=4)
def _fibonacci(words: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    numbers = [0, 1]
    while len(numbers) < words + 2:
        numbers.append((numbers[-1] + numbers[-2]) & _MASK)
    weights = np.array([numbers[words - 1 :: -1], numbers[words:0:-1]], np.uint64).T
    return np.ascontiguousarray(weights), (numbers[words - 1], numbers[words], numbers[words + 1])
