"""The method families at their doors of a step, each against its formula by autograd or by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from edge_cl.learning.context import RECENT, Context
from edge_cl.learning.distillation import match_logits, match_teacher
from edge_cl.learning.fisher import fisher_diagonal
from edge_cl.learning.learner import Learner, Rule
from edge_cl.learning.model import design
from edge_cl.learning.network import Network
from edge_cl.learning.objective import Classification
from edge_cl.learning.path_importance import PathImportance
from edge_cl.learning.projection import project, scaled_rates
from edge_cl.learning.replay import Reservoir
from tests.reference import autograd_gradient

CPU = torch.device("cpu")
SHAPE, CLASSES = (6,), 5
PLAIN = Rule(batch_size=4, label_smoothing=0.0, ewc_lambda=0.0, rehearsal_passes=0, exam_share=0.0, replay_per_step=8)
FAMILIES = {
    "er": PLAIN,
    "er-ace": replace(PLAIN, asymmetric=True),
    "der": replace(PLAIN, stored_logits=0.3, logits_at_arrival=True, replay_labels=0.0),
    "der++": replace(PLAIN, stored_logits=0.3, logits_at_arrival=True, replay_labels=0.5),
    "lwf": replace(PLAIN, teacher=0.7),
    "a-gem": replace(PLAIN, project=True),
    "scaled rates": replace(PLAIN, protect=3.0),
    "si": replace(PLAIN, importance="path", ewc_lambda=1.0),
    "ewc": replace(PLAIN, ewc_lambda=3.0),
    "all": Rule(
        batch_size=4, asymmetric=True, stored_logits=0.1, teacher=0.2, protect=0.5, exam_share=0.1, rehearsal_passes=2
    ),
}


def make_learner(rule: Rule, *, outputs: int = CLASSES, seed: int = 0) -> Learner:
    n_logits = outputs if rule.stored_logits else 0
    float32 = np.dtype(np.float32)
    replay = Reservoir(40, SHAPE, float32, n_classes=outputs, seed=seed, n_logits=n_logits)
    exam = Reservoir(10, SHAPE, float32, n_classes=outputs, seed=seed)
    return Learner(Network(design("mlp", SHAPE, outputs, 8), seed=seed), replay, exam, rule, seed=seed)


def blobs(labels: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.array(labels)
    centres = np.random.default_rng(99).normal(0, 3, (CLASSES, *SHAPE))
    return (centres[y] + rng.normal(0, 0.5, (len(y), *SHAPE))).astype(np.float32), y


def begun(rule: Rule) -> Learner:
    """A learner that knows classes 0 to 2 and has consolidated once."""
    learner = make_learner(rule)
    for step in range(30):
        learner.learn(*blobs([step % 3, (step + 1) % 3, 0, 1], seed=step))
    learner.consolidate()
    return learner


def gradient_by_autograd(z: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    z = z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(z), z)
    return gradient


# 3 functional regularisation


def test_matching_logits_is_the_gradient_of_der() -> None:
    z, stored = torch.randn(2, 7, 4) * 0.3
    expected = gradient_by_autograd(z, lambda z: 0.3 * (z - stored).square().sum(1).mean())
    torch.testing.assert_close(match_logits(z, stored, 0.3), expected)


def test_logits_far_away_pull_no_harder_than_a_label() -> None:
    far = torch.tensor([[30.0, -40.0], [0.03, -0.04]])
    delta = match_logits(far, torch.zeros(2, 2), 0.5) * 2
    torch.testing.assert_close(delta, torch.tensor([[0.6, -0.8], [0.03, -0.04]]))


def test_a_class_unknown_when_the_sample_was_stored_is_not_held() -> None:
    """T-07, §6: unequal class counts. Its logit then was that of an untrained row."""
    z, stored = torch.randn(2, 7, 4)
    stored[:3, 2:] = torch.nan
    delta = match_logits(z, stored, 0.3)
    assert not bool(delta[:3, 2:].any())
    assert bool((delta[3:] != 0).all())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_matching_a_teacher_is_the_gradient_of_softened_kl(temperature: float) -> None:
    z, taught = torch.randn(2, 6, 4)
    known = torch.tensor([True, True, True, False])

    def loss(z: Tensor) -> Tensor:
        student = (z[:, :3] / temperature).log_softmax(1)
        return 0.7 * temperature**2 * kl_div(student, (taught[:, :3] / temperature).softmax(1), reduction="batchmean")

    torch.testing.assert_close(match_teacher(z, taught, known, 0.7, temperature), gradient_by_autograd(z, loss))


# 4 optimisation

vectors = st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6).map(torch.tensor)


@given(vectors, vectors)
@settings(max_examples=60, deadline=None)
def test_a_projected_gradient_never_points_against_the_reference(gradient: Tensor, reference: Tensor) -> None:
    before = gradient.clone()
    projected = project(gradient.clone(), reference)
    assert float(torch.dot(projected, reference)) >= -1e-3
    if torch.dot(before, reference) >= 0:
        assert torch.equal(projected, before)


def test_projection_takes_away_no_more_than_it_must() -> None:
    """The nearest g to the gradient with gᵀr ≥ 0: what is left is at right angles to what was taken."""
    gradient, reference = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 3.0])
    assert project(gradient, reference).tolist() == [1.0, 0.0]


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=8), st.floats(0, 1e6))
@settings(max_examples=60, deadline=None)
def test_rates_are_only_ever_lowered(importance: list[float], strength: float) -> None:
    """T-08: a rate divided by the importance itself is raised wherever that is below 1."""
    rates = scaled_rates(torch.tensor(importance), strength)
    assert bool((rates <= 1).all())
    assert bool((rates >= 0).all())
    order = torch.tensor(importance).argsort()
    assert bool((rates[order].diff() <= 1e-6).all())


def test_a_gem_does_not_raise_the_loss_of_what_is_replayed() -> None:
    """To first order: a small step on samples that contradict the replayed ones outright."""
    learner = begun(replace(PLAIN, project=True))
    assert learner._whole is not None
    places = np.arange(learner.replay.size)
    old_y = torch.from_numpy(learner.replay.labels[places].astype(np.int64))
    x, y = blobs([0, 1, 2] * 5, seed=77)
    rows = torch.cat([torch.from_numpy(x), torch.from_numpy(learner.replay.take(places))])
    labels = torch.cat([torch.from_numpy((y + 1) % 3), old_y])

    def loss_of_old() -> float:
        return float(learner.objective.losses(learner.network.forward(rows), rows, labels)[15:].mean())

    rises, theta = [], learner.network.arena.flat.clone()
    for n_new in (15, 0):  # 0: nothing is new, so nothing is projected
        before = loss_of_old()
        delta = learner.objective.delta(learner.network.forward(rows), rows, labels, n_new) / len(rows)
        if n_new == 0:
            delta[15:] = 0.0
            delta *= len(rows) / 15
        learner._whole.descend(learner.network, delta, 1e-4, n_new)
        rises.append(loss_of_old() - before)
        learner.network.arena.flat.copy_(theta)
    projected, plain = rises
    assert plain > 1e-5
    assert abs(projected) < plain / 20


# 2 parameter regularisation


def test_path_importance_of_a_quadratic_is_what_the_loss_fell_by() -> None:
    """Σ ω of small steps is the fall of the loss (Zenke et al. 2017, equation 1), weight by weight if separable."""
    curvature = torch.tensor([1.0, 4.0, 0.0])
    theta = torch.ones(3)
    path = PathImportance(theta)
    for _ in range(2000):
        gradient = curvature * theta
        path.count(gradient, 1e-3)
        theta.sub_(gradient, alpha=1e-3)
    fell = 0.5 * curvature * (1 - theta.square())
    torch.testing.assert_close(path.omega, fell, rtol=1e-2, atol=1e-4)
    importance = path.take()
    torch.testing.assert_close(importance, fell / ((1 - theta).square() + path.XI), rtol=1e-2, atol=1e-4)
    assert float(importance[2]) == 0.0
    assert not bool(path.omega.any())
    assert torch.equal(path.start, theta)


# 5 context


def test_new_rows_are_told_apart_among_what_came_lately_and_replayed_ones_among_all() -> None:
    """ER-ACE: the gradient of the sum of both cross-entropies, each over its own classes."""
    task = Classification(CLASSES, CPU, asymmetric=True)
    task.meet(np.array([0, 1, 2, 4]))
    task.arrive(np.array([4, 2, 4]))
    z, labels = torch.randn(6, CLASSES), torch.tensor([4, 2, 4, 0, 1, 4])

    def loss(z: Tensor) -> Tensor:
        new = z[:3].masked_fill(~torch.tensor([False, False, True, False, True]), -torch.inf)
        old = z[3:].masked_fill(~torch.tensor([True, True, True, False, True]), -torch.inf)
        return cross_entropy(new, labels[:3], reduction="sum") + cross_entropy(old, labels[3:], reduction="sum")

    torch.testing.assert_close(task.delta(z, z, labels, 3), gradient_by_autograd(z, loss))


@pytest.mark.parametrize("asymmetric", [False, True])
def test_smoothed_targets_are_spread_over_what_a_row_is_told_apart_among(asymmetric: bool) -> None:
    task = Classification(CLASSES, CPU, smoothing=0.2, asymmetric=asymmetric)
    task.meet(np.array([0, 1, 3]))
    task.arrive(np.array([1, 3]))
    z, labels = torch.zeros(2, CLASSES), torch.tensor([1, 3])
    target = (z + task.context.unseen).softmax(1) - task.delta(z, z, labels, 0)
    torch.testing.assert_close(target[0], torch.tensor([0.2 / 3, 0.8 + 0.2 / 3, 0, 0.2 / 3, 0]))
    among = 2 if asymmetric else 3
    delta = task.delta(z, z, labels, 2)
    torch.testing.assert_close(delta[0, 1], torch.tensor(1 / among - 0.8 - 0.2 / among))
    torch.testing.assert_close(delta.sum(1), torch.zeros(2), atol=1e-6, rtol=0)


def test_a_class_is_current_for_some_samples_after_it_came() -> None:
    """So that a step whose samples are all of one class, as a sensor's often are, still tells it apart from others."""
    context = Context(CLASSES, CPU)
    context.meet(torch.tensor([0, 1, 2]))
    context.come(torch.tensor([0]))
    for _ in range(RECENT // 2 - 1):
        context.come(torch.tensor([1, 1]))
        assert (context.current == 0).tolist() == [True, True, False, False, False]
        assert context.some_are_cold
    context.come(torch.tensor([2, 2]))
    assert (context.current == 0).tolist() == [False, True, True, False, False]
    context.come(torch.tensor([0]))
    assert not context.some_are_cold


def test_every_row_of_a_mixed_batch_finds_its_own_head() -> None:
    """T-09: one index for a whole batch of task ids fails; here a row's label says which head is asked."""
    context = Context(CLASSES, CPU)
    context.meet(torch.arange(CLASSES))
    context.split([2, 3])
    context.split([4])
    expected = {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}, 4: {4}}
    labels = torch.tensor([3, 0, 4, 1, 2])
    for label, mask in zip(labels.tolist(), context.of(labels), strict=True):
        assert set(torch.nonzero(mask == 0).flatten().tolist()) == expected[label]
    with pytest.raises(ValueError, match=r"head: classes must be in 0 … 4 \(got 5\)"):
        context.split([5])


def test_heads_of_other_tasks_are_left_alone_by_loss_and_fisher() -> None:
    learner = make_learner(PLAIN)
    task = learner.objective
    assert isinstance(task, Classification)
    learner.learn(*blobs([0, 1, 2, 3]))
    task.context.split([2, 3])
    task.refresh()
    head = learner.network.arena.views["5.linear.weight"]
    x, y = blobs([2, 3, 3, 2])
    z = learner.network.forward(torch.from_numpy(x))
    assert not bool(task.delta(z, z, torch.from_numpy(y), 4)[:, :2].any())
    fisher = task.fisher(learner.network, torch.from_numpy(x), torch.from_numpy(y), "exact", torch.Generator())
    of_head = learner.network.arena.lay_over(fisher)["5.linear.weight"]
    assert of_head.shape == head.shape
    assert not bool(of_head[:2].any())
    assert bool(of_head[2:4].any())
    alone = fisher_diagonal(
        learner.network, torch.from_numpy(x), classes=torch.tensor([False, False, True, True, False])
    )
    torch.testing.assert_close(fisher, alone)


# The step as a whole


@pytest.mark.parametrize("name", ["er", "er-ace", "der", "der++", "lwf"])
def test_a_step_is_one_step_down_the_family_s_loss(name: str) -> None:
    """The parameters after it, against autograd on the loss written down as in the paper."""
    rule = FAMILIES[name]
    learner = begun(rule)
    x, y = blobs([1, 2, 2, 1], seed=5)
    state = {k: v.copy() for k, v in learner.state()[0].items()}, learner.state()[1]
    twin = make_learner(rule)
    twin.restore(*state)
    places = twin.replay.draw(rule.replay_per_step)
    old_x, old_y = torch.from_numpy(twin.replay.take(places)), torch.from_numpy(twin.replay.labels[places].astype(int))
    stored = torch.from_numpy(twin.replay.stored_logits(places))
    rows = torch.cat([torch.from_numpy(x), old_x])
    seen = torch.tensor([True, True, True, False, False])
    learner.objective.context.warm[0] = twin.objective.context.warm[0] = 0  # class 0 is long past
    current = torch.tensor([False, True, True, False, False])
    theta_then = twin.anchor.theta.float()
    teacher = make_learner(rule).network
    teacher.standardise = twin.network.standardise
    teacher.arena.flat.copy_(theta_then)
    taught = teacher.forward(rows)

    def loss(z: Tensor) -> Tensor:
        among = current if rule.asymmetric else seen
        new = cross_entropy(z[:4].masked_fill(~among, -torch.inf), torch.from_numpy(y), reduction="sum")
        old = cross_entropy(z[4:].masked_fill(~seen, -torch.inf), old_y, reduction="sum")
        total = (new + rule.replay_labels * old) / len(z)
        if rule.stored_logits:
            far = (z[4:] - stored).nan_to_num(0.0).norm(dim=1)
            square, tangent = rule.stored_logits * far.square(), far - 1 / (4 * rule.stored_logits)
            total = total + torch.where(2 * rule.stored_logits * far <= 1, square, tangent).mean()
        if rule.teacher:
            student, wise = (z[:, :3] / 2).log_softmax(1), (taught[:, :3] / 2).softmax(1)
            total = total + rule.teacher * 4 * kl_div(student, wise, reduction="batchmean")
        return total

    expected = twin.network.arena.flat - rule.learning_rate * autograd_gradient(twin.network, rows, loss)
    learner.learn(x, y)
    torch.testing.assert_close(learner.network.arena.flat, expected, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 50), st.integers(1, 20), st.integers(1, 60))
def test_a_smaller_step_replays_in_proportion(per_step: int, batch_size: int, n_new: int) -> None:
    """A source slower than a batch must not be drowned in what is old."""
    rule = Rule(replay_per_step=per_step, batch_size=batch_size, stored_logits=0.1)
    n = rule.replayed_with(n_new)
    assert n <= per_step
    assert n == per_step if n_new >= batch_size else n * batch_size < per_step * n_new + batch_size
    assert (n > 0) == (per_step > 0)


def test_scaled_rates_move_what_the_anchor_holds_important_less() -> None:
    learner = begun(replace(PLAIN, protect=5.0, learning_rate=0.01))
    assert learner._whole is not None
    assert learner._whole.rates is not None
    torch.testing.assert_close(learner._whole.rates, scaled_rates(learner.anchor.fisher(), 5.0))
    assert float(learner._whole.rates.min()) < 0.5


def test_rates_are_scaled_where_no_sample_is_kept_too() -> None:
    """There is no pull and no replay memory, and yet the Fisher is asked for."""
    rule = replace(PLAIN, protect=5.0, replay_per_step=0)
    none = (Reservoir(0, SHAPE, np.dtype(np.float32), n_classes=CLASSES) for _ in range(2))
    learner = Learner(Network(design("mlp", SHAPE, CLASSES, 8)), *none, rule)
    for step in range(30):
        learner.learn(*blobs([0, 1, 2, 0], seed=step))
    learner.consolidate()
    assert learner._whole is not None
    assert learner._whole.rates is not None
    assert float(learner._whole.rates.min()) < 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns_new_classes_and_comes_back_bit_for_bit(name: str) -> None:
    one = begun(FAMILIES[name])
    arrays, values = one.state()
    arrays = {key: array.copy() for key, array in arrays.items()}
    other = make_learner(FAMILIES[name], seed=5)
    other.restore(arrays, values)
    for learner in (one, other):
        for step in range(100):
            learner.learn(*blobs([3, 4, 3, 4, 3, 4], seed=100 + step))
            if step % 50 == 49:
                learner.consolidate()
    for key, array in one.state()[0].items():
        np.testing.assert_array_equal(array, other.state()[0][key], err_msg=key)
    x, y = blobs([3, 4] * 20, seed=7)
    assert float((one.predict(x).argmax(1) == y).mean()) > 0.7


def test_logits_of_the_first_task_are_still_matched_in_the_third() -> None:
    """T-07: a second set of anchors must not discard the first one's."""
    learner = make_learner(FAMILIES["der"])
    for task in ([0, 1], [2, 3], [4, 4]):
        for step in range(20):
            learner.learn(*blobs(task * 3, seed=step))
        learner.consolidate()
    labels = learner.replay.labels[: learner.replay.size]
    stored = learner.replay.stored_logits(np.arange(learner.replay.size))
    of_first = stored[labels < 2]
    assert len(of_first) >= 10
    assert np.isfinite(of_first[:, :2]).all()
    assert np.isnan(of_first[:, 2:]).all()


def test_a_sample_gets_its_logits_at_the_first_consolidation_after_it_came_and_keeps_them() -> None:
    """Until then it has none: at its arrival a new class was not known yet."""
    learner = begun(replace(PLAIN, stored_logits=0.1, rehearsal_passes=2))
    everything = np.arange(learner.replay.size)
    stored = learner.replay.stored_logits(everything)
    z = learner.network.forward(torch.from_numpy(learner.replay.take(everything))).numpy()
    np.testing.assert_allclose(stored[:, :3], z[:, :3], rtol=2e-3, atol=2e-3)
    assert np.isnan(stored[:, 3:]).all()
    learner.learn(*blobs([3, 3, 4, 4], seed=9))
    labels = learner.replay.labels[: learner.replay.size].copy()
    assert np.isnan(learner.replay.stored_logits(np.flatnonzero(labels >= 3))).all()
    learner.consolidate()
    after = learner.replay.stored_logits(everything)
    np.testing.assert_array_equal(after[labels < 3], stored[labels < 3])
    assert np.isfinite(after[labels >= 3]).all()


def test_a_head_that_grows_keeps_the_logits_it_stored() -> None:
    learner = begun(FAMILIES["der++"])
    before = learner.replay.stored_logits(np.arange(learner.replay.size))
    wider = make_learner(FAMILIES["der++"], outputs=8)
    wider.restore(*learner.state())
    after = wider.replay.stored_logits(np.arange(wider.replay.size))
    np.testing.assert_array_equal(after[:, :5], before)
    assert np.isnan(after[:, 5:]).all()
    forgetful = make_learner(PLAIN)
    forgetful.restore(*learner.state())  # distillation was switched off meanwhile
    assert forgetful.replay.size == learner.replay.size
    with pytest.raises(ValueError, match=r"logits: must hold at most 5 of float16 a sample"):
        begun(FAMILIES["der++"]).replay.restore(*wider.replay.state())
