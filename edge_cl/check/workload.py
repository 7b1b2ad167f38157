"""The learner that a configuration makes, doing what it does in the daemon, and how long each part of that takes.

Samples are made up, and come through a real inlet from a thread of their own, at most as fast as the real source's:
what waits for a sample answers slower than what never stops. Changes nothing on disk.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_cl import assembly
from edge_cl.budget import Plan
from edge_cl.config import Config
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.learning.outline import Outline
from firmware_bridge.inlet import ITEM_BYTES, Inlet
from firmware_bridge.sample import HeldOut, Sample, Schema

WARM_UP, STEPS, LEAST_STEPS = 20, 200, 50  # with 200 steps the 99th percentile is the third slowest
MADE_UP: Final = 256  # samples, over and over
LONGEST_GAP_S: Final = (
    0.01  # between two samples of a live source; caches are nearly as cold then as after a longer one
)
LONGEST_RUN_S: Final = 10.0  # that gaps may take together
TIMEOUT_S: Final = 60.0


@dataclass
class Times:
    """Milliseconds of each answer to one sample and of each step."""

    predict: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)


@dataclass
class Workload:
    """A learner, brought to where it spends its life: every class seen, replay full, an anchor to be pulled to."""

    config: Config
    task: assembly.Task
    blueprint: Outline
    planned: Plan
    gap_s: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    learner: OnlineLearner = field(init=False)

    def __post_init__(self) -> None:
        self.learner = assembly.make_learner(self.config, self.task, self.blueprint, self.planned, seed=0)
        self.n_classes = len(self.task.label_names) or self.task.n_outputs

    def fill(self) -> None:
        """Learn every class, fill replay and exam, consolidate."""
        while not bool(self.learner.seen[: self.n_classes].all()):  # the exam may have taken some
            self.learner.learn(*self.samples(self.config.learning.batch_size))
        self._fill_reservoirs()
        self.learner.consolidate()  # which may find out that fewer bits serve, and make room
        self._fill_reservoirs()

    def run(self, steps: int, *, warm_up: int = WARM_UP) -> Times:
        """Answer each sample, then learn a full batch, as the daemon does; times of all but the warm-up."""
        times, batch = Times(), self.config.learning.batch_size
        source = _MadeUp(*self.samples(MADE_UP), self.gap_s)
        inlet = Inlet(source, max(self.config.bridge.queue_bytes, source.schema.nbytes + ITEM_BYTES))
        try:
            for _ in range(warm_up + steps):
                self._step([self._answered(inlet, times) for _ in range(batch)], times)
        finally:
            inlet.close()
        return Times(times.predict[warm_up * batch :], times.step[warm_up:])

    def consolidate(self, *, most_steps: int | None = None) -> tuple[float, int]:
        """Milliseconds of a consolidation, and the steps of its rehearsal."""
        started = time.perf_counter()
        rehearsed = self.learner.consolidate(most_steps=most_steps)
        return (time.perf_counter() - started) * 1e3, rehearsed

    def _answered(self, inlet: Inlet, times: Times) -> Sample:
        sample = inlet.get(TIMEOUT_S)
        assert isinstance(sample, Sample)
        started = time.perf_counter()
        if self.blueprint.aim:
            float(self.learner.losses(sample.values[None])[0])
        else:
            int(self.learner.predict(sample.values[None])[0].argmax())
        times.predict.append((time.perf_counter() - started) * 1e3)
        return sample

    def _step(self, batch: list[Sample], times: Times) -> None:
        x = np.stack([sample.values for sample in batch])
        y = np.array([sample.label for sample in batch], dtype=np.int64)
        started = time.perf_counter()
        _ = self.learner.learn(x, y).predicted
        times.step.append((time.perf_counter() - started) * 1e3)

    def _fill_reservoirs(self) -> None:
        """Straight into them: learning as many samples would take as many steps."""
        for reservoir in (self.learner.replay, self.learner.exam):
            while reservoir.size < reservoir.capacity:
                x, y = self.samples(MADE_UP)
                if reservoir is self.learner.replay:
                    x = self.learner.features(x)
                n_logits = reservoir.n_logits
                reservoir.offer(x, y, np.zeros((len(y), n_logits), np.float32) if n_logits else None)

    def samples(self, n: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Made-up samples (n, *shape) in the sensor's dtype, and labels (n,)."""
        x = self.rng.normal(0, 50, (n, *self.task.shape)).clip(-127, 127)
        x = x if self.task.dtype.kind in "if" else np.abs(x)
        return x.astype(self.task.dtype), self.rng.integers(0, self.n_classes, n)


def gap_of(task: assembly.Task, schema: Schema, *, can_wait: bool) -> float:
    """Seconds between two observations of a source, as far as they matter; 0 for one that is read as fast as can be."""
    if can_wait:
        return 0.0
    rows_of_a_sample = schema.shape[0] if len(schema.shape) > 1 else 1
    rows = rows_of_a_sample if task.window is None else task.window[1]
    return min(LONGEST_GAP_S, rows / schema.rate_hz if schema.rate_hz else inf)


def steps_for(gap_s: float, batch_size: int) -> int:
    """How many steps to time: fewer if their samples are waited for."""
    waited_s = gap_s * batch_size
    return STEPS if waited_s == 0 else min(STEPS, max(LEAST_STEPS, int(LONGEST_RUN_S / waited_s)))


class _MadeUp:
    """A source of made-up samples that never ends."""

    held_out: HeldOut | None = None
    can_wait = True

    def __init__(self, x: NDArray[Any], y: NDArray[np.int64], gap_s: float) -> None:
        self.schema = Schema("made up", x.dtype.name, x.shape[1:])
        self.counters: Mapping[str, int] = {}
        self._gap_s, self._items = gap_s, self._endless(x, y)

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def read(self, timeout_s: float) -> Sample:
        """The next sample, after the gap."""
        if self._gap_s:
            time.sleep(self._gap_s)
        return next(self._items)

    def __enter__(self) -> _MadeUp:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @staticmethod
    def _endless(x: NDArray[Any], y: NDArray[np.int64]) -> Iterator[Sample]:
        number = 0
        while True:
            at = number % len(x)
            yield Sample(0, 0, number, number, x[at], int(y[at]))
            number += 1
