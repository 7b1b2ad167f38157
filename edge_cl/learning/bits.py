"""How few bits a stored value may have: tried on the first samples, by what the network loses on them.

Knows samples and a function that gives their losses. Must not know networks, replay or steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.learning.packing import BITS, packing_of

TOLERATED = 0.01  # nats a sample: what replay gains from twice the samples is several times that (docs/BENCHMARKS.md)
LEAST = 16  # samples: with fewer the mean says nothing


@dataclass(frozen=True)
class Trial:
    """Samples kept in so many bits lose `extra_loss` nats on the average, give or take `error`, one standard error."""

    bits: int
    extra_loss: float
    error: float

    @property
    def passed(self) -> bool:
        """Whether that costs nothing: no more than TOLERATED, even if it were a standard error more."""
        return self.extra_loss + self.error <= TOLERATED


def try_bits(
    x: NDArray[Any], losses: Callable[[NDArray[Any]], NDArray[np.float32]], layout: tuple[int, ...]
) -> list[Trial]:
    """Samples x (N, *shape) packed in 8, 4 and 2 bits and unpacked again, up to the first that costs something.

    `losses` gives the loss (N,) of such samples by the network as it is. It has learnt from the sensor's own values, so
    what it loses is more than one would that learns from packed ones; each sample is compared with itself. Nothing is
    tried that would take no less than raw samples.
    """
    before, trials = losses(x), []
    for bits in BITS:
        try:
            packing = packing_of(x.shape[1:], x.dtype, bits, layout)
        except ValueError:  # no smaller than raw
            continue
        if packing is None:  # the sensor's own values have no more bits
            continue
        extra = (losses(packing.decode(packing.encode(x))) - before).astype(np.float64)
        trials.append(Trial(bits, float(extra.mean()), float(extra.std() / len(x) ** 0.5)))
        if not trials[-1].passed:
            break
    return trials


def fewest(trials: list[Trial]) -> int | None:
    """The fewest bits that passed; None, as the sensor made them, if none did."""
    passed = [trial.bits for trial in trials if trial.passed]
    return min(passed) if passed else None
