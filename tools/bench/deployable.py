"""The function of a snapshot in torch modules: what the exporters are given, and what onnxruntime is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.workloads import Workload


class Deployable(nn.Module):
    """From raw samples (B, *shape) float32 to probabilities (B, classes); its statistics are those of no data yet."""

    mean: Tensor
    inverse_deviation: Tensor

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.layout = workload.layout
        self.register_buffer("mean", torch.zeros(self.layout[-1]))
        self.register_buffer("inverse_deviation", torch.ones(self.layout[-1]))
        self.network = workload.modules()

    def forward(self, x: Tensor) -> Tensor:
        """Standardise, channels first, network, softmax."""
        scaled = (x.reshape(-1, *self.layout) - self.mean) * self.inverse_deviation
        logits: Tensor = self.network(scaled.movedim(-1, 1))
        return logits.softmax(1)
