"""Whether the labels that come still have to do with what is answered. Knows class indices, nothing else.

A shuffled cable, a swapped topic or a person in a hurry make labels that no model can learn. Forgetting and drift are
something else: there answers are wrong until they are learnt, and then right.
"""

from __future__ import annotations

from collections import deque

import numpy as np

TAILS = (40, 80, 160, 320)  # latest labels looked at: a short fault shows in few, a half-hearted one only in many
BY_CHANCE = 2.0  # standard errors above what unrelated labels would agree in, below which they may be just that
LOWER = 3.0  # standard errors below the accuracy that is expected
ONE_CLASS = 0.75  # share of one label or answer above which a tail says nothing: what agrees with it does so by chance


class Agreement:
    """The latest answers and their labels, each answer given before its sample was learnt."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[int, int]] = deque(maxlen=TAILS[-1])

    def add(self, predicted: int | None, label: int) -> None:
        """Note an answer, None before there was one, and the label that came for it."""
        self._pairs.append((-1 if predicted is None else predicted, label))

    def at_odds(self, accuracy: float) -> int:
        """How many of the latest labels agree with the answers only by chance, 0 if they do better.

        By chance: n answers agree in n Σ_c p(c) q(c) labels when the two, of frequencies p and q, are independent; κ of
        Cohen 1960 is then 0. They must be fewer than `accuracy`, what is expected, too.
        """
        pairs = np.array(self._pairs, dtype=np.int64).reshape(-1, 2)
        for n in TAILS:
            if n > len(pairs):
                break
            predicted, label = pairs[-n:].T
            agreed = (predicted == label).mean()
            p, q = (np.bincount(side + 1, minlength=pairs.max() + 2) / n for side in (predicted, label))
            if max(p.max(), q.max()) > ONE_CLASS:
                continue
            chance = p @ q
            unrelated = agreed <= chance + BY_CHANCE * np.sqrt(chance * (1 - chance) / n)
            if unrelated and agreed < accuracy - LOWER * np.sqrt(accuracy * (1 - accuracy) / n):
                return n
        return 0
