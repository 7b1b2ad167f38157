"""A learner in small: what it is depends on every entry it was given, on their order, and on how often each came.

Entry n is a function of the seed and n, so that a reference can be folded without any disk. Knows no file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

PARAMETERS = 256
CONSOLIDATE_EVERY = 11
MOST_BYTES = 2000  # of an entry, at least MOST_BYTES // 100

Arrays = Mapping[str, np.ndarray]


def body_of(seed: int, number: int) -> bytes:
    """Entry `number`."""
    rng = np.random.default_rng([seed, number])
    kind = b"consolidate" if number % CONSOLIDATE_EVERY == 0 else b"learn"
    return kind + b":" + rng.bytes(int(rng.integers(MOST_BYTES // 100, MOST_BYTES)))


class Fold:
    """Parameters, importances and a random generator; `applied` counts entries, `number` is that of the last one."""

    def __init__(self, seed: int) -> None:
        self.weights = np.zeros(PARAMETERS)
        self.fisher = np.zeros(PARAMETERS)
        self.rng = np.random.default_rng(seed)
        self.applied = self.number = 0

    def apply(self, number: int, body: bytes) -> None:
        """One step; none of them can be done twice without a trace."""
        kind, _, content = body.partition(b":")
        values = np.frombuffer(content, np.uint8) / 255
        if kind == b"consolidate":
            self.fisher = 0.9 * self.fisher + self.weights**2
            self.weights = self.weights[self.rng.permutation(PARAMETERS)]
        else:
            drawn = self.rng.integers(0, PARAMETERS, len(values))
            self.weights *= 0.99
            np.add.at(self.weights, drawn, values / (1 + self.fisher[drawn]))
            self.weights += self.rng.normal(0, 1e-3, PARAMETERS)
        self.applied, self.number = self.applied + 1, number

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """What a checkpoint holds of it: the live arrays, not copies."""
        meta = {"rng": self.rng.bit_generator.state, "applied": self.applied, "journal": self.number}
        return {"weights": self.weights, "fisher": self.fisher}, meta

    def restore(self, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.weights, self.fisher = arrays["weights"], arrays["fisher"]
        self.rng.bit_generator.state = meta["rng"]
        self.applied, self.number = meta["applied"], meta["journal"]

    def digest(self) -> str:
        """Equal for equal bits."""
        digest = hashlib.sha256(self.weights.tobytes() + self.fisher.tobytes())
        digest.update(json.dumps(self.state()[1], sort_keys=True).encode())
        return digest.hexdigest()


class Reference:
    """The fold that nothing ever interrupts."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._fold = Fold(seed)

    def digest_at(self, number: int) -> str:
        """What it is after so many entries."""
        if number < self._fold.number:
            self._fold = Fold(self._seed)
        for following in range(self._fold.number + 1, number + 1):
            self._fold.apply(following, body_of(self._seed, following))
        return self._fold.digest()
