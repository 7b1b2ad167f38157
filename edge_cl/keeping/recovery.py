"""The learner as it would be, had nobody pulled the plug: the newest sound checkpoint, and the journal behind it.

Knows checkpoint and journal, and how an entry is applied. Writes nothing: what was recovered becomes the state of the
directory with the next checkpoint. Each thing that had to be left out is a sentence in `faults`, for a person.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from edge_cl.keeping.cursor import Cursor
from edge_cl.keeping.entry import Entry
from edge_cl.keeping.room import Room, restored_waiting
from edge_cl.keeping.saved import Saved, rebuilt
from edge_cl.learning.graph import adopt
from edge_cl.learning.learner import Learner
from edge_cl.learning.network import Network
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.service.status import ExamPoint, Restart, exam_point
from edge_cl.storage import journal
from edge_cl.storage.checkpoint import Checkpoint, CheckpointStore
from edge_cl.storage.errors import DamagedFile, JournalDamaged
from edge_cl.storage.protobuf import initializers
from edge_cl.storage.published import ShelfReader
from edge_cl.storage.state_dir import JOURNAL_NAME

_START_OVER = "restore the state directory from a backup, or name a new one to learn from the start"


@dataclass
class Recovered:
    """A learner, where the daemon was in its stream, and how both were come by.

    entry: number of the last journal entry that is in it. replayed: how many entries that took, in `seconds`.
    lost_samples: learnt and acknowledged, but to be read no more.
    """

    saved: Saved
    source: str
    cursor: Cursor
    entry: int
    exam_history: list[ExamPoint]
    generation: int
    room: Room
    replayed: int = 0
    replayed_samples: int = 0
    lost_samples: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def told(self) -> Restart:
        """What the status says of it."""
        return {
            "generation": self.generation,
            "replayed": self.replayed,
            "seconds": self.seconds,
            "lost_samples": self.lost_samples,
            "faults": self.faults,
        }

    @property
    def learner(self) -> OnlineLearner:
        """The learner."""
        return self.saved.learner


def recover(state: Path, store: CheckpointStore | None = None) -> Recovered | None:
    """What the state directory holds, by its checkpoints in `store`; None if nothing was ever saved there.

    Raises DamagedFile if both slots are damaged, StateDirError if they are a newer edge_cl's, OperatorError if they do
    not say how the learner was configured, StorageFault.
    """
    started = time.perf_counter()
    store = store or CheckpointStore(state)
    found = store.load()
    if found is None:
        if ShelfReader(state).ids():
            raise DamagedFile(f"{state} has snapshots, but no checkpoint any more", hint=_START_OVER)
        return None
    recovered = _from_checkpoint(found, state)
    recovered.faults += store.faults
    try:
        for number, body in journal.read(state / JOURNAL_NAME, after=recovered.entry, doubts=recovered.faults):
            _apply(recovered, number, Entry(body))
    except JournalDamaged as exc:
        _leave_out(recovered, exc)
    if recovered.replayed and not _is_finite(recovered.learner):
        recovered = _without_journal(found, state, recovered)
    recovered.seconds = time.perf_counter() - started
    return recovered


def revive(learner: OnlineLearner, state: Path) -> tuple[str, int]:
    """Give a new learner the weights of the newest good snapshot, where no checkpoint is sound.

    Says which one, in words, and how many classes it knows.

    What else was known (replay memory, Fisher, exam) is gone. Raises DamagedFile if there is no such snapshot, or none
    that this learner can take.
    """
    good = [entry for entry in ShelfReader(state).entries() if entry.state != "bad"]
    if not good:
        raise DamagedFile(f"{state} holds neither a sound checkpoint nor a good snapshot", hint=_START_OVER)
    newest, network = good[-1], learner.network
    if not isinstance(learner, Learner) or not isinstance(network, Network):
        raise DamagedFile(f"{state}: a {network.kind} cannot go on from a snapshot alone", hint=_START_OVER)
    try:
        used = adopt(network, initializers(newest.read()))
    except ValueError as exc:
        raise DamagedFile(f"{state}: snapshot {newest.id} is of another model: {exc}", hint=_START_OVER) from exc
    training = newest.manifest["training"]
    learner.go_on_from(used, **{key: training[key] for key in ("learned", "steps", "consolidations")})
    told = f"went on with the weights of snapshot {newest.id} alone: replay memory, Fisher and exam begin anew"
    return told, 0 if network.blueprint.aim else int(used.max(initial=-1)) + 1


def bases_for(recovered: Recovered | None, *, changed: bool) -> int:
    """How many checkpoints must be saved before anything is journaled behind them.

    What is journaled is replayed as the checkpoint before it says, so neither slot may be of another configuration, or
    in front of a hole.
    """
    if recovered is None or changed or recovered.lost_samples:
        return 2
    return 1 if recovered.replayed or recovered.faults else 0


def _from_checkpoint(found: Checkpoint, state: Path) -> Recovered:
    saved, meta = rebuilt(found, state), found.meta
    # A state of format 1 has no journal, and less of a cursor.
    missing = {"journal": 0, "ahead": [], "dropped": {}, "consolidated_steps": meta.get("published_steps", 0)}
    meta = {**missing, "governor": {}, "n_labels": len(meta["label_names"]), **meta}
    cursor = Cursor.restored(found.arrays, meta)
    room = Room(saved.config.bridge.label_wait_bytes, inf)
    for waiting in restored_waiting(found.arrays, meta):
        room.enter(waiting)
    return Recovered(saved, meta["source"], cursor, meta["journal"], meta["exam_history"], found.generation, room)


def _apply(recovered: Recovered, number: int, entry: Entry) -> None:
    entry.apply(recovered.learner)
    entry.seat(recovered.room)
    recovered.entry, recovered.cursor = number, entry.cursor
    recovered.replayed += 1
    recovered.replayed_samples += entry.samples
    if entry.kind == "consolidate":
        names = recovered.saved.task.label_names
        recovered.exam_history.append(exam_point(recovered.learner.steps, entry.exam, names))


def _leave_out(recovered: Recovered, damage: JournalDamaged) -> None:
    """Go on from the last entry that is sound; a fold cannot go on behind a hole."""
    recovered.lost_samples, told = damage.cost(recovered.saved.config.learning.batch_size)
    recovered.faults.append(f"{damage}; went on from entry {recovered.entry:,}: {told}")


def _without_journal(found: Checkpoint, state: Path, diverged: Recovered) -> Recovered:
    """Go on from the checkpoint alone: a learner that diverged cannot come back, and would diverge at each start."""
    recovered = _from_checkpoint(found, state)
    recovered.lost_samples = diverged.lost_samples + diverged.replayed_samples
    recovered.faults = [
        *diverged.faults,
        f"the learner had diverged within the last {diverged.replayed_samples:,} samples; went on from before them",
    ]
    return recovered


def _is_finite(learner: OnlineLearner) -> bool:
    return bool(learner.network.arena.flat.isfinite().all())
