"""The values under a kernel at each of its positions, laid out as rows of a matrix, and the way back.

Knows strides in memory. Must not know weights: with its patches a convolution is a linear layer (layers.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


class Patches:
    """`unfold` takes x (B, C, *axes) to rows (G, B L, K), `fold` adds rows up where they came from, its transpose.

    G groups of channels, L positions of the kernel, K = kernel entries · C / G values, channels fastest. Activations
    lie channels last in memory, whatever their shape says, so that rows are copied in long runs. One or two axes; a
    signal is an image of height one. torch's own unfold and fold, channels first, take three to five times as long.
    """

    def __init__(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        lead = 2 - len(kernel)
        self.is_signal, self.groups = lead == 1, groups
        self.kernel, self.stride, self.dilation = ([1] * lead + list(n) for n in (kernel, stride, dilation))
        self.padding = [0] * lead + list(padding)

    def unfold(self, x: Tensor) -> Tensor:
        """The values under the kernel at each position of x (B, C, *axes), (G, B L, K)."""
        image = (x.unsqueeze(2) if self.is_signal else x).permute(0, 2, 3, 1)
        (above, beside), G = self.padding, self.groups
        if above or beside:
            image = functional.pad(image, (0, 0, beside, beside, above, above))
        B, height, width, C = self._padded = image.shape
        self.positions = (self._places(height, 0), self._places(width, 1))
        (h, w), (s, t), (d, e) = self.positions, self.stride, self.dilation
        sample, row, column, channel = image.stride()
        shape = (B, h, w, *self.kernel, G, C // G)
        strides = (sample, row * s, column * t, row * d, column * e, channel * (C // G), channel)
        windows = image.as_strided(shape, strides)
        if self.kernel[1] * C >= w:
            return windows.permute(5, 0, 1, 2, 3, 4, 6).reshape(G, B * h * w, -1)
        # Few channels: runs along the positions are longer, so the same matrix is laid out by columns.
        return windows.permute(5, 3, 4, 6, 0, 1, 2).reshape(G, -1, B * h * w).transpose(1, 2)

    def fold(self, rows: Tensor) -> Tensor:
        """x (B, C, *axes) of which each entry is the sum of what rows (G, B L, K) hold for it."""
        (B, height, width, C), G = self._padded, self.groups
        (h, w), (s, t), (d, e), (above, beside) = self.positions, self.stride, self.dilation, self.padding
        rows = rows.view(G, B, h, w, *self.kernel, C // G)
        image = rows.new_zeros(B, height, width, C)
        sample, row, column, _ = image.stride()
        # Within one stride no two patches meet, so the entries of a tile of stride x stride are added in one go.
        tall, broad = s if d == 1 else 1, t if e == 1 else 1
        for i in range(0, self.kernel[0], tall):
            for j in range(0, self.kernel[1], broad):
                tile = rows[:, :, :, :, i : i + tall, j : j + broad].permute(1, 2, 4, 3, 5, 0, 6)
                strides = (sample, row * s, row, column * t, column, C // G, 1)
                image.as_strided(tile.shape, strides, row * d * i + column * e * j).add_(tile)
        inner = image[:, above : height - above, beside : width - beside].movedim(3, 1)
        return inner.squeeze(2) if self.is_signal else inner

    def _places(self, length: int, axis: int) -> int:
        return (length - self.dilation[axis] * (self.kernel[axis] - 1) - 1) // self.stride[axis] + 1
