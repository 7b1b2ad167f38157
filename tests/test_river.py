"""The river classifier: river's own checks, keys that come and go, and that every answer knows the last sample."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import checks, datasets, dummy, evaluate, metrics, preprocessing

from edge_cl.config import resolve
from edge_cl.estimator import KEYS
from edge_cl.river import RiverClassifier

Pair = tuple[dict[Hashable, Any], Any]


@pytest.mark.parametrize("check", list(checks.yield_checks(RiverClassifier())), ids=lambda check: check.__name__)
def test_rivers_own_checks(check: Callable[[RiverClassifier], None]) -> None:
    random.seed(0)  # some shuffle
    check(RiverClassifier())


def test_none_of_the_checks_is_left_out() -> None:
    assert RiverClassifier()._unit_test_skips() == set()
    assert list(RiverClassifier._unit_test_params()) == [{}]


def stream(n: int, seed: int = 0) -> Iterator[Pair]:
    """Four states of a machine: by temperature, and by which of two bearings hums."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        hot, left = (int(number) for number in rng.integers(0, 2, 2))
        hum = rng.normal(0, 1) + np.array([4.0, 0.0] if left else [0.0, 4.0])
        yield {"temp": 40 + 30 * hot + rng.normal(), "left": hum[0], "right": hum[1]}, f"{hot}{left}"


def learnt(pairs: Iterator[Pair], **parameters: Any) -> RiverClassifier:
    model = RiverClassifier(**{"seed": 0, **parameters})
    for x, y in pairs:
        model.learn_one(x, y)
    return model


def learner_of(model: RiverClassifier) -> Any:
    assert model._estimator is not None
    return model._estimator.learner


def assert_same(one: RiverClassifier, other: RiverClassifier) -> None:
    (arrays, values), (others, other_values) = learner_of(one).state(), learner_of(other).state()
    assert values == other_values
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


# As river runs it


@pytest.mark.parametrize("data", [datasets.Phishing(), datasets.ImageSegments()], ids=["phishing", "segments"])
def test_it_learns_a_stream_that_is_scored_before_it_is_learnt(data: Any) -> None:
    pairs = list(data.take(400))
    ours, majority = (
        evaluate.progressive_val_score(pairs, model, metrics.Accuracy()).get()
        for model in (RiverClassifier(seed=0), dummy.PriorClassifier())
    )
    assert ours > majority + 0.25
    late = evaluate.progressive_val_score(
        data.take(150), RiverClassifier(seed=0), metrics.Accuracy(), moment=None, delay=20
    )
    assert 0 < late.get() < ours  # labels that come late are learnt late


def test_the_same_stream_gives_the_same_answers_with_a_seed() -> None:
    def answers(seed: int) -> list[Any]:
        run = evaluate.iter_progressive_val_score(
            stream(100), RiverClassifier(seed=seed), metrics.Accuracy(), yield_predictions=True
        )
        return [state["Prediction"] for state in run]

    one, other, another = map(answers, (5, 5, 6))
    assert one == other
    assert one != another


def test_pipelines_with_a_scaler_and_with_words() -> None:
    scaled = preprocessing.StandardScaler() | RiverClassifier(seed=0)
    score = evaluate.progressive_val_score(stream(300), scaled, metrics.Accuracy())
    assert score.get() > 0.7
    encoded = preprocessing.OneHotEncoder() | RiverClassifier(seed=0)
    cities = ["rome", "oslo", "lima", "bonn", "pune"]
    for number in range(200):  # a column a city, each when the first of it comes
        city = cities[number % (1 + number // 40)]
        encoded.learn_one({"city": city}, city in ("oslo", "bonn"))
    assert [encoded.predict_one({"city": city}) for city in cities] == [False, True, False, True, False]


# One at a time


def test_an_answer_knows_of_the_sample_just_learnt() -> None:
    model = RiverClassifier(seed=0)
    assert model.predict_one({"a": 1.0}) is None
    assert model.predict_proba_one({"a": 1.0}) == {}
    model.learn_one({"a": 1.0}, "on")
    assert model.predict_proba_one({"a": 1.0}) == {"on": 1.0}
    before = model.predict_proba_one({"a": -1.0})
    model.learn_one({"a": -1.0}, "off")
    assert before.keys() != model.predict_proba_one({"a": -1.0}).keys() == {"on", "off"}
    for step in range(3):
        before = model.predict_proba_one({"a": -1.0})
        model.learn_one({"a": -1.0}, "off")
        assert model.predict_proba_one({"a": -1.0}) != before, step
    assert learner_of(model).steps == 5


def test_it_consolidates_by_the_number_of_samples() -> None:
    assert learner_of(learnt(stream(125), consolidate_every=50)).consolidations == 2
    assert learner_of(learnt(stream(125), consolidate_every=0)).consolidations == 0


def test_defaults_are_those_of_edge_cl_run() -> None:
    config, parameters = resolve(None).config, inspect.signature(RiverClassifier).parameters
    assert KEYS.keys() - parameters.keys() == {"batch_size"}
    for name in KEYS.keys() & parameters.keys():
        group, setting = KEYS[name].split(".")
        assert parameters[name].default == getattr(getattr(config, group), setting)


def test_parameters_reach_the_learner() -> None:
    learner = learner_of(
        learnt(stream(9), width=8, learning_rate=0.03, replay_samples=5, replay_per_step=4, ewc_lambda=1.5,
               settings=("consolidation.gamma=0.5",))
    )  # fmt: skip
    assert learner.network.arena.shapes["1.linear.weight"] == (8, 3)
    rule = learner.rule
    assert (rule.learning_rate, rule.replay_per_step, rule.ewc_lambda, rule.gamma) == (0.03, 4, 1.5, 0.5)
    assert (learner.replay.size, learner.exam.capacity) == (5, 0)


def test_it_says_how_many_bytes_it_holds() -> None:
    pairs = list(stream(40))
    narrow, wide = learnt(iter(pairs)), learnt(iter(pairs), width=64)
    assert wide._raw_memory_usage - narrow._raw_memory_usage >= learner_of(wide).nbytes - learner_of(narrow).nbytes
    assert narrow._raw_memory_usage > learner_of(narrow).nbytes > RiverClassifier()._raw_memory_usage


# Labels


def test_labels_of_any_kind() -> None:
    labels: list[Hashable] = ["idle", 3, False, (1, 2)]
    pairs = [({"a": 4.0 * number, "b": 4.0 * (number % 2)}, label) for number, label in enumerate(labels)] * 60
    model = learnt(iter(pairs))
    assert [model.predict_one(x) for x, _ in pairs[:4]] == labels
    assert list(model.predict_proba_one({"a": 0.0})) == labels


def test_more_labels_than_the_daemon_makes_room_for() -> None:
    def pairs(n: int) -> Iterator[Pair]:
        for number in range(n):
            yield {"a": number % 5 * 3.0, "b": number // 5 % 5 * 3.0}, number % 25

    model = learnt(pairs(600))
    assert learner_of(model).network.n_outputs == 25
    assert sum(model.predict_one(x) == y for x, y in pairs(25)) > 15
    assert sum(model.predict_proba_one({}).values()) == pytest.approx(1.0)


# Features


def test_a_feature_that_was_missing_had_been_zero() -> None:
    """Said of everything the learner keeps but its first weights, which are drawn."""
    pairs = list(stream(60))
    late, always = RiverClassifier(seed=0, replay_per_step=0), RiverClassifier(seed=0, replay_per_step=0)
    for number, (x, y) in enumerate(pairs):
        seen = {"left": x["left"], "right": x["right"]}
        late.learn_one(x if number >= 30 else seen, y)
        always.learn_one(x if number >= 30 else {**seen, "temp": 0}, y)
    assert late._places == {"left": 0, "right": 1, "temp": 2}
    (arrays, _), (others, _) = learner_of(late).state(), learner_of(always).state()
    order = [always._places[key] for key in late._places]
    np.testing.assert_array_equal(arrays["replay.items"], others["replay.items"][:, order])
    np.testing.assert_allclose(arrays["standardise.mean"], others["standardise.mean"][order], rtol=1e-5)
    np.testing.assert_allclose(arrays["standardise.variance"], others["standardise.variance"][order], rtol=1e-5)


def test_a_new_feature_changes_no_answer_until_something_is_learnt_of_it() -> None:
    pairs = list(stream(150))
    model = learnt(iter(pairs), consolidate_every=40)
    before = [model.predict_proba_one(x) for x, _ in pairs]
    anchor = float(learner_of(model).anchor.fisher().sum())
    assert model._estimator is not None
    model._estimator.widen(9)
    model._places |= {f"new {number}": 3 + number for number in range(6)}
    for x, expected in zip((x for x, _ in pairs), before, strict=True):
        assert model.predict_proba_one({**x, "new 2": 77.0}) == pytest.approx(expected, abs=1e-6)
    assert float(learner_of(model).anchor.fisher().sum()) == pytest.approx(anchor, rel=1e-6)
    assert learner_of(model).consolidations == 3


def test_a_feature_that_comes_late_is_learnt() -> None:
    rng = np.random.default_rng(0)
    model = learnt(({"noise": rng.normal()}, bool(number % 2)) for number in range(100))
    for number in range(200):
        model.learn_one({"noise": rng.normal(), "tell": number % 2}, bool(number % 2))
    right = [model.predict_one({"noise": rng.normal(), "tell": n % 2}) == bool(n % 2) for n in range(100)]
    assert sum(right) > 90


def test_missing_is_zero_and_unknown_is_ignored() -> None:
    model = learnt(stream(100))
    x = {"temp": 60.0, "left": 3.0}
    assert model.predict_proba_one(x) == model.predict_proba_one({**x, "right": 0})
    assert model.predict_proba_one(x) == model.predict_proba_one({**x, "humidity": 1e9})
    assert list(model._places) == ["left", "right", "temp"]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", 3, ("d",)]), st.floats(-9, 9, width=32)), max_size=12))
def test_keys_may_come_and_go_in_any_way(rows: list[dict[Hashable, float]]) -> None:
    model = RiverClassifier(seed=0, consolidate_every=5, width=4)
    for number, x in enumerate(rows):
        model.learn_one(x, number % 3)
        p = model.predict_proba_one(x)
        assert sum(p.values()) == pytest.approx(1.0)
        assert all(0 <= value <= 1 for value in p.values())
    known = {key for x in rows for key in x}
    assert model._places.keys() == known
    assert not rows or learner_of(model).replay.shape == (max(1, len(known)),)


def test_keys_in_any_order_are_the_same_features() -> None:
    pairs = list(stream(50))
    one = learnt(iter(pairs))
    other = learnt((dict(reversed(x.items())), y) for x, y in pairs)
    assert_same(one, other)


@pytest.mark.parametrize("value", [None, "warm", "3.5", float("nan"), float("inf"), 1e39, [1.0]])
def test_what_is_no_number_is_refused_and_changes_nothing(value: Any) -> None:
    model = learnt(stream(30))
    before = copy.deepcopy(model)
    x = {"temp": value, "left": 0.0, "other": 1.0}
    for refused in (lambda: model.learn_one(x, "00"), lambda: model.predict_one(x)):
        with pytest.raises(ValueError, match=r"temp: must be a finite number \(got "):
            refused()
    assert model._places == before._places
    assert_same(model, before)


def test_features_that_do_not_fit_into_the_memory_are_refused_and_change_nothing() -> None:
    model = learnt(stream(30), memory_bytes="1100 KiB")
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"^memory_bytes: must be at least [\d,]+ to hold one sample"):
        model.learn_one({f"word {number}": 1 for number in range(500)}, "00")
    assert model._places == before._places
    for x, y in stream(20, seed=1):
        assert model.predict_proba_one(x) == before.predict_proba_one(x)
        model.learn_one(x, y)
        before.learn_one(x, y)
    assert_same(model, before)


def test_wider_samples_leave_room_for_fewer() -> None:
    model = learnt(stream(100), memory_bytes="1100 KiB", replay_samples=None, width=4)
    held = learner_of(model).replay.capacity
    model.learn_one({f"word {number}": 1 for number in range(100)}, "00")
    learner = learner_of(model)
    assert learner.replay.capacity < held
    assert learner.nbytes < 1100 * 1024


# Copies


def test_a_copy_goes_on_bit_for_bit() -> None:
    """The road of pickle, whose own trip is among river's checks."""
    one = learnt(stream(120), consolidate_every=50)
    other = copy.deepcopy(one)
    for x, y in stream(80, seed=1):
        x["late"] = x["left"] * 2
        assert one.predict_proba_one(x) == other.predict_proba_one(x)
        one.learn_one(x, y)
        other.learn_one(x, y)
    assert_same(one, other)


def test_a_clone_has_the_parameters_and_knows_nothing() -> None:
    used = learnt(stream(20), width=9, settings=("consolidation.gamma=0.5",))
    fresh = used.clone()
    assert (fresh.width, fresh.settings, fresh.seed) == (9, ("consolidation.gamma=0.5",), 0)
    assert fresh.predict_one({"temp": 1.0}) is None
    kept = used.clone(include_attributes=True)
    assert_same(kept, used)
