"""The reservoir: which samples stay, in how many bytes, and that it comes back as it was."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_cl.learning.draws import Draws
from edge_cl.learning.replay import POLICIES, Reservoir, bytes_per_sample

LABELS = st.lists(st.integers(0, 3), max_size=120)
POLICY = st.sampled_from(POLICIES)
BITS = st.sampled_from([None, 8, 4, 2])


def reservoir(
    capacity: int,
    *,
    policy: str = "balanced",
    classes: int = 4,
    seed: int = 0,
    bits: int | None = None,
    n_logits: int = 0,
) -> Reservoir:
    """Of samples (9,), laid out as nine positions of one channel."""
    return Reservoir(
        capacity,
        (9,),
        np.dtype(np.int32),
        n_classes=classes,
        policy=policy,
        seed=seed,
        bits=bits,
        layout=(9, 1),
        n_logits=n_logits,
    )


def samples(n: int, start: int = 0) -> NDArray[np.int32]:
    """Sample k (9,) is k everywhere, so it comes back exactly however it is packed."""
    return np.repeat(np.arange(start, start + n, dtype=np.int32)[:, None], 9, 1)


def offer(held: Reservoir, labels: NDArray[Any], start: int = 0) -> None:
    logits = np.full((len(labels), held.logits.shape[1]), 0.5) if held.logits.shape[1] else None
    held.offer(samples(len(labels), start), labels.astype(np.int64), logits)


def numbers(held: Reservoir) -> NDArray[np.int32]:
    """Which samples it holds, by place."""
    return held.take(np.arange(held.size))[:, 0]


def p_value(counts: NDArray[Any], expected: float) -> float:
    """Pearson's χ²: the probability of counts at least as far from the expected, if they truly are that likely."""
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor(len(counts) - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, torch.tensor(chi_squared / 2)))


def held_by_reservoir(seed: int) -> NDArray[Any]:
    held = reservoir(4, policy="reservoir", seed=seed, classes=1)
    offer(held, np.zeros(40))
    return numbers(held)


def held_by_fifo(seed: int) -> NDArray[Any]:
    return np.arange(36, 40)


def held_by_one_off(seed: int) -> NDArray[Any]:
    """Algorithm R that draws its place from one too few."""
    rng, places = np.random.default_rng(seed), np.arange(4)
    for number in range(4, 40):
        place = rng.integers(0, number)
        if place < 4:
            places[place] = number
    return places


@pytest.mark.parametrize(
    ("keep", "is_uniform"), [(held_by_reservoir, True), (held_by_fifo, False), (held_by_one_off, False)]
)
def test_reservoir_keeps_every_sample_with_equal_probability(
    keep: Callable[[int], NDArray[Any]], is_uniform: bool
) -> None:
    """χ² over 5,000 streams of 40 samples through 4 places. Trap T-04: a FIFO would keep the last four only."""
    counts = np.zeros(40)
    for seed in range(5000):
        counts[keep(seed)] += 1
    assert (p_value(counts, 5000 * 4 / 40) > 1e-4) == is_uniform


def test_reservoir_is_uniform_over_a_long_stream_in_large_offers() -> None:
    counts = np.zeros(20_000)
    for seed in range(60):
        held = reservoir(100, policy="reservoir", seed=seed, classes=1)
        for start in range(0, 20_000, 2500):
            offer(held, np.zeros(2500), start)
        counts[numbers(held)] += 1
    assert counts.sum() == 6000
    assert p_value(counts.reshape(40, 500).sum(1), 6000 / 40) > 1e-4


def test_old_samples_survive_a_thousand_new_ones() -> None:
    """Trap T-04: the survey's buffer holds no old sample after as many new ones as it has places."""
    held = reservoir(100, policy="reservoir")
    offer(held, np.zeros(1000))
    offer(held, np.ones(1000), start=1000)
    assert 30 <= held.n_held[0] <= 70  # half of 100, four standard deviations of 5


class AlwaysGrowing(Reservoir):
    """Class balancing in which only the largest class is held to Algorithm R, whatever it was before."""

    def _set_odds(self) -> None:
        self._limits = np.where(self._held == self._held.max(), self._held, np.inf)
        self._odds = self._limits / self._seen.clip(1)


@pytest.mark.parametrize(("kind", "is_uniform"), [(Reservoir, True), (AlwaysGrowing, False)])
def test_within_a_class_the_balanced_policy_is_uniform_too(kind: type[Reservoir], is_uniform: bool) -> None:
    """With 11 places for two classes one is always behind: were it let in for that, the two would swap places for ever
    and only the newest samples would stay."""
    counts = np.zeros((2, 40))
    for seed in range(1000):
        held = kind(11, (1,), np.dtype(np.int32), n_classes=2, seed=seed)
        held.offer(np.arange(80, dtype=np.int32)[:, None], np.arange(80) % 2)
        np.add.at(counts, (held.labels, held.items[:, 0] // 2), 1)
    for of_class in counts:
        assert (p_value(of_class, of_class.mean()) > 1e-4) == is_uniform


def test_the_largest_class_is_uniform_beside_rare_ones() -> None:
    labels = np.zeros(60, dtype=np.int64)
    labels[[10, 30, 31, 59]] = [1, 2, 2, 3]
    common = np.flatnonzero(labels == 0)
    counts = np.zeros(60)
    for seed in range(2000):
        held = reservoir(10, seed=seed)
        offer(held, labels)
        assert held.n_held == [6, 1, 2, 1]
        counts[numbers(held)] += 1
    assert (counts[labels > 0] == 2000).all()
    assert p_value(counts[common], 2000 * 6 / len(common)) > 1e-4


@given(st.lists(st.integers(0, 3), max_size=300), st.integers(4, 30))
def test_a_class_loses_samples_only_while_it_is_the_largest(labels: list[int], capacity: int) -> None:
    held = reservoir(capacity)
    offer(held, np.array(labels))
    most = max(held.n_held)
    for n_held, n_seen in zip(held.n_held, held.n_seen, strict=True):
        assert n_held == n_seen or n_held >= most - 1
        assert (n_held > 0) == (n_seen > 0)


@pytest.mark.parametrize("capacity", [10, 37, 100, 101, 109])
def test_classes_one_after_another_end_with_equal_shares(capacity: int) -> None:
    held = reservoir(capacity, classes=10)
    offer(held, np.repeat(np.arange(10), 200))
    assert sum(held.n_held) == capacity
    assert max(held.n_held) - min(held.n_held) <= 1


def test_a_class_survives_ten_times_as_many_samples_of_others() -> None:
    held = reservoir(40)
    offer(held, np.zeros(40))
    offer(held, np.repeat([1, 2, 3], 400), start=40)
    assert held.n_held == [10, 10, 10, 10]


def test_of_equally_large_classes_each_gives_way_as_often() -> None:
    gave = np.zeros(4)
    for seed in range(1000):
        held = reservoir(12, seed=seed, classes=5)
        offer(held, np.array([*np.repeat(np.arange(4), 3), 4]))
        gave += np.array(held.n_held[:4]) == 2
    assert gave.sum() == 1000
    assert p_value(gave, 250) > 1e-4


@given(LABELS, st.integers(0, 20), POLICY, BITS)
def test_counts_and_capacity_always_hold(labels: list[int], capacity: int, policy: str, bits: int | None) -> None:
    held = reservoir(capacity, policy=policy, bits=bits)
    offer(held, np.array(labels, dtype=np.int64))
    assert held.size == min(capacity, len(labels))
    assert held.n_held == np.bincount(held.labels[: held.size], minlength=4).tolist()
    assert held.n_seen == np.bincount(np.array(labels, dtype=np.int64), minlength=4).tolist()
    which = numbers(held).tolist()
    assert len(set(which)) == len(which)  # nothing is held twice
    assert all(labels[number] == label for number, label in zip(which, held.labels.tolist(), strict=False))


def obvious(labels: list[int], capacity: int, policy: str, draws: Draws) -> list[int]:
    """The rules one sample at a time, with the history that the paper asks for; which samples are held, by place."""
    held: list[int] = []
    been_largest: set[int] = set()
    for row, label in enumerate(labels):
        chance, choice = draws.take(2).tolist()
        n_seen = labels[: row + 1].count(label)
        counts = {c: [labels[number] for number in held].count(c) for c in range(4)}
        if len(held) < capacity:
            held.append(row)
            continue
        if policy == "reservoir":
            if chance * (row + 1) < capacity:
                held[int(choice * capacity)] = row
            continue
        largest = [c for c in range(4) if counts[c] == max(counts.values())]
        been_largest |= set(largest)
        if label not in been_largest:
            share = choice * len(largest)
            giving, choice = largest[int(share)], share % 1
        elif chance * n_seen < counts[label]:
            giving = label
        else:
            continue
        places = [place for place, number in enumerate(held) if labels[number] == giving]
        held[places[int(choice * len(places))]] = row
    return held


@given(LABELS, st.integers(0, 20), POLICY)
def test_offers_follow_the_obvious_loop_sample_by_sample(labels: list[int], capacity: int, policy: str) -> None:
    held = reservoir(capacity, policy=policy, seed=5)
    offer(held, np.array(labels, dtype=np.int64))
    assert numbers(held).tolist() == obvious(labels, capacity, policy, Draws(5))


@given(st.integers(0, 50), POLICY, BITS, st.lists(st.integers(0, 3000), max_size=8), st.integers(0, 2**32))
def test_what_is_held_does_not_depend_on_how_the_stream_is_cut(
    capacity: int, policy: str, bits: int | None, cuts: list[int], seed: int
) -> None:
    labels = np.random.default_rng(seed).choice(4, 3000, p=[0.7, 0.2, 0.09, 0.01])
    whole, cut = (reservoir(capacity, policy=policy, bits=bits, seed=seed, n_logits=2) for _ in range(2))
    offer(whole, labels)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 3000], strict=True):
        offer(cut, labels[start:end], start)
    assert_same(whole, cut)


@pytest.mark.parametrize("policy", POLICIES)
def test_ten_at_once_are_ten_one_by_one(policy: str) -> None:
    labels = np.random.default_rng(1).integers(0, 4, 400)
    tens, ones = (reservoir(15, policy=policy) for _ in range(2))
    for start in range(0, 400, 10):
        offer(tens, labels[start : start + 10], start)
    for start in range(400):
        offer(ones, labels[start : start + 1], start)
    assert_same(tens, ones)


def assert_same(one: Reservoir, other: Reservoir) -> None:
    arrays, values = one.state()
    others, other_values = other.state()
    assert values == other_values
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert one.n_held == other.n_held


def test_bytes_are_those_of_the_sensors_integers() -> None:
    held = Reservoir(100, (28, 28), np.dtype(np.uint8), n_classes=10)
    assert held.nbytes == 100 * bytes_per_sample((28, 28), np.dtype(np.uint8)) == 100 * (784 + 2)
    before = held.items.ctypes.data
    held.offer(np.zeros((500, 28, 28), dtype=np.uint8), np.zeros(500, dtype=np.int64))
    assert held.items.ctypes.data == before  # allocated once


@given(
    st.integers(0, 40),
    st.sampled_from(["uint8", "int16", "float32"]),
    st.sampled_from([(28, 28, 1), (31, 3), (7, 9, 2)]),
    BITS,
    st.integers(0, 12),
)
def test_bytes_are_those_allocated(
    capacity: int, dtype: str, layout: tuple[int, ...], bits: int | None, n_logits: int
) -> None:
    kind = np.dtype(dtype)
    held = Reservoir(capacity, layout, kind, n_classes=3, bits=bits, layout=layout, n_logits=n_logits)
    per_sample = bytes_per_sample(layout, kind, bits=bits, layout=layout, n_logits=n_logits)
    allocated = sum(array.nbytes for array in vars(held).values() if isinstance(array, np.ndarray) and array.ndim > 1)
    assert held.nbytes == capacity * per_sample == allocated + held.labels.nbytes
    if bits is not None:
        raw = prod(layout) * kind.itemsize
        assert per_sample - 2 - 2 * n_logits <= raw * bits / (8 * kind.itemsize) + 2 * layout[-1] * kind.itemsize + 1


@pytest.mark.parametrize("bits", [None, 4])
def test_samples_are_taken_out_as_they_were(bits: int | None) -> None:
    image = (28, 28)
    held = Reservoir(30, image, np.dtype(np.uint8), n_classes=2, bits=bits, layout=(28, 28, 1))
    x = np.random.default_rng(0).integers(0, 256, (30, *image)).astype(np.uint8)
    held.offer(x, np.zeros(30, dtype=np.int64))
    places = held.draw(20)
    taken = held.take(places)
    assert taken.dtype == np.uint8
    assert abs(taken.astype(int) - x[places]).max() <= (0 if bits is None else 255 / 15 / 2)
    batch = np.zeros((30, *image), np.uint8)
    assert np.shares_memory(held.take(places, out=batch[10:]), batch)
    np.testing.assert_array_equal(batch[10:], taken)
    assert not batch[:10].any()
    assert held.take(np.array([], dtype=np.int64)).shape == (0, *image)


def test_raw_samples_are_written_without_a_copy_between() -> None:
    held = Reservoir(50, (100, 100), np.dtype(np.int16), n_classes=1)
    held.offer(np.ones((50, 100, 100), np.int16), np.zeros(50, dtype=np.int64))
    places, batch = held.draw(40), np.zeros((40, 100, 100), np.int16)
    peaks = []
    for out in (batch, None):
        tracemalloc.start()
        held.take(places, out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 10_000
    assert peaks[1] >= batch.nbytes  # the control: a new array is one that tracemalloc sees
    assert batch.all()


def test_draws_are_uniform_over_what_is_held() -> None:
    held = reservoir(8)
    assert held.draw(5).tolist() == []
    assert held.shuffled().tolist() == []
    offer(held, np.zeros(8))
    assert p_value(np.bincount(held.draw(8000), minlength=8), 1000) > 1e-4
    one_by_one = np.concatenate([held.draw(1) for _ in range(8000)])
    assert p_value(np.bincount(one_by_one, minlength=8), 1000) > 1e-4
    assert sorted(held.shuffled().tolist()) == list(range(8))
    assert held.draw(20).dtype == np.int64


@given(LABELS, LABELS, st.integers(0, 20), POLICY, BITS)
def test_restored_reservoir_goes_on_as_the_one_it_was(
    before: list[int], after: list[int], capacity: int, policy: str, bits: int | None
) -> None:
    one, other = (reservoir(capacity, policy=policy, bits=bits, seed=seed, n_logits=3) for seed in (0, 9))
    offer(one, np.array(before, dtype=np.int64))
    one.draw(7)
    one.shuffled()
    arrays, values = one.state()
    other.restore({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(values)))
    for held in (one, other):
        offer(held, np.array(after, dtype=np.int64), start=len(before))
    assert_same(one, other)
    np.testing.assert_array_equal(one.draw(20), other.draw(20))
    np.testing.assert_array_equal(one.shuffled(), other.shuffled())


def test_state_of_a_larger_reservoir_is_thinned_to_what_fits() -> None:
    large, small = reservoir(30), reservoir(10)
    offer(large, np.arange(30) % 3)
    small.restore(*large.state())
    assert small.size == 10
    assert sum(small.n_held) == 10


def test_thinning_is_uniform_and_costs_no_rare_class() -> None:
    labels = np.array([0] * 27 + [1, 2, 2])
    counts = {policy: np.zeros(30) for policy in POLICIES}
    for policy, seed in ((policy, seed) for policy in POLICIES for seed in range(1500)):
        large, small = (reservoir(capacity, policy=policy, seed=seed) for capacity in (30, 10))
        offer(large, labels)
        small.restore(*large.state())
        counts[policy][numbers(small)] += 1
    assert p_value(counts["reservoir"], 1500 * 10 / 30) > 1e-4
    assert (counts["balanced"][27:] == 1500).all()
    assert p_value(counts["balanced"][:27], 1500 * 7 / 27) > 1e-4


def test_balance_comes_back_after_a_change_of_policy() -> None:
    uniform, balanced = reservoir(20, policy="reservoir"), reservoir(20)
    offer(uniform, np.array([0] * 180 + [1] * 20))
    balanced.restore(*uniform.state())
    offer(balanced, np.arange(100) % 2, start=200)
    assert balanced.n_held in ([10, 10, 0, 0], [11, 9, 0, 0])


@pytest.mark.parametrize(("was", "becomes"), [(None, 4), (4, None), (8, 2)])
def test_samples_are_packed_anew_when_the_bits_change(was: int | None, becomes: int | None) -> None:
    one, other = reservoir(20, bits=was), reservoir(20, bits=becomes, seed=3)
    offer(one, np.arange(50) % 4)
    other.restore(*one.state())
    np.testing.assert_array_equal(numbers(other), numbers(one))
    np.testing.assert_array_equal(other.labels, one.labels)


def test_state_from_before_there_were_blocks_and_bits_is_taken_over() -> None:
    generator = np.random.default_rng(3)
    held = reservoir(5, bits=4)
    arrays = {"items": samples(5), "labels": np.zeros(5, np.int16)}
    held.restore(arrays, {"rng": generator.bit_generator.state, "n_seen": [9, 0, 0, 0]})
    assert numbers(held).tolist() == list(range(5))
    assert held.draw(50).tolist() == (generator.random(50) * 5).astype(int).tolist()


def test_logits_stay_with_their_samples_in_half_precision() -> None:
    held = reservoir(10, policy="reservoir", n_logits=3)
    for start in range(0, 60, 20):
        logits = np.arange(start, start + 20)[:, None] + np.array([0.0, 0.25, -100.0])
        held.offer(samples(20, start), np.zeros(20, dtype=np.int64), logits.astype(np.float32))
    places = held.draw(30)
    stored = held.stored_logits(places)
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, numbers(held)[places][:, None] + np.array([0.0, 0.25, -100.0]))


def test_logits_beyond_half_precision_are_bounded() -> None:
    held = reservoir(1, n_logits=4)
    held.offer(samples(1), np.zeros(1, dtype=np.int64), np.array([[1e30, -np.inf, 65519.0, 1.0]], np.float32))
    assert held.stored_logits(np.array([0])).tolist() == [[65504.0, -65504.0, 65504.0, 1.0]]


def test_logits_of_a_state_without_any_are_not_known() -> None:
    without, held = reservoir(10), reservoir(8, n_logits=2)
    offer(without, np.zeros(10))
    held.restore(*without.state())
    assert np.isnan(held.stored_logits(held.shuffled())).all()
    offer(held, np.ones(4), start=10)
    known = ~np.isnan(held.stored_logits(np.arange(8))).any(1)
    assert (known == (numbers(held) >= 10)).all()
    assert known.any()


@pytest.mark.parametrize(("n_logits", "shape"), [(2, None), (2, (3, 3)), (2, (4, 2)), (0, (3, 2))])
def test_logits_that_do_not_fit_are_refused_and_nothing_moves(n_logits: int, shape: tuple[int, ...] | None) -> None:
    held = reservoir(5, n_logits=n_logits)
    before = held.state()[1]
    with pytest.raises(ValueError, match=rf"logits: must have shape .* where n_logits is {n_logits} \(got .*\)"):
        held.offer(samples(3), np.zeros(3, dtype=np.int64), None if shape is None else np.zeros(shape))
    assert held.state()[1] == before


def test_state_of_other_samples_logits_or_classes_is_refused() -> None:
    held = reservoir(5, n_logits=2)
    offer(held, np.zeros(5))
    arrays, values = held.state()
    for name, wrong in (
        ("items", np.zeros((5, 8), np.int32)),
        ("items", np.zeros((5, 9), np.int16)),
        ("logits", np.zeros((5, 3), np.float16)),
    ):
        with pytest.raises(ValueError, match=rf"{name}: must hold .* a sample \(got .*\)"):
            held.restore({**arrays, name: wrong}, values)
    with pytest.raises(ValueError, match=r"n_seen: must count at most 4 classes \(got 5\)"):
        held.restore(arrays, {**values, "n_seen": [1, 1, 1, 1, 1]})


def test_unknown_policy_and_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of balanced, reservoir \(got fifo\)"):
        reservoir(3, policy="fifo")
    with pytest.raises(ValueError, match=r"capacity: must be at least 0 \(got -1\)"):
        reservoir(-1)
    with pytest.raises(ValueError, match=r"n_logits: must be at least 0 \(got -2\)"):
        reservoir(1, n_logits=-2)


def test_samples_without_positions_are_not_packed() -> None:
    with pytest.raises(ValueError, match=r"layout: to pack in 4 bits it must be \(\*positions, C\).*\(got \(9,\)\)"):
        Reservoir(3, (9,), np.dtype(np.int16), n_classes=2, bits=4, layout=(9,))
