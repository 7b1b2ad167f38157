"""A reservoir of past samples in the sensor's own integers, in a fixed number of bytes.

Knows samples, labels and which of them to keep. Must not know networks, losses or where the stream comes from.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

POLICIES = ("balanced", "reservoir")
LABEL_BYTES = 2


class Reservoir:
    """At most `capacity` samples of a stream, uniform over the stream or balanced over its classes.

    reservoir: Algorithm R (Vitter 1985): after n samples each is held with probability capacity / n.
    balanced:  class-balancing reservoir sampling (Chrysakis & Moens 2020): a sample of a class that is not the largest
               replaces one of the largest class; within the largest, Algorithm R decides. Rare classes are never lost.

    Samples (*shape) keep the sensor's dtype. Everything is allocated at once: bytes_per_sample · capacity.
    Raises ValueError if the policy is unknown or the capacity below 0.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        n_classes: int,
        policy: str = "balanced",
        seed: int = 0,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"replay.policy: must be one of {', '.join(POLICIES)} (got {policy})")
        if capacity < 0:
            raise ValueError(f"capacity: must be at least 0 (got {capacity})")
        self.policy = policy
        self.items = np.zeros((capacity, *shape), dtype=dtype)
        self.labels = np.zeros(capacity, dtype=np.int16)
        self.size = 0
        self.n_seen = [0] * n_classes  # samples offered, by class
        self.n_held = [0] * n_classes
        self.rng = np.random.default_rng(seed)

    @property
    def capacity(self) -> int:
        """Samples it can hold."""
        return len(self.items)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.items.nbytes + self.labels.nbytes

    def draw(self, n: int) -> NDArray[np.int64]:
        """Places (n,) of samples held, each drawn uniformly and independently; none while none is held."""
        return self.rng.integers(0, self.size, n if self.size else 0)

    def shuffled(self) -> NDArray[np.int64]:
        """Every place held once, in random order."""
        return self.rng.permutation(self.size)

    def offer(self, x: NDArray[Any], y: NDArray[np.int64]) -> None:
        """Show it the samples x (B, *shape) with labels y (B,), in order; the policy decides what each replaces."""
        labels = y.tolist()
        for row, (label, chances) in enumerate(zip(labels, self.rng.random((len(labels), 2)).tolist(), strict=True)):
            self.n_seen[label] += 1
            place = self._place_for(label, *chances)
            if place is not None:
                self._put(place, x[row], label)

    def _place_for(self, label: int, chance: float, which: float) -> int | None:
        """Where a sample of that class goes, None if nowhere; both numbers are uniform in [0, 1)."""
        if self.size < self.capacity:
            return self.size
        if self.capacity == 0:
            return None
        if self.policy == "reservoir":
            place = int(chance * sum(self.n_seen))
            return place if place < self.capacity else None
        most = max(self.n_held)
        if self.n_held[label] < most:
            return self._place_of(self.n_held.index(most), which)
        return self._place_of(label, which) if chance * self.n_seen[label] < self.n_held[label] else None

    def _place_of(self, label: int, which: float) -> int:
        places = np.flatnonzero(self.labels == label)
        return int(places[int(which * len(places))])

    def _put(self, place: int, item: NDArray[Any], label: int) -> None:
        if place < self.size:
            self.n_held[self.labels[place]] -= 1
        self.size = max(self.size, place + 1)
        self.n_held[label] += 1
        self.items[place] = item
        self.labels[place] = label

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values from which `restore` makes the same reservoir."""
        arrays = {"items": self.items[: self.size], "labels": self.labels[: self.size]}
        return arrays, {"rng": self.rng.bit_generator.state, "n_seen": list(self.n_seen)}

    def restore(self, arrays: dict[str, NDArray[Any]], values: dict[str, Any]) -> None:
        """Take over a state; of one with more samples than fit, a random choice is kept (the budget was lowered)."""
        self.rng.bit_generator.state = values["rng"]
        self.n_seen = list(values["n_seen"])
        items, labels = arrays["items"], arrays["labels"]
        if len(items) > self.capacity:
            keep = self.rng.permutation(len(items))[: self.capacity]
            items, labels = items[keep], labels[keep]
        self.size = len(items)
        self.items[: self.size] = items
        self.labels[: self.size] = labels
        self.n_held = np.bincount(labels, minlength=len(self.n_held)).tolist()


def bytes_per_sample(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes a reservoir needs for one sample and its label."""
    return prod(shape) * dtype.itemsize + LABEL_BYTES
