"""What is learnt from a row: to tell classes apart, or to say what a sample itself shows.

Knows outputs, labels and samples. Must not know replay, anchors or how a step is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_cl.learning.context import Context
from edge_cl.learning.fisher import fisher_diagonal, gaussian_fisher_diagonal
from edge_cl.learning.layers import Layer
from edge_cl.learning.network import Learnable

NOT_SEEN = -1  # predicted while no class has been seen yet


class Objective(Protocol):
    """What a learning step asks about its loss; z (B, C) are the network's outputs for samples x (B, *shape)."""

    @property
    def seen(self) -> Tensor:
        """Outputs in use (C,) bool."""

    def is_news(self, labels: NDArray[np.int64]) -> bool:
        """Whether a class is among them that has not been seen. Raises ValueError if one is no output."""

    def meet(self, labels: NDArray[np.int64]) -> None:
        """Take the classes of labels (n,) as seen."""

    def arrive(self, labels: NDArray[np.int64]) -> None:
        """New samples with labels (n,) come, to be learnt in a step of their own."""

    def masked(self, z: Tensor) -> Tensor:
        """z as it stands now, for an answer that is asked for when more classes have been seen."""

    def answer(self, z: Tensor) -> Tensor:
        """What a user is told (B, C)."""

    def keepsake(self, z: Tensor) -> Tensor:
        """z as it is stored beside a sample: NaN for outputs not in use."""

    def refresh(self) -> None:
        """Derive again what depends on the state, after that was restored."""

    @property
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, an entry a class each."""

    @property
    def nbytes(self) -> int:
        """Bytes of its tables."""

    def delta(self, z: Tensor, x: Tensor, labels: Tensor, n_new: int) -> Tensor:
        """∂lossₙ/∂zₙ (B, C) of each row, of which the first `n_new` are new."""

    def losses(self, z: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """The loss (B,) that a user is told of each row."""

    def fisher(self, network: Learnable, x: Tensor, labels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
        """The diagonal of its Fisher information (P,), the mean over the samples."""


class Classification:
    """Cross-entropy over the classes seen, with smoothed targets: ∂/∂z = p - target.

    The target of class c is (1 - ε) onehot(c) + ε / |seen| (Szegedy et al. 2016), over what it is told apart among.
    `asymmetric`: new rows are told apart among the classes that have come lately, so that they do not
    push down what only replay still shows; replayed ones among all. ER-ACE (Caccia et al. 2022) takes the classes of
    the batch, which teaches nothing where a batch holds one class, as a sensor's often does. `replay_labels` is the
    weight β of the replayed rows' labels (DER++, Buzzega et al. 2020); 0 leaves them to their stored logits (DER).
    """

    def __init__(
        self,
        n_outputs: int,
        device: torch.device,
        *,
        smoothing: float = 0.0,
        asymmetric: bool = False,
        replay_labels: float = 1.0,
    ) -> None:
        self.context = Context(n_outputs, device)
        self.smoothing, self.asymmetric, self.replay_labels = smoothing, asymmetric, replay_labels
        self._targets = torch.empty(n_outputs, n_outputs, device=device)
        self.refresh()

    @property
    def seen(self) -> Tensor:
        """Classes seen so far (C,) bool."""
        return self.context.seen

    def is_news(self, labels: NDArray[np.int64]) -> bool:
        """Whether a class is among them that has not been seen. Raises ValueError if one is no output."""
        if self.context.knows(labels.tolist()):
            return False
        C = len(self.seen)
        if not (labels.min() >= 0 and labels.max() < C):
            raise ValueError(f"y: labels must be in 0 … {C - 1} (got {labels.min()} … {labels.max()})")
        return True

    def meet(self, labels: NDArray[np.int64]) -> None:
        """Take the classes of labels (n,) as seen."""
        self.context.meet(torch.from_numpy(labels))
        self.refresh()

    def arrive(self, labels: NDArray[np.int64]) -> None:
        """New samples with labels (n,) come, to be learnt in a step of their own."""
        if self.asymmetric:
            self.context.come(torch.from_numpy(labels))

    def refresh(self) -> None:
        """Derive the targets, row c for label c, after the classes seen or their heads have changed."""
        self.context.refresh()
        everyone = torch.arange(len(self.seen), device=self._targets.device)
        among = self.context.of(everyone).expand_as(self._targets) == 0
        spread = among * (self.smoothing / among.sum(1, keepdim=True).clamp_min(1))
        self._targets.copy_(torch.eye(len(self.seen), device=spread.device) * (1 - self.smoothing) + spread)

    @property
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, an entry a class each."""
        return {"seen": self.context.seen, "heads": self.context.heads, "warm": self.context.warm}

    @property
    def nbytes(self) -> int:
        """Bytes of its tables: the targets."""
        return self._targets.nbytes

    def masked(self, z: Tensor) -> Tensor:
        """z with -∞ for the classes not seen yet."""
        return z + self.context.unseen

    def keepsake(self, z: Tensor) -> Tensor:
        """z as it is stored beside a sample: NaN for classes not seen yet."""
        return torch.where(self.context.unseen == 0, z, torch.nan)

    def answer(self, z: Tensor) -> Tensor:
        """Probabilities (B, C), over the classes seen; NaN while there is none."""
        return (z + self.context.unseen).softmax(1)

    def delta(self, z: Tensor, x: Tensor, labels: Tensor, n_new: int) -> Tensor:
        """∂lossₙ/∂zₙ (B, C) of each row, of which the first `n_new` are new."""
        delta = (z + self.context.of(labels)).softmax(1).sub_(self._targets.index_select(0, labels))
        if self.asymmetric and n_new and (self.context.some_are_cold or z.is_cuda):  # a recorded step has no choice
            delta[:n_new] = self._among_current(z[:n_new], labels[:n_new])
        if self.replay_labels != 1:
            delta[n_new:] *= self.replay_labels
        return delta

    def _among_current(self, z: Tensor, labels: Tensor) -> Tensor:
        mask = self.context.current + self.context.of(labels)
        among = mask == 0
        spread = among * (self.smoothing / among.sum(-1, keepdim=True))
        target = torch.nn.functional.one_hot(labels, z.shape[1]) * (1 - self.smoothing) + spread
        return (z + mask).softmax(1).sub_(target)

    def losses(self, z: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy (B,) of the labels, without smoothing."""
        return -(z + self.context.of(labels)).log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)

    def fisher(self, network: Learnable, x: Tensor, labels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
        """The Fisher diagonal (P,) of the classes seen, each sample's among those of its label's head."""
        classes = self.context.of(labels) == 0
        return fisher_diagonal(network, x, kind=kind, labels=labels, classes=classes, generator=generator)


class Reconstruction:
    """Minus the log-likelihood of what a sample itself shows, t (B, C), under a Gaussian about the outputs z (B, C).

    lossₙ = ½ ‖eₙ‖² with e = (z - t) / σ; where ‖eₙ‖ > 1 it goes on as a straight line (Huber 1964), so that no sample
    pulls harder than a label would, and steps stay stable however many outputs there are: ∂/∂z = e / (σ max(1, ‖e‖)).

    The targets are what the layers `aim` make of the standardised sample: its values, its spectrum, rows that are to be
    foretold from those before them (model.SELF_SUPERVISED); `variance` is σ². No label is needed; every sample counts
    as one of class 0. The error of a sample tells how unlike the learnt ones it is.
    """

    def __init__(self, network: Learnable, aim: Sequence[Layer], variance: float = 1.0) -> None:
        self.network, self.aim, self.deviation = network, aim, sqrt(variance)
        self.seen = torch.zeros(1, dtype=torch.bool)

    def is_news(self, labels: NDArray[np.int64]) -> bool:
        """Whether nothing has been seen yet."""
        return not bool(self.seen.all())

    def meet(self, labels: NDArray[np.int64]) -> None:
        """There is one class only: samples."""
        self.seen.fill_(True)

    def arrive(self, labels: NDArray[np.int64]) -> None:
        """Nothing depends on what came before."""

    def refresh(self) -> None:
        """Nothing is derived."""

    @property
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, an entry for the one class."""
        return {"seen": self.seen}

    @property
    def nbytes(self) -> int:
        """Bytes of its tables: it has none."""
        return 0

    def masked(self, z: Tensor) -> Tensor:
        """z: every output is in use."""
        return z

    def keepsake(self, z: Tensor) -> Tensor:
        """z as it is stored beside a sample."""
        return z

    def answer(self, z: Tensor) -> Tensor:
        """What the network says (B, C), in standardised units."""
        return z

    def delta(self, z: Tensor, x: Tensor, labels: Tensor, n_new: int) -> Tensor:
        """∂lossₙ/∂zₙ (B, C) of each row."""
        e = (z - self.targets(x)).div_(self.deviation)
        return e.div_(e.norm(dim=1, keepdim=True).clamp_min_(1.0).mul_(self.deviation))

    def losses(self, z: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error (B,) in standardised units: the anomaly score."""
        return (z - self.targets(x)).square_().mean(1)

    def fisher(self, network: Learnable, x: Tensor, labels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
        """The Gaussian's Fisher diagonal (P,); `exact`, which takes a pass an output, is drawn instead."""
        targets, kind = self.targets(x), "sampled" if kind == "exact" else kind
        return gaussian_fisher_diagonal(
            network, x, kind=kind, deviation=self.deviation, targets=targets, generator=generator
        )

    def targets(self, x: Tensor) -> Tensor:
        """What the outputs for raw samples x (B, *shape) are to equal (B, C)."""
        target = self.network.standardise.forward(x)
        for layer in self.aim:
            target = layer.forward(target)
        return target


def most_likely(answers: Tensor) -> NDArray[np.int64]:
    """The class with the highest of each row of answers (B, C); NOT_SEEN where no class had been seen."""
    host: NDArray[Any] = answers.cpu().numpy()
    classes: NDArray[np.int64] = host.argmax(1)
    return np.where(np.isnan(host[:, 0]), NOT_SEEN, classes)
