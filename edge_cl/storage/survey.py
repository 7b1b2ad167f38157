"""What lies in a state directory, whether each byte of it is what was once written, and what a start would make of it.

Reads checkpoints, journal and shelf, beside a running daemon too, and changes nothing. Knows of a checkpoint's meaning
only its counters and whose it is; must not know learners, nor import what learns.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edge_cl.storage import journal
from edge_cl.storage.checkpoint import SLOTS, Checkpoint, CheckpointStore
from edge_cl.storage.errors import DamagedFile, JournalDamaged, disk_faults
from edge_cl.storage.inspection import damage, damage_of_current, row
from edge_cl.storage.published import ShelfReader
from edge_cl.storage.state_dir import JOURNAL_NAME, check_state_dir, running_pid

MOST_LOOKS: Final = 5  # at a directory that a daemon changes meanwhile
BLOCK_BYTES: Final = 512  # of st_blocks
_UNCHANGED: Final = "nothing was changed"


@dataclass
class Survey:
    """What was found, in plain values; `faults` has a sentence for all that is damaged."""

    state: Path
    format: int | None
    pid: int | None
    slots: list[dict[str, Any]] = field(default_factory=list)
    journal: dict[str, Any] = field(default_factory=dict)
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    current: str | None = None
    source: str | None = None
    model: str | None = None
    nbytes: int = 0
    faults: list[str] = field(default_factory=list)
    recovery: str = ""
    lost_samples: int | None = 0  # None: they cannot be counted

    @property
    def is_sound(self) -> bool:
        """Whether all of it is what was once written."""
        return not self.faults

    def shown(self) -> dict[str, Any]:
        """What `state show --json` prints."""
        return {
            "format": self.format,
            "pid": self.pid,
            "source": self.source,
            "model": self.model,
            "slots": self.slots,
            "journal": self.journal,
            "snapshots": self.snapshots,
            "current": self.current,
            "bytes": self.nbytes,
            "faults": self.faults,
        }

    def verified(self) -> dict[str, Any]:
        """What `state verify --json` prints."""
        return {
            "sound": self.is_sound,
            "faults": self.faults,
            "recovery": self.recovery,
            "lost_samples": self.lost_samples,
            "slots": self.slots,
            "journal": self.journal,
            "snapshots": self.snapshots,
        }


def survey(state: Path, *, thorough: bool) -> Survey:
    """What lies in the state directory; with `thorough` every model and every entry is read and held against its sum.

    Raises StateDirError, StorageFault.
    """
    layout = check_state_dir(state)
    for _ in range(MOST_LOOKS):
        found = Survey(state, layout, running_pid(state))
        sound = _look_at_slots(found)
        _look_at_journal(found, sound)
        if not found.faults or found.pid is None:
            break  # else a daemon may just have replaced what was to be read
    _look_at_snapshots(found, thorough=thorough)
    found.nbytes = _bytes_in(state, lambda status: status.st_blocks * BLOCK_BYTES)
    return found


def _look_at_slots(found: Survey) -> dict[str, Checkpoint]:
    sound, faults = CheckpointStore(found.state).slots()
    found.faults += faults.values()
    for slot in SLOTS:
        if slot in sound or slot in faults:
            path = found.state / slot
            with disk_faults("look at", path, rule=_UNCHANGED):
                status = path.lstat()
            facts = {"slot": slot, "saved_s": status.st_mtime, "bytes": status.st_size, "fault": faults.get(slot)}
            found.slots.append({**facts, **_counters(sound.get(slot))})
    newest = _newest(sound)
    if newest is not None:
        found.source, found.model = sound[newest].meta.get("source"), sound[newest].model
    return sound


def _counters(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """How far the learner of a checkpoint had come, and the last entry of the journal that is in it."""
    names = ("labelled", "learned", "steps")
    if checkpoint is None:
        return dict.fromkeys(("generation", *names, "journal"))
    counts = checkpoint.meta.get("learner", {}).get("counts", ())
    return {
        "generation": checkpoint.generation,
        **dict(zip(names, (*counts[:3], None, None, None), strict=False)),
        "journal": _entry_in(checkpoint),
    }


def _look_at_journal(found: Survey, sound: dict[str, Checkpoint]) -> None:
    """The entries behind the newest slot, and what a start would make of both."""
    folder, newest = found.state / JOURNAL_NAME, _newest(sound)
    after = 0 if newest is None else _entry_in(sound[newest])
    oldest = min(map(_entry_in, sound.values()), default=0)
    doubts: list[str] = []
    first, last, n, hole = _walk(folder, oldest, doubts)
    if hole is not None and hole.number < after:  # entries that only the older slot would need
        found.faults += [str(hole), *doubts]
        doubts = []
        first, last, n, hole = _walk(folder, after, doubts)
    if hole is not None:
        found.faults.append(str(hole))
    found.faults += doubts
    behind = max(0, last - after)
    found.journal = {
        "entries": n,
        "first": first,
        "last": last,
        "behind": behind,
        "bytes": _bytes_in(folder, lambda status: status.st_size),
        "segments": len(list(folder.glob("*.db"))),
    }
    _foresee(found, sound, newest, behind, hole)
    if doubts and not found.lost_samples:
        found.recovery = found.recovery.replace("nothing is lost", "whether anything is lost cannot be told")


def _walk(folder: Path, after: int, doubts: list[str]) -> tuple[int, int, int, JournalDamaged | None]:
    """First, last and number of the sound entries behind `after`, and what is wrong behind those."""
    first = last = n = 0
    try:
        for number, _ in journal.read(folder, after=after, doubts=doubts, copied=True):
            first, last, n = first or number, number, n + 1
    except JournalDamaged as exc:
        return first, last, n, exc
    return first, last, n, None


def _foresee(
    found: Survey, sound: dict[str, Checkpoint], newest: str | None, behind: int, hole: JournalDamaged | None
) -> None:
    """What a start would do: `recovery`, and how many samples that would cost."""
    if newest is None:
        found.recovery = _without_a_slot(found)
        return
    checkpoint = sound[newest]
    entries = f"{behind:,} journal {'entry' if behind == 1 else 'entries'} behind it"
    lost = "nothing is lost"
    if hole is not None:
        batch = checkpoint.meta.get("config", {}).get("learning", {}).get("batch_size", 1)
        found.lost_samples, lost = hole.cost(batch)
    found.recovery = f"goes on from generation {checkpoint.generation} in {newest} and {entries}; {lost}"


def _without_a_slot(found: Survey) -> str:
    if not found.slots:
        return "nothing was saved yet: a daemon begins with a new learner"
    found.lost_samples = None
    usable = [entry.id for entry in ShelfReader(found.state).entries() if entry.state != "bad"]
    if not usable:
        return "no checkpoint is sound, and there is no snapshot to go on from: restore the directory from a backup"
    return f"goes on with the weights of snapshot {usable[-1]} alone; what was learnt after it is lost, and all samples"


def _look_at_snapshots(found: Survey, *, thorough: bool) -> None:
    shelf = ShelfReader(found.state)
    current: str | None = None
    try:
        now = shelf.current()
        current = None if now is None else now.id
    except DamagedFile:
        pass  # damage_of_current says it
    problems = damage(shelf) if thorough else {}
    found.current = current
    for entry in shelf.entries():
        facts = row(entry, current=entry.id == current)
        found.snapshots.append({**facts, "problems": problems.get(entry.id, [])})
    found.faults += damage_of_current(shelf)
    found.faults += [f"snapshot {number}: {what}" for number, wrong in problems.items() for what in wrong]


def _bytes_in(folder: Path, of_one: Callable[[os.stat_result], int]) -> int:
    """Of all files below the folder together; those that go away meanwhile do not count."""
    total = 0
    for above, _, names in os.walk(folder):  # unlike rglob it minds no folder that goes away, either
        for name in names:
            with suppress(FileNotFoundError):
                total += of_one(Path(above, name).lstat())
    return total


def _newest(sound: dict[str, Checkpoint]) -> str | None:
    return max(sound, key=lambda slot: sound[slot].generation, default=None)


def _entry_in(checkpoint: Checkpoint) -> int:
    return int(checkpoint.meta.get("journal", 0))
