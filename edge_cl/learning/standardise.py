"""Raw sensor values to zero mean and unit deviation per channel, with statistics learnt from the stream.

The statistics are part of the learner's state and of its snapshot, so a snapshot takes raw sensor values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_cl.learning.layers import Node, Shape, reshape

FEW_CHANNELS = 16


class Standardise:
    """y = (x - mean) / deviation per channel, within ±LIMIT; raw values of any dtype in, float32, channels first, out.

    `layout` is how one sample lies in memory, channels last: (*positions, C), or (D,) for a vector, whose features
    each have their own statistics. Output: (B, C, *positions) or (B, D).
    Mean and variance are Welford's over every sample observed (Chan, Golub & LeVeque 1983 for whole batches), until
    `MEMORY` samples have been seen; from then on the oldest fade, so that it follows a sensor that drifts.

    >>> layer = Standardise((2,))
    >>> layer.observe(torch.tensor([[0, 10], [2, 30]], dtype=torch.int16))
    >>> layer.forward(torch.tensor([[1, 20]], dtype=torch.int16))
    tensor([[0., 0.]])
    """

    MEMORY = 10_000  # samples; by then a mean is known to one hundredth of a deviation
    LIMIT = 16.0  # deviations: no reading of a working sensor is further out, and a single glitch must not undo months
    FLOOR = 1e-6  # of |mean| + 1: a channel that never moves is passed on as zero instead of divided by zero

    def __init__(self, layout: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        self.layout = layout
        self.mean = torch.zeros(layout[-1], device=device)
        self.variance = torch.ones(layout[-1], device=device)
        self.inverse_deviation = torch.ones(layout[-1], device=device)
        self._bound = torch.full((layout[-1],), torch.inf, device=device)
        self.seen = 0

    def to(self, device: torch.device | str) -> Standardise:
        """The same statistics on a device."""
        moved = Standardise(self.layout, device)
        moved.mean.copy_(self.mean)
        moved.variance.copy_(self.variance)
        moved.seen = self.seen
        moved.refresh()
        return moved

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one standardised sample."""
        return channels_first(self.layout)

    @property
    def nbytes(self) -> int:
        """Bytes of the statistics."""
        return 4 * self.mean.nbytes

    def observe(self, x: Tensor) -> None:
        """Take the samples x (B, ...) into the statistics."""
        raw = x.to(torch.float32).reshape(-1, *self.layout)
        if self.seen == 0:
            # From a far-off mean the variance would be the small difference of two large numbers.
            self.mean.copy_(raw.reshape(-1, self.layout[-1]).mean(0))
        self._merge(raw - self.mean)

    def refresh(self) -> None:
        """Derive the factor of the forward pass from the statistics, after they changed or were restored."""
        floor = (self.mean.abs() + 1).mul_(self.FLOOR)
        deviation = self.variance.sqrt()
        moves = deviation > floor
        self.inverse_deviation.copy_(moves / deviation.clamp_min(floor))
        # A sensor whose range truly grew gets through: each clamped batch widens the bound.
        self._bound.copy_(torch.where(moves, self.LIMIT * deviation, torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise the raw samples x (B, ...)."""
        raw = x.to(torch.float32, copy=True)
        if self.layout[-1] > 1 and x.shape[1:] != self.layout:
            raw = raw.view(-1, *self.layout)
        y = raw.sub_(self.mean).mul_(self.inverse_deviation).clamp_(-self.LIMIT, self.LIMIT)
        return y if len(self.layout) == 1 else y.view(-1, *self.layout).movedim(-1, 1)

    def _merge(self, centred: Tensor) -> None:
        """Merge samples (B, *layout) from which the mean was already taken: sums of small numbers lose no digits."""
        n, C = len(centred), self.layout[-1]
        rows = centred.reshape(-1, C)
        if self.seen:
            rows = torch.clamp(rows, -self._bound, self._bound)
        weight = n / max(n, min(self.seen + n, self.MEMORY))
        if C == 1:
            flat = rows.view(-1)
            shift, squares = flat.mean().view(1), torch.dot(flat, flat).view(1)
        elif C > FEW_CHANNELS:
            shift, squares = rows.mean(0), rows.square().sum(0)
        else:  # a tall thin matrix: BLAS is ten times faster than sums across it
            shift, squares = rows.t().mv(rows.new_ones(len(rows))).div_(len(rows)), (rows.t() @ rows).diagonal()
        variance = (squares / len(rows)).sub_(shift.square()).clamp_min_(0.0)
        self.variance.lerp_(variance, weight).addcmul_(shift, shift, value=weight * (1 - weight))
        self.mean.add_(shift, alpha=weight)
        self.seen += n
        self.refresh()

    def nodes(self, shape: Shape) -> list[Node]:
        """The ONNX nodes for raw samples of `shape`; the statistics are weights of the graph."""
        nodes = [] if shape == self.layout else [reshape(self.layout)]
        if len(self.layout) > 1:
            # First, and not last as in `forward`: over few channels that come last onnxruntime goes value by value.
            order = [0, len(self.layout), *range(1, len(self.layout))]
            nodes.append(Node("Transpose", attributes={"perm": order}))
        per_channel = (self.layout[-1], *[1] * (len(self.layout) - 1))
        return [
            *nodes,
            Node("Sub", {"mean": per_channel}),
            Node("Mul", {"inverse_deviation": per_channel}),
            Node("Max", constants=(("float32", (-self.LIMIT,)),)),
            Node("Min", constants=(("float32", (self.LIMIT,)),)),
        ]


def channels_first(layout: Shape) -> Shape:
    """Shape of a standardised sample, from how a raw one lies in memory with its channels last.

    >>> channels_first((28, 28, 3)), channels_first((8,))
    ((3, 28, 28), (8,))
    """
    return layout if len(layout) == 1 else (layout[-1], *layout[:-1])
