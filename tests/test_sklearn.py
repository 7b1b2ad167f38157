"""The scikit-learn classifier: scikit-learn's own checks, and that it is the daemon's learner and no other."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.datasets import load_iris, make_blobs
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_docs import ROOT, Block, blocks

from edge_cl import assembly
from edge_cl.config import resolve
from edge_cl.estimator import KEYS
from edge_cl.sklearn import EdgeClassifier
from firmware_bridge.sample import Schema

SHOWN = [block for block in blocks(ROOT / "docs" / "ADAPTERS.md") if block.language == "python"]


@parametrize_with_checks([EdgeClassifier()])
def test_scikit_learns_own_checks(
    estimator: EdgeClassifier, check: Callable[[EdgeClassifier], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # without it scikit-learn skips its check of array_api input
    check(estimator)


def three(n: int = 300, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Three blobs of four features, far enough apart to be told."""
    x, y = make_blobs(n, n_features=4, centers=[[0] * 4, [3] * 4, [6, 0, 6, 0]], random_state=seed)
    return x, y


def class_after_class(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    order = np.argsort(y, kind="stable")
    return x[order], y[order]


def begun(**parameters: Any) -> EdgeClassifier:
    x, y = three(60)
    return EdgeClassifier(random_state=0, **parameters).partial_fit(x, y)


def assert_same(one: EdgeClassifier, other: EdgeClassifier) -> None:
    """Bit for bit, down to the random numbers to come."""
    (arrays, values), (others, other_values) = one.learner_.state(), other.learner_.state()
    assert values == other_values
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    np.testing.assert_array_equal(one.classes_, other.classes_)


# The daemon's learner


def test_partial_fit_is_the_daemons_learner_and_nothing_else() -> None:
    x, y = three(1215)
    ours = EdgeClassifier(random_state=3, settings=("consolidation.gamma=0.5",)).partial_fit(x, y)
    config = resolve(None, ["exam.share=0", "consolidation.gamma=0.5"]).config
    task = assembly.task_of(config, Schema("blobs", "float32", (4,)))
    blueprint = assembly.blueprint_of(config, task)
    planned = assembly.plan_of(config, task, blueprint)
    seed = int(np.random.RandomState(3).randint(2**31 - 1))
    learner = assembly.make_learner(config, task, blueprint, planned, seed=seed)
    for step, start in enumerate(range(0, 1215, 10), start=1):
        learner.learn(x[start : start + 10].astype(np.float32), y[start : start + 10])
        if step % config.consolidation.every_steps == 0:
            learner.consolidate()
    np.testing.assert_array_equal(ours.predict_proba(x), learner.predict(x.astype(np.float32))[:, :3])
    assert learner.consolidations == ours.learner_.consolidations == 1


def test_defaults_are_those_of_edge_cl_run() -> None:
    config = resolve(None).config
    parameters = inspect.signature(EdgeClassifier).parameters
    for name, key in KEYS.items():
        group, setting = key.split(".")
        assert parameters[name].default == getattr(getattr(config, group), setting)


def test_parameters_reach_the_learner() -> None:
    learner = begun(
        width=8, learning_rate=0.03, batch_size=7, replay_samples=11, replay_per_step=5, ewc_lambda=1.5
    ).learner_
    assert learner.network.arena.shapes["1.linear.weight"] == (8, 4)
    rule = learner.rule
    assert (rule.learning_rate, rule.batch_size, rule.replay_per_step, rule.ewc_lambda) == (0.03, 7, 5, 1.5)
    assert (learner.replay.capacity, learner.exam.capacity, learner.steps) == (11, 0, 9)


@pytest.mark.parametrize("cut", [10, 250])
def test_how_a_stream_is_cut_into_calls_does_not_matter(cut: int) -> None:
    x, y = three()
    whole = EdgeClassifier(random_state=1, consolidate_every=100).partial_fit(x, y)
    cuts = EdgeClassifier(random_state=1, consolidate_every=100)
    for start in range(0, 300, cut):
        cuts.partial_fit(x[start : start + cut], y[start : start + cut], classes=[0, 1, 2])
    assert_same(whole, cuts)
    assert whole.learner_.consolidations == 3


def test_replay_is_what_the_memory_holds() -> None:
    x, y = three(200)
    small = EdgeClassifier(memory_bytes="1200 KiB", replay_samples=None).partial_fit(x, y).learner_
    large = EdgeClassifier(memory_bytes="1210 KiB", replay_samples=None).partial_fit(x, y).learner_
    more = large.replay.nbytes - small.replay.nbytes
    assert abs(more - 10 * 1024) < large.replay.nbytes / large.replay.capacity  # one sample
    assert small.nbytes < 1200 * 1024


def test_the_same_stream_gives_the_same_answers() -> None:
    x, y = three()
    one, other, another = (EdgeClassifier(random_state=seed, passes=2).fit(x, y) for seed in (0, 0, 1))
    assert_same(one, other)
    assert (one.predict_proba(x) != another.predict_proba(x)).any()


# Learning


def test_classes_one_after_another_are_remembered() -> None:
    x, y = class_after_class(*three(600))
    later, truth = three(300, seed=1)
    ours = EdgeClassifier(random_state=0)
    bare = EdgeClassifier(random_state=0, replay_per_step=0, consolidate_every=0, settings=("replay.asymmetric=false",))
    for classifier in (ours, bare):
        for label in range(3):
            classifier.partial_fit(x[y == label], y[y == label])
    ours.learner_.consolidate()
    assert ours.score(later, truth) > 0.9
    assert bare.score(later, truth) < 0.7  # it forgets: the stream is no easy one
    assert np.bincount(truth).max() / len(truth) < 0.4


def test_fit_learns_what_a_majority_cannot() -> None:
    x, y = load_iris(return_X_y=True)
    x, later, y, truth = train_test_split(x, y, random_state=0, stratify=y)
    assert EdgeClassifier(random_state=0).fit(x, y).score(later, truth) > 0.8


def test_fit_begins_anew_and_partial_fit_goes_on() -> None:
    x, y = three()
    fresh, used = EdgeClassifier(random_state=0, passes=2), begun(passes=2)
    assert_same(fresh.fit(x, y), used.fit(x, y))
    assert used.learner_.learnt == 600
    assert used.partial_fit(x[:10], y[:10]).learner_.learnt == 610
    x, y = x[y > 0, :2], y[y > 0]
    assert used.fit(x, y).n_features_in_ == 2
    assert used.classes_.tolist() == [1, 2]


# Labels


def test_labels_may_be_texts_and_come_unannounced() -> None:
    x, y = three(400)
    names = np.array(["rolling", "idle", "knocking"])
    known, late = y < 2, y == 2
    classifier = EdgeClassifier(random_state=0).partial_fit(x[known], names[y[known]])
    assert classifier.classes_.tolist() == ["idle", "rolling"]
    before = classifier.predict_proba(x)
    assert set(classifier.predict(x)) == {"idle", "rolling"}

    classifier.partial_fit(x[late], names[y[late]])
    classifier.learner_.consolidate()
    assert classifier.classes_.tolist() == ["idle", "knocking", "rolling"]
    assert classifier.predict_proba(x).shape == (400, before.shape[1] + 1)
    assert classifier.score(x, names[y]) > 0.9
    of_idle = classifier.predict_proba(x)[:, 0]
    assert of_idle[y == 1].mean() > of_idle[y != 1].mean() + 0.2  # the column moved with its class


def test_an_announced_class_has_no_probability_until_it_comes() -> None:
    x, y = three()
    classifier = EdgeClassifier(random_state=0).partial_fit(x[y < 2], y[y < 2], classes=[-5, 0, 1, 2])
    p = classifier.predict_proba(x)
    assert classifier.classes_.tolist() == [-5, 0, 1, 2]
    assert (p[:, [0, 3]] == 0).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    classifier.partial_fit(x, y)
    assert (classifier.predict_proba(x)[:, 3] > 0).all()


def test_a_head_too_small_grows_and_forgets_nothing() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 8, (20, 6))
    y = np.repeat(np.arange(20), 40)
    x = centres[y] + rng.normal(size=(800, 6))
    first = y < 16
    classifier = EdgeClassifier(random_state=0, passes=4).fit(x[first], y[first])
    before = classifier.predict_proba(x[first])
    classifier._estimator.meet(range(20))
    np.testing.assert_array_equal(classifier.predict_proba(x[first]), before)
    for _ in range(5):
        classifier.partial_fit(x[~first], y[~first])
    classifier.learner_.consolidate()
    assert classifier.learner_.network.n_outputs == 20
    assert classifier.score(x[first], y[first]) > 0.8
    assert classifier.score(x[~first], y[~first]) > 0.8


def test_labels_that_make_no_sense_are_refused() -> None:
    x, y = three(60)
    with pytest.raises(ValueError, match=r"classes: must name every label of y, \[2\] not among them"):
        EdgeClassifier().partial_fit(x, y, classes=[0, 1])
    with pytest.raises(ValueError, match="string and number"):
        begun().partial_fit(x, y.astype(str))
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        begun().partial_fit(x, y + 0.5)


# What is wrong is said


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"width": 0}, r"^width: must be ≥ 1 \(got 0\)"),
        ({"learning_rate": -1.0}, r"^learning_rate: must be > 0 \(got -1.0\)"),
        ({"replay_per_step": "many"}, r"^replay_per_step: must be a whole number \(got 'many'\)"),
        ({"batch_size": 2.5}, r"^batch_size: must be a whole number \(got 2.5\)"),
        ({"memory_bytes": "1100 KiB", "width": 200}, r"^memory_bytes: must be at least [\d,]+ to hold one sample"),
        ({"settings": ("consolidation.gamma=2",)}, r"^consolidation.gamma: must be ≤ 1 \(got 2\)"),
        ({"settings": ("consolidation.gama=2",)}, r"consolidation.gama: .*gamma"),
        ({"settings": ("model.max_classes=2",)}, r"^model.max_classes: must hold the 3 classes"),
        ({"consolidate_every": -1}, r"^consolidate_every: must be at least 0 samples \(got -1\)"),
        ({"passes": 0}, r"^passes: must be at least 1 \(got 0\)"),
        ({"sample_shape": (2, 3)}, r"^sample_shape: must hold the 4 features of a row \(got \(2, 3\)\)"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, Any], said: str) -> None:
    x, y = three(60)
    with pytest.raises(ValueError, match=said):
        EdgeClassifier(**parameters).fit(x, y)


# In scikit-learn's company


def test_numpys_numbers_serve_as_parameters() -> None:
    x, y = three()
    search = GridSearchCV(
        make_pipeline(StandardScaler(), EdgeClassifier(random_state=0, passes=1)),
        {"edgeclassifier__width": np.array([4, 16]), "edgeclassifier__learning_rate": np.logspace(-5, -1, 2)},
        cv=2,
        error_score="raise",
    )
    search.fit(x, y)
    assert search.best_params_["edgeclassifier__learning_rate"] == 0.1
    assert search.best_score_ > 0.9


def test_a_clone_has_the_parameters_and_knows_nothing() -> None:
    used = begun(width=9, settings=("consolidation.gamma=0.5",))
    fresh = clone(used)
    assert fresh.get_params() == used.get_params()
    assert not hasattr(fresh, "classes_")
    assert_same(fresh.partial_fit(*three()), clone(used).partial_fit(*three()))


def test_columns_of_a_table_keep_their_names() -> None:
    x, y = three(60)
    table = pd.DataFrame(x, columns=["rpm", "load", "temp", "g"])
    classifier = EdgeClassifier(passes=1).fit(table, pd.Series(y))
    assert classifier.feature_names_in_.tolist() == ["rpm", "load", "temp", "g"]
    with pytest.raises(ValueError, match="feature names should match"):
        classifier.predict(table[["load", "rpm", "temp", "g"]])


@pytest.mark.parametrize(("shape", "kind"), [(None, "mlp"), ((64, 2), "cnn1d"), ((16, 8, 1), "cnn2d")])
def test_the_shape_of_a_sample_chooses_the_network(shape: tuple[int, ...] | None, kind: str) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = rng.normal(size=(40, 128)) * (1 + 3 * y[:, None])
    classifier = EdgeClassifier(sample_shape=shape, width=4, passes=3, random_state=0).fit(x, y)
    assert classifier.learner_.network.kind == kind
    assert classifier.predict_proba(x).shape == (40, 2)
    assert (classifier.score(x, y) > 0.9) or shape is None


# Copies


def test_a_copy_goes_on_bit_for_bit() -> None:
    """The road of pickle, whose own trip is among scikit-learn's checks: `__getstate__`, `__setstate__`."""
    x, y = three()
    one = begun(consolidate_every=100)
    other = copy.deepcopy(one)
    assert_same(one, other)
    for classifier in (one, other):
        classifier.partial_fit(x, y)
        classifier.partial_fit(x, y + 2)  # two classes more
    assert_same(one, other)
    one.partial_fit(x, y)
    assert one.learner_.learnt == other.learner_.learnt + 300  # and apart


def test_a_state_in_pages_that_must_not_be_written_to_will_do() -> None:
    one = begun()
    state = copy.deepcopy(one._estimator.__getstate__())
    for array in state["learner"][0].values():
        array.setflags(write=False)
    other = begun()
    other._estimator.__setstate__(state)
    x, y = three()
    assert_same(one.partial_fit(x, y), other.partial_fit(x, y))


# The page, and the extra


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: str(block.line))
def test_what_the_page_shows_runs(block: Block) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block.text, f"ADAPTERS.md:{block.line}", "exec"), {})
    answer = said.getvalue().split()[-1]
    assert answer == "fault" or float(answer.rstrip("%")) > (85 if answer.endswith("%") else 0.85)


def test_the_page_shows_both_libraries() -> None:
    text = "".join(block.text for block in SHOWN)
    assert all(f"from edge_cl.{name} import" in text for name in ("sklearn", "river"))


def test_nothing_else_imports_the_libraries() -> None:
    modules = ["edge_cl", "edge_cl.cli", "edge_cl.estimator"]
    code = f"import sys, {', '.join(modules)}; sys.exit(bool({{'sklearn', 'river', 'pandas'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
