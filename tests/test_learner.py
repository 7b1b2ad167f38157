"""The learner as a whole: it learns, does not forget, never learns the exam, and comes back bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edge_cl.learning.fisher import fisher_diagonal
from edge_cl.learning.layers import Flatten, Linear, ReLU
from edge_cl.learning.learner import NOT_SEEN, Learner, Rule, Step
from edge_cl.learning.model import Blueprint, design
from edge_cl.learning.network import Learnable, Network
from edge_cl.learning.replay import Reservoir
from edge_cl.learning.torch_network import TorchNetwork

SHAPE, CLASSES = (40, 3), 6
RULE = Rule(rehearsal_passes=3, exam_share=0.0)


def make_learner(
    rule: Rule = RULE, *, replay: int = 60, exam: int = 0, seed: int = 0, outputs: int = CLASSES
) -> Learner:
    network = Network(design("cnn1d", SHAPE, outputs, 8), seed=seed)
    reservoirs = (Reservoir(n, SHAPE, np.dtype(np.int16), n_classes=outputs, seed=seed) for n in (replay, exam))
    return Learner(network, *reservoirs, rule, seed=seed)


def modules() -> list[nn.Module]:
    return [nn.Linear(120, 16), nn.ReLU(), nn.Linear(16, CLASSES)]


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(120, 16), nn.BatchNorm1d(16), nn.Linear(16, CLASSES))


def make_mlp(network: Learnable | None = None, rule: Rule = RULE) -> Learner:
    """A learner on the road of the network given, or else on that of the built-in layers."""
    layers = [Flatten(), Linear(120, 16), ReLU(), Linear(16, CLASSES)]
    network = network or Network(Blueprint("mlp", SHAPE, SHAPE, layers))
    reservoirs = (Reservoir(n, SHAPE, np.dtype(np.int16), n_classes=CLASSES) for n in (60, 0))
    return Learner(network, *reservoirs, rule)


def windows(label: int, n: int, seed: int = 0) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Class c is a sine of frequency c + 1 with random phase, in noise."""
    rng = np.random.default_rng([label, seed])
    t = np.arange(SHAPE[0])[None, :, None]
    phase = rng.uniform(0, 2 * np.pi, (n, 1, SHAPE[1]))
    x = 300 * np.sin(2 * np.pi * (label + 1) * t / SHAPE[0] + phase) + rng.normal(0, 60, (n, *SHAPE))
    return x.astype(np.int16), np.full(n, label)


def learn_stretch(learner: Learner, label: int, n: int = 600, batch: int = 10) -> None:
    x, y = windows(label, n)
    for start in range(0, n, batch):
        learner.learn(x[start : start + batch], y[start : start + batch])


def accuracy(learner: Learner, label: int) -> float:
    x, y = windows(label, 100, seed=1)
    return float((learner.predict(x).argmax(1) == y).mean())


def test_classes_learnt_one_after_another_are_all_remembered() -> None:
    learner, forgetful = make_learner(), make_learner(replace(RULE, replay_per_step=0, ewc_lambda=0.0), replay=0)
    for label in range(4):
        for one in (learner, forgetful):
            learn_stretch(one, label)
            one.consolidate()
    assert np.mean([accuracy(learner, label) for label in range(4)]) > 0.9
    assert accuracy(forgetful, 0) < 0.2  # the control: without replay the first class is gone


def test_prediction_of_a_step_is_made_before_it_learns() -> None:
    learner = make_learner()
    x, y = windows(2, 10)
    first = learner.learn(x, y)
    assert (first.predicted == NOT_SEEN).all()  # no class was known
    expected = learner.predict(windows(0, 10)[0]).argmax(1)
    second = learner.learn(*windows(0, 10))
    assert (second.predicted == expected).all()
    assert (second.predicted == 2).all()  # class 0 was not seen yet, so it cannot be the answer
    assert first.learnt == second.learnt == 10


def test_probabilities_are_only_given_to_classes_seen() -> None:
    learner = make_learner()
    assert not learner.predict(windows(0, 3)[0]).any()
    learn_stretch(learner, 1, 20)
    learn_stretch(learner, 4, 20)
    p = learner.predict(windows(0, 3)[0])
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert not p[:, [0, 2, 3, 5]].any()


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_any_batch_size_learns(batch: int) -> None:
    learner = make_learner()
    for label in (0, 1):
        learn_stretch(learner, label, 100 + 80 * batch, batch)
    assert min(accuracy(learner, 0), accuracy(learner, 1)) > 0.9


def test_exam_samples_are_never_learnt() -> None:
    learner = make_learner(replace(RULE, exam_share=0.3), exam=50)
    for label in (0, 1):
        learn_stretch(learner, label)
    held = {row.tobytes() for row in learner.exam.items[: learner.exam.size]}
    learnt = {row.tobytes() for row in learner.replay.items[: learner.replay.size]}
    assert len(held) == 50
    assert not held & learnt
    assert learner.learnt + sum(learner.exam.n_seen) == 1200
    assert learner.learnt == sum(learner.replay.n_seen)
    learner.consolidate()
    results = learner.examine()
    assert {label: n for label, (n, _) in results.items()} == {0: 25, 1: 25}
    assert np.mean([accuracy for _, accuracy in results.values()]) > 0.9


def test_an_exam_sample_does_not_move_a_weight() -> None:
    learner = make_learner(replace(RULE, exam_share=1.0), exam=50)
    before = learner.network.arena.flat.clone()
    step = learner.learn(*windows(1, 10))
    assert step.learnt == 0
    assert np.isnan(step.loss)
    assert torch.equal(learner.network.arena.flat, before)
    assert not bool(learner.seen.any())


def test_loss_is_a_number_when_an_exam_sample_is_of_a_class_not_seen() -> None:
    learner = make_learner(replace(RULE, exam_share=0.5), exam=50)
    losses = []
    for label in range(CLASSES):
        for seed in range(4):
            step = learner.learn(*windows(label, 6, seed))
            if step.learnt:
                losses.append(step.loss)
                assert step.predicted.shape == (6,)
    assert len(losses) > CLASSES
    assert np.isfinite(losses).all()


def test_exam_samples_do_not_reach_batch_statistics_of_a_module() -> None:
    """Rows of the exam that go through the learning pass would be in its means, share 0 or not."""
    rule = replace(RULE, exam_share=0.4, replay_per_step=0)
    x, y = windows(0, 20)
    ends = []
    for shift in (0, 2000):
        network = TorchNetwork(normalised().train(), SHAPE)
        reservoirs = (Reservoir(n, SHAPE, np.dtype(np.int16), n_classes=CLASSES) for n in (60, 50))
        learner = Learner(network, *reservoirs, rule, seed=3)
        learner.learn(*windows(0, 10, seed=5))
        examined = np.random.default_rng()
        examined.bit_generator.state = learner.rng.bit_generator.state
        moved = x + (shift * (examined.random(20) < 0.4))[:, None, None].astype(np.int16)
        learner.learn(moved, y)
        ends.append(learner.network.arena.flat.clone())
    assert torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("n", [0, 1, 2])
def test_nothing_and_next_to_nothing_can_be_learnt(n: int) -> None:
    learner = make_learner()
    step = learner.learn(*windows(0, n))
    assert (step.learnt, step.predicted.shape) == (n, (n,))
    assert learner.predict(windows(0, 0)[0]).shape == (0, CLASSES)


def test_a_label_for_each_sample_or_nothing_happens() -> None:
    learner = make_learner()
    learn_stretch(learner, 0, 20)
    before = learner.network.arena.flat.clone()
    with pytest.raises(ValueError, match=r"y: must have a label for each of the 1 samples \(got 3\)"):
        learner.learn(windows(0, 1)[0], np.zeros(3, np.int64))
    assert torch.equal(learner.network.arena.flat, before)


def test_refused_state_changes_nothing() -> None:
    learner, stranger = make_learner(), make_learner()
    learn_stretch(stranger, 0, 50)
    arrays, values = stranger.state()
    before = learner.network.arena.flat.clone()
    with pytest.raises(ValueError, match=r"standardise\.mean"):
        learner.restore({**arrays, "standardise.mean": np.zeros(9, np.float32)}, values)
    assert torch.equal(learner.network.arena.flat, before)


def test_rehearsal_of_one_more_than_a_batch_leaves_no_sample_alone() -> None:
    """A batch statistic of one sample is none."""
    network = TorchNetwork(normalised().train(), SHAPE)
    reservoirs = (Reservoir(n, SHAPE, np.dtype(np.int16), n_classes=CLASSES) for n in (RULE.rehearsal_batch + 1, 0))
    learner = Learner(network, *reservoirs, RULE)
    learn_stretch(learner, 0, 60)
    learner.consolidate()
    assert learner.replay.size == RULE.rehearsal_batch + 1
    assert learner.consolidations == 1


def test_step_is_the_gradient_step_of_the_smoothed_cross_entropy() -> None:
    """Against autograd, on the first step, when there is nothing to replay and no anchor."""
    learner, twin = make_learner(), make_learner()
    x, y = windows(0, 8)
    y[4:] = 3
    learner.learn(x, y)
    twin.network.standardise.observe(torch.from_numpy(x))
    seen = torch.tensor([0, 3])
    flat = twin.network.arena.flat.clone().requires_grad_(True)
    for layer, views in zip(twin.network.layers, twin.network._by_layer(flat), strict=True):
        layer.bind(views)
    logits = twin.network.forward(torch.from_numpy(x))[:, seen]
    targets = torch.from_numpy((y == 3).astype(np.int64))
    loss = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=RULE.label_smoothing)
    (gradient,) = torch.autograd.grad(loss, flat)
    expected = flat.detach() - RULE.learning_rate * gradient
    torch.testing.assert_close(learner.network.arena.flat, expected, atol=1e-7, rtol=1e-5)


def test_both_roads_take_the_same_steps() -> None:
    """The same network of built-in layers and of PyTorch modules, with replay, consolidations and the anchor's pull."""
    here, there = make_mlp(), make_mlp(TorchNetwork(nn.Sequential(nn.Flatten(), *modules()), SHAPE))
    there.network.arena.flat.copy_(here.network.arena.flat)
    for label in (0, 1, 2):
        for learner in (here, there):
            learn_stretch(learner, label, 200)
            learner.consolidate()
    assert here.steps == there.steps == 60
    torch.testing.assert_close(there.network.arena.flat, here.network.arena.flat, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(there.anchor.fisher(), here.anchor.fisher(), atol=1e-4, rtol=1e-2)
    x, _ = windows(1, 50, seed=2)
    np.testing.assert_allclose(there.predict(x), here.predict(x), atol=1e-3)


def test_what_a_dropout_would_have_said_is_not_the_prediction() -> None:
    """A learning pass with half of the units dropped is no honest answer: the samples are answered apart from it."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(120, 16), nn.ReLU(), nn.Dropout(0.9), nn.Linear(16, CLASSES))
    learner = make_mlp(TorchNetwork(module.train(), SHAPE))
    learn_stretch(learner, 0, 100)
    learn_stretch(learner, 1, 100)
    for seed in range(5):
        x, y = windows(seed % 2, 10, seed=9)
        expected = learner.predict(x).argmax(1)
        assert (learner.learn(x, y).predicted == expected).all()


def test_state_of_a_module_has_its_buffers() -> None:
    one, other = (make_mlp(TorchNetwork(normalised(), SHAPE)) for _ in range(2))
    learn_stretch(one, 0, 100)
    other.restore(*one.state())
    x, _ = windows(0, 5)
    np.testing.assert_array_equal(one.predict(x), other.predict(x))


def test_a_lambda_means_the_same_at_any_batch_size() -> None:
    """Loss and Fisher are means over samples: five copies of a sample make the step that one alone makes."""
    one, five = (make_learner(replace(RULE, replay_per_step=0, ewc_lambda=30.0)) for _ in range(2))
    for learner in (one, five):
        learn_stretch(learner, 0, 100)
        learn_stretch(learner, 1, 100)
        learner.consolidate()
        learner.network.standardise.observe = lambda x: None  # type: ignore[method-assign] # five do weigh more there
    before = one.network.arena.flat.clone()
    x, y = windows(2, 30)
    for n in range(30):
        one.learn(x[n : n + 1], y[n : n + 1])
        five.learn(x[[n] * 5], y[[n] * 5])
    torch.testing.assert_close(five.network.arena.flat, one.network.arena.flat, atol=1e-5, rtol=1e-4)
    assert float((one.network.arena.flat - before).abs().max()) > 1e-2


def test_fisher_does_not_grow_with_the_replay_memory() -> None:
    learner = make_learner()
    learn_stretch(learner, 0, 200)
    x = torch.from_numpy(learner.replay.items[: learner.replay.size])
    once, twice = (
        fisher_diagonal(learner.network, samples, classes=learner.seen) for samples in (x, x.repeat(2, 1, 1))
    )
    torch.testing.assert_close(twice, once, rtol=1e-4, atol=1e-8)


def test_rows_of_classes_not_seen_are_free_under_any_lambda() -> None:
    """A strong λ cost up to 30 points of class-incremental accuracy where new classes' rows were held at nothing."""
    learner = make_learner(replace(RULE, ewc_lambda=1e12, rehearsal_passes=0))
    for label in (0, 1):
        learn_stretch(learner, label, 200)
    learner.consolidate()
    head = learner.network.arena.views["4.linear.weight"]
    fisher = learner.network.arena.lay_over(learner.anchor.fisher())["4.linear.weight"]
    assert bool((fisher[:2].amax(1) > 0).all())
    assert not bool(fisher[2:].any())
    before = head.clone()
    learn_stretch(learner, 2, 300)
    moved = (head - before).abs().amax(1)
    assert float(moved[2]) > 2 * float(moved[:2].max())  # those drift between their turns
    assert accuracy(learner, 2) > 0.9


def test_nothing_the_gpu_would_wait_for_is_asked_unless_the_caller_asks() -> None:
    """Predicted classes and loss are worked out when looked at, not by the step."""
    learner = make_learner()
    learn_stretch(learner, 0, 20)
    step = learner.learn(*windows(1, 10))
    assert set(Step.__slots__) == {"objective", "new", "learnt", "answered", "z", "x", "labels", "share"}
    assert 0 < step.loss < 10
    assert step.predicted.shape == (10,)


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
def test_each_kind_of_fisher_serves(kind: str) -> None:
    learner = make_learner(replace(RULE, fisher=kind))
    for label in (0, 1):
        learn_stretch(learner, label, 100)
        learner.consolidate()
    assert float(learner.anchor.fisher().max()) > 0
    assert learner.consolidations == 2


def test_restored_learner_is_the_same_bit_for_bit_from_then_on() -> None:
    rule = replace(RULE, exam_share=0.1)
    one = make_learner(rule, exam=20)
    learn_stretch(one, 0)
    one.consolidate()
    learn_stretch(one, 1, 70)
    arrays, values = one.state()
    arrays = {name: array.copy() for name, array in arrays.items()}
    other = make_learner(rule, exam=20, seed=7)
    other.restore(arrays, values)
    for learner in (one, other):
        learn_stretch(learner, 2)
        learner.consolidate()
    for name, array in one.state()[0].items():
        np.testing.assert_array_equal(array, other.state()[0][name], err_msg=name)
    assert one.state()[1] == other.state()[1]


def test_head_grows_and_nothing_that_was_learnt_changes() -> None:
    """A state of 6 classes goes on in a learner with room for 9: same answers, and the new rows are free."""
    one = make_learner()
    for label in (0, 5):
        learn_stretch(one, label, 200)
    one.consolidate()
    wider = make_learner(outputs=9)
    fresh = wider.network.arena.views["4.linear.weight"][6:].clone()
    wider.restore(*one.state())
    x, _ = windows(0, 20)
    np.testing.assert_allclose(wider.predict(x)[:, :6], one.predict(x), rtol=1e-6)
    assert torch.equal(wider.network.arena.views["4.linear.weight"][6:], fresh)
    assert not bool(wider.network.arena.lay_over(wider.anchor.fisher())["4.linear.weight"][6:].any())
    x, _ = windows(3, 300)
    for start in range(0, 300, 10):
        wider.learn(x[start : start + 10], np.full(10, 8))
    wider.consolidate()
    assert float((wider.predict(x).argmax(1) == 8).mean()) > 0.9
    assert accuracy(wider, 0) > 0.9
    with pytest.raises(ValueError, match=r"parameters: must have shape"):
        one.restore(*wider.state())


def test_state_of_another_model_is_refused() -> None:
    arrays, values = make_learner().state()
    arrays["parameters"] = arrays["parameters"][:-1]
    with pytest.raises(ValueError, match=r"parameters: must have shape \(\d+,\) \(got \(\d+,\)\)"):
        make_learner().restore(arrays, values)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_label_outside_the_outputs_is_refused_and_nothing_moves(label: int) -> None:
    learner = make_learner()
    before = learner.network.arena.flat.clone()
    with pytest.raises(ValueError, match=r"labels must be in 0 … 5"):
        learner.learn(windows(0, 2)[0], np.array([0, label]))
    assert torch.equal(learner.network.arena.flat, before)
    assert learner.replay.size == 0


@pytest.mark.parametrize(
    ("passes", "most", "expected"), [(3, None, 6), (3, 4, 4), (3, 0, 0), (0, None, 0), (1000, None, 300)]
)
def test_a_rehearsal_takes_the_passes_it_should_and_no_more_steps_than_it_may(
    passes: int, most: int | None, expected: int
) -> None:
    """60 samples in cuts of 32 are two steps a pass; the rule's own limit is 300."""
    learner = make_learner(replace(RULE, rehearsal_passes=passes, ewc_lambda=0.0))
    for label in (0, 1):
        learn_stretch(learner, label, 50)
    before = learner.network.arena.flat.clone()
    assert learner.consolidate(most_steps=most) == expected
    assert learner.consolidations == 1
    assert torch.equal(learner.network.arena.flat, before) == (expected == 0)


def test_consolidating_nothing_is_harmless() -> None:
    learner = make_learner()
    learner.consolidate()
    assert learner.consolidations == 0
    assert learner.examine() == {}


@pytest.mark.parametrize("ewc_lambda", [0.0, 3.0, 1e12])
def test_no_lambda_diverges(ewc_lambda: float) -> None:
    learner = make_learner(replace(RULE, ewc_lambda=ewc_lambda))
    for label in range(3):
        learn_stretch(learner, label, 100)
        learner.consolidate()
    assert bool(torch.isfinite(learner.network.arena.flat).all())
