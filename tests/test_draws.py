"""Random numbers in bulk: uniform, the same however they are cut, and the same again after a restore."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.learning.draws import BLOCK, Draws

SIZES = st.lists(st.integers(0, 3 * BLOCK), max_size=12)


@given(SIZES)
def test_numbers_are_the_same_however_they_are_cut(sizes: list[int]) -> None:
    cut, whole = Draws(3), np.random.default_rng(3).random(sum(sizes))
    pieces = [cut.take(n).copy() for n in sizes]
    assert [len(piece) for piece in pieces] == sizes
    np.testing.assert_array_equal(np.concatenate([*pieces, []]), whole)


@given(SIZES, SIZES)
def test_restored_draws_go_on_bit_for_bit(before: list[int], after: list[int]) -> None:
    one, other = Draws(1), Draws(2)
    for n in before:
        one.take(n)
    other.restore(json.loads(json.dumps(one.state())))
    for n in after:
        np.testing.assert_array_equal(one.take(n), other.take(n))
    assert one.state() == other.state()


def test_state_of_a_bare_generator_is_one_that_gave_nothing_yet() -> None:
    rng, draws = np.random.default_rng(5), Draws(9)
    draws.restore({"rng": rng.bit_generator.state})
    np.testing.assert_array_equal(draws.take(3000), rng.random(3000))


def p_of_uniform(counts: np.ndarray) -> float:
    """Pearson's χ²: the probability of counts at least as uneven as these, if all are equally likely."""
    chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    freedom = torch.tensor(len(counts) - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, torch.tensor(chi_squared / 2)))


@pytest.mark.parametrize("n", [1, 7, 20, 1000, BLOCK])
def test_draws_of_any_size_are_uniform(n: int) -> None:
    """A refill that forgot some numbers or gave some twice would pass; the comparison above with one row does not."""
    draws = Draws(0)
    numbers = np.concatenate([draws.take(n).copy() for _ in range(30_000 // n)])
    assert p_of_uniform(np.bincount((numbers * 50).astype(int), minlength=50)) > 1e-4
    assert p_of_uniform(np.bincount((numbers**1.1 * 50).astype(int), minlength=50)) < 1e-4  # the control


def test_orders_are_permutations_in_which_every_place_is_as_likely() -> None:
    draws = Draws(0)
    orders = np.array([draws.order(6) for _ in range(6000)])
    assert (np.sort(orders, 1) == np.arange(6)).all()
    for place in range(6):
        assert p_of_uniform(np.bincount(orders[:, place], minlength=6)) > 1e-4
    ranks = orders @ 6 ** np.arange(6)  # one number for each of the 720 permutations
    assert p_of_uniform(np.unique(ranks, return_counts=True)[1]) > 1e-4
    assert len(np.unique(ranks)) == 720
    assert draws.order(0).tolist() == []
