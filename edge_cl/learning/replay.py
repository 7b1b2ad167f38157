"""A reservoir of past samples in the sensor's own integers, in a fixed number of bytes.

Knows samples, labels and which of them to keep. Must not know networks, losses or where the stream comes from.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
        dtype: torch.dtype,
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
        self.items = torch.zeros(capacity, *shape, dtype=dtype)
        self.labels = torch.zeros(capacity, dtype=torch.int16)
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
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.items, self.labels))

    def draw(self, n: int) -> Tensor:
        """Places (min(n, size),) of samples held, each drawn uniformly and independently."""
        return torch.from_numpy(self.rng.integers(0, self.size, n if self.size else 0))

    def shuffled(self) -> Tensor:
        """Every place held once, in random order."""
        return torch.from_numpy(self.rng.permutation(self.size))

    def offer(self, x: Tensor, y: NDArray[np.int64]) -> None:
        """Show it the samples x (B, *shape) with labels y (B,), in order; the policy decides what each replaces."""
        taken: dict[int, int] = {}  # place → row; a later row replaces an earlier one that took the same place
        labels = y.tolist()
        for row, (label, chance) in enumerate(zip(labels, self.rng.random(len(labels)).tolist(), strict=True)):
            self.n_seen[label] += 1
            place = self._place_for(label, chance)
            if place is not None:
                self._hold(place, label)
                taken[place] = row
        if taken:
            places, rows = torch.tensor([*taken]), torch.tensor([*taken.values()])
            self.items.index_copy_(0, places, x.index_select(0, rows))

    def _place_for(self, label: int, chance: float) -> int | None:
        """Where a sample of that class goes, None if nowhere; `chance` is uniform in [0, 1)."""
        if self.size < self.capacity:
            return self.size
        if self.capacity == 0:
            return None
        if self.policy == "reservoir":
            place = int(chance * sum(self.n_seen))
            return place if place < self.capacity else None
        most = max(self.n_held)
        if self.n_held[label] < most:
            return self._random_place(self.n_held.index(most))
        return self._random_place(label) if chance * self.n_seen[label] < self.n_held[label] else None

    def _random_place(self, label: int) -> int:
        return int(self.rng.choice(np.flatnonzero(self.labels.numpy() == label)))

    def _hold(self, place: int, label: int) -> None:
        labels = self.labels.numpy()
        if place < self.size:
            self.n_held[int(labels[place])] -= 1
        self.size = max(self.size, place + 1)
        self.n_held[label] += 1
        labels[place] = label

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values from which `restore` makes the same reservoir."""
        arrays = {"items": self.items[: self.size].numpy(), "labels": self.labels[: self.size].numpy()}
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
        self.items[: self.size] = torch.from_numpy(items)
        self.labels[: self.size] = torch.from_numpy(labels)
        self.n_held = np.bincount(labels, minlength=len(self.n_held)).tolist()


def bytes_per_sample(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes a reservoir needs for one sample and its label."""
    return prod(shape) * dtype.itemsize + LABEL_BYTES
