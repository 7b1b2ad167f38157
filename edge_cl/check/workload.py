"""The learner that a configuration makes, doing what it does in the daemon, and how long each part of that takes.

It is fed by the configured source itself (feed.py), whose reader shares caches and the interpreter's lock with it.
Changes nothing on disk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_cl import assembly
from edge_cl.budget import Plan
from edge_cl.check.feed import MADE_UP, Feed, MadeUp, batch_of, look
from edge_cl.config import Config
from edge_cl.heap import give_back, keep
from edge_cl.intake import Urls, source_of
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.learning.outline import Outline

WARM_UP, STEPS, LEAST_STEPS = 20, 200, 50  # with 200 steps the 99th percentile is the third slowest
LONGEST_RUN_S: Final = 10.0  # after which no more steps are taken than the least


@dataclass(frozen=True)
class Stream:
    """A source as the check needs it: its task, what its observations look like, and how many come for a step."""

    urls: Urls
    task: assembly.Task
    shown: NDArray[Any]  # some observations (n, *shape)
    batch: int

    @classmethod
    def of(cls, config: Config, urls: Urls) -> Stream:
        """Open the source and have a look. Raises BridgeError, OperatorError."""
        with source_of(config, urls) as source:
            task = assembly.task_of(config, source.schema, len(source.streams))
            batch = batch_of(config, task, source.schema, can_wait=source.can_wait)
            return cls(urls, task, look(source, task), batch)


@dataclass
class Times:
    """Milliseconds of each answer to one sample and of each step, and for how many of these it had the processor.

    Of the answers, `made_up` were to no real sample.
    """

    predict: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    at_work: list[float] = field(default_factory=list)
    made_up: int = 0


@dataclass
class Workload:
    """A learner, brought to where it spends its life: every class seen, replay full, an anchor to be pulled to."""

    config: Config
    stream: Stream
    blueprint: Outline
    planned: Plan
    n_classes: int = field(init=False)
    learner: OnlineLearner = field(init=False)

    def __post_init__(self) -> None:
        keep()  # as the daemon does
        task = self.stream.task
        self.learner = assembly.make_learner(self.config, task, self.blueprint, self.planned, seed=0)
        self.know_classes(len(task.label_names) or task.n_outputs)

    def know_classes(self, n_classes: int) -> None:
        """So many classes there are to make samples up of."""
        self.n_classes = n_classes
        self.made_up = MadeUp(self.stream.task, n_classes, self.stream.shown)

    def fill(self) -> None:
        """Learn every class, fill replay and exam, consolidate."""
        while not bool(self.learner.seen[: self.n_classes].all()):  # the exam may have taken some
            self.learner.learn(*self.samples(self.config.learning.batch_size))
        self._fill_reservoirs()
        self.learner.consolidate()  # which may find out that fewer bits serve, and make room
        self._fill_reservoirs()
        give_back()

    def run(self, steps: int, *, warm_up: int = WARM_UP, longest_s: float = LONGEST_RUN_S) -> Times:
        """Answer each sample, then learn a batch, as the daemon does; times of all but the warm-up.

        As many steps, or as go into `longest_s`, but not less than LEAST_STEPS of them. Raises BridgeError.
        """
        least, until = min(steps, LEAST_STEPS), time.monotonic() + longest_s
        with Feed(self.stream.urls, self.config, self.made_up) as feed:
            self._steps(feed, Times(), warm_up)
            times, before = Times(), feed.made_up
            while len(times.step) < least or (len(times.step) < steps and time.monotonic() < until):
                self._steps(feed, times, 1)
            times.made_up = feed.made_up - before
        return times

    def consolidate(self, *, most_steps: int | None = None) -> tuple[float, int]:
        """Milliseconds of a consolidation, and the steps of its rehearsal."""
        started = time.perf_counter()
        rehearsed = self.learner.consolidate(most_steps=most_steps)
        took_ms = (time.perf_counter() - started) * 1e3
        give_back()
        return took_ms, rehearsed

    def samples(self, n: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Made-up samples (n, *shape) in the sensor's dtype, and labels (n,)."""
        return self.made_up.draw(n)

    def _steps(self, feed: Feed, times: Times, n: int) -> None:
        for _ in range(n):
            answered = [self._answered(feed, times) for _ in range(self.stream.batch)]
            x = np.stack([values for values, _ in answered])
            y = np.array([label for _, label in answered], dtype=np.int64)
            started, at_work = time.perf_counter(), time.thread_time()
            _ = self.learner.learn(x, y).predicted
            times.step.append((time.perf_counter() - started) * 1e3)
            times.at_work.append((time.thread_time() - at_work) * 1e3)

    def _answered(self, feed: Feed, times: Times) -> tuple[NDArray[Any], int]:
        values, label = feed.next()
        started = time.perf_counter()
        if self.blueprint.aim:
            float(self.learner.losses(values[None])[0])
        else:
            int(self.learner.predict(values[None])[0].argmax())
        times.predict.append((time.perf_counter() - started) * 1e3)
        return values, label

    def _fill_reservoirs(self) -> None:
        """Straight into them: learning as many samples would take as many steps."""
        for reservoir in (self.learner.replay, self.learner.exam):
            while reservoir.size < reservoir.capacity:
                x, y = self.samples(MADE_UP)
                if reservoir is self.learner.replay:
                    x = self.learner.features(x)
                n_logits = reservoir.n_logits
                reservoir.offer(x, y, np.zeros((len(y), n_logits), np.float32) if n_logits else None)
