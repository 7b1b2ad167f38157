"""From a source's samples to observations: windows made, shapes checked, labels named, limited, or refused and counted.

Knows no learner: what an observation is for, the daemon says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from edge_cl.assembly import Task, make_windows
from edge_cl.keeping.label_limits import FLOOD, QUOTA, LabelLimits
from edge_cl.settings import BridgeSettings
from firmware_bridge.sample import Label, Sample
from firmware_bridge.source import Source

OUT_OF_RANGE: Final = "label_out_of_range"
DROPPED: Final = ("shape", OUT_OF_RANGE, FLOOD, QUOTA)  # what is refused here, by reason


class Observer:
    """Observations of an open source's samples, for a task.

    names: of the classes so far; where the task names none, a new class adds its number, and new_class hears how many
    there are then. needs_labels: without, every observation is learnt, whatever it is called. dropped: counts.
    """

    def __init__(
        self,
        task: Task,
        source: Source,
        settings: BridgeSettings,
        *,
        needs_labels: bool,
        names: list[str],
        new_class: Callable[[int], None],
    ) -> None:
        self.dropped = dict.fromkeys(DROPPED, 0)
        self._task, self._needs_labels, self._names, self._new_class = task, needs_labels, names, new_class
        self._windows = make_windows(task, source)
        self._limits = LabelLimits(settings.labels_per_s, settings.labels_per_class_hour)

    @property
    def counters(self) -> dict[str, int]:
        """What was refused, and what windows cost."""
        return {**self.dropped, **(self._windows.counters if self._windows else {})}

    def observe(self, sample: Sample) -> list[Sample]:
        """Observations that this sample completes, each with a label that the learner has an output for, or none."""
        try:
            made = [sample] if self._windows is None else self._windows.push(sample)
        except ValueError:
            self.dropped["shape"] += 1
            return []
        fitting = [one for one in made if (one.values.shape, one.values.dtype) == (self._task.shape, self._task.dtype)]
        self.dropped["shape"] += len(made) - len(fitting)
        return [self._labelled(observation) for observation in fitting]

    def accept(self, label: Label, giver: Hashable) -> bool:
        """Whether a label that came by itself is one of a class there may be, and within its giver's limits."""
        return self._is_a_class(label.label) and self._is_within_limits(giver, label.label)

    def late(self, label: Label) -> bool:
        """Attach it to the rows of its sample in a window that is being filled; False if there are none."""
        return self._windows is not None and self._windows.late(label)

    def named(self, observation: Sample) -> Sample:
        """The same, its label one that has a name; without it if there is no such class."""
        label = observation.label
        if label is None or 0 <= label < len(self._names):
            return observation
        if not self._is_a_class(label):
            return replace(observation, label=None)
        self._names[:] = [str(number) for number in range(label + 1)]
        self._new_class(len(self._names))
        return observation

    def state(self) -> dict[str, Any]:
        """Rows of windows that are being filled, for load_state."""
        return self._windows.state() if self._windows else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where state() was taken; the rows are let go if windows have another length or stride now."""
        if self._windows is not None and state:
            with suppress(ValueError):
                self._windows.load_state(state)

    def _labelled(self, observation: Sample) -> Sample:
        if not self._needs_labels:
            return replace(observation, label=0)
        label = observation.label
        if label is None:
            return observation
        if not self._is_a_class(label) or not self._is_within_limits(observation.stream, label):
            return replace(observation, label=None)
        return self.named(observation)

    def _is_a_class(self, label: int) -> bool:
        """Whether there may be such a class; counts it if not. Asked before the limits, which remember each class."""
        known = 0 <= label < (len(self._task.label_names) or self._task.n_outputs)
        self.dropped[OUT_OF_RANGE] += not known
        return known

    def _is_within_limits(self, giver: Hashable, label: int) -> bool:
        refused = self._limits.refuse(giver, label, time.monotonic())
        if refused is not None:
            self.dropped[refused] += 1
        return refused is None
