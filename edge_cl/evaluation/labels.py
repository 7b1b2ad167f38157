"""Labels as the field delivers them: wrong, missing, late. Knows experiences, not who learns from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import OperatorError
from edge_cl.evaluation.stream import UNLABELLED, Experience, Stream, generator

Event = tuple[Literal["predict", "learn"], int]


def noisy(stream: Sequence[Experience], noise: float, *, seed: int) -> Stream:
    """A part `noise` of each experience's labels replaced, each by another class of the experience, all as likely.

    Test labels stay true. Raises OperatorError if noise is outside [0, 1) or an experience has one class only.
    """
    _check_part("noise", noise)
    alone = next((experience for experience in stream if noise and len(experience.classes) < 2), None)
    if alone is not None:
        raise OperatorError(
            f"noise: {alone.name} must have a second class to mistake the first for (got {noise})",
            hint="take fewer experiences",
        )
    return Stream([partial(_noisy, stream, t, noise, seed) for t in range(len(stream))])


def _noisy(stream: Sequence[Experience], t: int, noise: float, seed: int) -> Experience:
    experience = stream[t]
    rng = generator(seed, "noise", t)
    wrong = _some(np.flatnonzero(experience.y != UNLABELLED), noise, rng)
    classes, y = np.array(experience.classes), experience.y.copy()
    # A step of 1 … C - 1 around the circle of the classes never ends where it began.
    steps = rng.integers(1, len(classes), len(wrong)) if len(wrong) else 0
    y[wrong] = classes[(np.searchsorted(classes, y[wrong]) + steps) % len(classes)]
    return replace(experience, y=y)


def unlabelled(stream: Sequence[Experience], missing: float, *, seed: int) -> Stream:
    """A part `missing` of each experience's labels taken away. Raises OperatorError if missing is outside [0, 1)."""
    _check_part("missing", missing)
    return Stream([partial(_unlabelled, stream, t, missing, seed) for t in range(len(stream))])


def _unlabelled(stream: Sequence[Experience], t: int, missing: float, seed: int) -> Experience:
    experience = stream[t]
    y = experience.y.copy()
    y[_some(np.arange(len(y)), missing, generator(seed, "missing", t))] = UNLABELLED
    return replace(experience, y=y)


def delayed(count: int, delay: int) -> Iterator[Event]:
    """What happens to `count` samples whose labels come `delay` samples later: ("predict", i) and ("learn", i).

    Sample t is predicted, then the label of sample t - delay arrives; 0 is test-then-train. Labels still out when the
    samples are over arrive behind the last. Grzenda, Gomes and Bifet 2020, Delayed labelling evaluation for data
    streams. Raises OperatorError if delay is below 0.

    >>> [f"{what[0]}{i}" for what, i in delayed(4, 2)]
    ['p0', 'p1', 'p2', 'l0', 'p3', 'l1', 'l2', 'l3']
    """
    if delay < 0:
        raise OperatorError(f"label-delay: must be a number of samples, 0 or more (got {delay})", hint="0: at once")
    return _delayed(count, delay)


def _delayed(count: int, delay: int) -> Iterator[Event]:
    for t in range(count + delay):
        if t < count:
            yield "predict", t
        if t >= delay:
            yield "learn", t - delay


def _some(rows: NDArray[np.int64], part: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """That part of the rows, to the nearest whole row, drawn without replacement."""
    return rng.permutation(rows)[: round(part * len(rows))]


def _check_part(name: str, part: float) -> None:
    if not 0 <= part < 1:
        raise OperatorError(f"{name}: must be a part of the labels, 0 up to 1 (got {part})", hint="0: none")
