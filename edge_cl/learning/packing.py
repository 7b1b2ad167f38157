"""Samples in 8, 4 or 2 bits a value: rows of bytes, each with the span that its codes divide.

Knows one sample's shape and how to make it small. Must not know which samples are kept, or why.

A row of bytes:

    low    C values of the sensor's dtype      least value of each channel
    high   C values of the sensor's dtype      greatest value of each channel
    codes  n = ⌈values · bits / 8⌉ bytes       byte i holds, from its lowest bits up, the codes i, n + i, 2n + i, …,
                                               counted channel by channel
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = (8, 4, 2)


class Packing:
    """Samples of one shape to rows of bytes and back, by rounding to 2^bits even steps over each channel's own span.

    code = round((value - low) / step), step = (high - low) / (2^bits - 1), low and high of that sample and channel: no
    range has to be known beforehand, and none is outgrown. |decoded - value| ≤ step / 2, plus the rounding to the
    sensor's dtype; a channel that is constant, or of integers over a span below 2^bits, comes back exactly.
    `layout` is how a sample lies in memory, channels last: (*positions, C), so (28, 28, 1) for an image (28, 28).
    Values must be finite. Raises ValueError if bits is not 8, 4 or 2, if the layout has no positions, as that of a
    vector (D,), or if packed samples are no smaller than raw ones.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], bits: int, layout: tuple[int, ...] | None) -> None:
        if bits not in BITS:
            raise ValueError(f"bits: must be one of {', '.join(map(str, BITS))} (got {bits})")
        if layout is None or len(layout) < 2 or prod(layout) != prod(shape):
            raise ValueError(
                f"layout: to pack in {bits} bits it must be (*positions, C), of as many values as the shape {shape}, "
                f"because each channel's span is kept (got {layout})"
            )
        self.shape, self.dtype, self.bits = shape, dtype, bits
        self._channels = layout[-1]
        self._positions = prod(layout[:-1])
        self._n_values = prod(shape)
        self._n_spans = 2 * self._channels * dtype.itemsize  # bytes
        self._n_codes = -(-self._n_values * bits // 8)  # bytes
        self._planes = 8 // bits  # codes in a byte
        self._levels = np.uint8(2**bits - 1)
        self.nbytes = self._n_spans + self._n_codes
        if self.nbytes >= self._n_values * dtype.itemsize:
            raise ValueError(
                f"bits: packed samples must take less than the {self._n_values * dtype.itemsize} bytes of raw ones "
                f"(got {self.nbytes} bytes with bits {bits} and layout {layout})"
            )
        # Differences of 16-bit integers are exact in float32, those of 32-bit values of either kind only in float64.
        self._wide = np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)

    def encode(self, x: NDArray[Any]) -> NDArray[np.uint8]:
        """Rows (B, nbytes) of the samples x (B, *shape)."""
        n = len(x)
        values = x.reshape(n, self._positions, self._channels).swapaxes(1, 2).astype(self._wide, order="C")  # (B, C, P)
        spans = np.stack([values.min(2), values.max(2)], 1)  # (B, 2, C)
        low, span = spans[:, 0, :, None], (spans[:, 1] - spans[:, 0])[:, :, None]  # (B, C, 1)
        values -= low
        values *= np.divide(self._levels, span, out=np.zeros_like(span), where=span > 0)
        np.rint(values, out=values)
        codes = np.zeros((n, self._planes * self._n_codes), dtype=np.uint8)
        codes[:, : self._n_values] = values.reshape(n, self._n_values)
        planes = codes.reshape(n, self._planes, self._n_codes)
        rows = np.empty((n, self.nbytes), dtype=np.uint8)
        rows[:, : self._n_spans] = spans.astype(self.dtype).view(np.uint8).reshape(n, self._n_spans)
        packed = rows[:, self._n_spans :]
        packed[...] = planes[:, 0]
        for plane in range(1, self._planes):
            packed |= planes[:, plane] << (plane * self.bits)
        return rows

    def decode(self, rows: NDArray[np.uint8], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Samples (B, *shape) of the rows (B, nbytes), in the sensor's dtype; written into `out` where given."""
        n = len(rows)
        spans = np.ascontiguousarray(rows[:, : self._n_spans]).view(self.dtype).astype(self._wide)
        spans = spans.reshape(n, 2, self._channels)
        low, span = spans[:, 0, :, None], (spans[:, 1] - spans[:, 0])[:, :, None]  # (B, C, 1)
        packed = rows[:, self._n_spans :]
        codes = np.empty((n, self._planes, self._n_codes), dtype=np.uint8)
        for plane in range(self._planes):
            np.right_shift(packed, plane * self.bits, out=codes[:, plane])
        codes &= self._levels
        codes = codes.reshape(n, self._planes * self._n_codes)[:, : self._n_values]
        values = codes.reshape(n, self._channels, self._positions) * (span / self._levels)
        values += low
        if self.dtype.kind in "iu":
            np.rint(values, out=values)
        samples: NDArray[Any] = values.swapaxes(1, 2).astype(self.dtype, order="C").reshape(n, *self.shape)
        if out is None:
            return samples
        out[...] = samples
        return out


def packing_of(
    shape: tuple[int, ...], dtype: np.dtype[Any], bits: int | None, layout: tuple[int, ...] | None
) -> Packing | None:
    """How samples are packed in so many bits a value; None if raw: not asked for, or a value has no more bits itself.

    Raises ValueError as `Packing`.
    """
    if bits is None or (bits in BITS and 8 * dtype.itemsize <= bits):
        return None
    return Packing(shape, dtype, bits, layout)
