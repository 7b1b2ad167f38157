"""Fewer bits a value: how far off a decoded sample may be, what comes back exactly, and in how many bytes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_cl.learning.packing import BITS, Packing, packing_of

INTEGERS = ("uint8", "int8", "int16", "uint16", "int32")
FLOATS = ("float16", "float32")


@st.composite
def packed_samples(draw: st.DrawFn, dtypes: tuple[str, ...] = INTEGERS + FLOATS) -> tuple[Packing, NDArray[Any]]:
    """A packing, and 1 to 4 samples of any values at all that its dtype has, the extremes among them."""
    bits = draw(st.sampled_from(BITS))
    dtype = np.dtype(draw(st.sampled_from([name for name in dtypes if 8 * np.dtype(name).itemsize > bits])))
    positions = draw(st.sampled_from([(13,), (40,), (5, 6), (3, 4, 5)]))
    layout = (*positions, draw(st.integers(1, 3)))
    shape = draw(st.sampled_from([layout, (prod(layout),)]))
    if dtype.kind == "f":
        elements = st.floats(allow_nan=False, allow_infinity=False, width=16 if dtype.itemsize == 2 else 32)
    else:
        info = np.iinfo(dtype)
        elements = st.integers(info.min, info.max) | st.sampled_from([info.min, info.max])  # type: ignore[assignment]
    samples = draw(hnp.arrays(dtype, (draw(st.integers(1, 4)), *shape), elements=elements))
    return Packing(shape, dtype, bits, layout), samples


def by_channel(packing: Packing, samples: NDArray[Any]) -> NDArray[np.float64]:
    """(B, P, C) as exact numbers; the layout's channels are the last axis, whatever the shape."""
    return samples.reshape(len(samples), -1, packing._channels).astype(np.float64)


@given(packed_samples())
def test_error_is_within_half_a_step_of_each_samples_own_span(case: tuple[Packing, NDArray[Any]]) -> None:
    packing, samples = case
    rows = packing.encode(samples)
    decoded = packing.decode(rows)
    assert rows.shape == (len(samples), packing.nbytes)
    assert rows.dtype == np.uint8
    assert (decoded.dtype, decoded.shape) == (samples.dtype, samples.shape)
    before, after = by_channel(packing, samples), by_channel(packing, decoded)
    low, high = before.min(1, keepdims=True), before.max(1, keepdims=True)
    half_step = (high - low) / (2**packing.bits - 1) / 2
    if samples.dtype.kind == "f":
        info = np.finfo(samples.dtype)
        rounding = np.maximum(abs(low), abs(high)) * float(info.eps) + float(info.smallest_subnormal)
    else:
        rounding = np.where(half_step > 0, 0.5, 0.0)
        assert (after.min(1, keepdims=True) == low).all()
        assert (after.max(1, keepdims=True) == high).all()
    assert (abs(after - before) <= half_step * (1 + 1e-6) + rounding).all()


@given(packed_samples(INTEGERS))
def test_packing_again_changes_nothing(case: tuple[Packing, NDArray[Any]]) -> None:
    packing, samples = case
    once = packing.decode(packing.encode(samples))
    np.testing.assert_array_equal(packing.decode(packing.encode(once)), once)


@given(packed_samples(INTEGERS), st.data())
def test_integers_over_a_span_below_the_codes_are_exact(
    case: tuple[Packing, NDArray[Any]], data: st.DataObject
) -> None:
    packing, samples = case
    info = np.iinfo(samples.dtype)
    span = min(2**packing.bits - 1, data.draw(st.integers(0, 255)))
    base = data.draw(st.integers(info.min, info.max - span) | st.sampled_from([info.min, info.max - span]))
    narrow = (base + samples.astype(np.int64) % (span + 1)).astype(samples.dtype)
    np.testing.assert_array_equal(packing.decode(packing.encode(narrow)), narrow)


@given(packed_samples())
def test_constant_channels_are_exact(case: tuple[Packing, NDArray[Any]]) -> None:
    packing, samples = case
    values = samples.reshape(len(samples), -1, packing._channels)
    constant = np.broadcast_to(values[:, :1], values.shape).reshape(samples.shape)
    np.testing.assert_array_equal(packing.decode(packing.encode(constant)), constant)


@given(packed_samples())
def test_samples_are_packed_each_by_itself(case: tuple[Packing, NDArray[Any]]) -> None:
    packing, samples = case
    alone = np.concatenate([packing.encode(samples[i : i + 1]) for i in range(len(samples))])
    rows = packing.encode(samples)
    np.testing.assert_array_equal(rows, alone)
    out = np.zeros((len(samples) + 2, *samples.shape[1:]), samples.dtype)
    packing.decode(rows, out[2:])
    np.testing.assert_array_equal(out[2:], packing.decode(rows))
    assert not out[:2].any()


def test_extremes_of_int16_in_one_sample_do_not_overflow() -> None:
    packing = Packing((3, 5), np.dtype(np.int16), 4, (5, 3))
    sample = np.array([[-32768, 0, 7, 32767, 1, 7, -32768, 32767, 7, 32767, -1, 7, -32768, 5, 7]], np.int16)
    decoded = packing.decode(packing.encode(sample.reshape(1, 3, 5))).reshape(15)
    assert decoded.tolist()[::3] == [-32768, 32767, -32768, 32767, -32768]
    assert decoded.tolist()[2::3] == [7] * 5


def test_a_sensor_whose_range_grows_is_not_clipped() -> None:
    packing = Packing((64, 1), np.dtype(np.int32), 8, (64, 1))
    growing = (np.arange(64)[None, :, None] * 10 ** np.arange(8)[:, None, None]).astype(np.int32)
    decoded = packing.decode(packing.encode(growing))
    assert decoded.max((1, 2)).tolist() == [63 * 10**k for k in range(8)]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_eight_bits_of_an_eight_bit_sensor_are_raw(dtype: str) -> None:
    assert packing_of((28, 28), np.dtype(dtype), 8, (28, 28, 1)) is None
    assert packing_of((9,), np.dtype(dtype), None, (9,)) is None
    assert packing_of((28, 28), np.dtype(dtype), 4, (28, 28, 1)) is not None


def test_bytes_of_an_image_and_of_a_window() -> None:
    assert Packing((28, 28), np.dtype(np.uint8), 4, (28, 28, 1)).nbytes == 2 + 392
    assert Packing((128, 9), np.dtype(np.int16), 2, (128, 9)).nbytes == 2 * 9 * 2 + 128 * 9 // 4
    assert Packing((13, 1), np.dtype(np.int16), 4, (13, 1)).nbytes == 2 * 2 + 7  # half a byte left over


@pytest.mark.parametrize("layout", [(9,), None, (28, 27, 1)])
def test_layout_without_positions_is_refused(layout: tuple[int, ...] | None) -> None:
    shape = (28, 28) if layout and len(layout) == 3 else (9,)
    with pytest.raises(ValueError, match=r"layout: to pack in 4 bits it must be \(\*positions, C\).*\(got .*\)"):
        packing_of(shape, np.dtype(np.int16), 4, layout)


def test_packing_that_saves_nothing_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"bits: .* less than the 8 bytes .*got 10 bytes with bits 4 and layout \(2, 2\)"
    ):
        packing_of((2, 2), np.dtype(np.int16), 4, (2, 2))


@pytest.mark.parametrize("bits", [0, 1, 3, 16])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=rf"bits: must be one of 8, 4, 2 \(got {bits}\)"):
        packing_of((28, 28), np.dtype(np.uint8), bits, (28, 28, 1))
