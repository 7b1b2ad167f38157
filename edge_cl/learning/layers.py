"""What a built-in layer knows: its forward pass, its backward product, its Fisher rule and its ONNX node.

Each layer keeps what its backward pass needs from the last forward pass and nothing else. There is no graph: `Network`
(network.py) walks the layers backwards. A layer knows nothing of losses, steps, anchors or files.

Shapes: B batch, I inputs, O outputs, C channels, L positions (length, or height x width), K kernel entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from edge_cl.learning.arena import Parameters
from edge_cl.learning.patches import Patches

aten = torch.ops.aten

# With AVX-512 oneDNN's product beats MKL's by a third for 784 x 256; without, it takes two or three times as long.
ONEDNN_IS_FASTER = torch._C._has_mkldnn and torch.backends.cpu.get_cpu_capability() == "AVX512"
LARGE = 100_000  # weights from which that is so

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

    `shapes` names the parameters; `own` holds them once the network has bound it to its arena.
    """

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self.own: Parameters = {}

    def bind(self, own: Parameters) -> None:
        """Take these tensors as parameters: views into an arena."""
        self.own = own

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

    def bind(self, own: Parameters) -> None:
        super().bind(own)
        self.transposed = own["weight"].t()

    def initialise(self, generator: torch.Generator) -> None:
        _uniform_fan_in(self.own["weight"], generator)
        self.own["bias"].zero_()

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        weight, bias = self.own["weight"], self.own["bias"]
        if ONEDNN_IS_FASTER and weight.numel() >= LARGE and x.device.type == "cpu":
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
            return y
        return torch.addmm(bias, x, self.transposed)

    def upstream(self, delta: Tensor) -> Tensor:
        return delta @ self.own["weight"]

    def add_gradient(self, delta: Tensor, into: Parameters, alpha: float) -> None:
        transposed = delta.t()
        into["weight"].addmm_(transposed, self.x, alpha=alpha)  # δᵀ x
        into["bias"].addmv_(transposed, _ones(len(delta), delta.device), alpha=alpha)  # δᵀ 1

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
    """Convolution over one (x (B, C, L)) or two (x (B, C, H, W)) axes; W (O, C / groups, *kernel), b (O,).

    A linear layer on patches (patches.py), with rows (G, B L, K) for G groups and L positions of a kernel that spans K
    values: forward pass, update and squares are one matrix product each.
    """

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
        self.kernel, self.groups = list(kernel), groups
        self.stride, self.padding, self.dilation = [stride] * axes, [padding] * axes, [dilation] * axes
        self.shapes = {"weight": (outputs, channels // groups, *kernel), "bias": (outputs,)}
        self.patches = Patches(kernel, self.stride, self.padding, self.dilation, groups)

    def bind(self, own: Parameters) -> None:
        super().bind(own)
        self.column, self.row = self._by_group(own["weight"]).movedim(1, -1), own["bias"].view(self.groups, 1, -1)

    def initialise(self, generator: torch.Generator) -> None:
        _uniform_fan_in(self.own["weight"], generator)
        self.own["bias"].zero_()

    def forward(self, x: Tensor) -> Tensor:
        self.x = self.patches.unfold(x)
        self.matrix = self.column.reshape(self.groups, self.x.shape[2], -1)  # weights (G, K, O / G)
        y = torch.baddbmm(self.row, self.x, self.matrix)  # (G, B L, O / G)
        positions = self.patches.positions[-len(self.kernel) :]
        return y.transpose(0, 1).reshape(len(x), *positions, -1).movedim(-1, 1)

    def upstream(self, delta: Tensor) -> Tensor:
        return self.patches.fold(torch.bmm(self._rows(delta), self.matrix.transpose(1, 2)))

    def add_gradient(self, delta: Tensor, into: Parameters, alpha: float) -> None:
        rows = self._rows(delta)
        self._add(torch.bmm(self.x.transpose(1, 2), rows), into["weight"], alpha)
        into["bias"].add_(rows.sum(1).flatten(), alpha=alpha)

    def add_squares(self, delta: Tensor, into: Parameters) -> None:
        rows, x = (torch.unflatten(t, 1, (len(delta), -1)) for t in (self._rows(delta), self.x))
        gradient = torch.matmul(x.transpose(2, 3), rows)  # (G, B, K, O / G), one gradient a sample
        self._add(gradient.square_().sum(1), into["weight"], 1.0)
        into["bias"].add_(rows.sum(2).square_().sum(1).flatten())

    def _rows(self, delta: Tensor) -> Tensor:
        """delta (B, O, ...) as the patches lie, (G, B L, O / G)."""
        return delta.movedim(1, -1).reshape(-1, self.groups, delta.shape[1] // self.groups).transpose(0, 1)

    def _by_group(self, weight: Tensor) -> Tensor:
        """A view of weights (O, C / G, *kernel) as (G, O / G, *kernel, C / G): the order of values in a patch."""
        return weight.view(self.groups, -1, *weight.shape[1:]).movedim(2, -1)

    def _add(self, matrix: Tensor, into: Tensor, alpha: float) -> None:
        """into (O, C / G, *kernel) += alpha · matrix (G, K, O / G)."""
        by_kernel = matrix.view(self.groups, *self.kernel, into.shape[1], -1)
        self._by_group(into).add_(by_kernel.movedim(-1, 1), alpha=alpha)

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


class ScaleAndShift(Layer):
    """What layers with one factor γ and one summand β a channel have in common; `_per_sample` is what differs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shapes = {"weight": (channels,), "bias": (channels,)}

    def initialise(self, generator: torch.Generator) -> None:
        self.own["weight"].fill_(1.0)
        self.own["bias"].zero_()

    def add_gradient(self, delta: Tensor, into: Parameters, alpha: float) -> None:
        per_sample_weight, per_sample_bias = self._per_sample(delta)
        into["weight"].add_(per_sample_weight.sum(0), alpha=alpha)
        into["bias"].add_(per_sample_bias.sum(0), alpha=alpha)

    def add_squares(self, delta: Tensor, into: Parameters) -> None:
        per_sample_weight, per_sample_bias = self._per_sample(delta)
        into["weight"].add_(per_sample_weight.square().sum(0))
        into["bias"].add_(per_sample_bias.square().sum(0))

    def _per_sample(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """∂lossₙ/∂γ and ∂lossₙ/∂β, (B, C) each."""
        raise NotImplementedError


class GroupNorm(ScaleAndShift):
    """y = γ (x - mean) / √(variance + ε) + β over groups of channels of one sample; x (B, C, ...), γ and β (C,).

    Unlike BatchNorm it keeps no running statistics, so a sample's answer never depends on its neighbours (trap T-05 l).
    """

    EPSILON = 1e-5

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels)
        self.groups = groups

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


class LayerNorm(ScaleAndShift):
    """y = γ (x - mean) / √(variance + ε) + β over the features of one sample; x (B, D), γ and β (D,)."""

    EPSILON = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        deviations = x - x.mean(1, keepdim=True)
        self.inverse_deviation = deviations.square().mean(1, keepdim=True).add_(self.EPSILON).rsqrt_()
        self.normal = deviations * self.inverse_deviation
        return torch.addcmul(self.own["bias"], self.normal, self.own["weight"])

    def upstream(self, delta: Tensor) -> Tensor:
        delta = delta * self.own["weight"]
        along = (delta * self.normal).mean(1, keepdim=True)  # what mean and variance would give back
        return (delta - delta.mean(1, keepdim=True) - self.normal * along).mul_(self.inverse_deviation)

    def _per_sample(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """∂lossₙ/∂γ = δ normal and ∂lossₙ/∂β = δ, (B, D) each."""
        return delta * self.normal, delta

    def nodes(self, shape: Shape) -> list[Node]:
        return [Node("LayerNormalization", self.shapes, attributes={"axis": -1, "epsilon": self.EPSILON})]


class Affine(ScaleAndShift):
    """y = γ x + β for each channel; x (B, C, ...), γ and β (C,)."""

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        self.column = (-1, *[1] * (x.dim() - 2))
        return torch.addcmul(self.own["bias"].view(self.column), x, self.own["weight"].view(self.column))

    def upstream(self, delta: Tensor) -> Tensor:
        return delta * self.own["weight"].view(self.column)

    def _per_sample(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """∂lossₙ/∂γ = Σ δ x and ∂lossₙ/∂β = Σ δ over positions, (B, C) each."""
        B, C = delta.shape[:2]
        return (delta * self.x).reshape(B, C, -1).sum(2), delta.reshape(B, C, -1).sum(2)

    def nodes(self, shape: Shape) -> list[Node]:
        column = (shape[0], *[1] * (len(shape) - 1))
        return [Node("Mul", {"weight": column}), Node("Add", {"bias": column})]


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


class Flatten(Layer):
    """(B, ...) to (B, I)."""

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return x.flatten(1)

    def upstream(self, delta: Tensor) -> Tensor:
        return torch.empty_like(self.x).copy_(delta.view(self.x.shape))  # in x's order in memory, which others count on

    def output_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def nodes(self, shape: Shape) -> list[Node]:
        return [Node("Flatten", attributes={"axis": 1})]


def _uniform_fan_in(weight: Tensor, generator: torch.Generator) -> None:
    """Uniform within ±√(1 / fan_in), PyTorch's own default for linear and convolutional layers."""
    bound = math.sqrt(1.0 / weight[0].numel())
    weight.uniform_(-bound, bound, generator=generator)


@cache
def _ones(n: int, device: torch.device) -> Tensor:
    """A vector of ones (n,), made once for each length and kept: a recorded step reads it where it is."""
    return torch.ones(n, device=device)
