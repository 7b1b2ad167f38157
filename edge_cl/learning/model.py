"""Compact networks made of built-in layers: an MLP, a 1-D CNN for windows of a signal, a 2-D CNN for images; and two
that need no labels, an autoencoder and a predictor.

A `Blueprint` is the plan of a network, cheap enough to count bytes with; network.py gives it parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

from edge_cl.learning.backbone import Backbone
from edge_cl.learning.layers import Conv, Flatten, GroupNorm, Layer, Linear, ReLU, Shape
from edge_cl.learning.pooling import LogVariancePool
from edge_cl.learning.spectrum import LogSpectrum, Rows
from edge_cl.learning.standardise import channels_first

MOST_CHANNELS = 16  # of a window: (128, 9) is a signal of nine channels, (28, 28) an image
SHORTEST_SIGNAL = 64  # (1024,) is a signal of one channel, (8,) a vector of features
KERNEL = 9  # rows of a signal's filters
GROUPS = 4  # of a GroupNorm: few enough that the level of a channel against its neighbours is kept
PAST = 32  # rows from which a predictor foretells the next one: three swings of the slowest thing it shall follow
APART = 4  # rows from one that is foretold to the next: neighbours tell the same, and each costs its time


@dataclass(frozen=True)
class Blueprint:
    """A network before it has parameters.

    `shape` is that of a raw sample, or of its features behind a `backbone`; `layout` the same with channels last;
    `layers` end in one logit a class. Where there are no classes, `aim` makes of the standardised sample what the
    outputs are to equal, and `variance` is that of a Gaussian about them.
    """

    kind: str
    shape: Shape
    layout: Shape
    layers: list[Layer]
    aim: list[Layer] = field(default_factory=list)
    variance: float = 1.0
    backbone: Backbone | None = None

    @property
    def extra_bytes(self) -> int:
        """Bytes that a network holds beside its parameters; built-in layers hold none."""
        return 0

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
        """Logits: the most classes the network can tell apart; or values of what it reconstructs."""
        return self.shape_after(self.layers)[0]

    def shape_after(self, layers: list[Layer]) -> Shape:
        """Shape of a standardised sample once it has gone through these layers."""
        shape = self.standardised_shape
        for layer in layers:
            shape = layer.output_shape(shape)
        return shape

    @property
    def standardised_shape(self) -> Shape:
        """Shape of a sample as the first layer takes it: channels first."""
        return channels_first(self.layout)

    def named_layers(self) -> list[tuple[str, Layer]]:
        """Layers with the names that their parameters carry."""
        return [(f"{index}.{type(layer).__name__.lower()}", layer) for index, layer in enumerate(self.layers)]


def design(kind: str, shape: Shape, n_outputs: int, width: int = 32, depth: int = 2) -> Blueprint:
    """The plan of a network of one of `KINDS` (or `auto`) or `SELF_SUPERVISED` for raw samples of `shape`.

    `width` is the number of hidden units (mlp, autoencoder) or of channels after the first convolution (cnn1d, cnn2d,
    predictor); `depth` the number of hidden layers of an mlp. What needs no labels has as many outputs as it takes.
    Raises ValueError, naming both, if the kind does not take samples of that shape.
    """
    kind = choose_kind(shape) if kind == "auto" else kind
    if kind in SELF_SUPERVISED:
        return SELF_SUPERVISED[kind](shape, width)
    if kind not in KINDS:
        known = ", ".join([*KINDS, *SELF_SUPERVISED])
        raise ValueError(f"model.kind: must be one of auto, {known} (got {kind})")
    return mlp(shape, n_outputs, width, depth) if kind == "mlp" else KINDS[kind](shape, n_outputs, width)


def choose_kind(shape: Shape) -> str:
    """The kind of network for a sample's shape: vectors get an MLP, signals a 1-D CNN, images a 2-D CNN.

    >>> [choose_kind(shape) for shape in [(8,), (1024,), (128, 9), (28, 28), (32, 32, 3)]]
    ['mlp', 'cnn1d', 'cnn1d', 'cnn2d', 'cnn2d']
    """
    if len(shape) == 1:
        return "cnn1d" if shape[0] >= SHORTEST_SIGNAL else "mlp"
    return "cnn1d" if len(shape) == 2 and shape[1] <= MOST_CHANNELS else "cnn2d"


def mlp(shape: Shape, n_outputs: int, width: int, depth: int = 2) -> Blueprint:
    """`depth` hidden layers of `width` units on the flattened sample."""
    layout = (*shape, 1) if choose_kind(shape) == "cnn2d" and len(shape) == 2 else shape
    layers: list[Layer] = [Flatten()]
    inputs = prod(shape)
    for _ in range(depth):
        layers += [Linear(inputs, width), ReLU()]
        inputs = width
    return Blueprint("mlp", shape, layout, [*layers, Linear(inputs, n_outputs)])


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


def autoencoder(shape: Shape, width: int) -> Blueprint:
    """The sample through a bottleneck of width / 4 linear units and back (Hinton & Salakhutdinov 2006).

    Of a signal it is the log spectrum that is reconstructed: docs/ANOMALY.md says what else was tried.
    """
    layout = layout_of(shape)
    is_signal = choose_kind(shape) == "cnn1d" and layout[0] >= LogSpectrum.PIECE
    front: list[Layer] = [LogSpectrum(), Flatten()] if is_signal else [Flatten()]
    inputs = Blueprint("front", shape, layout, front).n_outputs
    code = max(1, width // 4)
    body = [Linear(inputs, width), ReLU(), Linear(width, code), Linear(code, width), ReLU(), Linear(width, inputs)]
    return Blueprint("autoencoder", shape, layout, [*front, *body], aim=front)


def predictor(shape: Shape, width: int) -> Blueprint:
    """Foretells rows of a window, (L,) or (L, C), each from those before it: autoregression, with one hidden layer.

    Every `APART`th row behind the first `PAST` (in a short window, behind its first half), all by the same weights,
    which is why their errors are averaged: a step would be as many times too long. One row alone says little.
    """
    if len(shape) > 2 or shape[0] < 2:
        raise ValueError(f"model.kind: predictor takes windows of 2 rows or more, (length[, channels]) (got {shape})")
    length, channels = layout = _with_channels(shape)
    past = min(PAST, length // 2)
    foretold = range(past, length, APART)
    body = [Conv(channels, width, [past], stride=APART), ReLU(), Conv(width, channels, [1]), Flatten()]
    aim: list[Layer] = [Rows(foretold), Flatten()]
    return Blueprint("predictor", shape, layout, [Rows(range(length - 1)), *body], aim, variance=len(foretold))


def layout_of(shape: Shape) -> Shape:
    """How a raw sample lies with its channels last; of a vector of features, each is a channel.

    >>> [layout_of(shape) for shape in [(8,), (1024,), (128, 9), (28, 28), (32, 32, 3)]]
    [(8,), (1024, 1), (128, 9), (28, 28, 1), (32, 32, 3)]
    """
    return shape if choose_kind(shape) == "mlp" else _with_channels(shape)


def _with_channels(shape: Shape) -> Shape:
    """How a signal or an image lies with its channels last, one if it names none."""
    return shape if len(shape) == (3 if choose_kind(shape) == "cnn2d" else 2) else (*shape, 1)


KINDS: dict[str, Callable[[Shape, int, int], Blueprint]] = {"mlp": mlp, "cnn1d": cnn1d, "cnn2d": cnn2d}
SELF_SUPERVISED: dict[str, Callable[[Shape, int], Blueprint]] = {"autoencoder": autoencoder, "predictor": predictor}
