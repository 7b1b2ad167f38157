"""How much each weight did for the loss on its way: synaptic intelligence, for comparison with the Fisher.

Knows flat tensors of one order (P,). Must not know networks, losses or the anchor it is handed to.
"""

from __future__ import annotations

import torch
from torch import Tensor


class PathImportance:
    """ω ← ω - gᵀΔθ at each gradient step Δθ = -η g; at a consolidation Ω = ω / ((θ - θ₀)² + ξ).

    θ₀ is θ at the consolidation before. Zenke, Poole & Ganguli 2017. Eight bytes a parameter, ω and θ₀.
    """

    XI = 1e-3  # ξ: a weight that hardly moved gets no importance out of a division by nothing

    def __init__(self, theta: Tensor) -> None:
        self.live = theta
        self.omega, self.start = torch.zeros_like(theta), theta.clone()

    def count(self, gradient: Tensor, learning_rate: float) -> None:
        """Count a step down the gradient (P,)."""
        self.omega.addcmul_(gradient, gradient, value=learning_rate)

    def take(self) -> Tensor:
        """The importance (P,) of the path so far; a new path begins."""
        importance = self.omega / (self.live - self.start).square_().add_(self.XI)
        self.omega.zero_()
        self.start.copy_(self.live)
        return importance
