"""The reservoir: which samples stay, in how many bytes, and that it comes back as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.learning.replay import Reservoir, bytes_per_sample


def reservoir(capacity: int, *, policy: str = "balanced", classes: int = 4, seed: int = 0) -> Reservoir:
    return Reservoir(capacity, (2,), np.dtype(np.int32), n_classes=classes, policy=policy, seed=seed)


def offer(held: Reservoir, labels: np.ndarray, start: int = 0) -> None:
    numbers = np.arange(start, start + len(labels), dtype=np.int32)
    held.offer(np.stack([numbers, numbers], 1), labels.astype(np.int64))


def test_reservoir_keeps_every_sample_with_equal_probability() -> None:
    """χ² over 3,000 streams of 50 samples through 5 places; a FIFO (trap T-04) would keep the last five only."""
    counts = np.zeros(50)
    for seed in range(3000):
        held = reservoir(5, policy="reservoir", seed=seed)
        offer(held, np.zeros(50))
        counts[held.items[:, 0]] += 1
    expected = 3000 * 5 / 50
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 85.4  # 49 degrees of freedom, p = 0.001


def test_within_a_class_the_balanced_policy_is_uniform_too() -> None:
    counts = np.zeros(60)
    for seed in range(2000):
        held = reservoir(10, seed=seed, classes=2)
        offer(held, np.arange(60) % 2)
        counts[held.items[:, 0]] += 1
    early, late = counts[:30].mean(), counts[30:].mean()
    assert early == pytest.approx(late, rel=0.1)


def test_a_class_survives_ten_times_as_many_samples_of_others() -> None:
    held = reservoir(40)
    offer(held, np.zeros(40))
    offer(held, np.repeat([1, 2, 3], 400), start=40)
    assert held.n_held == [10, 10, 10, 10]


@given(st.lists(st.integers(0, 3), max_size=120), st.integers(0, 20), st.sampled_from(["balanced", "reservoir"]))
def test_counts_and_capacity_always_hold(labels: list[int], capacity: int, policy: str) -> None:
    held = reservoir(capacity, policy=policy)
    offer(held, np.array(labels, dtype=np.int64))
    assert held.size == min(capacity, len(labels))
    assert held.n_held == np.bincount(held.labels[: held.size], minlength=4).tolist()
    assert held.n_seen == np.bincount(np.array(labels, dtype=np.int64), minlength=4).tolist()
    numbers = held.items[: held.size, 0].tolist()
    assert len(set(numbers)) == len(numbers)  # nothing is held twice
    assert all(labels[number] == label for number, label in zip(numbers, held.labels.tolist(), strict=False))


def test_bytes_are_those_of_the_sensors_integers() -> None:
    held = Reservoir(100, (28, 28), np.dtype(np.uint8), n_classes=10)
    assert held.nbytes == 100 * bytes_per_sample((28, 28), np.dtype(np.uint8)) == 100 * (784 + 2)
    before = held.items.ctypes.data
    held.offer(np.zeros((500, 28, 28), dtype=np.uint8), np.zeros(500, dtype=np.int64))
    assert held.items.ctypes.data == before  # allocated once


def test_draws_are_uniform_over_what_is_held() -> None:
    held = reservoir(8)
    assert held.draw(5).tolist() == []
    offer(held, np.zeros(8))
    counts = np.bincount(held.draw(8000), minlength=8)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 24.3  # 7 degrees of freedom, p = 0.001
    assert sorted(held.shuffled().tolist()) == list(range(8))


def test_restored_reservoir_goes_on_as_the_one_it_was() -> None:
    one, other = reservoir(10), reservoir(10, seed=9)
    offer(one, np.arange(30) % 3)
    other.restore(*one.state())
    for held in (one, other):
        offer(held, np.arange(40) % 4, start=30)
    assert np.array_equal(one.items, other.items)
    assert one.draw(20).tolist() == other.draw(20).tolist()


def test_state_of_a_larger_reservoir_is_thinned_to_what_fits() -> None:
    large, small = reservoir(30), reservoir(10)
    offer(large, np.arange(30) % 3)
    small.restore(*large.state())
    assert small.size == 10
    assert sum(small.n_held) == 10


def test_unknown_policy_and_negative_capacity_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of balanced, reservoir \(got fifo\)"):
        reservoir(3, policy="fifo")
    with pytest.raises(ValueError, match=r"at least 0 \(got -1\)"):
        reservoir(-1)
