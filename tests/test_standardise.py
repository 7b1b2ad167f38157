"""Input statistics against numpy's over all samples at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_cl.learning.standardise import Standardise


@given(arrays(np.int16, (30, 5, 2)), st.lists(st.integers(1, 9), min_size=1, max_size=10))
def test_statistics_do_not_depend_on_how_the_stream_is_cut(x: np.ndarray, cuts: list[int]) -> None:
    layer = Standardise((5, 2))
    layer.LIMIT = 1e9  # type: ignore[misc] # made-up streams jump by thousands of deviations; that is not the question
    start = 0
    for size in [*cuts, 30]:
        if start < 30:
            layer.observe(torch.from_numpy(x[start : start + size]))
            start += size
    rows = x.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(layer.mean, rows.mean(0), rtol=1e-4, atol=0.05)
    np.testing.assert_allclose(layer.variance, rows.var(0), rtol=1e-3, atol=0.5)


@pytest.mark.parametrize(
    ("layout", "sample", "output"),
    [
        ((7,), (7,), (7,)),
        ((20, 3), (20, 3), (3, 20)),
        ((9, 8, 1), (9, 8), (1, 9, 8)),
        ((9, 8, 3), (9, 8, 3), (3, 9, 8)),
    ],
)
def test_channels_come_first_with_zero_mean_and_unit_deviation(
    layout: tuple[int, ...], sample: tuple[int, ...], output: tuple[int, ...]
) -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (500, *sample)).astype(np.uint8))
    layer = Standardise(layout)
    layer.observe(x)
    y = layer.forward(x)
    assert y.shape == (500, *output)
    assert layer.output_shape == output
    by_channel = y.transpose(0, 1).flatten(1)
    torch.testing.assert_close(by_channel.mean(1), torch.zeros(len(by_channel)), atol=1e-4, rtol=0)
    torch.testing.assert_close(by_channel.std(1), torch.ones(len(by_channel)), atol=2e-3, rtol=0)


def test_constant_channel_becomes_zero_not_infinite() -> None:
    layer = Standardise((2,))
    x = torch.tensor([[5, 1], [5, 3]], dtype=torch.int32)
    layer.observe(x)
    assert layer.forward(x)[:, 0].tolist() == [0.0, 0.0]


def test_statistics_follow_a_sensor_that_drifts_after_their_memory_is_full() -> None:
    layer = Standardise((1,))
    layer.MEMORY = 100  # type: ignore[misc] # a short memory for a short test
    for _ in range(10):
        layer.observe(torch.zeros(50, 1))
    for _ in range(40):
        layer.observe(torch.full((50, 1), 8.0))
    assert layer.mean.item() == pytest.approx(8.0, abs=0.01)


def test_more_samples_at_once_than_are_remembered_count_once() -> None:
    layer = Standardise((2,))
    x = 3 + 0.1 * torch.randn(2 * Standardise.MEMORY, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        layer.observe(x)
    torch.testing.assert_close(layer.mean, x.mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(layer.variance.sqrt(), x.std(0), atol=2e-3, rtol=0)


def test_a_single_glitch_moves_neither_statistics_nor_network() -> None:
    """A serial line or a loose wire delivers one absurd number; months of statistics must not drown in it."""
    rng = np.random.default_rng(0)
    layer = Standardise((3,))
    layer.observe(torch.from_numpy(rng.normal(0.02, 0.01, (200, 3)).astype(np.float32)))
    mean, deviation = layer.mean.clone(), layer.variance.sqrt()
    glitch = torch.full((1, 3), 0.02)
    glitch[0, 1] = 1e30
    assert float(layer.forward(glitch).abs().max()) == Standardise.LIMIT
    layer.observe(glitch)
    torch.testing.assert_close(layer.mean, mean, atol=2e-3, rtol=0)
    assert float((layer.variance.sqrt() / deviation).max()) < 2


def test_a_range_that_truly_grew_gets_through() -> None:
    layer = Standardise((1,))
    layer.observe(torch.tensor([[-1.0], [1.0]] * 50))
    for _ in range(60):
        layer.observe(torch.tensor([[-1000.0], [1000.0]] * 50))
    assert float(layer.variance.sqrt()) > 300


def test_small_variation_on_a_large_level_is_not_lost_in_rounding() -> None:
    """Air pressure: 101,325 ± 1 Pa. Float32 has seven digits, so squares of the level itself would swallow the ±1."""
    x = np.random.default_rng(0).normal(101_325.0, 1.0, (100, 1)).astype(np.float32)
    layer = Standardise((1,))
    for start in range(0, 100, 10):
        layer.observe(torch.from_numpy(x[start : start + 10]))
    assert float(layer.variance) == pytest.approx(float(x.astype(np.float64).var()), rel=0.02)
