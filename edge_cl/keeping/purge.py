"""Forget every raw sample in a state directory, and nothing that was learnt from them.

    what the journal says is learnt → both slots anew, without samples → the journal overwritten and removed

Each step leaves a directory that a daemon goes on from; whoever is killed in between purges again. Weights, anchor,
Fisher, input statistics, generators and counters stay to the bit. Replay and exam begin anew: a reservoir that is empty
has to count from nothing, or it would hardly take the first samples that come.

Snapshots hold no raw samples. What a disk keeps of blocks that were written over is the disk's affair: where that
matters, the answer is an encrypted one.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_cl.keeping.cursor import RAW, Arrays
from edge_cl.storage import journal
from edge_cl.storage.checkpoint import DAMAGED, SLOTS, Checkpoint, CheckpointStore
from edge_cl.storage.errors import JournalDamaged, StateDirError
from edge_cl.storage.migration import migrate
from edge_cl.storage.shred import remove_file, remove_folder, replaced_content_overwritten
from edge_cl.storage.state_dir import JOURNAL_NAME, StateDir, check_state_dir

RESERVOIRS = ("replay", "exam")
SAMPLES = ("waiting", "ahead", "room")  # with a list of ids and labels beside the array


@dataclass
class Purged:
    """What is gone, and by which generation: samples by where they were, bytes of the journal that were overwritten.

    folded: entries of the journal that were learnt first. lost_samples: of entries that could not be read any more.
    """

    generation: int = 0
    replay_samples: int = 0
    exam_samples: int = 0
    waiting_samples: int = 0
    window_rows: int = 0
    journal_bytes: int = 0
    folded: int = 0
    lost_samples: int = 0


def purge(state: Path) -> Purged:
    """Remove all raw samples from a state directory that no daemon runs on.

    Raises StateBusy, StateDirError, DamagedFile if no slot is sound (then a daemon has to go on from a snapshot first,
    or the whole directory may go), StorageFault (then some may still be there: purge again).
    """
    if check_state_dir(state) is None:
        raise StateDirError(f"{state}: nothing was saved there yet", hint="there is nothing to purge")
    purged = Purged()
    with StateDir(state) as held:
        migrate(held)
        found = CheckpointStore(state).load()
        if found is not None:
            arrays, meta = _all_that_was_learnt(state, found, purged)
            arrays, meta = _without_samples(arrays, meta, purged)
            purged.generation = _save_twice(state, found.model, arrays, meta)
        for slot in SLOTS:
            remove_file(state / f"{slot}{DAMAGED}")
        purged.journal_bytes = remove_folder(state / JOURNAL_NAME)
    return purged


def _all_that_was_learnt(state: Path, found: Checkpoint, purged: Purged) -> tuple[Arrays, dict[str, Any]]:
    """The newest checkpoint, with the journal behind it learnt if there is any."""
    if not _has_entries_behind(state, found):
        return found.arrays, {**found.meta, "journal": found.meta.get("journal", 0)}
    from edge_cl.keeping.recovery import recover  # brings torch

    recovered = recover(state)
    assert recovered is not None
    purged.folded, purged.lost_samples = recovered.replayed, recovered.lost_samples
    arrays, learner = recovered.learner.state()
    place, plain = recovered.cursor.state()
    names = recovered.saved.task.label_names or map(str, range(recovered.cursor.n_labels))
    meta = {
        **found.meta,
        **plain,
        "learner": learner,
        "label_names": list(names),
        "exam_history": recovered.exam_history,
        "journal": recovered.entry,
    }
    return {**arrays, **place}, meta


def _has_entries_behind(state: Path, found: Checkpoint) -> bool:
    try:
        behind = journal.read(state / JOURNAL_NAME, after=found.meta.get("journal", 0))
        return next(behind, None) is not None
    except JournalDamaged:
        return True


def _without_samples(arrays: Arrays, meta: dict[str, Any], purged: Purged) -> tuple[Arrays, dict[str, Any]]:
    """The same state, as of a learner that has no samples any more."""
    purged.replay_samples, purged.exam_samples = (len(arrays.get(f"{name}.labels", ())) for name in RESERVOIRS)
    purged.waiting_samples = sum(len(meta.get(name, ())) for name in SAMPLES)
    learner = {
        name: {**value, "n_seen": [0] * len(value["n_seen"])} if name in RESERVOIRS else value
        for name, value in meta["learner"].items()
    }
    place: dict[str, Any] = {name: [] for name in SAMPLES if name in meta}
    place["window"] = dict(meta.get("window", {}))
    for name in (name for name in arrays if name.startswith("window.") and name.endswith(".rows")):
        stream = name.removeprefix("window.").removesuffix("rows")  # "0.", or nothing, when there was but one
        purged.window_rows += len(arrays[name])
        told = {"skip": 0, "gap": 1, "gap_rows": meta["window"][f"{stream}gap_rows"] + len(arrays[name])}
        place["window"] |= {f"{stream}{key}": value for key, value in told.items()}
    emptied = {name: array[:0] for name, array in arrays.items() if _is_raw(name)}
    return arrays | emptied, {**meta, "learner": learner, **place}


def _is_raw(name: str) -> bool:
    """Whether an array of a checkpoint holds samples, or what was noted of each: labels, logits, ids."""
    return name.split(".")[0] in (*RESERVOIRS, *RAW)


def _save_twice(state: Path, model: str | None, arrays: Arrays, meta: dict[str, Any]) -> int:
    """Both slots anew, the older one first; what they held before is overwritten."""
    store, generation = CheckpointStore(state, model=model), 0
    for _ in SLOTS:
        with ExitStack() as stack:
            for slot in SLOTS:
                stack.enter_context(replaced_content_overwritten(state / slot))
            generation = store.save(arrays, meta)
    return generation
