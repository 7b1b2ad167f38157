"""What the seeds of an anomaly evaluation give together, and its JSON: the contract of `--scenario anomaly`.

Knows figures only, as result.py does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edge_cl.evaluation.result import Spread, spread


@dataclass(frozen=True)
class AnomalyRun:
    """The figures of one seed; AUROCs are of held-out faults against all held-out normal samples.

    auroc           of all faults together
    by_class        {fault: of this one alone}
    untrained       of all faults, by the same network before it learnt anything but the range of its input
    mean            of all, by the distance of what is to be reconstructed from its mean over what was learnt
    energy          of all, by a sample's mean squared distance from the running mean of its channels, in deviations
    curve           (normal samples so far, mean score of the newest ones before they were learnt)
    forgetting      {protection: best AUROC that a condition ever had minus its last, mean over the earlier ones}
    score_rise      {protection: mean score of an earlier condition at the end, over that when it had been learnt}
    normal_samples  learnt
    compute_s       seconds within scoring, learning and consolidating them
    """

    seed: int
    auroc: float
    by_class: dict[str, float]
    untrained: float
    mean: float
    energy: float
    curve: list[tuple[int, float]]
    forgetting: dict[str, float]
    score_rise: dict[str, float]
    normal_samples: int
    replay_bytes: int
    learner_bytes: int
    compute_s: float


@dataclass(frozen=True)
class AnomalyResult:
    """The runs of one configuration on one set of data, one a seed; `normal` is the class that was learnt.

    `conditions` are those it was learnt under, one after another.
    """

    data: str
    model: str
    normal: str
    conditions: tuple[str, ...]
    runs: tuple[AnomalyRun, ...]

    @property
    def auroc(self) -> Spread:
        """Area under the ROC curve of the anomaly score."""
        return spread(run.auroc for run in self.runs)

    @property
    def auroc_by_class(self) -> dict[str, Spread]:
        """The same for each fault alone."""
        return {name: spread(run.by_class[name] for run in self.runs) for name in self.runs[0].by_class}

    @property
    def baselines(self) -> dict[str, Spread]:
        """What answers without having learnt: see `AnomalyRun`."""
        return {
            "untrained": spread(run.untrained for run in self.runs),
            "mean": spread(run.mean for run in self.runs),
            "energy": spread(run.energy for run in self.runs),
        }

    @property
    def forgetting(self) -> dict[str, Spread]:
        """By protection; empty for a single condition, of which nothing can be forgotten."""
        return {how: spread(run.forgetting[how] for run in self.runs) for how in self.runs[0].forgetting}

    @property
    def score_rise(self) -> dict[str, Spread]:
        """By protection; 1 where an old condition is reconstructed as well as ever."""
        return {how: spread(run.score_rise[how] for run in self.runs) for how in self.runs[0].score_rise}

    def as_json(self) -> dict[str, Any]:
        """Plain values; AUROCs are fractions, of which 0.5 is a guess."""
        return {
            "data": self.data,
            "scenario": "anomaly",
            "model": self.model,
            "normal": self.normal,
            "conditions": list(self.conditions),
            "seeds": len(self.runs),
            "auroc": asdict(self.auroc),
            "auroc_by_class": _plain(self.auroc_by_class),
            "auroc_reference": asdict(self.baselines["energy"]),
            "baselines": _plain(self.baselines),
            "forgetting": _plain(self.forgetting),
            "score_rise": _plain(self.score_rise),
            "normal_samples": self.runs[0].normal_samples,
            "replay_bytes": max(run.replay_bytes for run in self.runs),
            "learner_bytes": max(run.learner_bytes for run in self.runs),
            "samples_per_s": sum(run.normal_samples for run in self.runs) / sum(run.compute_s for run in self.runs),
            "runs": [asdict(run) for run in self.runs],
        }

    def table(self) -> list[tuple[str, str]]:
        """Lines for a person, a name and a figure each; AUROCs in percent."""
        forgotten = [
            (f"forgotten, {how}", f"{lost.percent}; old scores x {self.score_rise[how].mean:.2f}")
            for how, lost in self.forgetting.items()
        ]
        return [
            ("all faults", self.auroc.percent),
            *((name, auroc.percent) for name, auroc in self.auroc_by_class.items()),
            ("untrained network", self.baselines["untrained"].percent),
            ("no network: distance from the mean", self.baselines["mean"].percent),
            ("no network: energy", self.baselines["energy"].percent),
            *forgotten,
        ]


def _plain(spreads: dict[str, Spread]) -> dict[str, dict[str, float | None]]:
    return {name: asdict(one) for name, one in spreads.items()}
