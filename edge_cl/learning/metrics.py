"""The figures of the field: transfer and forgetting from an accuracy matrix, accuracy along a stream, its baselines.

Knows accuracies, labels and scores. Must not know learners, experiences' data or where a stream comes from.

T experiences; R (T, T) has in R[i, j] the accuracy on experience j after learning experience i, NaN where nobody asked;
for j > i it was measured before j was learnt. An accuracy that a figure needs and nobody measured makes it NaN, and so
does a mean over nothing: with one experience there is none to be forgotten. Best and lowest are taken over what was
measured.
"""

from __future__ import annotations

from math import nan

import numpy as np
from numpy.typing import ArrayLike, NDArray

NOT_SEEN = -1  # what a baseline answers before the first label, as the learner does

Accuracies = NDArray[np.float64]


def average_accuracy(R: ArrayLike) -> float:
    """Mean of the last row: on every experience, after the last. ACC = 1/T Σᵢ R[T, i]. Lopez-Paz & Ranzato 2017."""
    return _mean(_square(R)[-1:].ravel())


def forgetting(R: ArrayLike) -> float:
    """Best accuracy an old experience ever had minus its last: 1/(T-1) Σ_{j<T} (max_{l<T} R[l, j] - R[T, j]).

    Below zero where the old ones were at their best at the end. Chaudhry et al. 2018.
    """
    matrix = _square(R)
    best = _over_measured(np.fmax, matrix[:-1, :-1])
    return _mean(best - matrix[-1, :-1]) if len(matrix) else nan


def backward_transfer(R: ArrayLike) -> float:
    """What the later experiences did to an old one: 1/(T-1) Σ_{i<T} (R[T, i] - R[i, i]). Lopez-Paz & Ranzato 2017.

    Each experience is compared with itself, never with the one before it. Below zero: it was forgotten.
    """
    matrix = _square(R)
    return _mean(matrix[-1, :-1] - matrix.diagonal()[:-1]) if len(matrix) else nan


def forward_transfer(R: ArrayLike, untrained: ArrayLike) -> float:
    """What the earlier ones did for an experience not yet learnt: 1/(T-1) Σ_{i>1} (R[i-1, i] - untrained[i]).

    untrained (T,): accuracy on each before anything was learnt. Raises ValueError if there is not one for each
    experience. Lopez-Paz & Ranzato 2017.
    """
    matrix, before = _square(R), np.asarray(untrained, dtype=np.float64)
    if before.shape != (len(matrix),):
        raise ValueError(f"untrained: must have shape ({len(matrix)},), one an experience (got {before.shape})")
    return _mean(matrix.diagonal(1) - before[1:])


def lowest_old_accuracy(at: ArrayLike, accuracies: ArrayLike, ends: ArrayLike) -> float:
    """How deep an old experience fell, at any moment after its own end: 1/(T-1) Σ_{i<T} min_{n > endᵢ} Aᵢ(n).

    The average minimum accuracy (min-ACC) of De Lange et al. 2023. The fall right after a switch, the stability gap, is
    over within some tens of steps, so it is seen only if accuracies were measured that often.
    at (M,) samples of the stream that had come at each measurement, accuracies (M, T), NaN where nobody asked, ends
    (T,) samples that had come when each experience was over. Raises ValueError if the shapes are others.
    """
    moments, measured, over = (np.asarray(values, dtype=np.float64) for values in (at, accuracies, ends))
    if measured.shape != (len(moments), len(over)):
        raise ValueError(f"accuracies: must have shape {(len(moments), len(over))} (got {measured.shape})")
    later = np.where(moments[:, None] > over, measured, nan)
    return _mean(_over_measured(np.fmin, later[:, :-1]))


def balanced_accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Mean over the classes that occur of the share of their samples that was recognised.

    labels (N,), predicted (N,). NaN of nothing. Raises ValueError if there is not an answer to each label.
    """
    truth, answers = np.asarray(labels), np.asarray(predicted)
    if truth.shape != answers.shape:
        raise ValueError(f"predicted: must have the labels' shape {truth.shape} (got {answers.shape})")
    _, classes, sizes = np.unique(truth, return_inverse=True, return_counts=True)
    return _mean(np.bincount(classes, truth == answers, len(sizes)) / sizes)


def kappa_temporal(accuracy: float, no_change: float) -> float:
    """κ = (p - p') / (1 - p'): 1 is perfect, 0 no better than p', the accuracy of the answer "as the last label".

    NaN where that answer is always right and nothing can be better. Žliobaitė et al. 2015.

    >>> kappa_temporal(0.75, 0.5), kappa_temporal(0.5, 0.75)
    (0.5, -1.0)
    """
    return (accuracy - no_change) / (1 - no_change) if no_change < 1 else nan


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """P(score of a positive > score of a negative) + ½ P(they are equal): area under the ROC curve, as ranks.

    scores (N,), positive (N,) bool. U / (n₊ n₋) with midranks for ties (Mann & Whitney 1947; Hanley & McNeil 1982); NaN
    if there are only positives or only negatives. Raises ValueError if a score is NaN or shapes differ.
    """
    values, is_positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if values.shape != is_positive.shape:
        raise ValueError(f"positive: must have the scores' shape {values.shape} (got {is_positive.shape})")
    if np.isnan(values).any():
        raise ValueError(f"scores: must be numbers (got {int(np.isnan(values).sum())} NaN)")
    n_positive = int(is_positive.sum())
    n_negative = len(values) - n_positive
    if n_positive == 0 or n_negative == 0:
        return nan
    _, level, ties = np.unique(values, return_inverse=True, return_counts=True)
    midrank = ties.cumsum() - (ties - 1) / 2
    above = midrank[level][is_positive].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


class Prequential:
    """Accuracy of answers given before their samples were learnt: overall, over the last `window`, and faded.

    faded: Sₙ / Nₙ with Sₙ = hitₙ + α Sₙ₋₁ and Nₙ = 1 + α Nₙ₋₁; α = `fading` in (0, 1], 1 never forgets and 0.999
    remembers about a thousand samples. All three are NaN before the first. Gama, Sebastião & Rodrigues 2013.
    Raises ValueError if the window is empty or α out of its range.
    """

    def __init__(self, window: int = 1000, fading: float = 0.999) -> None:
        if window < 1:
            raise ValueError(f"window: must be at least 1 sample (got {window})")
        if not 0 < fading <= 1:
            raise ValueError(f"fading: must be in (0, 1] (got {fading})")
        self.n = self.hits = 0
        self.overall = self.windowed = self.faded = nan
        self._fading = fading
        self._last = bytearray(window)
        self._hits_in_window = 0
        self._faded_hits = self._faded_n = 0.0

    def score(self, right: bool) -> tuple[float, float, float]:
        """Count one answer; the three accuracies with it: overall, windowed, faded."""
        hit, window = int(right), len(self._last)
        place = self.n % window
        self._hits_in_window += hit - self._last[place]
        self._last[place] = hit
        self.n += 1
        self.hits += hit
        self._faded_hits = hit + self._fading * self._faded_hits
        self._faded_n = 1 + self._fading * self._faded_n
        self.overall = self.hits / self.n
        self.windowed = self._hits_in_window / min(self.n, window)
        self.faded = self._faded_hits / self._faded_n
        return self.overall, self.windowed, self.faded


class NoChange:
    """The baseline that answers with the last label it was told; on a stream of long runs it is hard to beat."""

    def __init__(self) -> None:
        self._last = NOT_SEEN

    def predict(self) -> int:
        """The last label; NOT_SEEN before the first."""
        return self._last

    def learn(self, label: int) -> None:
        """Be told a label."""
        self._last = int(label)


class Majority:
    """The baseline that answers with the most frequent label so far, of several the lowest."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._most = NOT_SEEN

    def predict(self) -> int:
        """The most frequent label; NOT_SEEN before the first."""
        return self._most

    def learn(self, label: int) -> None:
        """Be told a label."""
        label = int(label)
        count = self._counts[label] = self._counts.get(label, 0) + 1
        if (-count, label) < (-self._counts.get(self._most, 0), self._most):
            self._most = label


def _square(R: ArrayLike) -> Accuracies:
    matrix = np.asarray(R, dtype=np.float64)
    if matrix.size == 0:
        return np.empty((0, 0))
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"R: must be square, experiences learnt by experiences asked (got {matrix.shape})")
    return matrix


def _over_measured(best_of: np.ufunc, accuracies: Accuracies) -> Accuracies:
    """Best or lowest of each column (M, T) among what was measured, (T,); NaN where nothing was."""
    reduced: Accuracies = best_of.reduce(accuracies, axis=0, initial=nan)
    return reduced


def _mean(values: Accuracies) -> float:
    return float(values.mean()) if len(values) else nan
