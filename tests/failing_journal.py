"""A program of its own, under failing_calls.c: a journal is written while one system call after the other fails.

failing_journal.py FOLDER ERRNO TIMES VARIANT → one line of JSON for each N: what became of the journal
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

from edge_cl.storage import journal
from edge_cl.storage.errors import StorageFault
from edge_cl.storage.journal import Entry, Journal

PATIENCE_S = 30.0


class Forgetful(Journal):
    """Wrong: takes a commit for done although it failed."""

    def _commit(self, group: list[Entry]) -> None:
        try:
            super()._commit(group)
        except StorageFault:
            if self._segment is not None:
                self._segment.abandon()
                self._segment = None


class Stubborn(Journal):
    """Wrong: tries again with the segment whose sync failed."""

    def _commit(self, group: list[Entry]) -> None:
        try:
            super()._commit(group)
        except StorageFault:
            if self._segment is None or self._segment._connection is None:
                raise
            if self._segment._connection.in_transaction:
                self._segment._connection.execute("ROLLBACK")
            self._segment.write(group)


VARIANTS = {"right": Journal, "forgetful": Forgetful, "stubborn": Stubborn}


def body(number: int) -> bytes:
    """Some are longer than a page."""
    return b"%d " % number * (number % 3 * 400 + 1)


def work(folder: Path, kind: type[Journal]) -> dict[str, object]:
    """Two segments, one of which is forgotten, then a restart."""
    place = folder / "journal"
    faults: list[int] = []
    after = 0
    for rounds in (4, 2):
        writing = kind(place, after=after, queue_bytes=1 << 20, commit_ms=1e9)
        for step in range(rounds):
            for _ in range(2):
                after += 1
                assert writing.append(body(after)) == after
            while not writing.wait(after, 0.0005):
                faults += [] if writing.fault is None else [writing.fault.errno]
            assert writing.fault is None
            if step == 1:
                writing.rotate()
            if step == 2:
                writing.forget(4)
        writing.close(PATIENCE_S)
        assert writing.committed == after
    return {"acknowledged": after, "faults": sorted(set(faults))}


def open_descriptors() -> int:
    """How many there are."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def main() -> None:
    """See above."""
    folder, code, times, variant = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    journal.FIRST_PAUSE_S, journal.LONGEST_PAUSE_S = 0.0005, 0.002
    shim = ctypes.CDLL(None)
    shim.fail_reused.restype = shim.fail_seen.restype = ctypes.c_long
    number = 0
    while True:
        number += 1
        place = folder / str(number)
        place.mkdir()
        descriptors = open_descriptors()
        shim.fail_arm(os.fsencode(place), ctypes.c_long(number), ctypes.c_long(times), code)
        found = work(place, VARIANTS[variant])
        seen = shim.fail_seen()
        shim.fail_arm(b"/nowhere", ctypes.c_long(0), ctypes.c_long(0), 0)
        leaked = open_descriptors() - descriptors
        said = {"n": number, "seen": seen, "reused": shim.fail_reused(), "leaked": leaked, **found}
        sys.stdout.write(json.dumps(said) + "\n")
        if seen < number:
            return


if __name__ == "__main__":
    main()
