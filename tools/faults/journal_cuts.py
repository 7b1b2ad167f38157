"""Power cuts while the journal commits: what of a transaction may have arrived, and what is read then.

SQLite writes the log, out of reach of recorder.py; but all that a commit changes stands in two files, and all that was
there before was synced by the commit before. So the difference is cut into the writes that SQLite makes of it, a
frame's header and its page, and each may be there, or not, or be garbage. The mark is never synced: it may be as it was
at any instant before. Knows from wal.py how a log is laid out.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_cl.storage import journal
from edge_cl.storage.atomic import temporary_name
from edge_cl.storage.errors import StorageError
from edge_cl.storage.mark import MARK_NAME
from edge_cl.storage.segment import PAGE_BYTES, WAL
from edge_cl.storage.wal import FRAME_HEADER_BYTES, HEADER_BYTES

from .flips import collected, lay_out
from .power_cut import APPLIED, DROPPED, GARBAGE, Change, put
from .show import shown

PATIENCE_S = 30.0
GO_ON_EVERY = 50  # states, of which one is gone on from with the next entry


@dataclass(frozen=True)
class Cut:
    """The journal's files after a power cut, and how many entries had been acknowledged before it.

    after: the newest entry that nobody needs any more. names: the cut was while names changed.
    """

    files: Mapping[str, bytes]
    acknowledged: int
    after: int = 0
    names: bool = False


def body_of(number: int) -> bytes:
    """Entry `number`."""
    return random.Random(number).randbytes(600)


def examine(folder: Path, commits: int, *, sync: bool = True, most: int | None = None) -> dict[str, int]:
    """`states` and `bad`; without `sync`, as if a commit were acknowledged before it was brought to the disk.

    most: of the fates of one commit's writes so many are drawn, where there are more.
    """
    states = bad = 0
    steps = _record(folder / "recorded", commits)
    cuts = itertools.chain(_cuts(steps, sync=sync, most=most), _cuts_of_names(_record(folder / "recorded", 2, every=1)))
    place = folder / "journal"
    place.mkdir()
    for cut in shown(cuts, "cuts of the journal"):
        lay_out(cut.files, place)
        states += 1
        bad += not _is_well(place, cut, go_on=cut.names or states % GO_ON_EVERY == 0)
    shutil.rmtree(place)
    return {"states": states, "bad": bad}


def _record(folder: Path, commits: int, *, every: int = 0) -> list[Cut]:
    """What is durable, and acknowledged, after each sync: of the new log, of its header, of each commit.

    every: a new segment begins after so many commits.
    """
    writing = journal.Journal(folder, after=0, queue_bytes=1 << 20)
    found: list[Cut] = []
    try:
        for number in range(1, commits + 1):
            assert writing.append(body_of(number)) == number
            assert writing.wait(number, PATIENCE_S)
            found.append(Cut(collected(folder), number))
            if every and number % every == 0:
                writing.rotate()
    finally:
        writing.close()
        shutil.rmtree(folder)
    files, log = found[0].files, _log_of(found[0].files)
    begun = [Cut({**files, log: files[log][:length], MARK_NAME: b""}, 0) for length in (0, HEADER_BYTES)]
    return [*begun, *found]


def _cuts(steps: list[Cut], *, sync: bool, most: int | None) -> Iterator[Cut]:
    """During each step, and after it, before anything else is written."""
    rng = random.Random(0)
    for before, after in itertools.pairwise(steps):
        log = _log_of(after.files)
        pieces = list(_pieces(log, before.files[log], after.files[log]))
        acknowledged = before.acknowledged if sync else after.acknowledged
        for fates in _fates(len(pieces), most, rng):
            content = _log(before.files[log], pieces, fates)
            for mark in sorted({b"", before.files[MARK_NAME]}):
                yield Cut({**after.files, log: content, MARK_NAME: mark}, acknowledged)
        for mark in sorted({b"", before.files[MARK_NAME], after.files[MARK_NAME], rng.randbytes(32)}):
            yield Cut({**after.files, MARK_NAME: mark}, after.acknowledged)


def _fates(pieces: int, most: int | None, rng: random.Random) -> Iterator[tuple[int, ...]]:
    fates = (APPLIED, DROPPED, GARBAGE)
    if most is None or len(fates) ** pieces <= most:
        yield from itertools.product(fates, repeat=pieces)
    else:
        yield from (tuple(rng.choices(fates, k=pieces)) for _ in range(most))


def _log_of(files: Mapping[str, bytes]) -> str:
    (log,) = (name for name in files if name.endswith(WAL))
    return log


def _cuts_of_names(steps: list[Cut]) -> Iterator[Cut]:
    """While a second segment gets its names, and while the first one, no longer needed, loses them."""
    one, two = steps[-2].files, steps[-1].files
    database = min(two.keys() - one.keys())
    temporary = temporary_name(database)
    for names in itertools.product((None, temporary, database), repeat=2):
        ends = zip(names, ("", WAL), strict=True)
        begun = {name + end: b"" if end else two[database] for name, end in ends if name}
        yield Cut({**one, **begun}, 1, names=True)
    old = sorted(one.keys() - {MARK_NAME})
    for gone in itertools.chain.from_iterable(itertools.combinations(old, n) for n in range(len(old) + 1)):
        yield Cut({name: content for name, content in two.items() if name not in gone}, 2, after=1, names=True)


def _pieces(log: str, before: bytes, after: bytes) -> Iterator[Change]:
    """The writes between two states of a log."""
    assert after.startswith(before), f"{log} is not only added to"
    at = len(before)
    while at < len(after):
        in_frame = (at - HEADER_BYTES) % (FRAME_HEADER_BYTES + PAGE_BYTES) if at else -1
        length = HEADER_BYTES if in_frame < 0 else PAGE_BYTES if in_frame else FRAME_HEADER_BYTES
        yield Change(offset=at, data=after[at : at + length])
        at += length


def _log(before: bytes, pieces: list[Change], fates: tuple[int, ...]) -> bytes:
    content = bytearray(before)
    for place, (piece, fate) in enumerate(zip(pieces, fates, strict=True)):
        if fate != DROPPED:
            is_garbage = fate == GARBAGE
            put(content, piece, random.Random(place).randbytes(len(piece.data)) if is_garbage else piece.data)
    return bytes(content)


def _is_well(place: Path, cut: Cut, *, go_on: bool) -> bool:
    try:
        last = _last(place, cut.after)
        if last < cut.acknowledged:
            return False
        if go_on:
            _add(place, last + 1)
            return _last(place, cut.after) == last + 1
    except StorageError:
        return False
    return True


def _last(place: Path, after: int) -> int:
    """The newest entry that is read, 0 if one of them is not what it was."""
    got = list(journal.read(place, after=after))
    last = after + len(got)
    return last if got == [(number, body_of(number)) for number in range(after + 1, last + 1)] else 0


def _add(place: Path, number: int) -> None:
    writing = journal.Journal(place, after=number - 1, queue_bytes=1 << 20)
    assert writing.append(body_of(number)) == number
    assert writing.wait(number, PATIENCE_S)
    writing.close()
