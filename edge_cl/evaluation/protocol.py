"""One stream through one learner, test then train, as the daemon would: predict on arrival, learn when a batch is full.

Knows the order of things and the clock. Must not know methods, data sets or how figures are shown.

The learner is told nothing of experiences: a batch may hold the end of one and the beginning of the next, and it
consolidates when it finds that it is due, and when the stream is over. Only where the task is known (`task`) each has a
head of its own: the learner tells apart, and answers among, the classes of the experience, and a batch ends with it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isnan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_cl.evaluation.labels import delayed
from edge_cl.evaluation.run import Run
from edge_cl.evaluation.scoring import Scoring, chosen
from edge_cl.evaluation.stream import UNLABELLED, Experience
from edge_cl.learning.metrics import Majority, NoChange, Prequential, lowest_old_accuracy
from edge_cl.learning.online_learner import OnlineLearner

CURVE_POINTS = 200  # of the prequential curve


class _Sample(NamedTuple):
    t: int  # of its experience
    x: NDArray[Any]
    y: int


def run(
    stream: Sequence[Experience],
    make_learner: Callable[[int], OnlineLearner],
    *,
    scenario: str,
    seed: int,
    batch_size: int,
    label_delay: int = 0,
    on_samples: Callable[[int], None] = lambda samples: None,
) -> Run:
    """The figures of a new learner, `make_learner(seed)`, after this stream.

    batch_size: labelled samples in a step; label_delay: samples until a label comes; on_samples hears after each step
    how many samples came so far.
    Raises OperatorError if label_delay is below 0, ValueError if a label is outside the learner's outputs.
    """
    scoring = Scoring(stream, task_known=scenario == "task")
    passage = _Passage(make_learner(seed), scoring, batch_size)
    arrivals = _samples(stream)
    for what, _ in delayed(scoring.ends[-1], label_delay):
        if what == "predict":
            passage.arrive(next(arrivals))
        elif passage.learn_next():
            on_samples(passage.samples)
    return passage.finish(seed)


def _samples(stream: Sequence[Experience]) -> Iterator[_Sample]:
    for t, experience in enumerate(stream):
        for x, y in zip(experience.x, experience.y.tolist(), strict=True):
            yield _Sample(t, x, y)


class _Passage:
    """A learner on its way along a stream, and what was counted so far."""

    def __init__(self, learner: OnlineLearner, scoring: Scoring, batch_size: int) -> None:
        self.learner, self.scoring, self.batch_size = learner, scoring, batch_size
        self.samples = self.t = 0
        self.steps = self.switched_at = self.consolidated_at = 0
        self.compute_s = 0.0
        self.unanswered: list[_Sample] = []  # came since the last step: nothing was learnt between them
        self.unlabelled: deque[_Sample] = deque()  # their labels are still to come
        self.batch: list[_Sample] = []
        self.answered = 0
        self.prequential, self.no_change, self.majority = Prequential(), NoChange(), Majority()
        self.hits = {"no_change": 0, "majority": 0}
        self.untrained = scoring.accuracies(learner)
        self.matrix: list[list[float | None]] = []
        self.curve: list[tuple[int, list[float | None]]] = []
        self.prequential_curve: list[tuple[int, float]] = []
        self._enter()

    def _enter(self) -> None:
        """An experience begins; where the task is known, so are its classes, and they get a head of their own."""
        classes = self.scoring.among(self.t)
        if classes is not None:
            self.learner.open_head(classes)

    def arrive(self, sample: _Sample) -> None:
        """A sample comes, without its label."""
        while sample.t > self.t:
            self._end_experience()
            self._enter()
        self.samples += 1
        self.unanswered.append(sample)
        self.unlabelled.append(sample)
        if sample.y != UNLABELLED:
            self.hits["no_change"] += self.no_change.predict() == sample.y
            self.hits["majority"] += self.majority.predict() == sample.y

    def learn_next(self) -> bool:
        """The label of the oldest sample without one comes, or is known to be missing; whether it led to a step."""
        sample = self.unlabelled.popleft()
        if sample.y == UNLABELLED:
            return False
        self.no_change.learn(sample.y)
        self.majority.learn(sample.y)
        before = self.steps
        if self.batch and self.scoring.among(sample.t) != self.scoring.among(self.batch[0].t):
            self._step()
        self.batch.append(sample)
        if len(self.batch) >= self.batch_size:
            self._step()
        return self.steps > before

    def finish(self, seed: int) -> Run:
        """The stream is over: learn what waits, consolidate, and hand out the figures."""
        self._step()
        if self.learner.steps > self.consolidated_at:
            self._consolidate()
        while len(self.matrix) < len(self.scoring.ends):
            self._end_experience()
        scored = self.prequential.n
        at, probed = [n for n, _ in self.curve], np.array([row for _, row in self.curve], dtype=np.float64)
        return Run(
            seed=seed,
            accuracy_matrix=self.matrix,
            untrained=self.untrained,
            curve=self.curve,
            prequential_accuracy=_defined(self.prequential.overall),
            prequential_faded=_defined(self.prequential.faded),
            prequential_curve=self.prequential_curve,
            lowest_old_accuracy=_defined(lowest_old_accuracy(at, probed, self.scoring.ends)) if at else None,
            no_change=self.hits["no_change"] / scored if scored else None,
            majority=self.hits["majority"] / scored if scored else None,
            replay_bytes=self.learner.replay.nbytes,
            replay_samples=self.learner.replay.size,
            replay_bits=self.learner.replay.bits,
            bits_tried=[(trial.bits, trial.extra_loss, trial.error) for trial in self.learner.trials],
            learner_bytes=self.learner.nbytes,
            compute_s=self.compute_s,
            samples=self.samples,
            consolidations=self.learner.consolidations,
        )

    def _step(self) -> None:
        """Answer what came, then learn from what has its label."""
        self._answer()
        if not self.batch:
            return
        x, y = np.stack([sample.x for sample in self.batch]), np.array([sample.y for sample in self.batch])
        self.batch.clear()
        with self._timed():
            step = self.learner.learn(x, y)
        self.steps += 1
        if step.learnt and self.learner.is_due:
            self._consolidate()
        if _is_round(self.steps - self.switched_at):
            self._probe()

    def _answer(self) -> None:
        """Answer and score the samples that came since the last step, in their order."""
        if not self.unanswered:
            return
        x = np.stack([sample.x for sample in self.unanswered])
        with self._timed():
            p = self.learner.predict(x)
        every = max(1, self.scoring.ends[-1] // CURVE_POINTS)
        for sample, answer in zip(self.unanswered, chosen(p, self.scoring.among(self.t)).tolist(), strict=True):
            self.answered += 1
            if sample.y != UNLABELLED:
                self.prequential.score(answer == sample.y)
            if self.answered % every == 0 and self.prequential.n:
                self.prequential_curve.append((self.answered, self.prequential.windowed))
        self.unanswered.clear()

    def _consolidate(self) -> None:
        with self._timed():
            self.learner.consolidate()
        self.consolidated_at = self.learner.steps

    def _end_experience(self) -> None:
        """A row of R; what came is answered among the classes of its own experience."""
        self._answer()
        self._probe()
        self.matrix.append(self.scoring.accuracies(self.learner))
        self.t += 1
        self.switched_at = self.steps

    def _probe(self) -> None:
        """A point of the curve: the experiences that have come, asked now."""
        accuracies = self.scoring.probed(self.learner, self.t + 1)
        point = self.samples, accuracies
        if self.curve[-1:] != [point] and any(accuracy is not None for accuracy in accuracies):
            self.curve.append(point)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.compute_s += time.perf_counter() - started


def _is_round(steps: int) -> bool:
    """Whether it is 1, 2 or 5, or one of them with noughts: often after a switch, then ever more rarely.

    >>> [steps for steps in range(120) if _is_round(steps)]
    [1, 2, 5, 10, 20, 50, 100]
    """
    while steps and steps % 10 == 0:
        steps //= 10
    return steps in (1, 2, 5)


def _defined(figure: float) -> float | None:
    return None if isnan(figure) else figure
