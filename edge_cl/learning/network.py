"""A network of built-in layers over one arena: it walks them forwards, and backwards with the update in the product.

Knows layers and the arena. Must not know losses, replay or anchors. `TorchNetwork` (torch_network.py) has the same
methods for PyTorch modules, through autograd; `Learnable` names them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from edge_cl.learning.arena import Arena, Parameters, where
from edge_cl.learning.layers import Layer
from edge_cl.learning.model import Blueprint
from edge_cl.learning.standardise import Standardise


class Learnable(Protocol):
    """What a learning step asks of a network, whether it takes the product road (`Network`) or autograd's."""

    arena: Arena
    standardise: Standardise

    @property
    def kind(self) -> str:
        """What it is called."""

    @property
    def n_outputs(self) -> int:
        """Logits: the most classes it can tell apart."""

    @property
    def honest(self) -> bool:
        """Whether a learning pass answers as a prediction does."""

    @property
    def recordable(self) -> bool:
        """Whether a pass launches the same GPU kernels each time."""

    @property
    def extras(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside arena and statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of raw samples x (B, *shape)."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Within it `forward` answers as when deployed."""

    def descend(self, delta: Tensor, learning_rate: float) -> None:
        """θ ← θ - η ∂loss/∂θ from delta = ∂loss/∂logits (B, C) of the last forward pass."""

    def add_gradient(self, delta: Tensor, into: Tensor) -> None:
        """into (P,) += ∂loss/∂θ."""

    def add_squares(self, delta: Tensor, into: Tensor) -> None:
        """into (P,) += Σₙ (∂lossₙ/∂θ)², each sample squared by itself."""

    def widened(self, flat: Tensor, n_outputs: int, rest: Tensor) -> Tensor:
        """Parameters of the same network with a smaller head in this one's order, the missing rows from `rest`."""


class Network:
    """Standardisation and layers over one arena.

    The layers are the blueprint's own and belong to this network from now on. Parameters are drawn on the CPU from
    `seed`, so that they are the same on every device.
    """

    honest = True  # a learning pass answers as a prediction does: no layer behaves otherwise while learning
    recordable = True  # as a CUDA graph: a pass launches the same kernels each time

    def __init__(self, blueprint: Blueprint, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.blueprint = blueprint
        self.layers = blueprint.layers
        self._first = next(index for index, layer in enumerate(self.layers) if layer.shapes)
        self.arena = Arena(blueprint.parameter_shapes)
        self.standardise = Standardise(blueprint.layout)
        self._bind()
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            layer.initialise(generator)
        self.to(device)

    @property
    def kind(self) -> str:
        """What it is called: mlp, cnn1d or cnn2d."""
        return self.blueprint.kind

    @property
    def n_outputs(self) -> int:
        """Logits: the most classes it can tell apart."""
        return self.blueprint.n_outputs

    @property
    def extras(self) -> dict[str, Tensor]:
        """What a checkpoint holds of a network beside arena and statistics: of built-in layers, nothing."""
        return {}

    def to(self, device: torch.device | str) -> Network:
        """Move parameters and statistics to a device; each layer's parameters are views into the arena there.

        Before a `Learner` is made of it: an anchor and recorded steps stay with the arena they were made for.
        """
        device = where(device)
        if self.arena.flat.device != device:
            self.arena = self.arena.to(device)
            self.standardise = self.standardise.to(device)
            self._bind()
        return self

    def widened(self, flat: Tensor, n_outputs: int, rest: Tensor) -> Tensor:
        """`flat` of this network with a head of `n_outputs`, in this one's order (P,); the other rows come from `rest`.

        Raises ValueError if that is no smaller head of the same network.
        """
        name, layer = self.blueprint.named_layers()[-1]
        head = {f"{name}.{key}" for key in layer.shapes}
        wide = rest.clone()
        parts = [v[:n_outputs] if key in head else v for key, v in self.arena.lay_over(wide).items()]
        sizes = [part.numel() for part in parts]
        if sum(sizes) != len(flat):
            raise ValueError(f"parameters: must be {sum(sizes)} with {n_outputs} outputs (got {len(flat)})")
        for part, values in zip(parts, torch.split(flat, sizes), strict=True):
            part.copy_(values.view(part.shape))
        return wide

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of raw samples x (B, *shape)."""
        h = self.standardise.forward(x)
        for layer in self.layers:
            h = layer.forward(h)
        return h

    def evaluating(self) -> AbstractContextManager[None]:
        """Within it `forward` answers as when deployed; built-in layers always do."""
        return nullcontext()

    def descend(self, delta: Tensor, learning_rate: float) -> None:
        """One gradient step from delta = ∂loss/∂logits (B, C) of the last forward pass: θ ← θ - η ∂loss/∂θ.

        Each layer's update is the backward product itself, so no gradient is ever stored.
        """
        self._backward(delta, lambda layer, _, d: layer.add_gradient(d, layer.own, -learning_rate))

    def add_gradient(self, delta: Tensor, into: Tensor) -> None:
        """into (P,) += ∂loss/∂θ, for what needs the whole gradient before anything moves."""
        views = self._by_layer(into)
        self._backward(delta, lambda layer, index, d: layer.add_gradient(d, views[index], 1.0))

    def add_squares(self, delta: Tensor, into: Tensor) -> None:
        """into (P,) += Σₙ (∂lossₙ/∂θ)² from delta (B, C) = ∂lossₙ/∂logitsₙ, each sample squared by itself."""
        views = self._by_layer(into)
        self._backward(delta, lambda layer, index, d: layer.add_squares(d, views[index]))

    def _backward(self, delta: Tensor, visit: Callable[[Layer, int, Tensor], None]) -> None:
        for index in range(len(self.layers) - 1, self._first - 1, -1):
            layer = self.layers[index]
            # Before the visit, which may move the parameters; below the first layer with parameters nobody asks.
            upstream = layer.upstream(delta) if index > self._first else delta
            visit(layer, index, delta)
            delta = upstream

    def _bind(self) -> None:
        for layer, own in zip(self.layers, self._by_layer(self.arena.flat), strict=True):
            layer.bind(own)

    def _by_layer(self, flat: Tensor) -> list[Parameters]:
        views = self.arena.lay_over(flat)
        return [{key: views[f"{name}.{key}"] for key in layer.shapes} for name, layer in self.blueprint.named_layers()]
