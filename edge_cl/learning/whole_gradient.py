"""A gradient step for what must see the gradient of all parameters before any of them moves.

The slow road beside `Learnable.descend`, which stores no gradient: A-GEM, importance-scaled rates, path importance.
Knows networks and flat tensors. Must not know losses, replay or labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_cl.learning.network import Learnable
from edge_cl.learning.path_importance import PathImportance
from edge_cl.learning.projection import project, scaled_rates
from edge_cl.learning.rule import Rule


class WholeGradient:
    """θ ← θ - η r ⊙ project(g): four bytes a parameter for g, and four for each of what the rule asks for."""

    def __init__(self, theta: Tensor, rule: Rule) -> None:
        self.theta, self.protect = theta, rule.protect
        self.gradient = torch.zeros_like(theta)
        self.reference = torch.zeros_like(theta) if rule.project else None
        self.rates = torch.ones_like(theta) if rule.protect else None
        self.path = PathImportance(theta) if rule.importance == "path" else None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        path = () if self.path is None else (self.path.omega, self.path.start)
        return sum(tensor.nbytes for tensor in (self.gradient, self.reference, self.rates, *path) if tensor is not None)

    @property
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {} if self.path is None else {"path.omega": self.path.omega, "path.start": self.path.start}

    def protect_by(self, fisher: Tensor) -> None:
        """Lower the rates of what is important by this Fisher diagonal (P,)."""
        if self.rates is not None:
            self.rates.copy_(scaled_rates(fisher, self.protect))

    def descend(self, network: Learnable, delta: Tensor, learning_rate: float, n_new: int) -> None:
        """One step from delta = ∂loss/∂z (B, C) of the last forward pass, whose first `n_new` rows are new samples.

        With a projection the new rows alone are learnt, weighing as much as all would, and only as far as the loss of
        the others does not rise.
        """
        self.gradient.zero_()
        if self.reference is None or not 0 < n_new < len(delta):
            network.add_gradient(delta, self.gradient)
        else:
            new, old = delta.clone(), delta.clone()
            new[n_new:], old[:n_new] = 0.0, 0.0
            network.add_gradient(new.mul_(len(delta) / n_new), self.gradient)
            network.add_gradient(old, self.reference.zero_())
            project(self.gradient, self.reference)
        if self.rates is not None:
            self.gradient.mul_(self.rates)
        if self.path is not None:
            self.path.count(self.gradient, learning_rate)
        self.theta.sub_(self.gradient, alpha=learning_rate)
