"""When to consolidate without being told, and what: the weights from before the change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_cl.learning.drift import APART
from edge_cl.learning.learner import Learner, Rule
from edge_cl.learning.model import design
from edge_cl.learning.network import Network
from edge_cl.learning.replay import Reservoir
from edge_cl.learning.trigger import LAG, Trigger

SHAPE, FLOAT32 = (8,), np.dtype(np.float32)
RULE = Rule(
    trigger="page_hinkley", every_steps=0, rehearsal_passes=0, exam_share=0.0, label_smoothing=0.0, replay_per_step=0
)


def make_learner(rule: Rule = RULE, replay: int = 100, seed: int = 0) -> Learner:
    network = Network(design("mlp", SHAPE, 3, 16), seed=seed)
    reservoirs = (Reservoir(n, SHAPE, FLOAT32, n_classes=3, seed=seed) for n in (replay, 0))
    return Learner(network, *reservoirs, rule, seed=seed)


def batch(context: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes; in another context the labels are passed round."""
    rng = np.random.default_rng([context, seed])
    y = rng.integers(0, 3, 10)
    centres = np.random.default_rng(5).normal(0, 2, (3, *SHAPE))
    return (centres[y] + rng.normal(0, 0.5, (10, *SHAPE))).astype(np.float32), (y + context) % 3


def test_a_timer_is_due_every_so_many_steps_after_the_last_consolidation() -> None:
    timer = Trigger("timer", 5, torch.zeros(3))
    assert [step for step in range(1, 12) if timer.is_due(step)] == [5, 6, 7, 8, 9, 10, 11]
    timer.done(7)
    assert [step for step in range(8, 14) if timer.is_due(step)] == [12, 13]
    assert not Trigger("timer", 0, torch.zeros(3)).is_due(10**6)
    assert timer.nbytes == 0
    with pytest.raises(
        ValueError, match=r"consolidation.trigger: must be one of timer, page_hinkley, adwin \(got bell"
    ):
        Trigger("bell", 5, torch.zeros(3))


@pytest.mark.parametrize("kind", ["page_hinkley", "adwin"])
def test_a_change_is_noticed_soon_and_nothing_else_is(kind: str) -> None:
    learner = make_learner(replace(RULE, trigger=kind))
    due = []
    for step in range(1, 501):
        learner.learn(*batch(0 if step <= 300 else 1, step))
        if learner.is_due:
            due.append(step)
            learner.consolidate()
    assert len(due) == 1
    assert 300 < due[0] <= 300 + LAG


def test_what_is_anchored_is_from_before_the_change_and_learning_goes_on_from_after_it() -> None:
    learner, seen = make_learner(), {}
    for step in range(1, 500):
        learner.learn(*batch(0 if step <= 300 else 1, step))
        seen[step] = learner.network.arena.flat.clone()
        if learner.is_due:
            break
    learner.consolidate()
    assert torch.equal(learner.network.arena.flat, seen[step])
    anchored = learner.anchor.theta.float()
    assert 300 < step <= 300 + LAG
    mean = torch.stack([seen[at] for at in range(1, 1 + LAG, APART)]).mean(0)  # over the first LAG steps of the run
    assert float((mean - anchored).abs().max()) < 1e-3  # half precision
    learner.network.arena.flat.copy_(anchored)
    x, y = batch(0, 999)
    assert float((learner.predict(x).argmax(1) == y).mean()) == 1.0


def test_the_timer_is_the_fallback_of_a_detector() -> None:
    learner = make_learner(replace(RULE, every_steps=40))
    due = []
    for step in range(1, 121):
        learner.learn(*batch(0, step))
        if learner.is_due:
            due.append(step)
            learner.consolidate()
    assert due == [40, 80, 120]


def test_a_restored_trigger_goes_on_bit_for_bit() -> None:
    one = make_learner()
    for step in range(250):
        one.learn(*batch(0, step))
    other = make_learner(seed=4)
    other.restore(*one.state())
    fired = []
    for learner in (one, other):
        for step in range(250, 400):
            learner.learn(*batch(0 if step < 300 else 1, step))
            if learner.is_due:
                fired.append(step)
                learner.consolidate()
    assert len(fired) == 2
    assert fired[0] == fired[1]
    for name, array in one.state()[0].items():
        np.testing.assert_array_equal(array, other.state()[0][name], err_msg=name)
    timed = make_learner(replace(RULE, trigger="timer", every_steps=10))
    timed.restore(*one.state())  # the setting was changed meanwhile
    assert timed.is_due


def test_where_nothing_is_kept_the_fisher_is_measured_in_passing() -> None:
    """The privacy mode: no sample outlives its step, and yet the pull holds what was learnt from it."""
    rule = replace(RULE, trigger="timer", ewc_lambda=100.0)
    private, plain = make_learner(rule, replay=0), make_learner(replace(rule, ewc_lambda=0.0), replay=0)
    for learner in (private, plain):
        for step in range(200):
            learner.learn(*batch(0, step))
        learner.consolidate()
        assert learner.consolidations == 1
        assert learner.replay.nbytes == 0
    assert float(private.anchor.fisher().max()) > 0
    before = private.anchor.theta.clone()
    for learner in (private, plain):
        for step in range(60):
            learner.learn(*batch(1, step))
    held, gone = (
        (one.network.arena.flat - before.float()).square() @ private.anchor.fisher() for one in (private, plain)
    )
    assert float(held) < float(gone) / 2
