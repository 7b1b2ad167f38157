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
from torch.nn import functional

from edge_cl.learning.anchor import Anchor
from edge_cl.learning.fisher import fisher_diagonal
from edge_cl.learning.model import Network
from edge_cl.learning.replay import Reservoir

NOT_SEEN = -1  # predicted while no class has been seen yet

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Rule:
    """The numbers of a learning step; config.yaml says what each costs."""

    learning_rate: float = 0.05
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
    """What a step did: the classes predicted before it learnt (B,), its mean loss, and how many samples it learnt.

    The others went to the exam; with none learnt the loss is NaN.
    """

    predicted: NDArray[np.int64]
    loss: float
    learnt: int


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
        logits = self._masked(self.network.forward(torch.tensor(x)))
        return logits.softmax(1).nan_to_num_(0.0).numpy()

    def learn(self, x: NDArray[Any], y: NDArray[np.int64]) -> Step:
        """One step on labelled samples; a share of them goes to the exam instead and is never learnt from.

        Raises ValueError if a label is outside the network's outputs.
        """
        if len(y) and not (y.min() >= 0 and y.max() < len(self.seen)):
            raise ValueError(f"y: labels must be in 0 … {len(self.seen) - 1} (got {y.min()} … {y.max()})")
        rule, network = self.rule, self.network
        x, y, n_exam, back = self._set_exam_aside(x, y)
        new = torch.from_numpy(x)
        places = self.replay.draw(rule.replay_per_step)
        batch = torch.cat([new, self.replay.items.index_select(0, places)])
        logits = network.forward(batch, observe=slice(n_exam, len(y)) if n_exam < len(y) else None)
        predicted = self._classes(logits[: len(y)])[back]
        if n_exam == len(y):
            return Step(predicted, float("nan"), 0)

        labels = torch.cat([torch.from_numpy(y), self.replay.labels.index_select(0, places)])
        self._see(y[n_exam:])
        delta, loss = self._loss_gradient(logits, labels, skip=n_exam)
        network.descend(delta, rule.learning_rate / (len(labels) - n_exam))
        self.anchor.pull(network.arena.flat, rule.learning_rate * rule.ewc_lambda)
        self.replay.offer(new[n_exam:], y[n_exam:])

        self.steps += 1
        self.learnt += len(y) - n_exam
        return Step(predicted, loss, len(y) - n_exam)

    def consolidate(self) -> None:
        """Make what was learnt last: rehearse the reservoir, measure the Fisher over it, move the anchor.

        Nothing happens while the reservoir is empty.
        """
        if self.replay.size == 0:
            return
        self._rehearse()
        places = self.replay.shuffled()[: self.rule.fisher_samples]
        fisher = fisher_diagonal(self.network, self.replay.items[places], classes=self.seen)
        self.anchor.consolidate(self.network.arena.flat, fisher, self.rule.gamma)
        self.consolidations += 1

    def examine(self) -> dict[int, tuple[int, float]]:
        """Samples and accuracy of each class in the exam reservoir, whose samples are never learnt from."""
        if self.exam.size == 0:
            return {}
        labels = self.exam.labels[: self.exam.size].numpy()
        right = self._classes(self.network.forward(self.exam.items[: self.exam.size])) == labels
        return {int(c): (int((labels == c).sum()), float(right[labels == c].mean())) for c in np.unique(labels)}

    def _loss_gradient(self, logits: Tensor, labels: Tensor, *, skip: int = 0) -> tuple[Tensor, float]:
        """Σ-loss gradient ∂/∂logits (B, C) and mean loss of cross-entropy with smoothed targets; `skip` first rows are 0.

        ∂/∂logits = p - (1 - ε) onehot(y) - ε / |seen|, over the classes seen. Szegedy et al. 2016.
        """
        log_p = self._masked(logits).log_softmax(1)
        loss = functional.nll_loss(log_p[skip:], labels[skip:])
        delta = log_p.exp_().sub_(self._targets.index_select(0, labels))
        if skip:
            delta[:skip] = 0.0
        return delta, float(loss)

    def _rehearse(self) -> None:
        """A few passes over the reservoir with a rate that falls to zero, so that the snapshot is taken at rest."""
        passes = [
            torch.split(self.replay.shuffled(), self.rule.rehearsal_batch) for _ in range(self.rule.rehearsal_passes)
        ]
        batches = [places for one_pass in passes for places in one_pass]
        for number, places in enumerate(batches):
            logits = self.network.forward(self.replay.items[places])
            delta, _ = self._loss_gradient(logits, self.replay.labels[places].long())
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
        self.exam.offer(torch.from_numpy(x[examined]), y[examined])
        order = np.argsort(~examined, kind="stable")
        return x[order], y[order], int(examined.sum()), np.argsort(order)

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

    def _masked(self, logits: Tensor) -> Tensor:
        """Logits with the classes not seen yet at -∞: they take no part in the loss, the Fisher or a prediction."""
        return logits + self._unseen

    def _classes(self, logits: Tensor) -> NDArray[np.int64]:
        if not self._seen:
            return np.full(len(logits), NOT_SEEN, dtype=np.int64)
        classes: NDArray[np.int64] = self._masked(logits).argmax(1).numpy()
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
