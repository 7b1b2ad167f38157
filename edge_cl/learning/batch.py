"""The rows of one learning step, in buffers that stay where they are: new samples first, then replayed ones.

Knows how rows get to where the network computes. Must not know what is learnt from them.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_cl.learning.replay import Reservoir


class Batch:
    """Raw samples x (B, *shape), their labels (B,), and each row's share (B, 1) of the step where they differ.

    A share is 1 / learnt rows, and 0 for a row that is only predicted, so that a step's gradient is a mean over what it
    learns; where all rows are learnt it is left out. There is room for `rows` of them, and for more once more have
    come; a GPU gets copies from pinned memory.
    """

    def __init__(self, rows: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._copied: Any = None  # a CUDA event
        self._make_room(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, on the host and, if that is elsewhere, where the network computes."""
        here = self._x.nbytes + self._labels.nbytes + self._share.nbytes
        return 2 * here if self.device.type == "cuda" else here

    def fill(
        self, x: NDArray[Any], y: NDArray[np.int64], replay: Reservoir, places: NDArray[np.int64], only_predicted: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, labels and shares of a step on new samples x (N, *shape), y (N,) and the replayed ones in `places` (M,).

        `only_predicted` (N,) bool or None marks new samples that must not be learnt from.
        """
        n, B = len(y), len(y) + len(places)
        if self._copied is not None:
            self._copied.synchronize()  # the step before may still be reading what is written over now
        if len(self._x) < B:
            self._make_room(B)
        self._x[:n] = x
        replay.take(places, out=self._x[n:B])
        self._labels[:n] = y
        self._labels[n:B] = replay.labels[places]
        if only_predicted is not None:
            self._share[:n, 0] = ~only_predicted
            self._share[n:B] = 1.0
            self._share[:B] /= max(1.0, self._share[:B].sum())
        rows, seen, share = self._on_device(B)
        return rows, seen, None if only_predicted is None else share

    def _make_room(self, rows: int) -> None:
        on_gpu = self.device.type == "cuda"
        x = torch.from_numpy(np.empty((rows, *self.shape), self.dtype))
        host = (x, torch.empty(rows, dtype=torch.int64), torch.empty(rows, 1))
        self._host = tuple(tensor.pin_memory() for tensor in host) if on_gpu else host
        self._x, self._labels, self._share = (tensor.numpy() for tensor in self._host)
        self._there = tuple(torch.empty_like(tensor, device=self.device) for tensor in host) if on_gpu else host
        self._views = self._first(rows)

    def _on_device(self, B: int) -> tuple[Tensor, Tensor, Tensor]:
        if len(self._views[0]) != B:
            self._views = self._first(B)
        if self.device.type == "cuda":
            for here, there in zip(self._host, self._views, strict=True):
                there.copy_(here[:B], non_blocking=True)
            self._copied = torch.cuda.current_stream(self.device).record_event()
        return self._views

    def _first(self, B: int) -> tuple[Tensor, Tensor, Tensor]:
        x, labels, share = self._there
        return x[:B], labels[:B], share[:B]


def batch_bytes(rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of the buffers for that many rows."""
    return rows * (prod(shape) * dtype.itemsize + 8 + 4)
