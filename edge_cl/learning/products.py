"""Which weights of an autograd graph were used in one matrix product and nowhere else.

Knows PyTorch's graph. Must not know modules: what counts is what was computed, so a weight that a module shares with
another, or that somebody used by hand, is simply not among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge


@dataclass(frozen=True)
class Product:
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
    uses: dict[Any, int] = {}  # of parameters, and of their transposes: one may go into several sums
    found: list[Any] = []
    waiting, met = [output.grad_fn], {output.grad_fn}
    while waiting:
        node = waiting.pop()
        if node.name() == "AddmmBackward0":
            found.append(node)
        for before, _ in node.next_functions:
            if before is None:
                continue
            parameter = getattr(before, "variable", None)
            used = before if parameter is None else parameter
            uses[used] = uses.get(used, 0) + 1
            if parameter is None and before not in met:
                met.add(before)
                waiting.append(before)
    return [product for node in found if (product := _product(node, uses, places)) is not None]


def _product(node: Any, uses: dict[Any, int], places: dict[Tensor, int]) -> Product | None:
    """`node` as a product; None if it is another kind of sum, or one of its parameters is used elsewhere, too."""
    (before_bias, _), _, (before_weight, _) = node.next_functions
    bias = getattr(before_bias, "variable", None)
    if bias is None or before_weight is None or before_weight.name() != "TBackward0":
        return None
    weight = getattr(before_weight.next_functions[0][0], "variable", None)
    if weight is None or weight not in places or bias not in places or bias.dim() != 1:
        return None
    if (uses[weight], uses[before_weight], uses[bias]) != (1, 1, 1) or node._saved_alpha != 1 or node._saved_beta != 1:
        return None
    return Product(node._saved_mat1.detach(), GradientEdge(node, 0), places[weight], places[bias])
