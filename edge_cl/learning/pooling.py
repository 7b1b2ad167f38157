"""Layers without parameters that leave one value where there were many: the same knowledge as in layers.py.

Shapes: B batch, C channels, L positions (length, or height x width).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edge_cl.learning.layers import Layer, Node, Shape, reshape

aten = torch.ops.aten


class MaxPool(Layer):
    """Largest value under a window that moves by its own size; x (B, C, L) or (B, C, H, W)."""

    def __init__(self, size: int, axes: int) -> None:
        super().__init__()
        self.size = [size] * axes

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        flat = (
            x.unsqueeze(2) if len(self.size) == 1 else x
        )  # one kernel serves both: a signal is an image of height one
        y, self.indices = aten.max_pool2d_with_indices(flat, self._kernel(), self._kernel())
        result: Tensor = y.squeeze(2) if len(self.size) == 1 else y
        return result

    def upstream(self, delta: Tensor) -> Tensor:
        one_axis = len(self.size) == 1
        x, delta = (self.x.unsqueeze(2), delta.unsqueeze(2)) if one_axis else (self.x, delta)
        kernel = self._kernel()
        arguments = (kernel, kernel, [0, 0], [1, 1], False, self.indices)
        upstream: Tensor = aten.max_pool2d_with_indices_backward(delta.contiguous(), x, *arguments)
        return upstream.squeeze(2) if one_axis else upstream

    def _kernel(self) -> list[int]:
        return [1, *self.size] if len(self.size) == 1 else self.size

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], *(L // size for L, size in zip(shape[1:], self.size, strict=True)))

    def nodes(self, shape: Shape) -> list[Node]:
        return [Node("MaxPool", attributes={"kernel_shape": self.size, "strides": self.size})]


class LogVariancePool(Layer):
    """What a filter bank heard, (B, C, L) to (B, C): half of the channels by their loudness, half by their level.

    y_c = SCALE · ln(variance over positions + EPSILON)  for c < C / 2,   y_c = mean of max(x, 0)  for the others.

    The logarithm makes a faint sway and a hard shake equally visible: to a sum of rectified responses the faint one is
    nothing. Log-variance of filtered signals: common spatial patterns (Blankertz et al. 2008), learnt end to end by
    Schirrmeister et al. 2017.
    """

    EPSILON = 1e-4  # of a standardised signal's variance: below a hundredth of its deviation all is silence
    SCALE = 0.3  # the logs of five decades come to lie within about ±1, as the means do

    def forward(self, x: Tensor) -> Tensor:
        self.half = x.shape[1] // 2
        self.length = x.shape[2]
        heard = x[:, : self.half]
        self.centred = heard - heard.mean(2, keepdim=True)
        self.variance = self.centred.square().mean(2).add(self.EPSILON)
        self.rectified = x[:, self.half :].relu()
        return torch.cat([self.variance.log() * self.SCALE, self.rectified.mean(2)], 1)

    def upstream(self, delta: Tensor) -> Tensor:
        # ∂ variance / ∂x = 2 (x - mean) / L: the mean's own derivative cancels, for deviations sum to zero.
        loudness = delta[:, : self.half] / self.variance * (2 * self.SCALE / self.length)
        level = delta[:, self.half :] / self.length
        return torch.cat([self.centred * loudness.unsqueeze(2), (self.rectified > 0) * level.unsqueeze(2)], 1)

    def output_shape(self, shape: Shape) -> Shape:
        return shape[:1]

    def nodes(self, shape: Shape) -> list[Node]:
        channels, half = shape[0], shape[0] // 2
        over_time: dict[str, int | float | list[int]] = {"axes": [2]}
        loud = ("float32", (*[self.SCALE] * half, *[0.0] * (channels - half)))
        level = ("float32", (*[0.0] * half, *[1.0] * (channels - half)))
        return [
            Node("ReduceMean", attributes={**over_time, "keepdims": 1}, takes=("x",), gives="mean"),
            Node("Sub", takes=("x", "mean")),
            Node("Mul", takes=("", "")),
            Node("ReduceMean", attributes={**over_time, "keepdims": 0}),
            Node("Add", constants=(("float32", (self.EPSILON,)),)),
            Node("Log"),
            Node("Mul", constants=(loud,), gives="loudness"),
            Node("Relu", takes=("x",)),
            Node("ReduceMean", attributes={**over_time, "keepdims": 0}),
            Node("Mul", constants=(level,)),
            Node("Add", takes=("", "loudness")),
        ]


class GlobalAveragePool(Layer):
    """Mean over all positions; (B, C, ...) to (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        self.shape = x.shape
        return x.flatten(2).mean(2)

    def upstream(self, delta: Tensor) -> Tensor:
        size = math.prod(self.shape[2:])
        return (delta / size).view(*delta.shape, *[1] * (len(self.shape) - 2)).expand(self.shape)

    def output_shape(self, shape: Shape) -> Shape:
        return shape[:1]

    def nodes(self, shape: Shape) -> list[Node]:
        return [Node("GlobalAveragePool"), reshape(shape[:1])]
