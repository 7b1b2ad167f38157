"""What several runs of one strategy on one stream give together, and its JSON: the contract of `edge-cl evaluate`.

Knows figures only: how a run came about, and how its figures are drawn, is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from statistics import fmean, stdev
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_cl.evaluation.run import Run
from edge_cl.learning import metrics


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 below the root; 0 for one seed), or None twice if a figure is not defined."""

    mean: float | None
    std: float | None

    @property
    def percent(self) -> str:
        """For a person; one seed has no deviation to show.

        >>> Spread(0.843, 0.0041).percent, Spread(0.843, 0.0).percent, Spread(None, None).percent
        ('84.3 ± 0.4', '84.3', '–')
        """
        if self.mean is None or self.std is None:
            return "–"
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.std:.1f}" if self.std else "")


def spread(values: Iterable[float | None]) -> Spread:
    """The spread of one figure over the seeds; not defined if for any of them it is None or not finite.

    >>> spread([0.5, 0.75, 1.0]), spread([0.5]), spread([0.5, None])
    (Spread(mean=0.75, std=0.25), Spread(mean=0.5, std=0.0), Spread(mean=None, std=None))
    """
    numbers = [_finite(value) for value in values]
    defined = [number for number in numbers if number is not None]
    if not defined or len(defined) < len(numbers):
        return Spread(None, None)
    return Spread(fmean(defined), stdev(defined) if len(defined) > 1 else 0.0)


@dataclass(frozen=True)
class Result:
    """The runs of one strategy on one stream, one a seed, and what they were made of.

    `settings` are the overrides `key=value` that the strategy put on the configuration, `ends` the samples that had
    come when each experience was over. R (T, T) is the accuracy matrix: R[i, j] on experience j after learning i.
    """

    data: str
    scenario: str
    strategy: str
    model: str
    experiences: tuple[str, ...]
    ends: tuple[int, ...]
    settings: tuple[str, ...]
    runs: tuple[Run, ...]

    @property
    def average_accuracy(self) -> Spread:
        """Mean of R's last row: on all experiences, after the last of them (Lopez-Paz & Ranzato 2017)."""
        return spread(metrics.average_accuracy(R) for R in self._matrices)

    @property
    def forgetting(self) -> Spread:
        """Best accuracy ever had on an old experience minus its last one, mean over those (Chaudhry et al. 2018)."""
        return spread(metrics.forgetting(R) for R in self._matrices)

    @property
    def backward_transfer(self) -> Spread:
        """Mean of R[T, i] - R[i, i] over i < T: below 0, later experiences cost the old ones something."""
        return spread(metrics.backward_transfer(R) for R in self._matrices)

    @property
    def forward_transfer(self) -> Spread:
        """Mean of R[i - 1, i] minus the untrained learner's: what earlier experiences did for one not yet learnt."""
        untrained = [_array(run.untrained) for run in self.runs]
        return spread(metrics.forward_transfer(R, u) for R, u in zip(self._matrices, untrained, strict=True))

    @property
    def lowest_old_accuracy(self) -> Spread:
        """The lowest that the old experiences ever fell to: the stability gap (De Lange et al. 2023)."""
        return spread(run.lowest_old_accuracy for run in self.runs)

    @property
    def prequential_accuracy(self) -> Spread:
        """Test then train, over the whole stream (Gama et al. 2013)."""
        return spread(run.prequential_accuracy for run in self.runs)

    @property
    def no_change(self) -> Spread:
        """Prequential accuracy of the answer "as the last label that was known"."""
        return spread(run.no_change for run in self.runs)

    @property
    def majority(self) -> Spread:
        """Prequential accuracy of the answer "the most frequent label so far"."""
        return spread(run.majority for run in self.runs)

    @property
    def accuracy_matrix(self) -> NDArray[np.float64]:
        """R (T, T), mean over the seeds, NaN where it was not measured."""
        matrix: NDArray[np.float64] = np.mean(self._matrices, axis=0)
        return matrix

    @property
    def replay_bytes(self) -> int:
        """Bytes of replay, of the seed that held most."""
        return max(run.replay_bytes for run in self.runs)

    @property
    def replay_samples(self) -> int:
        """Samples in replay, of the seed that held most."""
        return max(run.replay_samples for run in self.runs)

    @property
    def learner_bytes(self) -> int:
        """Bytes of the whole learner, of the seed that held most."""
        return max(run.learner_bytes for run in self.runs)

    @property
    def samples_per_s(self) -> float | None:
        """Samples a second of computing, over all seeds; None if no time was measured."""
        compute_s = sum(run.compute_s for run in self.runs)
        return sum(run.samples for run in self.runs) / compute_s if compute_s > 0 else None

    @property
    def _matrices(self) -> list[NDArray[np.float64]]:
        size = len(self.runs[0].accuracy_matrix)
        return [_array(run.accuracy_matrix).reshape(size, size) for run in self.runs]

    def as_json(self) -> dict[str, Any]:
        """Plain values, NaN as None; accuracies are fractions from 0 to 1."""
        return {
            "data": self.data,
            "scenario": self.scenario,
            "strategy": self.strategy,
            "settings": list(self.settings),
            "model": self.model,
            "experiences": list(self.experiences),
            "seeds": len(self.runs),
            "average_accuracy": asdict(self.average_accuracy),
            "forgetting": asdict(self.forgetting),
            "backward_transfer": asdict(self.backward_transfer),
            "forward_transfer": asdict(self.forward_transfer),
            "lowest_old_accuracy": asdict(self.lowest_old_accuracy),
            "prequential_accuracy": asdict(self.prequential_accuracy),
            "baselines": {"no_change": asdict(self.no_change), "majority": asdict(self.majority)},
            "accuracy_matrix": _plain(self.accuracy_matrix.tolist()),
            "replay_bytes": self.replay_bytes,
            "replay_samples": self.replay_samples,
            "learner_bytes": self.learner_bytes,
            "samples_per_s": _plain(self.samples_per_s),
            "runs": [_plain(asdict(run)) for run in self.runs],
        }


@dataclass(frozen=True)
class Score:
    """A column of every table of results: its heading, what it means in one sentence, and how it is got."""

    name: str
    meaning: str
    of: Callable[[Result], Spread]


SCORES: Final = (
    Score(
        "average",
        "Accuracy on what is held out of every experience, after the last was learnt; their mean.",
        lambda result: result.average_accuracy,
    ),
    Score(
        "forgetting",
        "How far an old experience fell from the best it ever had to the end; their mean. Lower is better.",
        lambda result: result.forgetting,
    ),
    Score(
        "lowest old",
        "How low an old experience fell at any moment after its own end; their mean. Right after a switch it may be "
        "much lower than at the end: the stability gap.",
        lambda result: result.lowest_old_accuracy,
    ),
    Score(
        "backward",
        "Backward transfer: an old experience at the end against the moment when it had been learnt; their mean. Below "
        "zero, it lost.",
        lambda result: result.backward_transfer,
    ),
    Score(
        "forward",
        "Forward transfer: an experience just before it was learnt against the untrained learner; their mean.",
        lambda result: result.forward_transfer,
    ),
    Score(
        "prequential",
        "Every sample is answered when it comes and learnt afterwards; over the whole stream.",
        lambda result: result.prequential_accuracy,
    ),
    Score(
        "no change",
        "A baseline beside prequential: answers with the last label it knows.",
        lambda result: result.no_change,
    ),
    Score(
        "majority",
        "A baseline beside prequential: answers with the most frequent label so far.",
        lambda result: result.majority,
    ),
)


def scores_of(results: Sequence[Result]) -> list[Score]:
    """The columns that have something to say of at least one of the results."""
    return [score for score in SCORES if any(score.of(result).mean is not None for result in results)]


def comparison(results: Sequence[Result]) -> dict[str, Any]:
    """The JSON of several strategies on the same stream."""
    first = results[0]
    return {"data": first.data, "scenario": first.scenario, "results": [result.as_json() for result in results]}


def _array(values: object) -> NDArray[np.float64]:
    """Numbers in lists as an array, None as NaN."""
    return np.array(values, dtype=np.float64)


def _finite(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else float(value)


def _plain(value: Any) -> Any:
    """The same value with tuples as lists, and None for every number that JSON does not know."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return _finite(value) if isinstance(value, float) else value
