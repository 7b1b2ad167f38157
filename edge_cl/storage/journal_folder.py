"""The journal's folder as a new writer needs it, and without what is no longer needed. Knows names, not entries.

Nobody else writes there: the caller holds the state directory's lock.
"""

import contextlib
import os
from pathlib import Path

from edge_cl.storage.atomic import is_temporary, open_folder
from edge_cl.storage.errors import disk_faults
from edge_cl.storage.segment import NOT_ACKNOWLEDGED, WAL, firsts, segment_path

ASIDE = ".aside"


def prepare(folder: Path, after: int) -> None:
    """Create it if it is missing, remove what was half-made, and set aside the segments that begin behind `after`.

    What recovery did not get to would be taken for entries behind ours; a person may still want to look at it.
    Raises StorageFault.
    """
    with disk_faults("prepare", folder, rule=NOT_ACKNOWLEDGED):
        folder.mkdir(mode=0o700, exist_ok=True)
        with open_folder(folder.parent) as above:
            os.fsync(above)
        for entry in list(folder.iterdir()):
            if is_temporary(entry.name.removesuffix(WAL)):
                entry.unlink()
        for first in firsts(folder):
            if first > after:
                _set_aside(segment_path(folder, first))
        with open_folder(folder) as opened:
            os.fsync(opened)


def remove(folder: Path, upto: int, last: int) -> None:
    """Remove the segments, set aside or not, whose entries all are at most `upto`; the newest one ends at `last`.

    Raises StorageFault.
    """
    with disk_faults("clean", folder, rule="what is left is removed next time"), open_folder(folder) as opened:
        found = firsts(folder)
        ends = [*(first - 1 for first in found[1:]), last][: len(found)]
        names = [segment_path(folder, first).name for first, end in zip(found, ends, strict=True) if end <= upto]
        aside = {path.name.removesuffix(WAL) for path in folder.glob(f"*{ASIDE}*")}
        names += [name for name in aside if int(name[:12]) <= upto]
        for name in names:
            for end_of_name in (WAL, ""):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name + end_of_name, dir_fd=opened)
        os.fsync(opened)


def _set_aside(segment: Path) -> None:
    for end in (WAL, ""):
        with contextlib.suppress(FileNotFoundError):
            segment.with_name(segment.name + end).rename(segment.with_name(segment.name + ASIDE + end))
