"""The diagonal of the Fisher information, exact and per sample, in one backward pass a label.

Knows a network's outputs and its squared backward pass. Must not know what the diagonal is used for.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from edge_cl.learning.network import Learnable

KINDS = ("exact", "sampled", "empirical")
CHUNK = 256  # samples a pass: one gradient a sample of a convolution stays within some megabytes


def fisher_diagonal(
    network: Learnable,
    x: Tensor,
    *,
    kind: str = "exact",
    labels: Tensor | None = None,
    classes: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Diagonal of the Fisher information of p(y|x; θ), the mean over samples of squared per-sample gradients, (P,).

    exact:     F = 1/N Σₙ Σ_c p(c|xₙ) (∂ log p(c|xₙ)/∂θ)², all labels weighted by their probability
    sampled:   F = 1/N Σₙ (∂ log p(ŷₙ|xₙ)/∂θ)², one label drawn from the model a sample; the same in expectation
    empirical: F = 1/N Σₙ (∂ log p(yₙ|xₙ)/∂θ)², with the labels observed

    It squares each sample's gradient and averages afterwards, so it does not depend on how x is cut into batches; the
    square of a batch's mean gradient, which most code computes, is about 1/B of it.
    x (N, *shape) raw samples; `labels` (N,) for `empirical`; `classes` (C,) bool leaves out outputs not in use, (N, C)
    those that are none of the sample's own head.
    Every pass answers as when deployed, and the network's mode is what it was before.
    Raises ValueError if N is 0, the kind is unknown or labels are missing. Kunstner et al. 2019; van de Ven 2025.
    """
    _check(x, kind, labels, "labels")
    kept = torch.ones(network.n_outputs, dtype=torch.bool) if classes is None else classes.cpu()
    asked = kept if kept.dim() == 1 else kept.any(0)
    mask = torch.where(kept, 0.0, -torch.inf).to(x.device)
    fisher = torch.zeros_like(network.arena.flat)
    with network.evaluating():
        for chunk in _chunks(len(x)):
            p = (network.forward(x[chunk]) + (mask if mask.dim() == 1 else mask[chunk])).softmax(1)
            for delta in _scores(p, kind, asked, labels[chunk] if labels is not None else None, generator):
                network.add_squares(delta, fisher)
    return fisher.div_(len(x))


def gaussian_fisher_diagonal(
    network: Learnable,
    x: Tensor,
    *,
    kind: str = "exact",
    deviation: float = 1.0,
    targets: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The same for a regression, whose outputs f(x) (C,) are the means of p(y|x; θ) = N(f(x), σ² I), (P,).

    exact:     F = 1/N Σₙ Σ_d (∂f_d(xₙ)/∂θ)² / σ²
    sampled:   F = 1/N Σₙ (Σ_d ε_d ∂f_d(xₙ)/∂θ)² / σ² with ε ~ N(0, I); the same in expectation
    empirical: F = 1/N Σₙ (Σ_d (f_d(xₙ) - y_d) ∂f_d(xₙ)/∂θ)² / σ⁴, with the targets (N, C) observed

    Raises ValueError if N is 0, σ is not positive, the kind is unknown or targets are missing. Amari 1998.
    """
    _check(x, kind, targets, "targets")
    if not deviation > 0:
        raise ValueError(f"deviation: must be above 0 (got {deviation})")
    fisher = torch.zeros_like(network.arena.flat)
    with network.evaluating():
        for chunk in _chunks(len(x)):
            outputs = network.forward(x[chunk])
            if kind == "exact":
                for one in torch.eye(outputs.shape[1], device=x.device):
                    network.add_squares(one.expand_as(outputs) / deviation, fisher)
            elif kind == "sampled":
                noise = torch.randn(outputs.shape, generator=generator, device=x.device)
                network.add_squares(noise / deviation, fisher)
            elif targets is not None:
                network.add_squares((outputs - targets[chunk]) / deviation**2, fisher)
    return fisher.div_(len(x))


def _scores(
    p: Tensor, kind: str, asked: Tensor, labels: Tensor | None, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """∂(-log p(y))/∂logits = p - onehot(y) for each label y that is asked about, times the root of its weight."""
    if kind == "exact":
        for c in torch.nonzero(asked).flatten().tolist():
            delta = p.clone()
            delta[:, c] -= 1.0
            yield delta.mul_(p[:, c : c + 1].sqrt())  # squared, it carries the weight p(c)
        return
    label = torch.multinomial(p, 1, generator=generator)[:, 0] if labels is None or kind == "sampled" else labels
    yield p.scatter_add(1, label.unsqueeze(1), p.new_full((len(p), 1), -1.0))


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, n, CHUNK))


def _check(x: Tensor, kind: str, observed: Tensor | None, name: str) -> None:
    if len(x) == 0:
        raise ValueError("x: the Fisher information needs at least one sample (got 0)")
    if kind not in KINDS:
        raise ValueError(f"kind: must be one of {', '.join(KINDS)} (got {kind})")
    if kind == "empirical" and (observed is None or len(observed) != len(x)):
        raise ValueError(f"{name}: empirical needs one a sample (got {None if observed is None else len(observed)})")
