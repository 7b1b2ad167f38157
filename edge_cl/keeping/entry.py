"""One entry of the journal: what was done to the learner, and where in its stream the daemon was when it did it.

State is a fold over entries: the same learner and the same entry give the same learner, bit for bit, on the same
machine, with the same thread count, on a CPU. What a clock had decided (how much was replayed, how long the rehearsal
might take) is written down, so that a replay decides the same. Must not know where the bytes lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np

from edge_cl.keeping.cursor import Arrays, Cursor
from edge_cl.keeping.room import Room, Waiting, restored_waiting, waiting_state
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.storage import record
from firmware_bridge.sample import Sample, SampleId

Kind = Literal["learn", "skip", "consolidate", "wait"]

_CURSOR: Final = "cursor."


def learn(samples: Sequence[Sample], cursor: Cursor, *, most_replayed: int) -> bytes:
    """A step on labelled samples, stored as the sensor made them, with their labels and ids."""
    arrays = {
        "x": np.stack([sample.values for sample in samples]),
        "y": np.array([sample.label for sample in samples], np.int64),
        "ids": np.array([sample.id for sample in samples], np.int64),
    }
    return _pack("learn", cursor, arrays, {"most_replayed": most_replayed})


def skip(samples: Sequence[Sample], cursor: Cursor) -> bytes:
    """Samples that the governor had no time to learn from."""
    return _pack("skip", cursor, {"ids": np.array([sample.id for sample in samples], np.int64)}, {})


def consolidate(cursor: Cursor, *, most_steps: int | None, exam: Mapping[int, tuple[int, float]]) -> bytes:
    """A consolidation with at most so many steps of rehearsal, and how each class did in the exam after it."""
    told = [[label, n, accuracy] for label, (n, accuracy) in exam.items()]
    return _pack("consolidate", cursor, {}, {"most_steps": most_steps, "exam": told})


def wait(waiting: Sequence[Waiting], oldest: SampleId | None, cursor: Cursor) -> bytes:
    """Answered observations that wait for a label from now on; what is older than `oldest` does no more.

    With nobody it says where the daemon is, and so what of the stream need not come again.
    """
    return _pack("wait", cursor, *waiting_state(waiting), oldest=None if oldest is None else list(oldest))


class Entry:
    """An entry read back; `samples` is how many were learnt or skipped by it."""

    def __init__(self, body: bytes) -> None:
        self._arrays, self._plain = record.unpack(body)
        self.kind: Kind = self._plain["kind"]
        self.samples = len(self._arrays.get("ids", ()))

    @cached_property
    def cursor(self) -> Cursor:
        """Where the daemon was."""
        arrays = {key.removeprefix(_CURSOR): value for key, value in self._arrays.items() if key.startswith(_CURSOR)}
        return Cursor.restored(arrays, self._plain["cursor"])

    def seat(self, room: Room) -> None:
        """Do to the waiting room what was done to it then."""
        for waiting in restored_waiting(self._arrays, self._plain):
            room.enter(waiting)
        if (oldest := self._plain.get("oldest")) is not None:
            room.forget_before(SampleId(*oldest))
        room.forget(SampleId(*one) for one in self._arrays.get("ids", np.empty((0, 3), np.int64)).tolist())
        room.forget(sample.id for sample in self.cursor.waiting)  # their label has come

    @property
    def exam(self) -> dict[int, tuple[int, float]]:
        """How each class did after a consolidation."""
        return {label: (n, accuracy) for label, n, accuracy in self._plain.get("exam", ())}

    def apply(self, learner: OnlineLearner) -> None:
        """Do to the learner what was done to it then."""
        if self.kind == "learn":
            learner.learn(self._arrays["x"], self._arrays["y"], most_replayed=self._plain["most_replayed"])
        elif self.kind == "consolidate":
            learner.consolidate(most_steps=self._plain["most_steps"])


def _pack(kind: Kind, cursor: Cursor, arrays: Arrays, choices: dict[str, Any], **more: Any) -> bytes:
    own, place = cursor.state()
    return record.pack(
        arrays | {f"{_CURSOR}{name}": array for name, array in own.items()},
        {"kind": kind, **choices, **more, "cursor": place},
    )
