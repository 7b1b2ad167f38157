"""The template learner: exact in whatever order a stream comes, honest in its answers, and a snapshot for nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

from edge_cl.learning.graph import graph, weights
from edge_cl.learning.learner import NOT_SEEN
from edge_cl.learning.network import Network
from edge_cl.learning.prototypes import NearestMean, StreamingLDA
from edge_cl.learning.replay import Reservoir
from edge_cl.learning.rule import Rule
from edge_cl.learning.template_learner import FIXED_AFTER, NEWS, TemplateLearner, template_blueprint
from edge_cl.storage.snapshot import Deployed, fill, verify
from edge_cl.storage.template import start_build

KINDS = [NearestMean, StreamingLDA]
N_FEATURES = st.sampled_from([0, 12])
C, CHANNELS = 5, 6
Samples = tuple[NDArray[np.int16], NDArray[np.int64]]


def readings(n: int = 600, *, seed: int = 0, n_classes: int = 4) -> Samples:
    """Samples (6,) of four classes in a sensor's own counts, each channel with its own unit and offset."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    centres = np.random.default_rng(99).normal(0, 1.5, (n_classes, CHANNELS))
    x = (centres[y] + rng.normal(size=(n, CHANNELS))) * [3, 10, 30, 100, 300, 1000] + [0, 50, -500, 900, 2000, -3000]
    return x.astype(np.int16), y


def learner(
    kind: type[NearestMean] = StreamingLDA,
    n_features: int = 0,
    *,
    shape: tuple[int, ...] = (CHANNELS,),
    n_classes: int = C,
    exam: int = 0,
    seed: int = 0,
) -> TemplateLearner:
    network = Network(template_blueprint(shape, n_classes, n_features), seed=seed)
    templates = kind(*network.layers[-1].shapes["weight"])
    held_out = Reservoir(exam, shape, np.dtype(np.int16), n_classes=n_classes)
    return TemplateLearner(network, templates, held_out, Rule(exam_share=0.2), seed=seed)


def teach(made: TemplateLearner, x: NDArray[Any], y: NDArray[np.int64], batch: int = 10) -> TemplateLearner:
    for start in range(0, len(y), batch):
        made.learn(x[start : start + batch], y[start : start + batch])
    made.consolidate()
    return made


def in_class_order(x: NDArray[Any], y: NDArray[np.int64]) -> Samples:
    order = np.argsort(y, kind="stable")
    return x[order], y[order]


def standardised(x: NDArray[Any], by: NDArray[Any]) -> NDArray[np.float64]:
    return (x - by.mean(0)) / by.std(0)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_what_a_batch_over_all_of_it_gives(kind: type[NearestMean], ordered: bool) -> None:
    """Whatever the statistics of the inputs were when a sample came: as if all had been standardised at the end."""
    x, y = readings()
    probes, _ = readings(400, seed=1)
    made = teach(learner(kind), *(in_class_order(x, y) if ordered else (x, y)))
    priors = np.full(4, 0.25)
    oracle = (
        NearestCentroid()
        if kind is NearestMean
        else LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.01, priors=priors)
    )
    oracle.fit(standardised(x, x), y)
    same = made.predict(probes).argmax(1) == oracle.predict(standardised(probes, x))
    assert same.mean() >= 0.99


def test_probabilities_are_those_of_the_distances() -> None:
    """p ∝ exp(-½ d² / √(D/2)) over the classes seen, with d the distance to each mean among the standardised."""
    x, y = readings()
    made = teach(learner(NearestMean), x, y)
    standardise = made.network.standardise
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    apart = (x[:50, None] - means) * standardise.inverse_deviation.numpy()
    odds = np.exp(-0.5 * (apart**2).sum(2) / np.sqrt(CHANNELS / 2))
    p = made.predict(x[:50])
    np.testing.assert_allclose(p[:, :4], odds / odds.sum(1, keepdims=True), atol=1e-4)
    assert (p[:, 4] == 0).all()


@pytest.mark.parametrize("n_features", [0, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_old_classes_are_not_forgotten(kind: type[NearestMean], n_features: int) -> None:
    """Class after class, and as well at the end on the first as a learner that saw them mixed."""
    x, y = readings(1200)
    probes, labels = readings(400, seed=1)
    ordered = teach(learner(kind, n_features), *in_class_order(x, y))
    mixed = teach(learner(kind, n_features), x, y)
    first = labels < 2
    right = [(made.predict(probes).argmax(1) == labels)[first].mean() for made in (ordered, mixed)]
    assert right[0] > 0.7
    assert right[0] > right[1] - 0.1


def test_a_channel_that_begins_to_move_late_speaks_from_then_on() -> None:
    """As with a sensor that only a fault moves: through the first hundred samples its deviation is nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 10, (400, CHANNELS)).astype(np.int16)
    y = np.repeat([0, 1], 200)
    x[:, 5] = np.where(y == 1, 60, 7)
    for n_features in (0, 40):
        made = teach(learner(StreamingLDA, n_features), x, y)
        assert (made.predict(x).argmax(1) == y).mean() > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_random_features_never_learn_and_stand_still_after_the_first_samples(kind: type[NearestMean]) -> None:
    x, y = readings()
    made = learner(kind, 12)
    frozen = [view.clone() for name, view in made.network.arena.views.items() if name.startswith("1.")]
    teach(made, x[: FIXED_AFTER + 10], y[: FIXED_AFTER + 10])
    mean, variance = made.network.standardise.mean.clone(), made.network.standardise.variance.clone()
    teach(made, x, y)
    assert torch.equal(made.network.standardise.mean, mean)
    assert torch.equal(made.network.standardise.variance, variance)
    after = [view for name, view in made.network.arena.views.items() if name.startswith("1.")]
    assert len(frozen) == 2
    assert all(torch.equal(before, now) for before, now in zip(frozen, after, strict=True))


def test_random_features_come_from_the_seed() -> None:
    x, y = readings()
    one, same, other = (teach(learner(n_features=12, seed=seed), x, y).predict(x) for seed in (3, 3, 4))
    assert (one == same).all()
    assert not np.allclose(one, other)


@pytest.mark.parametrize(
    ("shape", "n_features", "layers"),
    [
        ((6,), 0, ["Flatten", "Linear"]),
        ((6,), 9, ["Flatten", "Linear", "ReLU", "Linear"]),
        ((20, 20), 9, ["Flatten", "Linear", "ReLU", "Linear"]),
        ((128, 3), 8, ["Conv", "LogVariancePool", "Linear"]),
        ((128,), 8, ["Conv", "LogVariancePool", "Linear"]),
        ((128, 3), 0, ["Flatten", "Linear"]),
    ],
)
def test_the_network_under_the_templates(shape: tuple[int, ...], n_features: int, layers: list[str]) -> None:
    blueprint = template_blueprint(shape, C, n_features)
    assert (blueprint.kind, blueprint.shape) == ("templates", shape)
    assert [type(layer).__name__ for layer in blueprint.layers] == layers
    made = learner(n_features=n_features, shape=shape)
    x = np.random.default_rng(0).integers(-50, 50, (20, *shape)).astype(np.int16)
    made.learn(x, np.arange(20) % 4)
    assert made.predict(x).shape == (20, C)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(KINDS), N_FEATURES, st.integers(0, 100))
def test_what_a_step_says_was_predicted_is_what_predict_says(
    kind: type[NearestMean], n_features: int, seed: int
) -> None:
    """Also on the step that brings a new class, which must not be among the answers yet."""
    x, y = readings(80, seed=seed)
    x, y = in_class_order(x, y)
    made = learner(kind, n_features, exam=20)
    for start in range(0, 80, 8):
        p = made.predict(x[start : start + 8])
        step = made.learn(x[start : start + 8], y[start : start + 8])
        expected = np.where(p.any(1), p.argmax(1), NOT_SEEN) if start else np.full(8, NOT_SEEN)
        assert step.predicted.tolist() == expected.tolist()
        assert step.new == 8
        assert np.isfinite(step.loss) or step.learnt == 0
    assert made.learnt + made.exam.size == 80


def test_the_loss_of_a_step_is_the_cross_entropy_before_it() -> None:
    x, y = readings()
    made = teach(learner(), x, y)
    p = made.predict(x[:10])
    assert made.learn(x[:10], y[:10]).loss == pytest.approx(-np.log(p[np.arange(10), y[:10]]).mean(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_never_seen_has_no_probability(kind: type[NearestMean]) -> None:
    x, y = readings()
    made = learner(kind)
    assert not made.predict(x).any()
    teach(made, x[y < 2], y[y < 2])
    p = made.predict(np.concatenate([x, x * 3]))
    assert (p[:, 2:] == 0).all()
    np.testing.assert_allclose(p.sum(1), 1.0, atol=1e-5)
    assert made.seen.tolist() == [True, True, False, False, False]


def test_the_head_is_never_more_than_a_hundredth_behind() -> None:
    """An answer is that of a learner consolidated at most 1 % of all samples before, and never lacks a class."""
    x, y = readings(3000)
    made, renewed = learner(NearestMean), 0
    for start in range(0, 3000, 5):
        before = made._head.own["weight"].clone()
        made.learn(x[start : start + 5], y[start : start + 5])
        made.predict(x[:1])
        renewed += not torch.equal(before, made._head.own["weight"])
        assert made._since <= NEWS * made.learnt
        assert made.seen.tolist() == (made._head.own["weight"] != 0).any(1).tolist()
    assert 100 < renewed < 400  # of 600 steps


def test_consolidation_brings_the_head_up_to_date() -> None:
    x, y = readings(1001)
    made = teach(learner(), x[:1000], y[:1000])
    made.learn(x[1000:], y[1000:])
    before = made._head.own["weight"].clone()
    made.predict(x[:1])
    assert torch.equal(made._head.own["weight"], before)
    made.consolidate()
    assert not torch.equal(made._head.own["weight"], before)
    assert made.consolidations == 2


def test_nothing_is_consolidated_before_anything_was_learnt() -> None:
    made = learner()
    made.consolidate()
    assert made.consolidations == 0
    assert made.examine() == {}


def test_samples_of_the_exam_are_never_learnt() -> None:
    x, y = readings()
    made = teach(learner(exam=50), x, y)
    n_examined = sum(made.exam.n_seen)
    assert 60 < n_examined < 180  # a fifth of 600, six standard deviations of 10
    assert made.learnt == int(made.templates.counts.sum()) == 600 - n_examined
    examined = made.examine()
    assert sum(n for n, _ in examined.values()) == made.exam.size == 50
    assert all(accuracy > 0.5 for _, accuracy in examined.values())


def test_one_absurd_reading_does_not_move_a_template_far() -> None:
    """Beyond sixteen deviations nothing counts, in the templates as in the statistics."""
    x, y = readings()
    made, glitched = (teach(learner(NearestMean), x, y) for _ in range(2))
    glitched.learn(np.full((1, CHANNELS), 32767, np.int16), y[:1])
    glitched.consolidate()
    same = made.predict(x).argmax(1) == glitched.predict(x).argmax(1)
    assert same.mean() > 0.97


def test_nothing_in_a_step_or_a_question_is_no_fault() -> None:
    x, y = readings(20)
    made = learner(exam=5)
    assert made.predict(x[:0]).shape == (0, C)
    step = made.learn(x[:0], y[:0])
    assert (step.new, step.learnt, step.predicted.tolist()) == (0, 0, [])
    assert np.isnan(step.loss)
    teach(made, x, y)
    assert made.learn(x[:0], y[:0]).learnt == 0


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (np.zeros((2, CHANNELS), np.int16), [0], r"y: must have a label for each of the 2 samples \(got 1\)"),
        (np.zeros((2, CHANNELS), np.int16), [0, C], r"y: labels must be in 0 … 4 \(got 0 … 5\)"),
        (np.zeros((2, CHANNELS), np.int16), [-1, 0], r"got -1 … 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(x, y, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        learner().learn(x, np.array(y))


def test_templates_of_another_shape_are_refused() -> None:
    network = Network(template_blueprint((CHANNELS,), C, 0))
    exam = Reservoir(0, (CHANNELS,), np.dtype(np.int16), n_classes=C)
    with pytest.raises(ValueError, match=r"templates: must be of shape \(5, 6\).*\(got \(5, 7\)\)"):
        TemplateLearner(network, NearestMean(C, 7), exam, Rule())


def through_a_file(state: tuple[dict[str, NDArray[Any]], dict[str, Any]]) -> tuple[dict[str, NDArray[Any]], Any]:
    arrays, values = state
    return {name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(values))


@pytest.mark.parametrize("steps", [0, 1, 7, 40])
@pytest.mark.parametrize("n_features", [0, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_restored_goes_on_bit_for_bit(kind: type[NearestMean], n_features: int, steps: int) -> None:
    """Also with another seed: the random features are in the state."""
    x, y = readings()
    whole, first, second = (learner(kind, n_features, exam=30, seed=seed) for seed in (0, 0, 5))
    for start in range(0, 10 * steps, 10):
        for made in (whole, first):
            made.learn(x[start : start + 10], y[start : start + 10])
    second.restore(*through_a_file(first.state()))
    for start in range(10 * steps, 600, 10):
        for made in (whole, second):
            made.learn(x[start : start + 10], y[start : start + 10])
    assert (whole.predict(x) == second.predict(x)).all()
    ours, theirs = whole.state(), second.state()
    assert all((ours[0][name] == array).all() for name, array in theirs[0].items())
    assert ours[1] == theirs[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_may_grow(kind: type[NearestMean]) -> None:
    x, y = readings()
    narrow, wide = teach(learner(kind, 12), x, y), learner(kind, 12, n_classes=9, seed=5)
    wide.restore(*through_a_file(narrow.state()))
    np.testing.assert_allclose(wide.predict(x)[:, :C], narrow.predict(x), atol=1e-6)
    assert not wide.predict(x)[:, C:].any()
    wide.learn(x[:10], np.full(10, 8))
    assert wide.predict(x[:10])[:, 8].any()


def test_another_models_state_is_refused_and_changes_nothing() -> None:
    x, y = readings()
    made = teach(learner(NearestMean, 12), x, y)
    before = made.predict(x)
    for other in (learner(NearestMean, 13), learner(NearestMean, 0), learner(NearestMean, 12, n_classes=C + 1)):
        with pytest.raises(ValueError, match=r"parameters: must have shape"):
            made.restore(*teach(other, x, y).state())
    assert (made.predict(x) == before).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_all_that_is_held(kind: type[NearestMean]) -> None:
    """The frozen weights, too: a device holds them, wherever they come from."""
    raw, random = learner(kind, exam=50), learner(kind, 100, exam=50)
    assert raw.nbytes >= raw.network.arena.nbytes + raw.templates.nbytes + raw.exam.nbytes
    assert random.nbytes - raw.nbytes == (
        random.network.arena.nbytes - raw.network.arena.nbytes + random.templates.nbytes - raw.templates.nbytes
    )
    assert random.network.arena.nbytes > 4 * 100 * CHANNELS
    assert raw.replay.nbytes == 0


@pytest.mark.parametrize(("shape", "n_features"), [((CHANNELS,), 0), ((64, 2), 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_answers_as_the_learner(kind: type[NearestMean], shape: tuple[int, ...], n_features: int) -> None:
    """Without any code of its own; readings far from everything included, where a class unseen must not win either."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = (rng.normal(size=(300, *shape)) * 40 * (1 + y.reshape(-1, *[1] * len(shape))) + 10).astype(np.int16)
    made = teach(learner(kind, n_features, shape=shape), x, y)
    probes = np.concatenate([x[:20], np.full((1, *shape), 32767, np.int16), rng.integers(-30000, 30000, (20, *shape))])
    template = start_build(graph(made.network.blueprint, 4)).result(60)
    model = fill(template, weights(made.network, 4, made.seen.numpy()), {})
    expected = made.predict(probes.astype(np.int16))[:, :4]
    assert verify(Deployed(model), probes.astype(np.float32), expected) < 1e-5
    assert (expected[:, 3] == 0).all()
    np.testing.assert_allclose(expected.sum(1), 1.0, atol=1e-5)


def test_on_digits_class_after_class_it_needs_no_second_look() -> None:
    """8 x 8 images in class order, one pass, every third kept for the question."""
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8).astype(np.int16)
    asked = np.arange(len(y)) % 3 == 0
    taught = in_class_order(x[~asked], y[~asked])
    accuracies = []
    for kind, n_features in ((NearestMean, 0), (StreamingLDA, 0), (StreamingLDA, 300)):
        made = teach(learner(kind, n_features, shape=(8, 8), n_classes=10), *taught)
        accuracies.append((made.predict(x[asked]).argmax(1) == y[asked]).mean())
    assert accuracies[0] > 0.85
    assert accuracies[1] > 0.9
    assert accuracies[2] > 0.95
