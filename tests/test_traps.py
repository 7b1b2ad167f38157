"""What other implementations of these methods got wrong, where no test of a part shows it: small, and whole learners.

The other traps have their tests beside the part: docs/METHODS.md says where.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import autograd_gradient
from torch import nn
from torch.nn.functional import cross_entropy

from edge_cl.evaluation.evaluate import Job, contender_of, run_job
from edge_cl.evaluation.run import Run
from edge_cl.evaluation.streams import Scenario
from edge_cl.learning.fisher import fisher_diagonal
from edge_cl.learning.learner import Learner, Rule
from edge_cl.learning.model import design
from edge_cl.learning.network import Learnable, Network
from edge_cl.learning.projection import scaled_rates
from edge_cl.learning.replay import Reservoir
from edge_cl.learning.teacher import Teacher
from edge_cl.learning.torch_network import TorchNetwork

SHAPE, CLASSES = (6,), 4
PLAIN = Rule(batch_size=4, label_smoothing=0.0, ewc_lambda=0.0, rehearsal_passes=0, exam_share=0.0, replay_per_step=0)
HALVES = Scenario("class", experiences=2)


@cache
def on_digits(strategy: str, scenario: Scenario) -> Run:
    """What `edge-cl evaluate digits --model mlp` finds out, all of it on samples that are held out."""
    quick = ["learning.learning_rate=0.1"]  # digits are few
    contender = contender_of(strategy, before=["model.kind=mlp"], after=quick)
    return run_job(Job("digits", scenario, contender, 0, 0, 1500), lambda share: None)


def accuracies(run: Run) -> NDArray[np.float64]:
    return np.array(run.accuracy_matrix, dtype=np.float64)


def make_learner(rule: Rule, *, replay: int = 0, network: Learnable | None = None) -> Learner:
    network = network or Network(design("mlp", SHAPE, CLASSES, 8))
    reservoirs = (Reservoir(n, SHAPE, np.dtype(np.float32), n_classes=CLASSES) for n in (replay, 0))
    return Learner(network, *reservoirs, rule)


def blobs(labels: list[int], seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    y = np.array(labels)
    centres = np.random.default_rng(99).normal(0, 3, (CLASSES, *SHAPE))
    return (centres[y] + np.random.default_rng(seed).normal(0, 0.5, (len(y), *SHAPE))).astype(np.float32), y


# T-01 forgetting


def test_forgetting_is_that_of_one_learner_on_samples_it_never_learnt() -> None:
    """A model that is fitted anew on the second task shows nothing but another model.

    The same learner goes on, both tasks are asked before and after, and all of it in one shuffled pass is the control:
    what is lost was lost to the order of the samples, and not to too small a network.
    """
    alone, control, kept = (accuracies(on_digits(name, HALVES)) for name in ("fine-tune", "iid", "er"))
    assert alone[0, 0] > 0.8
    assert alone[1, 0] < 0.2
    assert alone[1, 1] > 0.8
    assert control[1].min() > 0.8
    assert kept[1, 0] > 0.6


# T-02 task-free streams


def test_a_task_free_stream_can_be_learnt_and_comes_back() -> None:
    """Labels that do not depend on the sample teach nothing, and a ramp that never returns has no recurrence.

    Here nobody tells the learner where one experience goes over into the next, over 60 samples; what it forgot is
    there again after the experience came back, and one that replays is far above the stream's own baselines.
    """
    stream = Scenario("class", experiences=2, recurring=2, mixing=60)
    forgetful, replaying = on_digits("fine-tune", stream), on_digits("er", stream)
    R = accuracies(forgetful)
    assert R[1, 0] < R[0, 0] - 0.3
    assert R[2, 0] > R[1, 0] + 0.3
    assert R[3, 0] < R[2, 0] - 0.3
    assert replaying.majority is not None
    assert replaying.no_change is not None
    assert replaying.prequential_accuracy is not None
    assert replaying.prequential_accuracy > max(replaying.majority, replaying.no_change) + 0.3
    assert accuracies(replaying)[-1].min() > 0.7


# T-04 replay


def test_new_samples_are_offered_after_the_draw_and_only_once() -> None:
    """A sample stored before the draw is learnt twice in its own step; one stored at each pass crowds out others."""
    rule = replace(PLAIN, replay_per_step=8, rehearsal_passes=3)
    replaying, without = make_learner(rule, replay=20), make_learner(PLAIN)
    for learner in (replaying, without):
        learner.learn(*blobs([0, 1, 2, 3]))
    assert torch.equal(replaying.network.arena.flat, without.network.arena.flat)
    replaying.consolidate()
    assert replaying.replay.n_seen == [1, 1, 1, 1]
    assert replaying.replay.size == 4


# T-05, T-11 the Fisher


def test_a_fisher_over_fewer_samples_than_asked_for_is_their_mean() -> None:
    """Divided by the number asked for, it would be 200 / 12 times too small."""
    learner = make_learner(replace(PLAIN, ewc_lambda=1.0, fisher_samples=200), replay=12)
    for step in range(3):
        learner.learn(*blobs([0, 1, 2, 3], seed=step))
    learner.consolidate()
    x = torch.from_numpy(learner.replay.take(np.arange(12)))
    expected, kept = fisher_diagonal(learner.network, x), learner.anchor.fisher()
    assert float(kept.sum()) == pytest.approx(float(expected.sum()), rel=0.02)  # eight bits of its root are kept


# T-06 the penalty


def test_the_pull_is_worked_out_anew_in_every_step() -> None:
    """A penalty that is computed once, at the anchor, is zero with gradient zero, and stays so."""
    learner = make_learner(replace(PLAIN, ewc_lambda=30.0), replay=40)
    for step in range(40):
        learner.learn(*blobs([0, 1, 0, 1], seed=step))
    learner.consolidate()
    theta, pulled = learner.network.arena.flat, []
    learner.learn(*blobs([2, 3, 2, 3]))  # the classes are met, and with them the input statistics settle
    for step in range(4 * learner.anchor.n_slices):
        x, y = blobs([2, 3, 2, 3], seed=step)
        labels = torch.from_numpy(y)
        gradient = autograd_gradient(
            learner.network, torch.from_numpy(x), lambda z, labels=labels: cross_entropy(z, labels)
        )
        before = theta.clone()
        learner.learn(x, y)
        moved = theta - (before - learner.rule.learning_rate * gradient)
        pulled.append(float(moved @ (learner.anchor.theta.float() - before)))
    assert min(pulled) > -1e-6
    assert sum(pulled[-learner.anchor.n_slices :]) > 1e-4


# T-07 functional regularisation


def test_a_teacher_answers_as_when_deployed_and_leaves_the_learner_as_it_was() -> None:
    """With its dropout on it would teach noise; and who turns it off for good changes how the learner learns."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES))
    network = TorchNetwork(module, SHAPE)
    teacher = Teacher(network)
    teacher.known[:2] = True
    teacher.become(network.arena.flat)
    x = torch.from_numpy(blobs([0, 1, 2, 3])[0])
    first, second = teacher.outputs(x), teacher.outputs(x)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    with network.evaluating():
        torch.testing.assert_close(network.forward(x), first)
    assert module.training
    assert not torch.equal(network.forward(x), network.forward(x))


# T-08 scaled rates


@given(st.lists(st.floats(2**-10, 2**10, width=32), min_size=2, max_size=8), st.floats(1e-3, 1e3), st.floats(0, 100))
@settings(max_examples=30, deadline=None)
def test_scaled_rates_do_not_depend_on_how_much_data_there_was(
    importance: list[float], size: float, strength: float
) -> None:
    """An importance that is a sum over the data grows with it, past any threshold that stays where it is."""
    F = torch.tensor(importance)
    torch.testing.assert_close(scaled_rates(size * F, strength), scaled_rates(F, strength), rtol=1e-4, atol=1e-6)


# T-09 heads


def test_tasks_learnt_one_after_another_keep_their_heads() -> None:
    """Trained on all tasks mixed, as in the survey, heads show nothing; here no task comes a second time."""
    tasks, classes = (accuracies(on_digits("fine-tune", Scenario(kind))) for kind in ("task", "class"))
    assert tasks[-1].mean() > 0.7
    assert classes[-1, :-1].max() < 0.3
