"""The rows of one learning step, in buffers that stay where they are: new samples first, then replayed ones.

Knows how rows get to where the network computes. Must not know what is learnt from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_cl.learning.replay import Reservoir


@dataclass(slots=True)
class Rows:
    """Raw samples x (B, *shape) of a step, the first `n_new` of them new, with their labels (B,).

    `share` (B, 1) is 1 / learnt rows, and 0 for a row that is only predicted, so that a step's gradient is a mean over
    what it learns; None where all rows are learnt alike. `stored` (B - n_new, C) are the logits kept with the replayed
    samples, None where none are kept. All are views into buffers that the next step fills again.
    """

    x: Tensor
    labels: Tensor
    share: Tensor | None
    stored: Tensor | None
    n_new: int


class Batch:
    """Buffers for the rows of a step: room for `rows` of them, and for more once more have come.

    A GPU gets copies from pinned memory.
    """

    def __init__(
        self, rows: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: torch.device, n_logits: int = 0
    ) -> None:
        self.shape, self.dtype, self.device, self.n_logits = shape, dtype, device, n_logits
        self._copied: Any = None  # a CUDA event
        self._make_room(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, on the host and, if that is elsewhere, where the network computes."""
        here = self._x.nbytes + self._labels.nbytes + self._share.nbytes + self._stored.nbytes
        return 2 * here if self.device.type == "cuda" else here

    def fill(
        self, x: NDArray[Any], y: NDArray[np.int64], replay: Reservoir, places: NDArray[np.int64], only_predicted: Any
    ) -> Rows:
        """The rows of a step on new samples x (N, *shape), y (N,) and the replayed ones in `places` (M,).

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
        if self.n_logits:
            self._stored[n:B] = replay.logits[places]
        rows, seen, share, stored = self._on_device(B)
        return Rows(rows, seen, None if only_predicted is None else share, stored[n:] if self.n_logits else None, n)

    def _make_room(self, rows: int) -> None:
        on_gpu = self.device.type == "cuda"
        x = torch.from_numpy(np.empty((rows, *self.shape), self.dtype))
        host = (x, torch.empty(rows, dtype=torch.int64), torch.empty(rows, 1), torch.empty(rows, self.n_logits))
        self._host = tuple(tensor.pin_memory() for tensor in host) if on_gpu else host
        self._x, self._labels, self._share, self._stored = (tensor.numpy() for tensor in self._host)
        self._there = tuple(torch.empty_like(tensor, device=self.device) for tensor in host) if on_gpu else host
        self._views = self._first(rows)

    def _on_device(self, B: int) -> tuple[Tensor, ...]:
        if len(self._views[0]) != B:
            self._views = self._first(B)
        if self.device.type == "cuda":
            for here, there in zip(self._host, self._views, strict=True):
                there.copy_(here[:B], non_blocking=True)
            self._copied = torch.cuda.current_stream(self.device).record_event()
        return self._views

    def _first(self, B: int) -> tuple[Tensor, ...]:
        return tuple(tensor[:B] for tensor in self._there)


def batch_bytes(rows: int, shape: tuple[int, ...], dtype: np.dtype[Any], n_logits: int = 0) -> int:
    """Bytes of the buffers for that many rows."""
    return rows * (prod(shape) * dtype.itemsize + 8 + 4 + 4 * n_logits)
