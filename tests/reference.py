"""Slow, obvious second versions of the mathematics, for the tests to compare with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edge_cl.learning.network import Network


def autograd_gradient(network: Network, x: Tensor, loss_of_logits: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient (P,) of a loss by PyTorch's own autograd, through the same forward pass."""
    flat = network.arena.flat.clone().requires_grad_(True)
    own = [layer.own for layer in network.layers]
    try:
        for layer, views in zip(network.layers, network._by_layer(flat), strict=True):
            layer.bind(views)
        (gradient,) = torch.autograd.grad(loss_of_logits(network.forward(x)), flat, allow_unused=True)
    finally:
        for layer, views in zip(network.layers, own, strict=True):
            layer.bind(views)
    return torch.zeros_like(flat) if gradient is None else gradient


def fisher_by_loop(network: Network, x: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
    """Mean over samples of the squared gradient of log p(label), one sample at a time."""
    total = torch.zeros_like(network.arena.flat)
    for n in range(len(x)):
        total += _score(network, x[n : n + 1], int(labels[n]), classes) ** 2
    return total / len(x)


def exact_fisher_by_loop(network: Network, x: Tensor, classes: Tensor | None = None) -> Tensor:
    """Mean over samples of Σ_c p(c) (∂ log p(c))², one sample and one class at a time."""
    total = torch.zeros_like(network.arena.flat)
    for n in range(len(x)):
        p = _masked(network.forward(x[n : n + 1]), classes).softmax(1)[0]
        for c in range(len(p)):
            if p[c] > 0:
                total += p[c] * _score(network, x[n : n + 1], c, classes) ** 2
    return total / len(x)


def _score(network: Network, x: Tensor, label: int, classes: Tensor | None) -> Tensor:
    return autograd_gradient(network, x, lambda logits: _masked(logits, classes).log_softmax(1)[0, label])


def _masked(logits: Tensor, classes: Tensor | None) -> Tensor:
    return logits if classes is None else logits.masked_fill(~classes, -torch.inf)
