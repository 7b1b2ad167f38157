"""A stream as the evaluation sees it: experiences one after another, each with what it is scored on.

Knows arrays only: neither where they come from nor who learns from them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

UNLABELLED = -1


@dataclass(frozen=True)
class Experience:
    """A stretch of a stream from one distribution: x (N, *shape), y (N,) in order, UNLABELLED where no label comes.

    What was learnt is scored on test_x (M, *shape), test_y (M,), which may be empty. classes are the labels that occur:
    in a task-incremental stream the only ones to choose from.
    """

    name: str
    x: NDArray[Any]
    y: NDArray[np.int64]
    test_x: NDArray[Any]
    test_y: NDArray[np.int64]
    classes: tuple[int, ...]


class Stream(Sequence[Experience]):
    """Experiences that are made each time they are asked for, always the same, and never kept."""

    def __init__(self, makers: Sequence[Callable[[], Experience]]) -> None:
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    @overload
    def __getitem__(self, index: int) -> Experience: ...

    @overload
    def __getitem__(self, index: slice) -> Stream: ...

    def __getitem__(self, index: int | slice) -> Experience | Stream:
        return Stream(self._makers[index]) if isinstance(index, slice) else self._makers[index]()


def ends(stream: Sequence[Experience]) -> list[int]:
    """How many samples came when each experience was over; all but the last are the change points."""
    return list(accumulate(len(experience.y) for experience in stream))


def generator(seed: int, purpose: str, number: int = 0) -> np.random.Generator:
    """A generator for one thing that is drawn, so that it depends on nothing else that is drawn, here or in a learner.

    >>> generator(7, "rows").random() == generator(7, "order").random()
    False
    """
    return np.random.default_rng([seed, number, zlib.crc32(purpose.encode())])
