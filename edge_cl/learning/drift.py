"""When to consolidate without being told: two detectors of a rise of the loss, and the weights from before it.

Knows a row of losses, and one flat tensor of weights. Must not know what made the losses, nor what a consolidation is.
A fall of the loss is learning and no change of what is learnt, so only rises fire. A loss that is no finite number (a
step that learnt nothing has none) is passed over.
"""

from __future__ import annotations

from math import inf, isfinite, log, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST_HALF = 65504.0
APART = 5  # steps between two moments of a mean: neighbours tell the same, and each costs its time


class PageHinkley:
    """Fires when the loss has exceeded its own mean, and δ a step, by λ in all.

        mₜ = mₜ₋₁ + (xₜ - x̄ₜ - δ),   fires if mₜ - min_{s ≤ t} m_s > λ

    x̄ₜ is the mean since the last firing, after which everything starts anew; nothing fires within the first
    `min_steps`. Five numbers, whatever the length of the stream. Page 1954; Hinkley 1971.

    delta and threshold are in units of the loss. A rise by Δ is noticed after about λ / (Δ - δ) steps, one of δ or less
    never; false alarms get rarer as exp(-2 δ λ / σ²). tools/bench_drift.py shows what the defaults give.
    Raises ValueError if δ or min_steps is negative or λ not positive.
    """

    n: int  # losses since the last firing, and below, over them:
    mean: float  # x̄ₜ
    sum: float  # mₜ
    lowest: float  # the least mₜ

    def __init__(self, *, delta: float = 0.02, threshold: float = 10.0, min_steps: int = 30) -> None:
        for name, value, good, rule in (
            ("delta", delta, delta >= 0, "at least 0"),
            ("threshold", threshold, threshold > 0, "above 0"),
            ("min_steps", min_steps, min_steps >= 0, "at least 0"),
        ):
            if not good:
                raise ValueError(f"{name}: must be {rule} (got {value})")
        self.delta, self.threshold, self.min_steps = delta, threshold, min_steps
        self._start()

    def update(self, loss: float) -> bool:
        """Take the loss of a step; whether a rise is noticed now."""
        if not isfinite(loss):
            return False
        self.n += 1
        self.mean += (loss - self.mean) / self.n
        self.sum += loss - self.mean - self.delta
        self.lowest = min(self.lowest, self.sum)
        rose = self.n >= self.min_steps and self.sum - self.lowest > self.threshold
        if rose:
            self._start()
        return rose

    def state(self) -> dict[str, Any]:
        """Plain values from which `restore` goes on, bit for bit."""
        return {"n": self.n, "mean": self.mean, "sum": self.sum, "lowest": self.lowest if self.n else None}

    def restore(self, values: dict[str, Any]) -> None:
        """Go on where the detector was whose state this is."""
        self.n, self.mean, self.sum = values["n"], values["mean"], values["sum"]
        self.lowest = inf if values["lowest"] is None else values["lowest"]

    def _start(self) -> None:
        self.n = 0
        self.mean = self.sum = 0.0
        self.lowest = inf


class Adwin:
    """Keeps the longest window of losses whose parts could have one mean; fires when the newer part has a higher one.

    A window is cut into an older and a newer part, n₀ and n₁ losses, in every place between its buckets. They differ if

        |x̄₀ - x̄₁| > √(2 σ² D / m) + 2 D / (3 m),   D = ln(2 ln n / δ),  1/m = 1/(n₀ - l + 1) + 1/(n₁ - l + 1)

    with n, σ² of the whole window and l = `min_part`. The losses lie in buckets of 1, 2, 4, … of them, at most
    `buckets` of each size: about `buckets` · log₂ n triples, at most some hundreds in a lifetime. After a change, up or
    down, it starts anew; only a rise fires. Bifet & Gavaldà 2007 (ADWIN2), with the bound of their implementation.

    Looking at every place costs more than a step should, so that is done every `clock` steps, and not before
    `min_steps`. δ is the probability of a false alarm that the bound allows at a look; it is far from tight, so the
    default is large (tools/bench_drift.py). The unit of the loss matters little: only the second term takes it to be
    about 1. Raises ValueError if δ is outside (0, 1) or one of the counts is below 1.
    """

    n: int  # losses in the window
    total: float  # Σ x over them
    squares: float  # Σ (x - x̄)²
    _rows: list[list[tuple[float, float]]]  # in row k buckets of 2ᵏ losses, the oldest first: the same two sums of each

    def __init__(
        self, *, delta: float = 0.2, clock: int = 8, buckets: int = 5, min_part: int = 5, min_steps: int = 10
    ) -> None:
        if not 0 < delta < 1:
            raise ValueError(f"delta: must be in (0, 1) (got {delta})")
        for name, value in (("clock", clock), ("buckets", buckets), ("min_part", min_part), ("min_steps", min_steps)):
            if value < 1:
                raise ValueError(f"{name}: must be at least 1 (got {value})")
        self.delta, self.clock, self.buckets, self.min_part, self.min_steps = delta, clock, buckets, min_part, min_steps
        self._start()

    @property
    def mean(self) -> float:
        """Mean loss of the window, 0 while it is empty."""
        return self.total / self.n if self.n else 0.0

    def update(self, loss: float) -> bool:
        """Take the loss of a step; whether a rise is noticed now."""
        if not isfinite(loss):
            return False
        self._insert(loss)
        if self.n % self.clock or self.n <= self.min_steps:
            return False
        difference = self._change()
        if difference:
            self._start()
        return difference > 0

    def state(self) -> dict[str, Any]:
        """Plain values from which `restore` goes on, bit for bit."""
        rows = [[list(bucket) for bucket in row] for row in self._rows]
        return {"n": self.n, "total": self.total, "squares": self.squares, "rows": rows}

    def restore(self, values: dict[str, Any]) -> None:
        """Go on where the detector was whose state this is."""
        self.n, self.total, self.squares = values["n"], values["total"], values["squares"]
        self._rows = [[(total, squares) for total, squares in row] for row in values["rows"]]

    def _start(self) -> None:
        self.n = 0
        self.total = self.squares = 0.0
        self._rows = [[]]

    def _insert(self, loss: float) -> None:
        if self.n:
            self.squares += self.n * (loss - self.mean) ** 2 / (self.n + 1)
        self.n += 1
        self.total += loss
        self._rows[0].append((loss, 0.0))
        for k, row in enumerate(self._rows):
            if len(row) <= self.buckets:
                return
            (total, squares), (other, others), *rest = row
            self._rows[k] = rest
            size = 1 << k
            merged = (total + other, squares + others + size / 2 * (total / size - other / size) ** 2)
            if k + 1 == len(self._rows):
                self._rows.append([])
            self._rows[k + 1].append(merged)

    def _change(self) -> float:
        """Newer mean minus older at the oldest place where they differ, 0.0 if there is none."""
        D, variance = log(2 * log(self.n) / self.delta), self.squares / self.n
        n_old, old = 0, 0.0
        for k in range(len(self._rows) - 1, -1, -1):
            for total, _ in self._rows[k]:
                n_old += 1 << k
                old += total
                n_new = self.n - n_old
                if min(n_old, n_new) < self.min_part:
                    continue
                difference = (self.total - old) / n_new - old / n_old
                share = 1 / (n_old - self.min_part + 1) + 1 / (n_new - self.min_part + 1)
                if abs(difference) > sqrt(2 * share * variance * D) + 2 / 3 * D * share:
                    return difference
        return 0.0


DETECTORS: dict[str, type[PageHinkley] | type[Adwin]] = {"page_hinkley": PageHinkley, "adwin": Adwin}


class Lagged:
    """The mean of the weights over `lag` steps that ended at least `lag` and less than 3 · `lag` steps ago.

    A detector fires after the change, when the loss has already driven the weights away: what must be consolidated is
    what was there before. A mean is taken over `lag` steps and then left to lie for as many, so that a change noticed
    within `lag` steps has no part in it; then it takes the older one's place. A mean rather than one moment of the
    weights: the steps of a gradient scatter about what they approach (Polyak & Juditsky 1992). Two copies of θ (P,) in
    half precision, which is what an anchor is kept in (anchor.py). Raises ValueError if lag is below 1.
    """

    def __init__(self, theta: Tensor, lag: int = 100) -> None:
        if lag < 1:
            raise ValueError(f"lag: must be at least 1 step (got {lag})")
        self.lag = lag
        self._older, self._newer = (torch.zeros_like(theta, dtype=torch.float16) for _ in range(2))
        self._known = False  # whether the older one is a mean yet
        self._begun: int | None = None  # the step at which the newer one was begun
        self._taken = 0  # moments that the newer one is the mean of

    @property
    def nbytes(self) -> int:
        """Bytes held: four a parameter."""
        return self._older.nbytes + self._newer.nbytes

    def remember(self, theta: Tensor, step: int) -> None:
        """Be shown θ after each step; one in APART goes into the mean: m ← m + (θ - m) / n."""
        if self._begun is not None and step - self._begun >= 2 * self.lag:
            self._older, self._newer = self._newer, self._older
            self._known, self._begun = True, None
        if self._begun is None:
            self._begun, self._taken = step, 0
        age = step - self._begun
        if age < self.lag and age % APART == 0:
            self._taken += 1
            now = theta.clamp(-LARGEST_HALF, LARGEST_HALF).half()
            self._newer.lerp_(now, 1 / self._taken) if self._taken > 1 else self._newer.copy_(now)

    def before(self) -> Tensor | None:
        """The weights (P,) from before, in half precision and until the next `remember`; None while there are none."""
        return self._older if self._known else None

    def forget(self) -> None:
        """Begin anew after a consolidation, so that what came before it is not consolidated a second time."""
        self._known, self._begun, self._taken = False, None, 0

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values from which `restore` goes on, bit for bit; live views on a CPU."""
        arrays: dict[str, NDArray[np.float16]] = {
            "older": self._older.cpu().numpy(),
            "newer": self._newer.cpu().numpy(),
        }
        return arrays, {"known": self._known, "begun": self._begun, "taken": self._taken}

    def restore(self, arrays: dict[str, NDArray[Any]], values: dict[str, Any]) -> None:
        """Go on with the copies whose state this is. Raises ValueError if they are of other weights."""
        for name, own in (("older", self._older), ("newer", self._newer)):
            if arrays[name].shape != tuple(own.shape):
                raise ValueError(f"{name}: must have shape {tuple(own.shape)} (got {arrays[name].shape})")
        self._older.copy_(torch.from_numpy(arrays["older"]))
        self._newer.copy_(torch.from_numpy(arrays["newer"]))
        self._known, self._begun, self._taken = values["known"], values["begun"], values["taken"]
