"""What a built-in layer knows: its forward pass, its backward product, its Fisher rule and its ONNX node.

Each layer keeps what its backward pass needs from the last forward pass and nothing else. There is no graph: `Network`
(model.py) walks the layers backwards. A layer knows nothing of losses, steps, anchors or files.

Shapes: B batch, I inputs, O outputs, C channels, L positions (length, or height x width), K kernel entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from edge_cl.learning.arena import Parameters

aten = torch.ops.aten

HAS_ONEDNN = bool(torch._C._has_mkldnn)
LARGE = 100_000  # weights from which oneDNN's product beats MKL's, by a third for 784 x 256 on AVX-512

Shape = tuple[int, ...]  # of one sample, without the batch


@dataclass(frozen=True)
class Node:
    """One ONNX node of a layer. Its inputs are `takes`, then `parameters`, then `constants`.

    `takes` names outputs within the layer: "" is that of the node before, "x" the layer's input, any other name the
    node whose `gives` it is. `parameters` are the layer's own, in the shape in which the graph wants them.
    """

    op: str
    parameters: dict[str, Shape] = field(default_factory=dict)
    constants: tuple[tuple[str, tuple[float, ...]], ...] = ()  # (dtype, values)
    attributes: dict[str, int | float | list[int]] = field(default_factory=dict)
    takes: tuple[str, ...] = ("",)
    gives: str = ""


def reshape(shape: Shape) -> Node:
    """A node that gives every sample another shape; in ONNX a 0 keeps the batch's dimension."""
    return Node("Reshape", constants=(("int64", (0, *shape)),))


class Layer:
    """One step of the network; a layer without parameters leaves the three parameter methods as they are.

    `shapes` names the parameters; `own` holds the arena's views once `Network` has bound them.
    """

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self.own: Parameters = {}

    def initialise(self, generator: torch.Generator) -> None:
        """Fill the parameters with their starting values."""

    def forward(self, x: Tensor) -> Tensor:
        """Output of the layer; keeps what the backward pass will need."""
        raise NotImplementedError

    def upstream(self, delta: Tensor) -> Tensor:
        """∂loss/∂input from delta = ∂loss/∂output. Reads the parameters, so call it before they are updated."""
        raise NotImplementedError

    def add_gradient(self, delta: Tensor, into: Parameters, alpha: float) -> None:
        """into += alpha · ∂loss/∂parameters, summed over the batch.

        With `into` the parameters themselves and alpha = -η this *is* the gradient step: nothing is stored in between.
        """

    def add_squares(self, delta: Tensor, into: Parameters) -> None:
        """into += Σₙ (∂lossₙ/∂parameters)², each sample squared by itself: delta (B, ...) holds ∂lossₙ/∂outputₙ."""

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output sample for one input sample."""
        return shape

    def nodes(self, shape: Shape) -> list[Node]:
        """The ONNX nodes of this layer for input samples of `shape`."""
        raise NotImplementedError


class Linear(Layer):
    """y = x Wᵀ + b; x (B, I), W (O, I), b (O,)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shapes = {"weight": (outputs, inputs), "bias": (outputs,)}

    def initialise(self, generator: torch.Generator) -> None:
        _uniform_fan_in(self.own["weight"], generator)
        self.own["bias"].zero_()

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        weight, bias = self.own["weight"], self.own["bias"]
        if weight.numel() >= LARGE and x.device.type == "cpu" and HAS_ONEDNN:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
            return y
        return torch.addmm(bias, x, weight.t())

    def upstream(self, delta: Tensor) -> Tensor:
        return delta @ self.own["weight"]

    def add_gradient(self, delta: Tensor, into: Parameters, alpha: float) -> None:
        into["weight"].addmm_(delta.t(), self.x, alpha=alpha)  # δᵀ x
        into["bias"].addmv_(delta.t(), delta.new_ones(len(delta)), alpha=alpha)

    def add_squares(self, delta: Tensor, into: Parameters) -> None:
        # A sample's gradient is the outer product δ xᵀ, so its square is δ² (x²)ᵀ and the sum is one matrix product.
        squared = delta.square()
        into["weight"].addmm_(squared.t(), self.x.square())
        into["bias"].add_(squared.sum(0))

    def output_shape(self, shape: Shape) -> Shape:
        return self.shapes["bias"]

    def nodes(self, shape: Shape) -> list[Node]:
        return [Node("Gemm", self.shapes, attributes={"transB": 1})]


class Conv(Layer):
    """Convolution over one (x (B, C, L)) or two (x (B, C, H, W)) positions axes; W (O, C / groups, *kernel), b (O,)."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        kernel: Sequence[int],
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        axes = len(kernel)
        self.kernel = list(kernel)
        self.stride, self.padding, self.dilation = [stride] * axes, [padding] * axes, [dilation] * axes
        self.groups = groups
        self.shapes = {"weight": (outputs, channels // groups, *kernel), "bias": (outputs,)}

    def initialise(self, generator: torch.Generator) -> None:
        _uniform_fan_in(self.own["weight"], generator)
        self.own["bias"].zero_()

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        convolve = functional.conv1d if len(self.kernel) == 1 else functional.conv2d
        own = self.own
        return convolve(x, own["weight"], own["bias"], self.stride, self.padding, self.dilation, self.groups)

    def upstream(self, delta: Tensor) -> Tensor:
        return self._backward(delta, (True, False, False))[0]

    def add_gradient(self, delta: Tensor, into: Parameters, alpha: float) -> None:
        _, weight, bias = self._backward(delta, (False, True, True))
        into["weight"].add_(weight, alpha=alpha)
        into["bias"].add_(bias, alpha=alpha)

    def _backward(self, delta: Tensor, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor, Tensor]:
        outputs, axes = self.shapes["bias"], [0] * len(self.kernel)
        geometry = (self.stride, self.padding, self.dilation, False, axes, self.groups)
        result: tuple[Tensor, Tensor, Tensor] = aten.convolution_backward(
            delta, self.x, self.own["weight"], outputs, *geometry, wanted
        )
        return result

    def add_squares(self, delta: Tensor, into: Parameters) -> None:
        patches = self._patches()  # (B, groups, K, L)
        B, groups, K, L = patches.shape
        delta = delta.reshape(B, groups, -1, L)
        gradient = torch.matmul(delta, patches.transpose(2, 3))  # (B, groups, O / groups, K), one gradient a sample
        into["weight"].view(groups, -1, K).add_(gradient.square_().sum(0))
        into["bias"].add_(delta.sum(3).square_().sum(0).flatten())

    def _patches(self) -> Tensor:
        """The input values under the kernel at each output position, (B, groups, K, L)."""
        one_axis = len(self.kernel) == 1
        x = self.x.unsqueeze(2) if one_axis else self.x  # a signal is an image of height one
        lead = (1,) if one_axis else ()
        unfolded = functional.unfold(
            x,
            (*lead, *self.kernel),
            dilation=(*lead, *self.dilation),
            padding=(*([0] if one_axis else []), *self.padding),
            stride=(*lead, *self.stride),
        )
        return unfolded.view(x.shape[0], self.groups, -1, unfolded.shape[2])

    def output_shape(self, shape: Shape) -> Shape:
        geometry = zip(shape[1:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return (self.shapes["bias"][0], *((L + 2 * p - d * (k - 1) - 1) // s + 1 for L, k, s, p, d in geometry))

    def nodes(self, shape: Shape) -> list[Node]:
        attributes: dict[str, int | float | list[int]] = {
            "kernel_shape": self.kernel,
            "strides": self.stride,
            "pads": self.padding * 2,
            "dilations": self.dilation,
            "group": self.groups,
        }
        return [Node("Conv", self.shapes, attributes=attributes)]


class GroupNorm(Layer):
    """y = γ (x - mean) / √(variance + ε) + β over groups of channels of one sample; x (B, C, ...), γ and β (C,).

    Unlike BatchNorm it keeps no running statistics, so a sample's answer never depends on its neighbours (trap T-05 l).
    """

    EPSILON = 1e-5

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.shapes = {"weight": (channels,), "bias": (channels,)}

    def initialise(self, generator: torch.Generator) -> None:
        self.own["weight"].fill_(1.0)
        self.own["bias"].zero_()

    def forward(self, x: Tensor) -> Tensor:
        self.x = x = x.contiguous()  # the backward kernel takes x's memory format for delta's
        B, C = x.shape[:2]
        size = x.numel() // (B * C)
        y: Tensor
        y, self.mean, self.inverse_deviation = aten.native_group_norm(
            x, self.own["weight"], self.own["bias"], B, C, size, self.groups, self.EPSILON
        )
        return y

    def upstream(self, delta: Tensor) -> Tensor:
        B, C = self.x.shape[:2]
        upstream: Tensor = aten.native_group_norm_backward(
            delta.contiguous(),
            self.x,
            self.mean,
            self.inverse_deviation,
            self.own["weight"],
            B,
            C,
            self.x.numel() // (B * C),
            self.groups,
            (True, False, False),
        )[0]
        return upstream

    def add_gradient(self, delta: Tensor, into: Parameters, alpha: float) -> None:
        per_sample_weight, per_sample_bias = self._per_sample(delta)
        into["weight"].add_(per_sample_weight.sum(0), alpha=alpha)
        into["bias"].add_(per_sample_bias.sum(0), alpha=alpha)

    def add_squares(self, delta: Tensor, into: Parameters) -> None:
        per_sample_weight, per_sample_bias = self._per_sample(delta)
        into["weight"].add_(per_sample_weight.square_().sum(0))
        into["bias"].add_(per_sample_bias.square_().sum(0))

    def _per_sample(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """∂lossₙ/∂γ = Σ δ (x - mean) / deviation and ∂lossₙ/∂β = Σ δ over positions, (B, C) each."""
        B, C = self.x.shape[:2]
        delta = delta.reshape(B, C, -1)
        bias = delta.sum(2)
        products = torch.linalg.vecdot(delta, self.x.reshape(B, C, -1))
        repeat = C // self.groups
        mean = self.mean.view(B, -1).repeat_interleave(repeat, 1)
        inverse_deviation = self.inverse_deviation.view(B, -1).repeat_interleave(repeat, 1)
        return (products - mean * bias) * inverse_deviation, bias

    def nodes(self, shape: Shape) -> list[Node]:
        # GroupNormalization changed its meaning between opsets 18 and 21; instance norm over groups is everywhere.
        ones, zeros = ("float32", (1.0,) * self.groups), ("float32", (0.0,) * self.groups)
        column = (shape[0], *[1] * (len(shape) - 1))
        return [
            reshape((self.groups, -1)),
            Node("InstanceNormalization", constants=(ones, zeros), attributes={"epsilon": self.EPSILON}),
            reshape(shape),
            Node("Mul", {"weight": column}),
            Node("Add", {"bias": column}),
        ]


class ReLU(Layer):
    """y = max(x, 0), written over x: the layers before it need their input for the backward pass, not their output."""

    def forward(self, x: Tensor) -> Tensor:
        self.y = x.relu_()
        return self.y

    def upstream(self, delta: Tensor) -> Tensor:
        upstream: Tensor = aten.threshold_backward(delta, self.y, 0)
        return upstream

    def nodes(self, shape: Shape) -> list[Node]:
        return [Node("Relu")]


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


class Flatten(Layer):
    """(B, ...) to (B, I)."""

    def forward(self, x: Tensor) -> Tensor:
        self.shape = x.shape
        return x.flatten(1)

    def upstream(self, delta: Tensor) -> Tensor:
        return delta.reshape(self.shape)

    def output_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def nodes(self, shape: Shape) -> list[Node]:
        return [Node("Flatten", attributes={"axis": 1})]


def _uniform_fan_in(weight: Tensor, generator: torch.Generator) -> None:
    """Uniform within ±√(1 / fan_in), PyTorch's own default for linear and convolutional layers."""
    bound = math.sqrt(1.0 / weight[0].numel())
    weight.uniform_(-bound, bound, generator=generator)
