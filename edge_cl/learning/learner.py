"""The learner: predict, learn, consolidate. The one file that knows how network, replay, anchor and exam meet.

Rule 1: a step reads top to bottom, each family of methods at its own line.
Rule 2: everything random comes from generators in the state, but for a dropout in a user's module; no clock, no file.
Rule 3: memory is allocated in the constructor; only a step larger than the rule says makes the batch grow, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_cl.learning.anchor import Anchor
from edge_cl.learning.batch import Batch
from edge_cl.learning.cuda_graph import CudaGraph
from edge_cl.learning.draws import DRAWS_BYTES
from edge_cl.learning.fisher import fisher_diagonal
from edge_cl.learning.network import Learnable
from edge_cl.learning.replay import Reservoir

SETTLED = 1000  # samples; from here on one batch moves an input statistic by less than a hundredth
NOT_SEEN = -1  # predicted while no class has been seen yet

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Rule:
    """The numbers of a learning step; config.yaml says what they cost. A step may bring more than `batch_size`."""

    learning_rate: float = 0.1
    batch_size: int = 10
    replay_per_step: int = 20
    label_smoothing: float = 0.1
    ewc_lambda: float = 3.0
    gamma: float = 1.0
    fisher: str = "exact"
    fisher_samples: int = 200
    rehearsal_passes: int = 10
    rehearsal_batch: int = 32
    exam_share: float = 0.03


@dataclass(slots=True)
class Step:
    """What a step did: how many of the `new` samples it learnt, and how probable it thought each class before that.

    p (B, C) belongs to all rows of the step, the new samples first, with `labels` (B,) and each row's `share` (B, 1) of
    the loss if some were set aside; `answered` (n or B, C) begins with the answers to the new samples as they came.
    Classes and loss are worked out when asked for, so that a step on a GPU never waits for its own answer; ask before
    the learner does anything else, for labels and shares are looked up in this step's buffers.
    """

    new: int
    learnt: int
    answered: Tensor
    p: Tensor
    labels: Tensor
    share: Tensor | None

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Classes (n,) predicted for the new samples before they were learnt; NOT_SEEN while no class was known."""
        return most_likely(self.answered)[: self.new]

    @property
    def loss(self) -> float:
        """Mean cross-entropy before the step over what it learnt, NaN if nothing was learnt."""
        if self.learnt == 0:
            return float("nan")
        logs = self.p.gather(1, self.labels.unsqueeze(1)).log()
        return -float(logs.mean() if self.share is None else (logs * self.share)[self.share > 0].sum())


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

    def __init__(self, network: Learnable, replay: Reservoir, exam: Reservoir, rule: Rule, *, seed: int = 0) -> None:
        self.network, self.replay, self.exam, self.rule = network, replay, exam, rule
        self.device, C = network.arena.flat.device, network.n_outputs
        self.anchor = Anchor(network.arena.flat)
        self.batch = Batch(rows_of_a_step(rule), replay.shape, replay.dtype, self.device)
        self.seen = torch.zeros(C, dtype=torch.bool)
        self.rng = np.random.default_rng(seed)
        self.learnt = self.steps = self.consolidations = 0
        self._unseen, self._targets = torch.empty(C, device=self.device), torch.empty(C, C, device=self.device)
        self._refresh_targets()
        on_gpu = self.device.type == "cuda" and network.recordable
        self._recorded = CudaGraph(self._descend, self.device) if on_gpu else None

    def predict(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities (B, C) of raw samples x (B, *shape); classes not seen yet have 0."""
        return self._answers(self._there(x)).nan_to_num(0.0).cpu().numpy()

    def learn(self, x: NDArray[Any], y: NDArray[np.int64]) -> Step:
        """One step on labelled samples; a share of them goes to the exam instead and is never learnt from.

        Raises ValueError if a label is outside the network's outputs, or there is not one for each sample.
        """
        n, new_class = len(y), not self._seen.issuperset(y.tolist())
        if new_class or len(x) != n:
            self._check_labels(x, y)
        examined = self._set_exam_aside(x, y)
        places = self.replay.draw(self.rule.replay_per_step)
        batch, labels, share = self.batch.fill(x, y, self.replay, places, only_predicted=examined)
        if examined is not None:
            x, y = x[~examined], y[~examined]

        # The pass that learns also predicts, unless a new class or a dropout would make that another prediction.
        answered = self._answers(batch[:n]) if new_class or not len(y) or not self.network.honest else None
        if answered is not None and not len(y):
            return Step(n, 0, answered, answered, labels[:n], None)
        if answered is not None and examined is not None:  # already answered: nobody's statistics need to see them
            batch, labels, share = self.batch.fill(x, y, self.replay, places, only_predicted=None)

        if new_class:
            self._meet(x, y)
        p = self._step(batch, labels, share)
        self.replay.offer(x, y)
        self._observe(x)

        self.steps += 1
        self.learnt += len(y)
        return Step(n, len(y), p if answered is None else answered, p, labels, share)

    def _descend(self, x: Tensor, labels: Tensor, share: Tensor | None) -> Tensor:
        """Probabilities (B, C) of the rows, then one step down their mean loss, then one towards the anchor."""
        p = self._probabilities(self.network.forward(x))
        self._down(p, labels, share, self.rule.learning_rate)
        self.anchor.pull(self.rule.learning_rate * self.rule.ewc_lambda)
        return p

    def consolidate(self) -> None:
        """Make what was learnt last: rehearse the reservoir, measure the Fisher over it, move the anchor.

        Nothing happens while the reservoir is empty.
        """
        if self.replay.size == 0:
            return
        self._rehearse()
        if not bool(self.network.arena.flat.isfinite().all()):
            return  # it has diverged, and the anchor keeps what was known before
        places = self.replay.shuffled()[: self.rule.fisher_samples]
        x, labels = self._there(self.replay.take(places)), self._there(self.replay.labels[places].astype(np.int64))
        generator = torch.Generator(self.device).manual_seed(int(self.rng.integers(2**63)))
        fisher = fisher_diagonal(
            self.network, x, kind=self.rule.fisher, labels=labels, classes=self.seen, generator=generator
        )
        self.anchor.consolidate(fisher, self.rule.gamma)
        self.consolidations += 1

    def examine(self) -> dict[int, tuple[int, float]]:
        """Samples and accuracy of each class in the exam reservoir, whose samples are never learnt from."""
        if self.exam.size == 0:
            return {}
        labels = self.exam.labels[: self.exam.size]
        right = most_likely(self._answers(self._there(self.exam.take(np.arange(self.exam.size))))) == labels
        return {int(c): (int((labels == c).sum()), float(right[labels == c].mean())) for c in np.unique(labels)}

    def _rehearse(self) -> None:
        """A few passes over the reservoir with a rate that falls to zero, so that the snapshot is taken at rest."""
        cuts = -(-self.replay.size // self.rule.rehearsal_batch)
        passes = [self.replay.shuffled() for _ in range(self.rule.rehearsal_passes)]
        batches = [places for one in passes for places in np.array_split(one, cuts)]
        nothing = np.empty((0, *self.batch.shape), self.batch.dtype), np.empty(0, np.int64)
        for number, places in enumerate(batches):
            batch, labels, share = self.batch.fill(*nothing, self.replay, places, only_predicted=None)
            p = self._probabilities(self.network.forward(batch))
            self._down(p, labels, share, self.rule.learning_rate * (1 - number / len(batches)))

    def _set_exam_aside(self, x: NDArray[Any], y: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Give a share of the samples to the exam; says which (B,), None if none."""
        if self.exam.capacity == 0 or self.rule.exam_share == 0:
            return None
        examined = self.rng.random(len(y)) < self.rule.exam_share
        if not examined.any():
            return None
        self.exam.offer(x[examined], y[examined])
        return examined

    def _check_labels(self, x: NDArray[Any], y: NDArray[np.int64]) -> None:
        if len(x) != len(y):
            raise ValueError(f"y: must have a label for each of the {len(x)} samples (got {len(y)})")
        if not (y.min() >= 0 and y.max() < len(self.seen)):
            raise ValueError(f"y: labels must be in 0 … {len(self.seen) - 1} (got {y.min()} … {y.max()})")

    def _down(self, p: Tensor, labels: Tensor, share: Tensor | None, learning_rate: float) -> None:
        """θ ← θ - η ∂loss/∂θ for the mean cross-entropy of the rows, each by its share."""
        delta = p - self._targets.index_select(0, labels)
        if share is None:
            self.network.descend(delta, learning_rate / len(labels))
        else:
            self.network.descend(delta.mul_(share), learning_rate)

    def _step(self, x: Tensor, labels: Tensor, share: Tensor | None) -> Tensor:
        """`_descend`, on a GPU as one recorded piece: nothing in it waits for the host."""
        if self._recorded is None:
            return self._descend(x, labels, share)
        self.anchor.offset_for(self.rule.learning_rate * self.rule.ewc_lambda)  # brought up to date where it is read
        return self._recorded(x, labels, share, key=len(x))

    def _meet(self, x: NDArray[Any], y: NDArray[np.int64]) -> None:
        """What must be known of new samples before they are learnt: their classes; of the very first, their range."""
        self.seen[torch.from_numpy(y)] = True
        self._refresh_targets()
        if self.network.standardise.seen == 0:
            self.network.standardise.observe(self._there(x))

    def _observe(self, x: NDArray[Any]) -> None:
        """Take x into the input statistics; once they have settled, one step in eight does."""
        if self.steps and (self.network.standardise.seen < SETTLED or self.steps % 8 == 0):
            self.network.standardise.observe(self._there(x))

    def _refresh_targets(self) -> None:
        """Derive from `seen` what each step needs of it: row c of the targets is (1 - ε) onehot(c) + ε / |seen|.

        ∂/∂logits of the cross-entropy with smoothed targets is p - target, over the classes seen. Szegedy et al. 2016.
        """
        self._seen = set(torch.nonzero(self.seen).flatten().tolist())
        self._unseen.copy_(torch.where(self.seen, 0.0, -torch.inf))
        smoothing = self.rule.label_smoothing
        spread = self.seen * (smoothing / max(1, len(self._seen)))
        self._targets.copy_(torch.eye(len(self.seen)) * (1 - smoothing) + spread)

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Softmax over the classes seen; the others take no part in a loss, a Fisher or a prediction."""
        return (logits + self._unseen).softmax(1)

    def _answers(self, x: Tensor) -> Tensor:
        if len(x) == 0:
            return torch.empty(0, len(self.seen))
        with torch.inference_mode(), self.network.evaluating():
            return self._probabilities(self.network.forward(x))

    def _there(self, array: NDArray[Any]) -> Tensor:
        """A copy where the network computes."""
        return torch.tensor(array, device=self.device)

    @property
    def nbytes(self) -> int:
        """Bytes held: parameters, statistics, anchor, Fisher, replay, exam, and the batch that is learnt."""
        parts = (self.network.standardise, self.anchor, self.batch, self.replay, self.exam)
        tables = self._targets.nbytes + 2 * DRAWS_BYTES
        return self.network.arena.nbytes + tables + sum(part.nbytes for part in parts)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and plain values from which `restore` makes the same learner, bit for bit; live views on a CPU."""
        standardise, anchor = self.network.standardise, self.anchor
        arrays: Arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
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
        """Become the learner whose state this is, with room for more classes if this one has it.

        The rows of new classes start as this learner's own did, and no anchor holds them. Raises ValueError, naming the
        array, for another model's state.
        """
        if len(arrays.get("seen", self.seen)) < len(self.seen):
            arrays = arrays | self._widened(arrays)
        for name, tensor in self._tensors().items():
            if name not in arrays or arrays[name].shape != tuple(tensor.shape):
                got = arrays[name].shape if name in arrays else "nothing"
                raise ValueError(f"{name}: must have shape {tuple(tensor.shape)} (got {got})")
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.from_numpy(arrays[name]))
        self.rng.bit_generator.state = values["rng"]
        self.learnt, self.steps, self.consolidations, self.network.standardise.seen = values["counts"]
        self.anchor.scale, self.anchor.evidence, turn = values["anchor"]
        self.anchor.turn = turn % self.anchor.n_slices
        self.network.standardise.refresh()
        self._refresh_targets()
        for name, reservoir in (("replay", self.replay), ("exam", self.exam)):
            held = {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
            reservoir.restore(held, values[name])

    def _widened(self, arrays: Arrays) -> Arrays:
        """What of a state depends on the number of classes, as this learner with its wider head has it."""
        n, theta = len(arrays["seen"]), self.network.arena.flat.cpu()
        rests = {
            "parameters": theta,
            "anchor.theta": theta.half(),
            "anchor.fisher_codes": torch.zeros(len(theta), dtype=self.anchor.codes.dtype),
        }
        wide = {name: self.network.widened(torch.from_numpy(arrays[name]), n, rest) for name, rest in rests.items()}
        wide["seen"] = torch.zeros_like(self.seen)
        wide["seen"][:n] = torch.from_numpy(arrays["seen"])
        return {name: tensor.numpy() for name, tensor in wide.items()}

    def _tensors(self) -> dict[str, Tensor]:
        standardise = self.network.standardise
        return {
            "parameters": self.network.arena.flat,
            "anchor.theta": self.anchor.theta,
            "anchor.fisher_codes": self.anchor.codes,
            "standardise.mean": standardise.mean,
            "standardise.variance": standardise.variance,
            "seen": self.seen,
            **{f"network.{name}": tensor for name, tensor in self.network.extras.items()},
        }


def most_likely(p: Tensor) -> NDArray[np.int64]:
    """The most probable class of each row of p (B, C); NOT_SEEN where no class had been seen."""
    host = p.cpu().numpy()
    classes: NDArray[np.int64] = host.argmax(1)
    return np.where(np.isnan(host[:, 0]), NOT_SEEN, classes)


def rows_of_a_step(rule: Rule) -> int:
    """Most rows that a step or a rehearsal takes, unless it brings more new samples than the rule says."""
    return max(rule.batch_size + rule.replay_per_step, rule.rehearsal_batch)
