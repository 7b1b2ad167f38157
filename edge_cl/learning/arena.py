"""One flat tensor that all parameters are views into, and the same layout laid over other flat tensors.

Knows names, shapes and offsets. Must not know what a layer computes or how a step updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def where(device: torch.device | str) -> torch.device:
    """A device by its full name: tensors on "cuda" say that they are on "cuda:0"."""
    return torch.empty(0, device=device).device


class Arena:
    """All parameters of a network in one float32 tensor, so that budget, anchor and checkpoint are single copies.

    `shapes` maps each parameter's name to its shape, in the order in which they lie in `flat` (P,).
    Writing through a view writes the arena, and the other way round: there is no second copy.

    >>> arena = Arena({"weight": (2, 3), "bias": (2,)})
    >>> arena.views["bias"].fill_(1.0).sum() == arena.flat.sum()
    tensor(True)
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device | str = "cpu") -> None:
        self.shapes = dict(shapes)
        self.flat = torch.zeros(sum(prod(shape) for shape in self.shapes.values()), device=device)
        self.views = self.lay_over(self.flat)

    def lay_over(self, flat: Tensor) -> Parameters:
        """Views into another flat tensor (P,) in the arena's own order: a gradient, a Fisher diagonal, an anchor.

        Raises ValueError if `flat` has another length than the arena.
        """
        if flat.shape != self.flat.shape:
            raise ValueError(
                f"flat tensor: must have the arena's {self.flat.numel()} entries (got {tuple(flat.shape)})"
            )
        views: Parameters = {}
        start = 0
        for name, shape in self.shapes.items():
            end = start + prod(shape)
            views[name] = flat[start:end].view(shape)
            start = end
        return views

    def to(self, device: torch.device | str) -> Arena:
        """The same parameters on a device; views of this arena stay with it: who holds some must take new ones."""
        moved = Arena(self.shapes, device)
        moved.flat.copy_(self.flat)
        return moved

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters."""
        return self.flat.numel() * self.flat.element_size()
