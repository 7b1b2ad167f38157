"""Faults told from a normal state that was learnt in one pass: on vibrations of which the truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import save

from edge_cl.config import parse
from edge_cl.errors import OperatorError
from edge_cl.evaluation import anomaly
from edge_cl.evaluation.anomaly import anomaly_stream, evaluate_anomaly, run_anomaly
from edge_cl.evaluation.anomaly_result import AnomalyResult, AnomalyRun
from edge_cl.evaluation.data import load_dataset
from edge_cl.evaluation.motor import motor_dataset
from edge_cl.learning.metrics import auroc
from firmware_bridge.motor import STATES, Motor

NAMES = ("whine", "Normal", "hum")


def vibrations(path: Path, n: int = 100) -> Path:
    """Noise of equal energy, through three filters; of each class the second half at another load, and louder."""
    rng = np.random.default_rng(0)
    filters = {"whine": [1, -1], "Normal": [1, 0], "hum": [1, 1]}
    noise = rng.normal(0, 200, (3, n, 129))
    x = np.stack([a * noise[c, :, 1:] + b * noise[c, :, :-1] for c, (a, b) in enumerate(filters.values())])
    x /= x.std((1, 2), keepdims=True) / 200
    load = np.repeat([[0, 1]], n // 2, 1).repeat(3, 0).reshape(3, n)
    x *= (1 + load)[:, :, None]
    y = np.arange(3).repeat(n)
    return save(path, x=x.reshape(-1, 128).astype(np.int16), y=y, load=load.ravel(), label_names=np.array(NAMES))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(vibrations(tmp_path_factory.mktemp("anomaly") / "vibrations.npz"))


@pytest.fixture(scope="module")
def result(recording: str) -> AnomalyResult:
    return evaluate_anomaly(recording, parse(""), within="load", seeds=2)


def test_faults_are_told_from_the_normal_state(result: AnomalyResult) -> None:
    assert result.auroc.mean is not None
    assert result.auroc.mean > 0.95
    assert set(result.auroc_by_class) == {"whine", "hum"}
    energy = result.baselines["energy"].mean
    assert energy is not None
    assert abs(energy - 0.5) < 0.1  # there is nothing in it: that is how the data were made
    by_class = [one.mean for one in result.auroc_by_class.values() if one.mean is not None]
    assert result.auroc.mean == pytest.approx(np.mean(by_class))  # as many samples of each


def test_only_normal_samples_that_are_not_held_out_are_learnt(recording: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[Any] = []

    def spying(*arguments: Any, **named: Any) -> Any:
        learner = make(*arguments, **named)
        step = learner.learn
        learner.learn = lambda x, y: (learnt.extend(x), step(x, y))[1]
        return learner

    make = anomaly.make_learner
    monkeypatch.setattr(anomaly, "make_learner", spying)
    stream = anomaly_stream(load_dataset(recording), None, None)
    run = run_anomaly(stream, anomaly._self_supervised(parse("")), seed=0)
    data = load_dataset(recording)
    np.testing.assert_array_equal(np.stack(learnt), data.x[data.y == 1])
    assert run.normal_samples == len(learnt) == 70


def test_what_is_scored_is_held_out_of_every_class(recording: str) -> None:
    data = load_dataset(recording, within="load")
    stream = anomaly_stream(data, "NORMAL", "load")
    assert [condition.name for condition in stream.conditions] == ["load 0", "load 1"]
    held = np.concatenate([condition.test_x for condition in stream.conditions])
    np.testing.assert_array_equal(held, data.test_x[data.test_y == 1])
    assert list(stream.faults) == ["whine", "hum"]
    for name, x in stream.faults.items():
        np.testing.assert_array_equal(x, data.test_x[data.test_y == NAMES.index(name)])


def test_the_same_seed_gives_the_same_figures_and_another_others(recording: str, result: AnomalyResult) -> None:
    again = evaluate_anomaly(recording, parse(""), within="load", seeds=1)
    one, other = (replace(run, compute_s=0.0) for run in (again.runs[0], result.runs[0]))
    assert one == other
    assert result.runs[0].curve != result.runs[1].curve


def test_a_class_is_named_by_its_name_or_number_and_is_normal_by_default(recording: str) -> None:
    data = load_dataset(recording)
    assert anomaly_stream(data, None, None).normal == "Normal"
    assert anomaly_stream(data, "2", None).normal == "hum"
    assert anomaly_stream(data, "whine", None).normal == "whine"
    nameless = replace(data, label_names=("a", "b", "c"))
    assert anomaly_stream(nameless, None, None).normal == "a"


def test_the_score_falls_while_the_normal_state_is_learnt(result: AnomalyResult) -> None:
    curve = result.runs[0].curve
    samples = [samples for samples, _ in curve]
    assert samples == sorted(samples)
    first_condition = [score for samples, score in curve if samples < 35]
    assert first_condition[-1] < first_condition[0]


def test_what_would_be_forgotten_is_shown_only_where_there_is_what_to_forget(
    recording: str, result: AnomalyResult
) -> None:
    assert set(result.forgetting) == {"as configured", "without EWC", "without replay", "without both"}
    assert set(result.score_rise) == set(result.forgetting)
    single = evaluate_anomaly(recording, parse(""))
    assert single.conditions == ("normal",)
    assert single.forgetting == {}


def test_scores_rise_where_nothing_protects_them(recording: str, result: AnomalyResult) -> None:
    """By hand: condition 0 scored 2 when it was learnt, 3 at the end; what came last does not count."""
    stream = anomaly_stream(load_dataset(recording, within="load"), None, "load")
    config = anomaly._self_supervised(parse(""))
    passage = anomaly._Passage(stream, anomaly._learner(config, stream, 0))
    passage.means = np.array([[2.0, np.nan], [3.0, 100.0]])
    assert passage.score_rise == 1.5


def test_its_json_has_what_scripts_were_promised(result: AnomalyResult) -> None:
    found = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert set(found["auroc"]) == set(found["auroc_reference"]) == {"mean", "std"}
    assert set(found["auroc_by_class"]) == {"whine", "hum"}
    for key in ("normal_samples", "learner_bytes", "replay_bytes", "samples_per_s", "seeds"):
        assert found[key] > 0
    assert found["seeds"] == len(found["runs"]) == 2


def test_the_table_has_a_line_for_each_fault_and_each_baseline(result: AnomalyResult) -> None:
    names = [name for name, _ in result.table()]
    assert names[:3] == ["all faults", "whine", "hum"]
    assert len(names) == 3 + 3 + 4


def test_figures_of_several_seeds_are_put_together() -> None:
    one = AnomalyRun(0, 0.5, {"a": 0.5}, 0.5, 0.5, 0.5, [], {}, {}, 10, 1, 2, 1.0)
    both = AnomalyResult("d", "m", "n", ("normal",), (one, replace(one, auroc=1.0, compute_s=3.0, learner_bytes=7)))
    found = both.as_json()
    assert found["auroc"] == {"mean": 0.75, "std": pytest.approx(0.125**0.5)}
    assert found["samples_per_s"] == 5.0
    assert found["learner_bytes"] == 7


@pytest.mark.parametrize(
    ("named", "overrides", "message"),
    [
        ({"normal": "loud"}, (), r"normal: must be one of whine, Normal, hum \(got loud\)"),
        ({"normal": "3"}, (), r"normal: must be one of"),
        ({"within": "speed"}, (), r"there is no mark of this name \(got speed\)"),
        ({"seeds": 0}, (), r"seeds: must be at least 1 \(got 0\)"),
        ({}, ("model.kind=mlp",), r"model.kind: must be auto, autoencoder or predictor .*\(got mlp\)"),
    ],
)
def test_what_nobody_can_mean_is_refused(
    recording: str, named: dict[str, Any], overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(OperatorError, match=message):
        evaluate_anomaly(recording, parse("", overrides=overrides), **named)


def test_data_without_faults_are_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 100, (20, 128)).astype(np.int16)
    path = save(tmp_path / "one.npz", x=x, y=np.zeros(20, np.int64))
    with pytest.raises(OperatorError, match=r"normal and other ones held out \(got 14, 6 and 0\)"):
        evaluate_anomaly(str(path), parse(""))


def test_the_motor_is_the_board_s_own_in_windows_and_the_end_of_each_stretch_is_held_out() -> None:
    data, motor = motor_dataset(3), Motor(3)
    assert data.x.shape == (10 * 175, 256, 3)
    assert data.test_x.shape == (10 * 75, 256, 3)
    assert data.label_names == STATES
    first = np.concatenate([sample.values for sample, _ in zip(motor.samples(), range(8), strict=False)])
    np.testing.assert_array_equal(data.x[0], first)
    last = np.concatenate([motor.rows(20 * 10 - 1)])[-256:]  # of the last second of the last stretch
    np.testing.assert_array_equal(data.test_x[-1], last)
    np.testing.assert_array_equal(data.y[::175], [0, 1, 2, 3, 4] * 2)
    np.testing.assert_array_equal(data.test_marks["round"][::75], [0] * 5 + [1] * 5)


def test_faults_of_the_motor_are_told_from_its_normal_state() -> None:
    data = motor_dataset(7)
    config = anomaly._self_supervised(parse("", overrides=["replay.samples=100"]))
    run = run_anomaly(anomaly_stream(data, None, "round"), config, seed=0)
    assert run.auroc > 0.98
    assert run.auroc > run.untrained
    assert run.normal_samples == 350


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    normal, faults = np.array([1.0, 2.0, 3.0]), np.array([2.5, 4.0])
    pairs = [(n < f) for n in normal for f in faults]
    assert anomaly._auroc(normal, faults) == pytest.approx(np.mean(pairs)) == auroc([1, 2, 3, 2.5, 4], [0, 0, 0, 1, 1])
