"""Where the daemon is in its stream: what came last, what waits, what was counted. In every checkpoint and every entry.

Only values, and their way into arrays and plain values and back. Knows no learner and no file. Whatever later work
adds to the daemon's place in its stream is one more field here, and is then as durable as the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from firmware_bridge.sample import Sample, SampleId
from firmware_bridge.sequence import BOOTS

Arrays = dict[str, np.ndarray]

# Arrays with these names, or that begin with them and a dot, hold what a sensor saw.
RAW = ("window", "waiting", "ahead", "room")


@dataclass
class Cursor:
    """positions: id of the last sample taken of each stream and boot, newest last; a resumed source goes on behind it.

    floor: of frames with a tag, see auth.ReplayFloor. window: state of the windows that are being filled. ahead:
    observations of that sample not answered yet; waiting: answered and labelled ones not learnt yet. n_labels: classes
    that have a name. consolidated_steps: how many steps the last consolidation came after. telemetry: samples,
    labelled, hits. gone: who left the waiting room without a label, by reason. rehearsal_steps: as many as a
    consolidation has time for, as far as that is known.
    """

    positions: dict[tuple[int, int], SampleId] = field(default_factory=dict)
    floor: Mapping[str, Any] = field(default_factory=dict)
    window: dict[str, Any] = field(default_factory=dict)
    ahead: list[Sample] = field(default_factory=list)
    waiting: list[Sample] = field(default_factory=list)
    n_labels: int = 0
    consolidated_steps: int = 0
    telemetry: list[int] = field(default_factory=lambda: [0, 0, 0])
    governor: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)
    rehearsal_steps: int | None = None

    def take(self, taken: SampleId) -> None:
        """Be behind that sample. Of a stream the last BOOTS boots are remembered: a broker may send of them again."""
        place = (taken.stream, taken.boot)
        if self.positions.pop(place, None) is None:
            older = [place for place in self.positions if place[0] == taken.stream]
            if len(older) == BOOTS:
                del self.positions[older[0]]
        self.positions[place] = taken

    def carried_over(self, same_source: bool) -> Cursor:
        """What of it holds for a run on that source or another one: ids and rows are of one source."""
        return self if same_source else replace(self, positions={}, floor={}, window={}, ahead=[])

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and plain values, for `restored`."""
        arrays = {f"window.{key}": value for key, value in self.window.items() if isinstance(value, np.ndarray)}
        for name, samples in (("waiting", self.waiting), ("ahead", self.ahead)):
            if samples:
                arrays[name] = np.stack([sample.values for sample in samples])
        return arrays, {
            "positions": [list(position) for position in self.positions.values()],
            "floor": dict(self.floor),
            "window": {key: value for key, value in self.window.items() if not isinstance(value, np.ndarray)},
            "waiting": _noted(self.waiting),
            "ahead": _noted(self.ahead),
            "n_labels": self.n_labels,
            "consolidated_steps": self.consolidated_steps,
            "telemetry": self.telemetry,
            "governor": self.governor,
            "dropped": self.dropped,
            "gone": self.gone,
            "rehearsal_steps": self.rehearsal_steps,
        }

    @classmethod
    def restored(cls, arrays: Arrays, plain: dict[str, Any]) -> Cursor:
        """The cursor whose state this is."""
        rows = {key.removeprefix("window."): value for key, value in arrays.items() if key.startswith("window.")}
        # Before there were several streams there was one position.
        told = plain["positions"] if "positions" in plain else [plain["position"] or ()]
        return cls(
            positions={(position[0], position[1]): SampleId(*position) for position in told if position},
            floor=plain.get("floor", {}),
            window={**plain["window"], **rows},
            ahead=_samples(arrays.get("ahead"), plain["ahead"]),
            waiting=_samples(arrays.get("waiting"), plain["waiting"]),
            n_labels=plain["n_labels"],
            consolidated_steps=plain["consolidated_steps"],
            telemetry=plain["telemetry"],
            governor=plain["governor"],
            dropped=plain["dropped"],
            gone=plain.get("gone", {}),
            rehearsal_steps=plain.get("rehearsal_steps"),
        )


def _noted(samples: Sequence[Sample]) -> list[list[int | None]]:
    return [[*sample.id, sample.time_us, sample.label] for sample in samples]


def _samples(values: np.ndarray | None, noted: list[list[int | None]]) -> list[Sample]:
    if values is None:
        return []
    return [
        Sample(stream, boot, seq, time_us, rows, label)  # type: ignore[arg-type]  # as `_noted` wrote them
        for rows, (stream, boot, seq, time_us, label) in zip(values, noted, strict=True)
    ]
