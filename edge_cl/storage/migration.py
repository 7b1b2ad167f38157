"""From an older layout of a state directory to this one, step by step, each step named by the format it leaves.

Must not know what the files hold. The number in `.format` is written last: whoever is killed before that has a
directory of the old format, which every reader still takes, and the step can be done again from its start.

    1 → 2   journal/ is there, empty. What was saved before has no entry in a journal, and says so by saying nothing.

The way back is a backup: an older edge_cl refuses what a newer one has migrated, rather than passing over the journal.
"""

import os
from collections.abc import Callable
from pathlib import Path

from edge_cl.storage.atomic import NOTHING_CHANGED, open_folder
from edge_cl.storage.errors import StateDirError, disk_faults
from edge_cl.storage.state_dir import FORMAT, JOURNAL_NAME, StateDir, write_format


def migrate(held: StateDir) -> int | None:
    """Bring a state directory that this process holds up to date; the format it had, None if that was FORMAT already.

    Raises StateDirError before anything is changed, StorageFault; in both cases the old format still holds.
    """
    before = held.format
    if before == FORMAT:
        return None
    for step in range(before, FORMAT):
        _STEPS[step](held.path)
    write_format(held.path)
    held.format = FORMAT
    return before


def _add_journal(path: Path) -> None:
    journal = path / JOURNAL_NAME
    with disk_faults("create", journal, rule=NOTHING_CHANGED):
        journal.mkdir(mode=0o700, exist_ok=True)  # a migration that was killed has left it
        if any(journal.iterdir()):
            raise StateDirError(
                f"{journal} is not empty, but {path} is of a format that has no journal",
                hint="move that folder away: what is in it belongs to no state here",
            )
        with open_folder(path) as folder:
            os.fsync(folder)


_STEPS: dict[int, Callable[[Path], None]] = {1: _add_journal}
