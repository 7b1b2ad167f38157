"""The diagonal of the Fisher information, exact and per sample, in one backward pass a label.

Knows a network's logits and its squared backward pass. Must not know what the diagonal is used for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_cl.learning.model import Network

CHUNK = 256  # samples a pass: the unfolded patches of a convolution stay within some megabytes


def fisher_diagonal(
    network: Network,
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
    square of a batch's mean gradient, which most code computes, is about 1/B of it (METHODS.md traps T-05, T-11).
    x (N, *shape) raw samples; `labels` (N,) for `empirical`; `classes` (C,) bool leaves out outputs not in use.
    Raises ValueError if N is 0 or the kind is unknown. Kunstner et al. 2019; van de Ven 2025 on the variants.
    """
    if len(x) == 0:
        raise ValueError("x: the Fisher information needs at least one sample (got 0)")
    fisher = torch.zeros_like(network.arena.flat)
    for start in range(0, len(x), CHUNK):
        logits = network.forward(x[start : start + CHUNK])
        if classes is not None:
            logits = logits.masked_fill(~classes, -torch.inf)
        p = logits.softmax(1)
        if kind == "exact":
            for c in range(p.shape[1]):
                if classes is None or bool(classes[c]):
                    # √p scales the gradient so that its square carries the weight p.
                    network.add_squares(_score(p, torch.full((len(p),), c)) * p[:, c : c + 1].sqrt(), fisher)
        elif kind == "sampled":
            network.add_squares(_score(p, torch.multinomial(p, 1, generator=generator)[:, 0]), fisher)
        elif kind == "empirical" and labels is not None:
            network.add_squares(_score(p, labels[start : start + CHUNK]), fisher)
        else:
            raise ValueError(f"kind: must be exact, sampled, or empirical with labels (got {kind})")
    return fisher.div_(len(x))


def _score(p: Tensor, label: Tensor) -> Tensor:
    """∂(-log p(label))/∂logits = p - onehot(label); its square is that of the log-likelihood's gradient."""
    delta = p.clone()
    delta[torch.arange(len(p)), label] -= 1.0
    return delta
