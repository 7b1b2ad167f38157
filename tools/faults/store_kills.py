"""Kills of a process that does what the daemon does to its state directory, with a learner in small: no torch.

The child learns and has the daemon's own keeper write the journal and save checkpoints in a thread while it goes on.
What it leaves is recovered as a daemon would: the newest checkpoint, and the journal behind it.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_cl.keeping.keeper import Keeper
from edge_cl.settings import StorageSettings
from edge_cl.storage import journal
from edge_cl.storage.checkpoint import SLOTS, CheckpointStore

from .fold import Fold, Reference, body_of
from .kills import Tally, Tell, killed, slept
from .show import shown

MODEL: Final = "fold"
LIFE_S: Final = 0.025  # the longest of a child, from its start or from its first word
WITH_WORD: Final = 0.6  # of the children may first acknowledge something: a slow disk would have none of them do so
WORD_S: Final = 1.0  # the longest to wait for that
AGE: Final = 500  # kills after which a state directory is left for a new one, on average
OTHER_SLOT_EVERY: Final = 50  # recoveries, of which one is done again on a copy whose newest slot is damaged
FROM_DISK: Final = 0.25  # of the children recover by themselves, and may be killed while they do
QUEUE_BYTES: Final = 64 << 10
PAUSE_S: Final = 4e-4  # the longest between two entries
WAITS: Final = 0.02  # of the entries are waited for, as a snapshot does
BETWEEN_CHECKPOINTS: Final = (5_000, 60_000)  # bytes of the journal
PATIENCE_S: Final = 30.0


@dataclass(frozen=True)
class Found:
    """What a recovery came to; `bases`: checkpoints that are due before a journal may follow them, as in a daemon."""

    fold: Fold
    bases: int
    faults: list[str]


class Child:
    """One life: from what was recovered until somebody kills it."""

    def __init__(self, folder: Path, found: Found, seed: int, rng: random.Random, broken: Collection[str]) -> None:
        self._fold, self._seed, self._rng, self._broken = found.fold, seed, rng, broken
        store = CheckpointStore(folder, model=MODEL)
        store.load()
        self._keeper = Keeper(
            store,
            StorageSettings(
                commit_ms=rng.choice([0.5, 2.0, 10.0]),
                journal_bytes=rng.randint(*BETWEEN_CHECKPOINTS),
            ),
            queue_bytes=QUEUE_BYTES,
            entry=found.fold.number,
            bases=found.bases,
        )
        self._told = found.fold.number

    def live(self, tell: Tell) -> None:
        """Until the end of the world."""
        while True:
            body = body_of(self._seed, self._fold.number + 1)
            if self._keeper.has_room(len(body)):
                self._learn(body)
            if self._rng.random() < WAITS:
                self._keeper.wait_for(self._keeper.entry, PATIENCE_S)
            self._acknowledge(tell)
            if self._keeper.is_due:
                self._keeper.checkpoint(*self._fold.state(), wait=False)
            time.sleep(self._rng.uniform(0, PAUSE_S))

    def _learn(self, body: bytes) -> None:
        number = self._fold.number + 1
        self._fold.apply(number, body)
        self._keeper.note(body, number, 1, 0.0)
        assert self._keeper.entry == number, f"entry {number} was numbered {self._keeper.entry}"

    def _acknowledge(self, tell: Tell) -> None:
        self._keeper.poll()
        durable = max(self._told, self._keeper.acknowledged)
        if "ack-early" in self._broken:
            durable = self._fold.number
        if durable > self._told:
            tell(durable)
            self._told = durable


def recover(folder: Path, seed: int, broken: Collection[str] = ()) -> Found:
    """The newest sound checkpoint and the journal behind it. Raises StorageError."""
    store = CheckpointStore(folder, model=MODEL)
    found = store.load()
    fold = Fold(seed)
    if found is None:
        return Found(fold, 2, store.faults)
    fold.restore(found.arrays, found.meta)
    before = fold.number
    fold.number -= "replay-twice" in broken and before > 0
    for number, body in journal.read(journal.journal_of(folder), after=fold.number):
        fold.apply(number, body)
    return Found(fold, 1 if fold.number > before or store.faults else 0, store.faults)


class StoreCampaign:
    """Kill after kill; the state directory ages, and is left for a new one now and then."""

    def __init__(self, folder: Path, seed: int, broken: Collection[str] = ()) -> None:
        self._folder, self._rng, self._broken = folder, random.Random(seed), broken
        self.tally = Tally()
        self.acknowledged = self.directories = self.other_slots = 0
        self._begin()

    def run(self, kills: int) -> dict[str, Any]:
        """The result, with what was done beside the contract's keys."""
        started = time.monotonic()
        for _ in shown(range(kills), "kills", kills):
            self._kill()
        return {
            **self.tally.result(),
            "acknowledged": self.acknowledged,
            "directories": self.directories,
            "other_slot": self.other_slots,
            "seconds": round(time.monotonic() - started, 1),
        }

    def _begin(self) -> None:
        self._seed = self._rng.getrandbits(32)
        self._state = self._folder / f"{self.directories:06d}"
        self._state.mkdir(mode=0o700)
        self._reference, self._found = Reference(self._seed), Found(Fold(self._seed), 2, [])
        self.directories += 1

    def _kill(self) -> None:
        before, rng = self._found.fold.number, random.Random(self._rng.getrandbits(64))

        def work(tell: Tell) -> None:
            found = recover(self._state, self._seed) if rng.random() < FROM_DISK else self._found
            Child(self._state, found, self._seed, rng, self._broken).live(tell)

        begins = WORD_S if self._rng.random() < WITH_WORD else 0.0
        told, _ = killed(work, slept(self._rng.uniform(0, LIFE_S), after_word_s=begins))
        self.tally.kills += 1
        acknowledged = max(told, default=before)
        self.acknowledged += acknowledged - before
        if not self._recovers(self._state, acknowledged) or self._rng.random() < 1 / AGE:
            shutil.rmtree(self._state)
            self._begin()
        elif self.tally.kills % OTHER_SLOT_EVERY == 0:
            self._without_the_newest_slot()

    def _recovers(self, state: Path, acknowledged: int) -> bool:
        started = time.perf_counter()
        try:
            self._found = recover(state, self._seed, self._broken)
        except Exception as exc:
            self.tally.damaged(f"{type(exc).__name__}: {exc}")
            return False
        self.tally.recovery_s.append(time.perf_counter() - started)
        if self._found.faults:  # a kill damages nothing
            self.tally.damaged("; ".join(self._found.faults))
            return False
        fold = self._found.fold
        return self._judge(fold, acknowledged)

    def _judge(self, fold: Fold, acknowledged: int) -> bool:
        return self.tally.judge(
            lost=max(0, acknowledged - fold.number),
            twice=max(0, fold.applied - fold.number),
            is_identical=fold.digest() == self._reference.digest_at(fold.number),
            told=f"acknowledged {acknowledged}, recovered {fold.number} from {fold.applied} entries",
        )

    def _without_the_newest_slot(self) -> None:
        """The other slot and a longer stretch of the journal must lead to the same."""
        if not all((self._state / slot).exists() for slot in SLOTS):
            return
        copied = self._folder / "copy"
        shutil.copytree(self._state, copied)
        store = CheckpointStore(copied)
        sound, _ = store.slots()
        newest = max(sound, key=lambda slot: sound[slot].generation)
        content = bytearray((copied / newest).read_bytes())
        content[len(content) // 2] ^= 1
        (copied / newest).write_bytes(content)
        try:
            found = recover(copied, self._seed)
        except Exception as exc:
            self.tally.damaged(f"from the other slot: {type(exc).__name__}: {exc}")
        else:
            assert found.faults, "the damage was not noticed"
            self.other_slots += 1
            self._judge(found.fold, self._found.fold.number)
        shutil.rmtree(copied)
