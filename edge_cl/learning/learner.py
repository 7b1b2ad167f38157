"""The learner: predict, learn, consolidate. The one file that knows how network, replay, anchor and exam meet.

Rule 1: a step reads top to bottom, each family of methods at its own line.
Rule 2: everything random comes from generators in the state; no clock, no file, no thread.
Rule 3: all memory that grows with anything is allocated in the constructor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_cl.learning.anchor import Anchor
from edge_cl.learning.fisher import fisher_diagonal
from edge_cl.learning.model import Network
from edge_cl.learning.replay import Reservoir

SETTLED = 1000  # samples; from here on one batch moves an input statistic by less than a hundredth
NOT_SEEN = -1  # predicted while no class has been seen yet

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Rule:
    """The numbers of a learning step; config.yaml says what each costs."""

    learning_rate: float = 0.1
    replay_per_step: int = 20
    label_smoothing: float = 0.1
    ewc_lambda: float = 3.0
    gamma: float = 1.0
    fisher_samples: int = 200
    rehearsal_passes: int = 10
    rehearsal_batch: int = 32
    exam_share: float = 0.03


@dataclass(frozen=True)
class Step:
    """What a step did: the classes predicted before it learnt (B,), and how many samples it learnt."""

    predicted: NDArray[np.int64]
    learnt: int
    p: Tensor  # (n, C) probabilities before the step, of the samples learnt and of those replayed beside them
    labels: Tensor  # (n,)

    @property
    def loss(self) -> float:
        """Mean cross-entropy before the step, NaN if nothing was learnt; only worked out when asked for."""
        return -float(self.p[torch.arange(len(self.labels)), self.labels].log().mean())


class Learner:
    """An online classifier that does not forget: experience replay, and online EWC as a proximal pull.

    One step on labelled samples (x, y):

        batch ← x + replay.draw()
        δ     ← ∂ cross-entropy(network(batch)) / ∂logits, over the classes seen so far
        θ     ← θ - η ∂loss/∂θ                      the update is the backward product
        θ     ← θ + a (θ* - θ)                      the anchor's pull
        replay.offer(x, y)

    x (B, *shape) in the sensor's own dtype, y (B,) class indices below the network's outputs.
    """

    def __init__(self, network: Network, replay: Reservoir, exam: Reservoir, rule: Rule, *, seed: int = 0) -> None:
        self.network, self.replay, self.exam, self.rule = network, replay, exam, rule
        self.anchor = Anchor(network.arena.flat.numel())
        self.seen = torch.zeros(network.blueprint.n_outputs, dtype=torch.bool)
        self.rng = np.random.default_rng(seed)
        self.learnt = self.steps = self.consolidations = 0
        self._refresh_targets()

    def predict(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities (B, C) of raw samples x (B, *shape); classes not seen yet have 0."""
        p = self._probabilities(self.network.forward(torch.tensor(x)))
        return p.nan_to_num_(0.0).numpy()

    def learn(self, x: NDArray[Any], y: NDArray[np.int64]) -> Step:
        """One step on labelled samples; a share of them goes to the exam instead and is never learnt from.

        Raises ValueError if a label is outside the network's outputs.
        """
        if len(y) and not (y.min() >= 0 and y.max() < len(self.seen)):
            raise ValueError(f"y: labels must be in 0 … {len(self.seen) - 1} (got {y.min()} … {y.max()})")
        rule, network = self.rule, self.network
        x, y, n_exam, back = self._set_exam_aside(x, y)
        n = len(y)
        places = self.replay.draw(rule.replay_per_step)
        batch = torch.from_numpy(np.concatenate([x, self.replay.items[places]]))
        labels = torch.from_numpy(np.concatenate([y, self.replay.labels[places]]))
        logits = network.forward(batch, observe=slice(n_exam, n) if n_exam < n and self._observes() else None)
        predicted = self._classes(logits[:n])[back]
        if n_exam == n:
            return Step(predicted, 0, logits[:0], labels[:0])

        self._see(y[n_exam:])
        p = self._probabilities(logits)
        network.descend(self._loss_gradient(p, labels, skip=n_exam), rule.learning_rate / (len(labels) - n_exam))
        self.anchor.pull(network.arena.flat, rule.learning_rate * rule.ewc_lambda)
        self.replay.offer(x[n_exam:], y[n_exam:])

        self.steps += 1
        self.learnt += n - n_exam
        return Step(predicted, n - n_exam, p[n_exam:], labels[n_exam:])

    def consolidate(self) -> None:
        """Make what was learnt last: rehearse the reservoir, measure the Fisher over it, move the anchor.

        Nothing happens while the reservoir is empty.
        """
        if self.replay.size == 0:
            return
        self._rehearse()
        places = self.replay.shuffled()[: self.rule.fisher_samples]
        x = torch.from_numpy(self.replay.items[places])
        fisher = fisher_diagonal(self.network, x, classes=self.seen)
        self.anchor.consolidate(self.network.arena.flat, fisher, self.rule.gamma)
        self.consolidations += 1

    def examine(self) -> dict[int, tuple[int, float]]:
        """Samples and accuracy of each class in the exam reservoir, whose samples are never learnt from."""
        if self.exam.size == 0:
            return {}
        labels = self.exam.labels[: self.exam.size]
        right = self._classes(self.network.forward(torch.from_numpy(self.exam.items[: self.exam.size]))) == labels
        return {int(c): (int((labels == c).sum()), float(right[labels == c].mean())) for c in np.unique(labels)}

    def _loss_gradient(self, p: Tensor, labels: Tensor, *, skip: int = 0) -> Tensor:
        """∂/∂logits (B, C) of the summed cross-entropy with smoothed targets; the first `skip` rows are 0.

        p - (1 - ε) onehot(y) - ε / |seen|, over the classes seen. Szegedy et al. 2016.
        """
        delta = p - self._targets.index_select(0, labels)
        if skip:
            delta[:skip] = 0.0
        return delta

    def _rehearse(self) -> None:
        """A few passes over the reservoir with a rate that falls to zero, so that the snapshot is taken at rest."""
        size, cut = self.replay.size, range(0, self.replay.size, self.rule.rehearsal_batch)
        passes = [self.replay.shuffled() for _ in range(self.rule.rehearsal_passes)]
        batches = [one[start : min(start + self.rule.rehearsal_batch, size)] for one in passes for start in cut]
        for number, places in enumerate(batches):
            p = self._probabilities(self.network.forward(torch.from_numpy(self.replay.items[places])))
            delta = self._loss_gradient(p, torch.from_numpy(self.replay.labels[places]).long())
            self.network.descend(delta, self.rule.learning_rate * (1 - number / len(batches)) / len(places))

    def _set_exam_aside(
        self, x: NDArray[Any], y: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.int64], int, NDArray[np.int64] | slice]:
        """Give a share of the samples to the exam; returns them first, how many they are, and the way back."""
        everything = slice(None)
        if self.exam.capacity == 0 or self.rule.exam_share == 0:
            return x, y, 0, everything
        examined = self.rng.random(len(y)) < self.rule.exam_share
        if not examined.any():
            return x, y, 0, everything
        self.exam.offer(x[examined], y[examined])
        order = np.argsort(~examined, kind="stable")
        return x[order], y[order], int(examined.sum()), np.argsort(order)

    def _observes(self) -> bool:
        """Whether this step takes its samples into the input statistics: once they have settled, one step in eight."""
        return self.network.standardise.seen < SETTLED or self.steps % 8 == 0

    def _see(self, y: NDArray[np.int64]) -> None:
        """Let the classes of y take part in losses and predictions from now on."""
        if not self._seen.issuperset(y.tolist()):
            self.seen[torch.from_numpy(y)] = True
            self._refresh_targets()

    def _refresh_targets(self) -> None:
        """Derive from `seen` what each step needs of it."""
        self._seen = set(torch.nonzero(self.seen).flatten().tolist())
        self._unseen = torch.where(self.seen, 0.0, -torch.inf)
        smoothing = self.rule.label_smoothing
        spread = self.seen * (smoothing / max(1, len(self._seen)))
        self._targets = torch.eye(len(self.seen)) * (1 - smoothing) + spread  # row c: the target of class c

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Softmax over the classes seen; the others take no part in a loss, a Fisher or a prediction."""
        return (logits + self._unseen).softmax(1)

    def _classes(self, logits: Tensor) -> NDArray[np.int64]:
        if not self._seen:
            return np.full(len(logits), NOT_SEEN, dtype=np.int64)
        classes: NDArray[np.int64] = (logits + self._unseen).argmax(1).numpy()
        return classes

    @property
    def nbytes(self) -> int:
        """Bytes of the learner's state: parameters, statistics, anchor, Fisher, replay and exam."""
        statistics = 3 * self.network.standardise.mean.numel() * 4
        return self.network.arena.nbytes + statistics + self.anchor.nbytes + self.replay.nbytes + self.exam.nbytes

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and plain values from which `restore` makes the same learner, bit for bit."""
        standardise, anchor = self.network.standardise, self.anchor
        arrays: Arrays = {name: tensor.numpy() for name, tensor in self._tensors().items()}
        values: dict[str, Any] = {
            "rng": self.rng.bit_generator.state,
            "counts": [self.learnt, self.steps, self.consolidations, standardise.seen],
            "anchor": [anchor.scale, anchor.evidence, anchor.turn],
        }
        for name, reservoir in (("replay", self.replay), ("exam", self.exam)):
            held, values[name] = reservoir.state()
            arrays |= {f"{name}.{key}": array for key, array in held.items()}
        return arrays, values

    def restore(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """Become the learner whose state this is. Raises ValueError, naming the array, for another model's."""
        for name, tensor in self._tensors().items():
            if name not in arrays or arrays[name].shape != tuple(tensor.shape):
                got = arrays[name].shape if name in arrays else "nothing"
                raise ValueError(f"{name}: must have shape {tuple(tensor.shape)} (got {got})")
            tensor.copy_(torch.from_numpy(arrays[name]))
        self.rng.bit_generator.state = values["rng"]
        self.learnt, self.steps, self.consolidations, self.network.standardise.seen = values["counts"]
        self.anchor.scale, self.anchor.evidence, self.anchor.turn = values["anchor"]
        self.network.standardise.refresh()
        self._refresh_targets()
        for name, reservoir in (("replay", self.replay), ("exam", self.exam)):
            held = {key: arrays[f"{name}.{key}"] for key in ("items", "labels")}
            reservoir.restore(held, values[name])

    def _tensors(self) -> dict[str, Tensor]:
        standardise = self.network.standardise
        return {
            "parameters": self.network.arena.flat,
            "anchor.theta": self.anchor.theta,
            "anchor.fisher_codes": self.anchor.codes,
            "standardise.mean": standardise.mean,
            "standardise.variance": standardise.variance,
            "seen": self.seen,
        }
