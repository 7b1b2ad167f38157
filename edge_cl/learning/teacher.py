"""The network as it was at the last consolidation, to go on answering like it (learning without forgetting).

Knows a network and the anchor's parameters. Must not know losses or replay.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from edge_cl.learning.network import Learnable


class Teacher:
    """A second network of the same kind with the anchor's parameters; it shares the input statistics.

    Four bytes a parameter. `known` (C,) are the classes that had been seen by then; of others it says nothing.
    """

    def __init__(self, network: Learnable) -> None:
        self._network = copy.deepcopy(network)
        self._network.standardise = network.standardise
        self.known = torch.zeros(network.n_outputs, dtype=torch.bool)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._network.arena.nbytes

    def become(self, theta: Tensor) -> None:
        """Answer with parameters theta (P,) from now on, for the classes `known`."""
        self._network.arena.flat.copy_(theta)

    def outputs(self, x: Tensor) -> Tensor | None:
        """What it says (B, C) of raw samples x (B, *shape); None while it knows no class."""
        if not bool(self.known.any()):
            return None
        with torch.inference_mode(), self._network.evaluating():
            return self._network.forward(x)
