"""Anomalies: a learner that has only ever seen the normal state, once, is to tell every fault from it.

Knows how normal and faulty samples come to a learner without labels. Must not know what a person sees of it.

Only normal samples that are not held out are learnt. What is scored is held out of every class, and no fault was ever
learnt. The normal state comes condition after condition (speed, load), where a mark tells these apart; forgetting is
what the later ones cost the earlier.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from edge_cl.assembly import blueprint_of, make_learner, plan_of, task_of
from edge_cl.config import Config
from edge_cl.errors import OperatorError
from edge_cl.evaluation.anomaly_result import AnomalyResult, AnomalyRun
from edge_cl.evaluation.data import Dataset, load_dataset, mark_of
from edge_cl.evaluation.motor import motor_dataset
from edge_cl.learning.metrics import auroc, forgetting
from edge_cl.learning.model import SELF_SUPERVISED
from edge_cl.learning.objective import Reconstruction
from edge_cl.learning.online_learner import OnlineLearner
from firmware_bridge.sample import Schema

MOTOR: Final = "simulated:motor"
KIND: Final = "autoencoder"  # where model.kind is auto
CHUNK: Final = 256  # samples scored at once

Scores = NDArray[np.float64]
Scoring = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True)
class Condition:
    """The normal state under one condition: what is learnt of it (N, *shape), and what is held out (M, *shape)."""

    name: str
    x: NDArray[Any]
    test_x: NDArray[Any]


@dataclass(frozen=True)
class AnomalyStream:
    """Conditions in the order in which they are learnt, and the held-out samples of each fault, which never are."""

    data: str
    normal: str
    conditions: tuple[Condition, ...]
    faults: Mapping[str, NDArray[Any]]


def evaluate_anomaly(
    source: str,
    config: Config,
    *,
    normal: str | None = None,
    within: str | None = None,
    seeds: int = 1,
    on_progress: Callable[[int], None] = lambda seeds: None,
) -> AnomalyResult:
    """How well a learner of this configuration tells faults from the normal state that it learnt online, in one pass.

    source: as of `load_dataset`, or simulated:motor, of which each seed is another machine. normal: name or number of
    the class that is learnt; None: the one that is called normal, else 0. within: the mark whose values are the
    conditions; of the motor, its speed and load unless named. on_progress hears how many seeds are done.
    model.kind is autoencoder or predictor, or auto for an autoencoder.
    Raises OperatorError for what nobody can mean, and what `load_dataset` raises.
    """
    if seeds < 1:
        raise OperatorError(f"seeds: must be at least 1 (got {seeds})")
    config, runs = _self_supervised(config), []
    for seed in range(seeds):
        stream = anomaly_stream(_load(source, within, seed), normal, within or ("round" if source == MOTOR else None))
        runs.append(run_anomaly(stream, config, seed=seed))
        on_progress(seed + 1)
    network = _learner(config, stream, seed=0).network
    return AnomalyResult(
        data=stream.data,
        model=f"{network.kind}, {network.arena.flat.numel():,} parameters",
        normal=stream.normal,
        conditions=tuple(condition.name for condition in stream.conditions),
        runs=tuple(runs),
    )


def anomaly_stream(data: Dataset, normal: str | None, within: str | None) -> AnomalyStream:
    """The normal class of the data condition by condition, and all its other classes as faults."""
    label = _label_of(data, normal)
    ours, held = data.y == label, data.test_y == label
    if not ours.any() or not held.any() or held.all():
        raise OperatorError(
            f"{data.name}: there must be normal samples to learn, and normal and other ones held out "
            f"(got {ours.sum()}, {held.sum()} and {(~held).sum()})",
            hint="name another class as normal",
        )
    if within is None:
        conditions = [Condition("normal", data.x[ours], data.test_x[held])]
    else:
        mark, test_mark = mark_of(data, within), data.test_marks[within]
        conditions = [
            Condition(f"{within} {value}", data.x[ours & (mark == value)], data.test_x[held & (test_mark == value)])
            for value in np.unique(mark[ours]).tolist()
        ]
    others = [c for c in np.unique(data.test_y).tolist() if c != label]
    faults = {data.label_names[c]: data.test_x[data.test_y == c] for c in others}
    return AnomalyStream(data.name, data.label_names[label], tuple(conditions), faults)


def run_anomaly(stream: AnomalyStream, config: Config, *, seed: int) -> AnomalyRun:
    """The figures of one learner; and of what would be forgotten without what protects it, if there is what to."""
    passage = _Passage(stream, _learner(config, stream, seed))
    passages = {"as configured": passage}
    if len(stream.conditions) > 1:
        others = {how: change(config) for how, change in UNPROTECTED.items()}
        passages |= {how: _Passage(stream, _learner(other, stream, seed)) for how, other in others.items()}
    for each in passages.values():
        each.run()
    if len(stream.conditions) == 1:
        passages = {}
    faults = np.concatenate(list(stream.faults.values()))
    normal = np.concatenate([condition.test_x for condition in stream.conditions])
    learner, scores = passage.learner, passage.scores
    baselines = _baselines(config, stream, learner, seed)
    return AnomalyRun(
        seed=seed,
        auroc=_auroc(scores(normal), scores(faults)),
        by_class={name: _auroc(scores(normal), scores(x)) for name, x in stream.faults.items()},
        **{name: _auroc(_in_chunks(of, normal), _in_chunks(of, faults)) for name, of in baselines.items()},
        curve=passage.curve,
        forgetting={how: forgetting(each.aurocs) for how, each in passages.items()},
        score_rise={how: each.score_rise for how, each in passages.items()},
        normal_samples=passage.samples,
        replay_bytes=learner.replay.nbytes,
        learner_bytes=learner.nbytes,
        compute_s=passage.compute_s,
    )


class _Passage:
    """One learner on its way through the conditions.

    aurocs and means (T, T): in [i, j] the AUROC of all faults against condition j, and that condition's mean score,
    after condition i was learnt.
    """

    def __init__(self, stream: AnomalyStream, learner: OnlineLearner) -> None:
        self.stream, self.learner = stream, learner
        self.curve: list[tuple[int, float]] = []
        self.samples, self.compute_s = 0, 0.0
        T = len(stream.conditions)
        self.aurocs, self.means = np.full((2, T, T), np.nan)

    def run(self) -> None:
        """Learn the conditions one after another, and consolidate when it is due and at the end of each."""
        for i, condition in enumerate(self.stream.conditions):
            self._learn(condition.x)
            faults = self.scores(np.concatenate(list(self.stream.faults.values())))
            for j, other in enumerate(self.stream.conditions):
                normal = self.scores(other.test_x)
                self.aurocs[i, j], self.means[i, j] = _auroc(normal, faults), normal.mean()

    @property
    def score_rise(self) -> float:
        """Mean score of the earlier conditions at the end, over what it was when each had been learnt."""
        earlier = slice(len(self.means) - 1)
        return float((self.means[-1, earlier] / self.means.diagonal()[earlier]).mean())

    def scores(self, x: NDArray[Any]) -> Scores:
        """Anomaly scores (N,) of samples."""
        return _in_chunks(self.learner.losses, x)

    def _learn(self, x: NDArray[Any]) -> None:
        began, size = time.perf_counter(), self.learner.rule.batch_size
        for start in range(0, len(x), size):
            batch = x[start : start + size]
            if self.samples:  # before the very first batch not even the sensor's range is known
                self.curve.append((self.samples, float(self.learner.losses(batch).mean())))
            self.learner.learn(batch, np.zeros(len(batch), np.int64))
            if self.learner.is_due:
                self.learner.consolidate()
            self.samples += len(batch)
        self.learner.consolidate()
        self.compute_s += time.perf_counter() - began


def _baselines(config: Config, stream: AnomalyStream, learner: OnlineLearner, seed: int) -> dict[str, Scoring]:
    """Scores that need no learning, or none but means; all know the range of the input that the learner has seen."""
    untrained = _learner(config, stream, seed)
    standardise = untrained.network.standardise = learner.network.standardise
    objective = learner.objective
    assert isinstance(objective, Reconstruction)

    def targets(x: NDArray[Any]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = objective.targets(torch.tensor(x, device=learner.device)).cpu().numpy()
        return found

    centre = _in_chunks(targets, np.concatenate([condition.x for condition in stream.conditions])).mean(0)

    def from_mean(x: NDArray[Any]) -> NDArray[np.float32]:
        distance: NDArray[np.float32] = np.square(targets(x) - centre).mean(1).astype(np.float32)
        return distance

    def energy(x: NDArray[Any]) -> NDArray[np.float32]:
        squares = standardise.forward(torch.tensor(x, device=learner.device)).square().flatten(1)
        found: NDArray[np.float32] = squares.mean(1).cpu().numpy()
        return found

    return {"untrained": untrained.losses, "mean": from_mean, "energy": energy}


def _auroc(normal: Scores, faults: Scores) -> float:
    return auroc(np.concatenate([normal, faults]), np.arange(len(normal) + len(faults)) >= len(normal))


def _in_chunks(score: Scoring, x: NDArray[Any]) -> Scores:
    parts = [score(x[start : start + CHUNK]) for start in range(0, len(x), CHUNK)]
    return np.concatenate(parts).astype(np.float64)


def _load(source: str, within: str | None, seed: int) -> Dataset:
    return motor_dataset(seed) if source == MOTOR else load_dataset(source, within=within)


def _label_of(data: Dataset, normal: str | None) -> int:
    """The label of a class by its name or number; None: that of `normal` in any spelling, else 0."""
    names = [name.lower() for name in data.label_names]
    if normal is None:
        return names.index("normal") if "normal" in names else 0
    if normal.lower() in names:
        return names.index(normal.lower())
    if normal.isdecimal() and int(normal) < len(names):
        return int(normal)
    raise OperatorError(f"normal: must be one of {', '.join(data.label_names)} (got {normal})")


def _learner(config: Config, stream: AnomalyStream, seed: int) -> OnlineLearner:
    x = stream.conditions[0].x
    task = task_of(config, Schema(stream.data, x.dtype.name, x.shape[1:]))
    blueprint = blueprint_of(config, task)
    return make_learner(config, task, blueprint, plan_of(config, task, blueprint), seed=seed)


def _self_supervised(config: Config) -> Config:
    kind = KIND if config.model.kind == "auto" else config.model.kind
    if kind not in SELF_SUPERVISED:
        raise OperatorError(
            f"model.kind: must be auto, {' or '.join(SELF_SUPERVISED)} where nothing has a label (got {kind})",
            hint="leave it out",
        )
    return _with(config, "model", kind=kind)


def _without_ewc(config: Config) -> Config:
    return _with(config, "consolidation", ewc_lambda=0.0)


def _without_replay(config: Config) -> Config:
    none = _with(_with(config, "replay", samples=0, per_step=0), "exam", share=0.0)
    return _with(none, "learning", projection="none")


def _with(config: Config, group: str, **values: object) -> Config:
    return config.model_copy(update={group: getattr(config, group).model_copy(update=values)})


UNPROTECTED: Final[Mapping[str, Callable[[Config], Config]]] = {
    "without EWC": _without_ewc,
    "without replay": _without_replay,
    "without both": lambda config: _without_ewc(_without_replay(config)),
}
