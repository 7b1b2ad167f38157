"""Layers without parameters that look at a window of a signal: its spectrum, or some of its rows.

The same knowledge as in layers.py, but for the backward pass: they stand before everything that is learnt.
Shapes: B batch, C channels, L rows, K rows of a piece, F = K / 2 + 1 frequencies.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from edge_cl.learning.layers import Layer, Node, Shape


class LogSpectrum(Layer):
    """How loud each frequency is, (B, C, L) to (B, C, F): the logarithm of Welch's power spectral density.

    y_f = SCALE · ln(mean over pieces of |Σₜ wₜ xₜ exp(-2πi f t / K)|² / Σ w² + EPSILON), Hann window w, pieces of K
    rows that overlap by half; rows behind the last whole piece are not heard. White noise of unit variance has y = 0.

    A window of a vibration begins at any phase, and no small network can tell which; its spectrum has none.
    Welch 1967. Scale and silence are those of `LogVariancePool`.
    """

    EPSILON = 1e-4
    SCALE = 0.3
    PIECE = 32  # rows K: short, so that a window has many pieces, and their mean is steady

    def forward(self, x: Tensor) -> Tensor:
        B, C, L = x.shape
        waves = _waves(self.PIECE, x.device)
        heard = torch.nn.functional.conv1d(x.reshape(B * C, 1, L), waves, stride=self.PIECE // 2)
        power = heard.square().mean(2).view(B, C, 2, -1).sum(2)
        return power.add_(self.EPSILON).log_().mul_(self.SCALE)

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.PIECE // 2 + 1)

    def nodes(self, shape: Shape) -> list[Node]:
        waves = _waves(self.PIECE, torch.device("cpu"))
        values = tuple(waves.flatten().tolist())
        form = ("int64", tuple(float(size) for size in waves.shape))
        return [
            Node("Reshape", constants=(("float32", values), form), takes=(), gives="waves"),
            Node("Reshape", constants=(("int64", (-1, 1, shape[1])),), takes=("x",)),
            Node("Conv", attributes={"strides": [self.PIECE // 2]}, takes=("", "waves")),
            Node("Mul", takes=("", "")),
            Node("ReduceMean", attributes={"axes": [2], "keepdims": 0}),
            Node("Reshape", constants=(("int64", (-1, shape[0], 2, self.PIECE // 2 + 1)),)),
            Node("ReduceSum", constants=(("int64", (2,)),), attributes={"keepdims": 0}),
            Node("Add", constants=(("float32", (self.EPSILON,)),)),
            Node("Log"),
            Node("Mul", constants=(("float32", (self.SCALE,)),)),
        ]


class Rows(Layer):
    """Some rows of a window, (B, C, L) to (B, C, rows): those that a predictor sees, and those that it foretells."""

    def __init__(self, rows: range) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, self.rows.start : self.rows.stop : self.rows.step]

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], len(self.rows))

    def nodes(self, shape: Shape) -> list[Node]:
        bounds = (self.rows.start, self.rows.stop, 2, self.rows.step)  # starts, ends, axes, steps
        return [Node("Slice", constants=tuple(("int64", (value,)) for value in bounds))]


@cache
def _waves(K: int, device: torch.device) -> Tensor:
    """Cosines and sines of the F frequencies under a Hann window of energy 1, (2 F, 1, K)."""
    window = torch.hann_window(K, device=device, dtype=torch.float64)
    window = window / window.square().sum().sqrt()
    time = torch.arange(K, device=device, dtype=torch.float64)
    angle = torch.outer(torch.arange(K // 2 + 1, device=device, dtype=torch.float64), time) * (2 * torch.pi / K)
    return torch.cat([angle.cos() * window, angle.sin() * window]).float().unsqueeze(1)
