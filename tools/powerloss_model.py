#!/usr/bin/env python3
"""Power cuts in a model: every instant of three checkpoints and commits, with every fate of what was not synced then.

    python tools/powerloss_model.py [--json] [--commits 3]

The real edge_cl.storage.checkpoint saves; its calls of the operating system are recorded. After each of them, and with
every subset of the names that were not synced and every write that was not synced applied, dropped or turned into
garbage, the disk is laid out and loaded by the same code. `states` counts the disks, `bad` those on which

    what was acknowledged, or newer, is not what is loaded, to the bit; or a slot is damaged, though two slots are there
    for broken disks and no power cut may use one up; or the next save does not work.

Three broken variants prove that the model notices: one that never syncs a file, one that never syncs the folder, and
one that writes in place. Where they leave more than MOST disks at one instant, so many are drawn from them.

Then the same of as many commits of the real journal, of which what was acknowledged must be read again, without a word
of damage; and of one that acknowledges before it syncs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faults import journal_cuts
from faults.power_cut import Cut, Recording, fingerprint, write_out
from faults.recorder import Omit, nothing, recorded
from faults.scratch import scratch
from faults.show import shown
from rich.console import Console
from rich.table import Table

from edge_cl.storage.checkpoint import CheckpointStore
from edge_cl.storage.errors import StorageError

COMMITS = 3
MOST = 1000
MODEL = "power cut"


@dataclass(frozen=True)
class Protocol:
    """How a save is changed before it is recorded."""

    omit: Omit = nothing
    in_place: bool = False


CORRECT = Protocol()
BROKEN = {
    "no_file_fsync": Protocol(omit=lambda kind, number: kind == "file"),
    "no_folder_fsync": Protocol(omit=lambda kind, number: kind == "folder"),
    "in_place": Protocol(in_place=True),
}


def main() -> int:
    """Parse, go through all states, print; 1 if the model found a fault, or was blind to one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--commits", type=int, default=COMMITS, help=f"checkpoints one after the other ({COMMITS})")
    parser.add_argument("--most", type=int, default=MOST, help=f"disks of a broken variant at one instant ({MOST})")
    parser.add_argument("--quick", action="store_true", help="no more of the journal's, either")
    options = parser.parse_args()
    result = model(options.commits, options.most, is_quick=options.quick)
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(table(result))
    is_sound = result["bad"] == result["journal"]["bad"] == 0
    notices = all(result[name]["bad"] for name in BROKEN) and result["journal"]["no_sync"]["bad"]
    return 0 if is_sound and notices else 1


def model(commits: int = COMMITS, most: int = MOST, *, is_quick: bool = False) -> dict[str, Any]:
    """`states` and `bad` of the checkpoints as they are, of each broken variant, and of the journal.

    is_quick: of the journal's states, too, at most `most` a commit.
    """
    found: dict[str, Any] = {**examine(CORRECT, commits, most=None), "commits": commits}
    for name, protocol in BROKEN.items():
        found[name] = examine(protocol, commits, most=most)
    with scratch(in_memory=True) as folder:
        found["journal"] = journal_cuts.examine(folder, commits, most=most if is_quick else None)
        found["journal"]["no_sync"] = journal_cuts.examine(folder, commits, sync=False, most=most)
    return found


def examine(protocol: Protocol, commits: int, *, most: int | None) -> dict[str, int]:
    """Record that many saves, lay out every disk and load it."""
    with scratch(in_memory=True) as folder:
        recording, acknowledged = _record(folder / "saves", protocol, commits)
        verdicts: dict[tuple[Any, ...], int] = {}  # the generation that is loaded, -1: bad
        states = bad = 0
        for cut in shown(recording.power_cuts(torn=True, most=most), "power cuts"):
            looks = fingerprint(cut, recording.root)
            if looks not in verdicts:
                verdicts[looks] = _loaded(cut, recording.root, folder / "disk")
            states += 1
            bad += verdicts[looks] < sum(place <= cut.done for place in acknowledged)
        return {"states": states, "bad": bad}


def saved(generation: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a save puts down: one array of two blocks, one small one."""
    rng = np.random.default_rng(generation)
    return {"weights": rng.normal(size=600), "replay": rng.integers(0, 256, 64, np.uint8)}, {"journal": generation}


def _record(folder: Path, protocol: Protocol, commits: int) -> tuple[Recording, list[int]]:
    """The recording, and after how many changes each save had returned."""
    folder.mkdir()
    acknowledged = []
    with recorded(folder, omit=protocol.omit, in_place=protocol.in_place) as recording:
        store = CheckpointStore(folder, model=MODEL)
        for generation in range(1, commits + 1):
            store.save(*saved(generation))
            acknowledged.append(len(recording.changes))
    return recording, acknowledged


def _loaded(cut: Cut, root: int, folder: Path) -> int:
    write_out(cut, root, folder)
    try:
        return _generation(folder)
    except StorageError:
        return -1
    finally:
        shutil.rmtree(folder)


def _generation(folder: Path) -> int:
    store = CheckpointStore(folder, model=MODEL)
    found = store.load()
    generation = 0 if found is None else found.generation
    if store.faults or (found is not None and not _is_as_saved(found.arrays, found.meta, generation)):
        return -1
    # What a cut left behind must not stand in the way of the next save.
    store.save(*saved(generation + 1))
    again = CheckpointStore(folder, model=MODEL).load()
    return generation if again is not None and again.generation == generation + 1 else -1


def _is_as_saved(arrays: dict[str, np.ndarray], meta: dict[str, Any], generation: int) -> bool:
    expected, noted = saved(generation)
    same = [arrays[name].tobytes() == array.tobytes() for name, array in expected.items() if name in arrays]
    return meta == noted and arrays.keys() == expected.keys() and all(same)


def table(result: dict[str, Any]) -> Table:
    """The figures for a person."""
    drawn = Table("", "states", "bad", title=f"Power cuts during {result['commits']} checkpoints and commits")
    drawn.add_row("as it is", f"{result['states']:,}", f"{result['bad']:,}")
    for name in BROKEN:
        drawn.add_row(name.replace("_", " "), f"{result[name]['states']:,}", f"{result[name]['bad']:,}")
    journal = result["journal"]
    drawn.add_row("journal", f"{journal['states']:,}", f"{journal['bad']:,}")
    drawn.add_row("journal, no sync", f"{journal['no_sync']['states']:,}", f"{journal['no_sync']['bad']:,}")
    return drawn


if __name__ == "__main__":
    sys.exit(main())
