"""Kills of the real daemon: learning, consolidating, saving and publishing, from a recording that it plays to its end.

The process that imports this has torch and never uses it; each daemon and each recovery is a fork of it. A reference
plays the same recording with nobody to kill it, and leaves the SHA-256 of its learner after each entry of its journal.
What a clock decides is kept out by generous limits: replaying such decisions is what journal entries are for, but then
two runs would differ by right.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from edge_cl.config import Config, parse
from edge_cl.daemon import Daemon
from edge_cl.keeping.entry import Entry
from edge_cl.keeping.keeper import Keeper
from edge_cl.keeping.recovery import recover
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.publishing import publisher
from edge_cl.storage.atomic import is_temporary
from edge_cl.storage.inspection import damage
from edge_cl.storage.published import ShelfReader

from .kept_template import keeping
from .kills import ChildFailed, Tally, Tell, answered, killed, slept
from .show import shown
from .told_source import tell_of_recordings

SHAPE: Final = (8, 3)
CLASSES: Final = 3
EARLY: Final = 0.3  # of the daemons are killed while they start, or soon after
EARLY_S: Final = 0.3  # the longest of their lives
LIFE_S: Final = 0.4  # of the others', from the first word of what they acknowledge
WORD_S: Final = 10.0  # the longest to wait for that
SETTINGS: Final = (
    "model.kind=mlp",
    "model.width=16",
    "learning.batch_size=4",
    "consolidation.every_steps=10",
    "consolidation.rehearsal_passes=1",
    "exam.share=0.2",
    "budget.step_ms=10000",
    "budget.predict_ms=10000",
    "budget.consolidation_ms=60000",
    "storage.commit_ms=5",
    "storage.recovery_s=0.05",
    "snapshots.trial_samples=20",
)

Digests = dict[int, tuple[str, int]]  # by journal entry: of the learner, and how many labelled samples had come


class DaemonCampaign:
    """Kill after kill; a state directory is left for a new one when its daemon has come to the recording's end."""

    def __init__(self, folder: Path, seed: int, broken: Collection[str] = (), *, samples: int) -> None:
        torch.set_num_threads(1)
        (folder / "templates").mkdir()
        vars(publisher)["start_build"] = keeping(folder / "templates")  # the two are used alike
        _record(folder / "recording.npz", seed, samples)
        self._folder, self._rng, self._broken = folder, random.Random(seed), broken
        self._url, self._config = f"recording:{folder / 'recording.npz'}", parse("", overrides=SETTINGS)
        self._tally = Tally()
        self._counts = dict.fromkeys(("acknowledged", "directories", "played_to_the_end", "replayed"), 0)
        self._unfinished = {"snapshot": 0, "checkpoint": 0}
        self._begin()

    def run(self, kills: int) -> dict[str, Any]:
        """The result of so many kills, with what was done beside the contract's keys."""
        started = time.monotonic()
        reference = _reference(self._folder / "reference", self._config, self._url)
        for _ in shown(range(kills), "kills", kills):
            self._kill(reference)
        unfinished = {f"unfinished_{what}s": n for what, n in self._unfinished.items()}
        seconds = round(time.monotonic() - started, 1)
        return {**self._tally.result(), **self._counts, **unfinished, "entries": max(reference), "seconds": seconds}

    def _begin(self) -> None:
        self._state = self._folder / f"{self._counts['directories']:06d}"
        self._acknowledged = 0
        self._counts["directories"] += 1

    def _kill(self, reference: Digests) -> None:
        def work(tell: Tell) -> None:
            tell_of_recordings(tell, early="ack-early" in self._broken)
            Daemon(self._config, self._state, source_url=self._url, once=True).run()

        is_early = self._rng.random() < EARLY
        instant = slept(
            self._rng.uniform(0, EARLY_S if is_early else LIFE_S),
            after_word_s=0.0 if is_early else WORD_S,
        )
        self._tally.kills += 1
        try:
            told, is_over = killed(work, instant)
        except ChildFailed as exc:
            self._tally.damaged(str(exc))
            self._leave()
            return
        self._counts["acknowledged"] += max(0, max(told, default=0) - self._acknowledged)
        self._acknowledged = max([self._acknowledged, *told])
        self._look_for_unfinished()
        is_well = self._recovers(reference, is_over=is_over)
        self._counts["played_to_the_end"] += is_over
        if is_over or not is_well:
            self._leave()

    def _leave(self) -> None:
        shutil.rmtree(self._state, ignore_errors=True)
        self._begin()

    def _look_for_unfinished(self) -> None:
        """Proof of where the kills fell."""
        for what, place in (("snapshot", self._state / "snapshots"), ("checkpoint", self._state)):
            names = [entry.name for entry in place.iterdir()] if place.is_dir() else []
            self._unfinished[what] += any(is_temporary(name) and not name.startswith(".status") for name in names)

    def _recovers(self, reference: Digests, *, is_over: bool) -> bool:
        if not self._state.is_dir():
            return self._acknowledged == 0
        try:
            found = answered(lambda: _recovered(self._state, is_twice="replay-twice" in self._broken))
        except ChildFailed as exc:
            self._tally.damaged(f"recovery: {exc}")
            return False
        if found["faults"]:
            self._tally.damaged("; ".join(found["faults"]))
            return False
        self._tally.recovery_s.append(found["seconds"])
        self._counts["replayed"] += found["replayed"]
        digest, labelled = reference.get(found["entry"], ("no such entry", 0))
        is_nothing = not found["digest"]  # killed before anything was saved
        is_whole = not is_over or found["entry"] == max(reference)
        return self._tally.judge(
            lost=max(0, self._acknowledged - found["position"]),
            twice=max(0, found["labelled"] - labelled),
            is_identical=is_nothing or (found["digest"] == digest and is_whole),
            told=f"{self._acknowledged} acknowledged; {found}",
        )


def _record(file: Path, seed: int, samples: int) -> None:
    """Made-up signals of a few classes that a small model can learn."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, samples)
    ideal = rng.normal(0, 300, (CLASSES, *SHAPE))
    x = (ideal[y] + rng.normal(0, 150, (samples, *SHAPE))).astype(np.int16)
    np.savez(file, x=x, y=y, label_names=np.array([f"class {c}" for c in range(CLASSES)]))


def _reference(state: Path, config: Config, url: str) -> Digests:
    """Play the recording to its end, uninterrupted."""

    def play() -> list[tuple[int, str, int]]:
        daemon = Daemon(config, state, source_url=url, once=True)
        found: Digests = {}

        def then(real: Callable[..., None]) -> Callable[..., None]:
            def wrapper(self: Keeper, *args: Any, **options: Any) -> None:
                real(self, *args, **options)
                now = digest_of(daemon.learner), daemon.learner.labelled
                assert found.setdefault(self.entry, now) == now, f"the learner changed after entry {self.entry}"

            return wrapper

        # In this child alone. Before the first entry there is a checkpoint, so that entry 0 is known, too.
        Keeper.note, Keeper.checkpoint = then(Keeper.note), then(Keeper.checkpoint)  # type: ignore[method-assign]
        daemon.run()
        return [(entry, *rest) for entry, rest in found.items()]

    return {entry: (digest, labelled) for entry, digest, labelled in answered(play)}


def _recovered(state: Path, *, is_twice: bool) -> dict[str, Any]:
    """What a start would go on from, and whether what consumers see fits to it."""
    if is_twice:
        _break_replay()
    shelf, found = ShelfReader(state), recover(state)
    faults = [f"snapshot {number}: {why}" for number, wrong in damage(shelf).items() for why in wrong]
    snapshots = [entry.manifest["training"]["consolidations"] for entry in shelf.entries()]
    if found is None:
        faults += ["a snapshot of what was not saved"] * bool(snapshots)
        return {"entry": 0, "position": 0, "labelled": 0, "digest": "", "seconds": 0.0, "replayed": 0, "faults": faults}
    learner, position = found.learner, next(reversed(found.cursor.positions.values()), None)
    faults += [f"a snapshot after {n} consolidations is ahead" for n in snapshots if n > learner.consolidations]
    return {
        "entry": found.entry,
        "position": 0 if position is None else position.seq + 1,
        "labelled": learner.labelled,
        "digest": digest_of(learner),
        "seconds": found.seconds,
        "replayed": found.replayed,
        "faults": faults + found.faults,
    }


def _break_replay() -> None:
    """Let each entry be applied twice, in this child alone: the campaign must notice."""
    apply = Entry.apply

    def twice(self: Entry, learner: OnlineLearner) -> None:
        apply(self, learner)
        apply(self, learner)

    Entry.apply = twice  # type: ignore[method-assign]


def digest_of(learner: OnlineLearner) -> str:
    """Equal for learners that are equal to the bit: weights, Fisher, reservoirs, random generators, counters."""
    arrays, plain = learner.state()
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
