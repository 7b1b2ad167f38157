"""The waiting room: observations that were answered and wait for a label, bounded in bytes and in seconds.

What leaves without one is counted by reason: the oldest gives way where there is no room, and nobody waits for ever.
Knows no clock (the caller says what time it is) and no learner.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import numpy as np

from firmware_bridge.inlet import ITEM_BYTES
from firmware_bridge.sample import Label, Sample, SampleId

UNLABELLED: Final = "label_never"  # no label came in time
CROWDED: Final = "label_crowded"  # the room was full


@dataclass(frozen=True, slots=True)
class Waiting:
    """An observation, what was answered to it (None: nothing was known yet), and when it came, in seconds."""

    sample: Sample
    answered: int | None
    since_s: float


class Room:
    """Observations by the id of their last sample; `nbytes` of them at most `most_bytes`, each at most `most_s`.

    reach: how many samples of its stream an observation is made of, at most; a label of any of them is its label.
    """

    def __init__(self, most_bytes: int, most_s: float, reach: int = 1) -> None:
        self.most_bytes, self.most_s, self.reach = most_bytes, most_s, max(1, reach)
        self.nbytes = 0
        self.gone = {UNLABELLED: 0, CROWDED: 0}
        self._waiting: OrderedDict[SampleId, Waiting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def all(self) -> list[Waiting]:
        """Everyone, the oldest first."""
        return list(self._waiting.values())

    def newest(self, n: int) -> list[Waiting]:
        """The last n, the oldest of them first."""
        return list(islice(reversed(self._waiting.values()), n))[::-1]

    def enter(self, waiting: Waiting) -> None:
        """Let an observation wait; the oldest leave if there is no room."""
        size = _size(waiting)
        if size > self.most_bytes:
            self.gone[CROWDED] += 1
            return
        while self.nbytes + size > self.most_bytes:
            self._leave(next(iter(self._waiting)))
            self.gone[CROWDED] += 1
        if waiting.sample.id in self._waiting:
            self._leave(waiting.sample.id)
        self._waiting[waiting.sample.id] = waiting
        self.nbytes += size

    def expire(self, now_s: float) -> None:
        """Let those go that have waited too long."""
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if 0 <= now_s - oldest.since_s <= self.most_s:  # a clock that was set back lets everyone go, not none
                return
            self._leave(oldest.sample.id)
            self.gone[UNLABELLED] += 1

    def call(self, label: Label) -> Waiting | None:
        """The observation that the label is of, with it; None if it is not here."""
        for back in range(self.reach):
            found = self._waiting.get(SampleId(label.stream, label.boot, label.seq + back))
            if found is not None:
                self._leave(found.sample.id)
                return replace(found, sample=replace(found.sample, label=label.label))
        return None

    @property
    def oldest(self) -> SampleId | None:
        """Who has waited longest."""
        return next(iter(self._waiting), None)

    def forget_before(self, oldest: SampleId) -> None:
        """All that came before that one have left."""
        if oldest in self._waiting:
            while next(iter(self._waiting)) != oldest:
                self._leave(next(iter(self._waiting)))

    def forget(self, ids: Iterable[SampleId]) -> None:
        """These have been learnt."""
        for one in ids:
            if one in self._waiting:
                self._leave(one)

    def _leave(self, one: SampleId) -> None:
        self.nbytes -= _size(self._waiting.pop(one))


def waiting_state(waiting: Sequence[Waiting]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and plain values, for `restored_waiting`."""
    if not waiting:
        return {}, {"room": []}
    noted = [[*one.sample.id, one.sample.time_us, one.answered] for one in waiting]
    return {"room": np.stack([one.sample.values for one in waiting])}, {"room": noted}


def restored_waiting(arrays: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> list[Waiting]:
    """The observations whose state this is; they have waited no time yet."""
    if "room" not in arrays:
        return []
    return [
        Waiting(Sample(stream, boot, seq, time_us, values), answered, 0.0)
        for values, (stream, boot, seq, time_us, answered) in zip(arrays["room"], plain["room"], strict=True)
    ]


def _size(waiting: Waiting) -> int:
    return ITEM_BYTES + int(waiting.sample.values.nbytes)
