"""Reading the journal back: across its segments, and never on behind a gap. Must not know what an entry means."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edge_cl.storage.errors import DamagedFile, JournalDamaged, disk_faults
from edge_cl.storage.mark import MARK_NAME, read_mark
from edge_cl.storage.segment import entries, firsts, segment_path, wal_path

_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class JournalState:
    """What the journal holds: sound entries from `first` to `last` (0 and 0: none), bytes on disk, what is wrong."""

    first: int
    last: int
    entries: int
    nbytes: int
    faults: list[str] = field(default_factory=list)


def read(
    folder: Path, *, after: int, doubts: list[str] | None = None, copied: bool = False
) -> Iterator[tuple[int, bytes]]:
    """Number and body of the entries behind `after`, in order, each checked, a segment open at a time.

    What may or may not have been acknowledged, as a torn last transaction, joins `doubts`. Nothing is changed on disk;
    `copied` reads copies in a temporary folder, for who does not hold the state's lock.
    Raises JournalDamaged after the last sound entry, StorageFault.
    """
    doubts = [] if doubts is None else doubts
    with disk_faults("read", folder, rule="nothing was changed"):
        newest = _newest(folder, doubts)  # before the files: a daemon may be writing
        found = _firsts(folder)
    found = [*[first for first in found if first <= after + 1][-1:], *[first for first in found if first > after + 1]]
    last = after
    for first, following in zip(found, [*found[1:], None], strict=False):
        doubts_here: list[str] = []
        try:
            if first > last + 1:
                raise DamagedFile(f"no segment holds entry {last + 1}", hint="")
            with _readable(segment_path(folder, first), copied=copied) as path:
                for number, body in entries(path, after=last, doubts=doubts_here):
                    if following is not None and number >= following:
                        break  # given up after a fault: these are in the following one, too
                    yield number, body
                    last = number
        except DamagedFile as exc:
            if following != last + 1:
                raise JournalDamaged(folder, last, _lost(last, newest, found), str(exc)) from exc
        if following != last + 1:
            doubts += doubts_here
    if newest > last:
        raise JournalDamaged(folder, last, newest - last, f"entry {newest} had been committed")


def inspect(folder: Path, *, after: int = 0) -> JournalState:
    """What the journal holds behind entry `after`, while a daemon may be writing it. Changes nothing.

    A segment at a time is copied to a temporary folder. Raises StorageFault.
    """
    for _ in range(_ATTEMPTS):
        with disk_faults("read", folder, rule="nothing was changed"):
            before = _firsts(folder)
            state = _inspect(folder, max(after, before[0] - 1 if before else 0))
            if not state.faults or _firsts(folder) == before:
                break  # else a daemon has just removed what was to be read
    return state


def _inspect(folder: Path, after: int) -> JournalState:
    faults: list[str] = []
    first = last = count = 0
    try:
        for number, _ in read(folder, after=after, doubts=faults, copied=True):
            first, last, count = first or number, number, count + 1
    except JournalDamaged as exc:
        faults.append(str(exc))
    nbytes = sum(_bytes(path) for path in folder.iterdir()) if folder.exists() else 0
    return JournalState(first, last, count, nbytes, faults)


def _newest(folder: Path, doubts: list[str]) -> int:
    try:
        noted = read_mark(folder)
    except DamagedFile as exc:
        doubts.append(f"{exc}: whether newer entries were committed cannot be told")
        return 0
    if noted is None and _firsts(folder):
        doubts.append(f"{folder / MARK_NAME} is missing: whether newer entries were committed cannot be told")
    return noted or 0


def _firsts(folder: Path) -> list[int]:
    try:
        return firsts(folder)
    except FileNotFoundError:
        return []


def _lost(last: int, newest: int, found: list[int]) -> int | None:
    return max(newest, found[-1] - 1) - last or None


def _bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def _readable(path: Path, *, copied: bool) -> Iterator[Path]:
    if not copied:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="edge_cl-") as folder:
        for file in (wal_path(path), path):
            # What is missing is found missing in the copy, too.
            with disk_faults("copy", file, rule="nothing was changed"), contextlib.suppress(FileNotFoundError):
                shutil.copyfile(file, Path(folder) / file.name)
        yield Path(folder) / path.name
