"""The values that travel: samples, labels, and what a stream's samples look like.

Only values, all immutable. Knows neither where they come from nor what they are used for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Values = np.ndarray[Any, np.dtype[Any]]

# The types a sensor may deliver, in the order of the wire's dtype codes (frame.py).
SENSOR_DTYPES: Mapping[str, int] = {
    "uint8": 1,
    "int8": 2,
    "int16": 3,
    "uint16": 4,
    "int32": 5,
    "float32": 6,
    "float16": 7,
}


class SampleId(NamedTuple):
    """Names one sample for ever: the stream, the boot of the board, and its place in that boot."""

    stream: int
    boot: int
    seq: int


def newest_of(ids: Sequence[SampleId], boot: int) -> SampleId | None:
    """The last one of that boot, None if there is none."""
    return next((one for one in reversed(ids) if one.boot == boot), None)


@dataclass(frozen=True, slots=True)
class Sample:
    """One observation as the sensor made it: values in the sensor's own dtype, read-only.

    time_us is the device's monotonic clock; host_us the same instant in UNIX time, None where nobody asked or knows.
    gap: samples were lost, or time jumped, just before this one.
    """

    stream: int
    boot: int
    seq: int
    time_us: int
    values: Values
    label: int | None = None
    gap: bool = False
    host_us: int | None = None

    @property
    def id(self) -> SampleId:
        """Name of this sample."""
        return SampleId(self.stream, self.boot, self.seq)


@dataclass(frozen=True, slots=True)
class Label:
    """A label that came later than its sample; source 0 is the board, confidence is in [0, 1]."""

    stream: int
    boot: int
    seq: int
    label: int
    source: int = 0
    confidence: float = 1.0

    @property
    def id(self) -> SampleId:
        """Name of the sample that this label belongs to."""
        return SampleId(self.stream, self.boot, self.seq)


@dataclass(frozen=True, slots=True)
class Schema:
    """What a stream's samples look like.

    shape is the shape of one sample's values; rate_hz counts rows per second (a sample of shape (n, C) has n rows);
    physical value = count · scale, in `unit`. window is the (length, stride) in rows that the source suggests; None:
    samples are observations as they are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    channels: tuple[str, ...] = ()
    unit: str = ""
    rate_hz: float | None = None
    scale: float | None = None
    label_names: tuple[str, ...] = ()
    window: tuple[int, int] | None = None

    @property
    def rows(self) -> int:
        """Rows of one sample: one of shape (n, …) has n, any other is one itself."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def nbytes(self) -> int:
        """Bytes of one sample's values."""
        count = 1
        for size in self.shape:
            count *= size
        return count * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A recording's test split: x (N, *shape) in the sensor's dtype, y (N,) int64, both read-only."""

    x: Values
    y: Values
