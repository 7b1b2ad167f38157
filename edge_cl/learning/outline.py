"""What a plan of bytes and a state's fingerprint must know of a network, be it of built-in layers or a user's own.

`Blueprint` (model.py) is the outline of built-in layers; this one's is of a PyTorch module. Neither has parameters yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from edge_cl.learning.backbone import Backbone
from edge_cl.learning.layers import Layer, Shape


class Outline(Protocol):
    """A network before it has parameters: what goes in, what comes out, and how many numbers it learns."""

    @property
    def kind(self) -> str:
        """What it is called."""

    @property
    def shape(self) -> Shape:
        """Shape of a raw sample, or of its features behind a backbone."""

    @property
    def layout(self) -> Shape:
        """The same with channels last."""

    @property
    def backbone(self) -> Backbone | None:
        """What raw samples go through first."""

    @property
    def n_outputs(self) -> int:
        """Logits: the most classes it can tell apart; or values of what it reconstructs."""

    @property
    def n_parameters(self) -> int:
        """Numbers that are learnt."""

    @property
    def parameter_shapes(self) -> Mapping[str, Shape]:
        """Every parameter's name and shape, in the arena's order."""

    @property
    def extra_bytes(self) -> int:
        """Bytes of what it holds beside its parameters."""

    @property
    def aim(self) -> Sequence[Layer]:
        """What makes of a sample what the outputs are to equal; empty where there are classes."""


@dataclass(frozen=True)
class ModuleOutline:
    """The outline of a PyTorch module that the function `kind`, package.module:function, returns."""

    kind: str
    shape: Shape
    layout: Shape
    n_outputs: int
    parameter_shapes: Mapping[str, Shape]
    extra_bytes: int
    backbone: Backbone | None = None
    aim: tuple[Layer, ...] = ()

    @property
    def n_parameters(self) -> int:
        """Numbers that are learnt."""
        return sum(prod(shape) for shape in self.parameter_shapes.values())
