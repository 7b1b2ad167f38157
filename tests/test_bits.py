"""How few bits serve is found out on the first samples, and the room that this makes is used."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.learning.bits import TOLERATED, Trial, fewest, try_bits
from edge_cl.learning.learner import Learner, Rule
from edge_cl.learning.model import design
from edge_cl.learning.network import Network
from edge_cl.learning.packing import Packing
from edge_cl.learning.replay import Reservoir, bytes_per_sample

SHAPE, LAYOUT, INT16, UINT8 = (32, 2), (32, 2), np.dtype(np.int16), np.dtype(np.uint8)


def signals(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1000, (n, *SHAPE)).astype(np.int16)


def test_each_width_is_tried_until_one_costs_something() -> None:
    x = signals(50)

    def losses(samples: np.ndarray) -> np.ndarray:
        """A network that stands an error of 30 counts and no more."""
        error = np.abs(samples.astype(float) - x).mean((1, 2))
        return (error > 30).astype(np.float32) + 0.3

    trials = try_bits(x, losses, LAYOUT)
    assert [(trial.bits, trial.passed) for trial in trials] == [(8, True), (4, False)]  # steps of 16 and 270 counts
    assert trials[0].extra_loss == 0.0
    assert trials[1].extra_loss == pytest.approx(1.0)
    assert fewest(trials) == 8


def test_what_cannot_be_told_from_chance_does_not_pass() -> None:
    assert Trial(4, TOLERATED / 2, TOLERATED / 4).passed
    assert not Trial(4, TOLERATED / 2, TOLERATED).passed
    assert fewest([Trial(8, 1.0, 0.0)]) is None
    assert fewest([]) is None


def test_bytes_are_not_tried_in_eight_bits_nor_what_would_not_shrink() -> None:
    x = np.random.default_rng(0).integers(0, 255, (20, 28, 28)).astype(np.uint8)
    assert [trial.bits for trial in try_bits(x, lambda x: np.zeros(len(x)), (28, 28, 1))] == [4, 2]
    narrow = np.zeros((5, 2, 40), np.uint8)
    assert try_bits(narrow, lambda x: np.zeros(len(x)), (2, 40)) == []


@given(st.integers(1, 40), st.integers(0, 60), st.sampled_from([8, 4, 2]), st.sampled_from([0, 3]))
@settings(max_examples=40, deadline=None)
def test_repacking_keeps_every_sample_and_its_place_within_the_same_bytes(
    capacity: int, n: int, bits: int, n_logits: int
) -> None:
    made = {"n_classes": 3, "layout": LAYOUT, "n_logits": n_logits}
    replay = Reservoir(capacity, SHAPE, INT16, undecided=True, **made)
    x, y = signals(n), np.arange(n) % 3
    logits = np.random.default_rng(1).normal(0, 1, (n, n_logits)) if n_logits else None
    replay.offer(x, y, logits)
    before, size, nbytes = replay.take(np.arange(replay.size)).copy(), replay.size, replay.nbytes
    labels, kept = replay.labels[:size].copy(), replay.logits[:size].copy()
    replay.repack(bits)
    packing = Packing(SHAPE, INT16, bits, LAYOUT)
    np.testing.assert_array_equal(replay.take(np.arange(size)), packing.decode(packing.encode(before)))
    np.testing.assert_array_equal(replay.labels[:size], labels)
    np.testing.assert_array_equal(replay.logits[:size], kept)
    each = bytes_per_sample(SHAPE, INT16, bits=bits, layout=LAYOUT, n_logits=n_logits)
    assert replay.capacity == nbytes // each >= capacity
    assert nbytes - each < replay.nbytes <= nbytes
    more, labels = signals(400, seed=2), np.arange(400) % 3
    replay.offer(more, labels, np.zeros((400, n_logits)) if n_logits else None)
    assert replay.size == min(replay.capacity, size + 400)
    assert max(replay.n_held) - min(replay.n_held) <= 1 or replay.size < replay.capacity


def test_a_limit_in_samples_holds_and_gives_the_bytes_back() -> None:
    replay = Reservoir(20, SHAPE, INT16, n_classes=2, layout=LAYOUT, undecided=True, most=20)
    replay.offer(signals(50), np.arange(50) % 2)
    replay.repack(4)
    assert replay.capacity == 20
    assert replay.nbytes == 20 * replay.bytes_per_sample < 20 * bytes_per_sample(SHAPE, INT16) / 3


def test_rows_never_grow() -> None:
    replay = Reservoir(20, SHAPE, INT16, n_classes=2, layout=LAYOUT, bits=4)
    with pytest.raises(ValueError, match=r"bits: repacked samples must be smaller \(got 8 after 4\)"):
        replay.repack(8)


def make_learner(shape: tuple[int, ...], dtype: np.dtype, *, seed: int = 0) -> Learner:
    network = Network(design("auto", shape, 4, 8), seed=seed)
    layout = network.blueprint.layout
    replay = Reservoir(40, shape, dtype, n_classes=4, layout=layout, undecided=True, n_logits=4)
    rule = Rule(exam_share=0.0, rehearsal_passes=1, stored_logits=0.1)
    return Learner(network, replay, Reservoir(0, shape, dtype, n_classes=4), rule, seed=seed)


def images(labels: np.ndarray, seed: int) -> np.ndarray:
    """Bright in one quarter or another: two bits tell them apart."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 60, (len(labels), 8, 20))
    for image, label in zip(x, labels, strict=True):
        image[:, 5 * label : 5 * label + 5] += 180
    return x.astype(np.uint8)


def test_a_learner_decides_at_its_first_consolidation_with_two_classes_and_stays_with_it() -> None:
    learner = make_learner((8, 20), UINT8)
    nbytes = learner.nbytes
    for step in range(30):
        learner.learn(images(np.zeros(4, int), step), np.zeros(4, int))
    learner.consolidate()
    assert learner.replay.undecided  # one class alone tells nothing
    for step in range(60):
        y = np.array([0, 1, 1, 0])
        learner.learn(images(y, 100 + step), y)
    learner.consolidate()
    assert not learner.replay.undecided
    assert [trial.bits for trial in learner.trials] == [4, 2]
    assert learner.replay.bits == fewest(learner.trials) == 2
    assert learner.replay.capacity > 100
    assert learner.nbytes <= nbytes

    other = make_learner((8, 20), UINT8, seed=3)
    other.restore(*learner.state())
    assert (other.replay.bits, other.replay.capacity) == (2, learner.replay.capacity)
    assert other.trials == learner.trials
    for one in (learner, other):
        for step in range(20):
            y = np.array([2, 3, 1, 0])
            one.learn(images(y, 300 + step), y)
        one.consolidate()
    for name, array in learner.state()[0].items():
        np.testing.assert_array_equal(array, other.state()[0][name], err_msg=name)
