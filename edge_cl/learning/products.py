"""Which weights of an autograd graph were used in one matrix product and nowhere else.

Knows PyTorch's graph. Must not know modules: what counts is what was computed, so a weight that a module shares with
another, or that somebody used by hand, is simply not among them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge


class Product(NamedTuple):
    """y = x Wᵀ + b in a graph: x (B, I), the place of y (B, O), and which parameters W (O, I) and b (O,) are."""

    x: Tensor
    output: GradientEdge
    weight: int
    bias: int

    def add_gradient(self, delta: Tensor, views: list[Tensor], alpha: float) -> None:
        """W += alpha · δᵀ x, b += alpha · δᵀ 1 from delta = ∂loss/∂y (B, O); alpha = -η is the step itself."""
        views[self.weight].addmm_(delta.t(), self.x, alpha=alpha)
        views[self.bias].add_(delta.sum(0), alpha=alpha)


def products(output: Tensor, places: dict[Tensor, int]) -> list[Product]:
    """The products in the graph of `output` whose two parameters are among `places` and take part in nothing else."""
    if output.grad_fn is None:
        return []
    uses: dict[Any, int] = {}  # edges into each node: a transposed weight may go into several sums
    sums: list[Any] = []
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if type(node) is SUM:
            sums.append(node)
        for before in _before(node):
            if before in uses:
                uses[before] += 1
            elif before is not None:
                uses[before] = 1
                if type(before) is not LEAF:
                    waiting.append(before)
    return [product for node in sums if (product := _product(node, uses, places)) is not None]


def _product(node: Any, uses: dict[Any, int], places: dict[Tensor, int]) -> Product | None:
    """`node` as a product; None if it is another kind of sum, or one of its parameters is used elsewhere, too."""
    bias, _, transposed = _before(node)
    if type(bias) is not LEAF or type(transposed) is not TRANSPOSE:
        return None
    (weight,) = _before(transposed)
    if type(weight) is not LEAF or (uses[weight], uses[transposed], uses[bias]) != (1, 1, 1):
        return None
    w, b = places.get(weight.variable), places.get(bias.variable)
    if w is None or b is None or (node._saved_alpha, node._saved_beta) != (1, 1):
        return None
    if bias.variable.shape != weight.variable.shape[:1]:  # one number for all outputs
        return None
    return Product(node._saved_mat1.detach(), GradientEdge(node, 0), w, b)


def _before(node: Any) -> list[Any]:
    """The nodes whose results `node` took; None where no gradient is wanted."""
    return [before for before, _ in node.next_functions]


def _types() -> tuple[Any, Any, Any]:
    """The classes of the graph's nodes that are looked for; comparing them is quicker than comparing names."""
    with torch.enable_grad():
        one = torch.ones(1, requires_grad=True)
        node: Any = torch.addmm(one, torch.ones(1, 1), one.view(1, 1).t()).grad_fn
    leaf, _, transposed = _before(node)
    return type(node), type(transposed), type(leaf)


SUM, TRANSPOSE, LEAF = _types()
