"""Compact networks made of built-in layers: an MLP, a 1-D CNN for windows of a signal, a 2-D CNN for images.

A `Blueprint` is the plan of a network, cheap enough to count bytes with; network.py gives it parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from edge_cl.learning.layers import Conv, Flatten, GroupNorm, Layer, Linear, ReLU, Shape
from edge_cl.learning.pooling import LogVariancePool
from edge_cl.learning.standardise import channels_first

MOST_CHANNELS = 16  # of a window: (128, 9) is a signal of nine channels, (28, 28) an image
SHORTEST_SIGNAL = 64  # (1024,) is a signal of one channel, (8,) a vector of features
KERNEL = 9  # rows of a signal's filters
GROUPS = 4  # of a GroupNorm: few enough that the level of a channel against its neighbours is kept


@dataclass(frozen=True)
class Blueprint:
    """A network before it has parameters.

    `shape` is that of a raw sample, `layout` the same with channels last, `layers` end in one logit a class.
    """

    kind: str
    shape: Shape
    layout: Shape
    layers: list[Layer]

    @property
    def parameter_shapes(self) -> dict[str, Shape]:
        """Every parameter's name and shape, in the arena's order."""
        return {f"{name}.{key}": s for name, layer in self.named_layers() for key, s in layer.shapes.items()}

    @property
    def n_parameters(self) -> int:
        """Numbers that are learnt."""
        return sum(prod(shape) for shape in self.parameter_shapes.values())

    @property
    def n_outputs(self) -> int:
        """Logits: the most classes the network can tell apart."""
        return self.layers[-1].shapes["bias"][0]

    @property
    def standardised_shape(self) -> Shape:
        """Shape of a sample as the first layer takes it: channels first."""
        return channels_first(self.layout)

    def named_layers(self) -> list[tuple[str, Layer]]:
        """Layers with the names that their parameters carry."""
        return [(f"{index}.{type(layer).__name__.lower()}", layer) for index, layer in enumerate(self.layers)]


def design(kind: str, shape: Shape, n_outputs: int, width: int = 32) -> Blueprint:
    """The plan of a network of one of `KINDS` (or `auto`) for raw samples of `shape`.

    `width` is the number of hidden units (mlp) or of channels after the first convolution (cnn1d, cnn2d).
    Raises ValueError, naming both, if the kind does not take samples of that shape.
    """
    kind = choose_kind(shape) if kind == "auto" else kind
    if kind not in KINDS:
        raise ValueError(f"model.kind: must be one of auto, {', '.join(KINDS)} (got {kind})")
    return KINDS[kind](shape, n_outputs, width)


def choose_kind(shape: Shape) -> str:
    """The kind of network for a sample's shape: vectors get an MLP, signals a 1-D CNN, images a 2-D CNN.

    >>> [choose_kind(shape) for shape in [(8,), (1024,), (128, 9), (28, 28), (32, 32, 3)]]
    ['mlp', 'cnn1d', 'cnn1d', 'cnn2d', 'cnn2d']
    """
    if len(shape) == 1:
        return "cnn1d" if shape[0] >= SHORTEST_SIGNAL else "mlp"
    return "cnn1d" if len(shape) == 2 and shape[1] <= MOST_CHANNELS else "cnn2d"


def mlp(shape: Shape, n_outputs: int, width: int) -> Blueprint:
    """Two hidden layers of `width` units on the flattened sample."""
    layout = (*shape, 1) if choose_kind(shape) == "cnn2d" and len(shape) == 2 else shape
    hidden = [Flatten(), Linear(prod(shape), width), ReLU(), Linear(width, width), ReLU()]
    return Blueprint("mlp", shape, layout, [*hidden, Linear(width, n_outputs)])


def cnn1d(shape: Shape, n_outputs: int, width: int) -> Blueprint:
    """A bank of 4 x width learnt filters, their loudness and level over the window, one hidden layer; (L,) or (L, C).

    A faint sway counts beside a hard shake only by its logarithm; docs/DESIGN.md says what it was compared with.
    """
    if len(shape) > 2:
        raise ValueError(f"model.kind: cnn1d takes samples of shape (length,) or (length, channels) (got {shape})")
    length, channels = shape if len(shape) == 2 else (*shape, 1)
    filters, hidden = 4 * width, 2 * width
    bank = Conv(channels, filters, [KERNEL], stride=2, padding=KERNEL // 2)
    layers = [bank, LogVariancePool(), Linear(filters, hidden), ReLU(), Linear(hidden, n_outputs)]
    return Blueprint("cnn1d", shape, (length, channels), layers)


def cnn2d(shape: Shape, n_outputs: int, width: int) -> Blueprint:
    """Three strided 3x3 convolutions, then one linear layer; samples (H, W) or (H, W, C)."""
    if len(shape) not in (2, 3):
        raise ValueError(f"model.kind: cnn2d takes samples of shape (height, width[, channels]) (got {shape})")
    layout = shape if len(shape) == 3 else (*shape, 1)
    height, breadth, channels = layout
    layers: list[Layer] = []
    for outputs in (width, 2 * width, 2 * width):
        layers += [Conv(channels, outputs, [3, 3], stride=2, padding=1), ReLU(), GroupNorm(outputs, GROUPS)]
        channels, height, breadth = outputs, (height + 1) // 2, (breadth + 1) // 2
    return Blueprint("cnn2d", shape, layout, [*layers, Flatten(), Linear(channels * height * breadth, n_outputs)])


KINDS: dict[str, Callable[[Shape, int, int], Blueprint]] = {"mlp": mlp, "cnn1d": cnn1d, "cnn2d": cnn2d}
