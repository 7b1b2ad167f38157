"""How well a learner answers the test samples of each experience. Knows answers, not how anything is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_cl.evaluation.stream import Experience, generator
from edge_cl.learning.objective import NOT_SEEN
from edge_cl.learning.online_learner import OnlineLearner

PROBE = 500  # test samples of an experience that are asked often, always the same
CHUNK = 1000  # samples answered at once

Labels = NDArray[np.int64]


def chosen(p: NDArray[np.floating[Any]], among: Sequence[int] | None = None) -> Labels:
    """The likeliest class (B,) by p (B, C), where only those of `among` can be chosen; NOT_SEEN where all have 0.

    >>> chosen(np.array([[0.5, 0.2, 0.3], [0.9, 0.1, 0.0], [0.0, 0.0, 0.0]]), among=[1, 2]).tolist()
    [2, 1, -1]
    """
    classes = np.arange(p.shape[1]) if among is None else np.array(among)
    odds = p[:, classes]
    return np.where(odds.any(1), classes[odds.argmax(1)], NOT_SEEN)


class _Test(NamedTuple):
    x: NDArray[Any]
    y: Labels
    among: tuple[int, ...] | None
    guess: float
    probe: Labels


class Scoring:
    """The test samples of each experience; experiences with the very same ones are answered once for all of them.

    task_known: an experience's samples are answered among its own classes. Where a learner knows none of the classes
    to choose from it gives no answer, and the sample counts as 1 / number of classes right: what a guess is worth.
    Without that, an untrained learner would score 0, and every forward transfer would look better than it is.
    ends: samples that have come when each experience is over.
    """

    def __init__(self, stream: Sequence[Experience], *, task_known: bool) -> None:
        # One pass only: an experience is made when it is asked for, which may take long.
        parts = [(len(each.y), each.test_x, each.test_y, each.classes) for each in stream]
        every = {label for *_, classes in parts for label in classes}
        self.ends = list(accumulate(length for length, *_ in parts))
        self._tests: list[_Test] = []
        self._test_of: list[int] = []
        for _, x, y, classes in parts:
            among = classes if task_known else None
            same = (i for i, test in enumerate(self._tests) if test.x is x and test.among == among)
            self._test_of.append(next(same, len(self._tests)))
            if self._test_of[-1] == len(self._tests):
                guess = 1 / len(classes if task_known else every)
                probe = np.sort(generator(0, "probe").permutation(len(y))[:PROBE])
                self._tests.append(_Test(x, y, among, guess, probe))

    def among(self, t: int) -> tuple[int, ...] | None:
        """The classes to choose from in experience t; None: all."""
        return self._tests[self._test_of[t]].among

    def accuracies(self, learner: OnlineLearner) -> list[float | None]:
        """Accuracy on each experience, by all its test samples; None where there are none."""
        by_test = [_accuracy(learner, test, np.arange(len(test.y))) for test in self._tests]
        return [by_test[i] for i in self._test_of]

    def probed(self, learner: OnlineLearner, come: int) -> list[float | None]:
        """Accuracy on the first `come` experiences, by at most PROBE of their test samples; None for the others."""
        wanted = self._test_of[:come]
        by_test = {i: _accuracy(learner, self._tests[i], self._tests[i].probe) for i in set(wanted)}
        return [by_test[i] if t < come else None for t, i in enumerate(self._test_of)]


def _accuracy(learner: OnlineLearner, test: _Test, rows: Labels) -> float | None:
    if len(rows) == 0:
        return None
    cuts = range(0, len(rows), CHUNK)
    answers = np.concatenate([chosen(learner.predict(test.x[rows[a : a + CHUNK]]), test.among) for a in cuts])
    return float(np.where(answers == NOT_SEEN, test.guess, answers == test.y[rows]).mean())
