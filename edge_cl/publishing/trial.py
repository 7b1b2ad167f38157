"""Whether one model does clearly worse than another on the same samples: by an exam, and live, while both answer.

Knows answers and labels. Must not know what a model is made of, where it lies, or what follows from a verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Answer = Callable[[NDArray[Any]], NDArray[Any]]
Verdict = Literal["good", "bad"]

LEAST = 10  # samples below which nothing can be said
WORSE = 3.0  # standard errors: one look in some hundreds is past that by chance
WORSE_LIVE = 4.0  # the same for a look after each step
LEAST_LIVE = 30


def clearly_worse(losses: NDArray[Any], *, by: float = WORSE, least: int = LEAST) -> bool:
    """Whether the mean of what each sample (N,) loses is more than `by` of its standard errors above 0.

    Paired, so that what is hard for both counts for nothing: McNemar's test, where losses are -1, 0 or 1 (1947).
    """
    n = len(losses)
    return n >= least and bool(losses.mean() > by * losses.std(ddof=1) / np.sqrt(n))


def losses(newer: NDArray[Any], older: NDArray[Any], y: NDArray[Any] | None) -> NDArray[np.float64]:
    """What each sample (N,) loses by answers (N, C) of the newer model in place of the older one's.

    With labels y (N,): 1 if only the older is right, -1 if only the newer is. Without: by how much its score, the last
    output, has risen.
    """
    if y is None:
        rise: NDArray[np.float64] = newer[:, -1].astype(np.float64) - older[:, -1]
        return rise
    knew, knows = ((answers.argmax(1) == y).astype(np.float64) for answers in (older, newer))
    lost: NDArray[np.float64] = knew - knows
    return lost


class Trial:
    """The newer of two models, watched until both have answered `samples` live ones or it does clearly worse."""

    def __init__(self, newer: Answer, older: Answer, samples: int) -> None:
        self._newer, self._older, self._samples = newer, older, samples
        self._losses: list[float] = []

    def judge(self, x: NDArray[Any], y: NDArray[np.int64] | None) -> Verdict | None:
        """The verdict after live samples x (B, *shape) with their labels y (B,), None while there is none."""
        rows = x.astype(np.float32)
        self._losses.extend(losses(self._newer(rows), self._older(rows), y))
        if clearly_worse(np.array(self._losses), by=WORSE_LIVE, least=LEAST_LIVE):
            return "bad"
        return "good" if len(self._losses) >= self._samples else None

    @property
    def told(self) -> str:
        """What the trial has shown so far."""
        n = len(self._losses)
        return f"on {n} live samples its error was {sum(self._losses) / max(1, n):+.3f} a sample beside the one before"
