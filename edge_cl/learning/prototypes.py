"""Classes as templates: the mean of each, alone or with the covariance all share. No learning rate, nothing forgotten.

Knows features and labels. Must not know what made the features, nor networks, replay or steps. What is kept is a
sufficient statistic, so the order of a stream and how it is cut into batches change nothing but rounding.

Shapes: B batch, D features, C classes.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

SMALLEST_SHRINKAGE = 1e-3  # of the mean variance: more than rounding does to an eigenvalue

Arrays = dict[str, NDArray[Any]]


class NearestMean:
    """The class whose mean is nearest: argmin_c ‖f - μ_c‖².

    As a linear layer, ½‖f‖² left out, which all classes share: logits = f Wᵀ + b with W = μ, b = -½ diag(μ μᵀ).
    A class has its label's row from the first; one that never came has μ = 0 and b = -∞ and cannot win. Means are
    float32: what is added to one is its distance from the new samples, not a growing sum.
    Mensink et al. 2013; in streams, Rebuffi et al. 2017.
    """

    def __init__(self, n_classes: int, n_features: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(n_classes, dtype=torch.int64, device=device)
        self.means = torch.zeros(n_classes, n_features, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take features (B, D) with labels (B,) into the means: μ_c ← μ_c + Σ_{y = c} (f - μ_c) / n_c.

        Raises ValueError, and learns nothing, if shapes or labels do not fit or a feature is not finite.
        """
        self._check(features, labels)
        self._move(features - self.means[labels], labels)

    def head(self) -> tuple[Tensor, Tensor]:
        """W (C, D) and b (C,) of the linear layer that answers so."""
        return self._linear(self.means.clone())

    def logits_head(self) -> tuple[Tensor, Tensor]:
        """W (C, D) and b (C,) of the same answers as logits of a network; 0 for a class that never came.

        `head` is ½ (squared distance to a class), which over D features scatters by √(D/2) within a class; divided by
        that, or nearly every probability would be 0 or 1. The mean over the classes that came is taken from W and b,
        which changes no probability and leaves one logit at or above 0.
        """
        (W, b), known = self.head(), self.counts > 0
        scatter = sqrt(W.shape[1] / 2)
        flat, level = torch.zeros_like(W), torch.zeros_like(b)
        flat[known] = (W[known] - W[known].mean(0)) / scatter
        level[known] = (b[known] - b[known].mean()) / scatter
        return flat, level

    def rescale(self, factor: Tensor, offset: Tensor) -> None:
        """Go on as if all features so far had been factor · f + offset, each (D,): templates move with their unit."""
        self.means.mul_(factor).add_((self.counts > 0).unsqueeze(1) * offset)

    def state(self) -> Arrays:
        """Arrays from which `restore` makes the same templates; live views on a CPU."""
        return {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}

    def restore(self, arrays: Arrays) -> None:
        """Become the templates whose state this is; the classes that it had no room for have not been seen.

        Raises ValueError, naming the array, if it is that of other features or of more classes.
        """
        for name, own in self._tensors().items():
            shape = arrays[name].shape
            if shape[1:] != own.shape[1:] or shape[0] > len(own):
                raise ValueError(f"{name}: must have shape {tuple(own.shape)}, or less of the first (got {shape})")
        for name, own in self._tensors().items():
            own.zero_()[: len(arrays[name])] = torch.from_numpy(arrays[name])

    def _move(self, distances: Tensor, labels: Tensor) -> None:
        """Count labels (B,) and move their means, from f - μ (B, D)."""
        steps = torch.zeros_like(self.means).index_add_(0, labels, distances)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.means += steps / self.counts.clamp(min=1).unsqueeze(1)

    def _linear(self, W: Tensor) -> tuple[Tensor, Tensor]:
        b = (W * self.means).sum(1).mul_(-0.5)
        return W, b.masked_fill_(self.counts == 0, -torch.inf)

    def _check(self, features: Tensor, labels: Tensor) -> None:
        C, D = self.means.shape
        if features.shape != (len(labels), D):
            raise ValueError(f"features: must have shape {(len(labels), D)} (got {tuple(features.shape)})")
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < C):
            raise ValueError(f"labels: must be in 0 … {C - 1} (got {int(labels.min())} … {int(labels.max())})")
        if not bool(features.isfinite().all()):
            raise ValueError("features: must be finite, for a mean never gets over one that is not")

    def _tensors(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "means": self.means}


class StreamingLDA(NearestMean):
    """The class whose mean is nearest in the metric of the covariance within classes, Σ, which all classes share.

        W = μ Λ,  b = -½ diag(μ Λ μᵀ),  Λ = ((1 - ε) Σ + ε tr(Σ)/D I)⁻¹

    Hayes & Kanan 2020, with two differences. Σ is exact, the batch estimate Σ_c Σ_{y = c} (f - μ_c)(f - μ_c)ᵀ / n with
    the final means, where theirs weights a sample by all samples so far instead of its class's; and ε is relative to
    the mean variance, so that the answers do not depend on the unit of the features. All classes count as equally
    likely, as there.

    Σ is a running mean in float32, half the bytes of float64. Rounding makes eigenvalues of dependent features
    negative, so ε is at least 1e-3, which lifts them (tests/test_prototypes.py), and Σ is inverted in float64, when
    `head` is asked for; an update is one product of (D, B) and (B, D). Raises ValueError if ε, the shrinkage, is
    outside [1e-3, 1].
    """

    def __init__(
        self, n_classes: int, n_features: int, device: torch.device | str = "cpu", *, shrinkage: float = 1e-2
    ) -> None:
        if not SMALLEST_SHRINKAGE <= shrinkage <= 1:
            raise ValueError(f"shrinkage: must be in [{SMALLEST_SHRINKAGE:g}, 1] (got {shrinkage})")
        super().__init__(n_classes, n_features, device)
        self.covariance = torch.zeros(n_features, n_features, device=device)
        self.shrinkage = shrinkage

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take features (B, D) with labels (B,) into the means, μ to μ', and the covariance.

        n Σ ← n Σ + Σ_b (f_b - μ_{y_b})(f_b - μ'_{y_b})ᵀ, Welford's recurrence for a whole batch (Welford 1962).
        Raises ValueError, and learns nothing, if shapes or labels do not fit or a feature is not finite.
        """
        self._check(features, labels)
        if len(labels) == 0:
            return
        before = features - self.means[labels]
        self._move(before, labels)
        share = len(labels) / int(self.counts.sum())
        after = features - self.means[labels]
        self.covariance.addmm_(before.t(), after, beta=1 - share, alpha=share / len(labels))

    def head(self) -> tuple[Tensor, Tensor]:
        """W (C, D) and b (C,) of the linear layer that answers so; as nearest mean while no two samples differ."""
        scale = float(self.covariance.diagonal().double().mean())
        if scale == 0:
            return super().head()
        shrunk = self.covariance.double().mul_(1 - self.shrinkage)
        shrunk.diagonal().add_(self.shrinkage * scale)
        factor = torch.linalg.cholesky(shrunk)
        return self._linear(torch.cholesky_solve(self.means.double().t(), factor).t().float())

    def rescale(self, factor: Tensor, offset: Tensor) -> None:
        """Go on as if all features so far had been factor · f + offset, each (D,): templates move with their unit."""
        super().rescale(factor, offset)
        self.covariance.mul_(factor).mul_(factor.unsqueeze(1))

    def _tensors(self) -> dict[str, Tensor]:
        return {**super()._tensors(), "covariance": self.covariance}
