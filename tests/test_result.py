"""Several runs to one result: the figures of the field on a hand-written R, and JSON that any parser reads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.evaluation.result import Result, Spread, comparison, scores_of
from edge_cl.evaluation.run import Run

R = [[0.90, 0.10, 0.20], [0.70, 0.80, 0.30], [0.60, 0.75, 0.95]]


def run_of(seed: int = 0, **other: Any) -> Run:
    """A run on three experiences of 100 samples with the matrix above; `other` replaces fields."""
    fields: dict[str, Any] = {
        "seed": seed,
        "accuracy_matrix": R,
        "untrained": [0.30, 0.05, 0.10],
        "curve": [(50, [0.80, None, None]), (100, R[0]), (200, R[1]), (300, R[2])],
        "prequential_accuracy": 0.5,
        "prequential_faded": 0.6,
        "prequential_curve": [(100, 0.4), (200, 0.5), (300, 0.6)],
        "lowest_old_accuracy": 0.55,
        "no_change": 0.9,
        "majority": 0.4,
        "replay_bytes": 1000,
        "replay_samples": 10,
        "learner_bytes": 5000,
        "compute_s": 2.0,
        "samples": 300,
        "consolidations": 3,
    }
    return Run(**(fields | other))


def result_of(*runs: Run, **other: Any) -> Result:
    """A result of those runs (one of seed 0 if none are given); `other` replaces fields."""
    fields: dict[str, Any] = {
        "data": "digits",
        "scenario": "class",
        "strategy": "er",
        "model": "mlp",
        "experiences": ("0 1", "2 3", "4 5"),
        "ends": (100, 200, 300),
        "settings": ("replay.samples=10",),
        "runs": runs or (run_of(),),
    }
    return Result(**(fields | other))


def test_the_figures_are_those_of_the_matrix() -> None:
    result = result_of()
    assert result.average_accuracy.mean == pytest.approx((0.60 + 0.75 + 0.95) / 3)
    assert result.forgetting.mean == pytest.approx(((0.90 - 0.60) + (0.80 - 0.75)) / 2)
    assert result.backward_transfer.mean == pytest.approx(((0.60 - 0.90) + (0.75 - 0.80)) / 2)
    assert result.forward_transfer.mean == pytest.approx(((0.10 - 0.05) + (0.30 - 0.10)) / 2)
    assert result.average_accuracy.std == 0.0


def test_a_spread_is_over_the_seeds_and_divides_by_one_less() -> None:
    runs = [run_of(seed, prequential_accuracy=accuracy) for seed, accuracy in enumerate((0.2, 0.4, 0.9))]
    found = result_of(*runs).prequential_accuracy
    assert (found.mean, found.std) == (
        pytest.approx(np.mean([0.2, 0.4, 0.9])),
        pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1)),
    )


def test_a_figure_that_one_seed_lacks_is_not_that_of_the_others() -> None:
    result = result_of(run_of(0), run_of(1, lowest_old_accuracy=None))
    assert result.lowest_old_accuracy == Spread(None, None)
    assert result.lowest_old_accuracy.percent == "–"


def test_the_matrix_is_the_mean_over_the_seeds_and_null_where_one_was_not_asked() -> None:
    other = [[0.70, None, 0.20], *R[1:]]
    matrix = result_of(run_of(0), run_of(1, accuracy_matrix=other)).as_json()["accuracy_matrix"]
    assert matrix[0] == [pytest.approx(0.8), None, pytest.approx(0.2)]
    assert matrix[1] == pytest.approx(R[1])


def test_bytes_are_those_of_the_largest_and_speed_counts_all_seeds() -> None:
    runs = run_of(0, replay_bytes=900, compute_s=1.0), run_of(1, replay_bytes=1000, compute_s=3.0)
    result = result_of(*runs)
    assert (result.replay_bytes, result.samples_per_s) == (1000, 600 / 4.0)
    assert result_of(run_of(compute_s=0.0)).as_json()["samples_per_s"] is None


def test_the_json_has_the_keys_of_the_contract() -> None:
    found = json.loads(json.dumps(result_of(run_of(0), run_of(1)).as_json(), allow_nan=False))
    spreads = {
        "average_accuracy", "forgetting", "backward_transfer", "forward_transfer", "lowest_old_accuracy",
        "prequential_accuracy",
    }  # fmt: skip
    plain = {
        "accuracy_matrix", "replay_bytes", "replay_samples", "learner_bytes", "samples_per_s", "seeds", "data",
        "scenario", "strategy", "settings", "model", "experiences", "baselines", "runs",
    }  # fmt: skip
    assert set(found) == spreads | plain
    assert all(set(found[name]) == {"mean", "std"} for name in spreads)
    assert {name: set(value) for name, value in found["baselines"].items()} == {
        "no_change": {"mean", "std"},
        "majority": {"mean", "std"},
    }
    assert found["seeds"] == 2
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert found["runs"][0]["curve"][0] == [50, [0.8, None, None]]


def test_what_a_stream_does_not_define_is_null_twice() -> None:
    run = run_of(accuracy_matrix=[[None]], untrained=[None], curve=[], lowest_old_accuracy=None)
    found = result_of(run, experiences=("digits",), ends=(300,), scenario="stream").as_json()
    nothing = {"mean": None, "std": None}
    for name in ("average_accuracy", "forgetting", "backward_transfer", "forward_transfer", "lowest_old_accuracy"):
        assert found[name] == nothing
    assert found["prequential_accuracy"] == {"mean": 0.5, "std": 0.0}
    assert found["accuracy_matrix"] == [[None]]


def test_a_comparison_names_data_and_scenario_once_and_keeps_the_order() -> None:
    found = comparison([result_of(), result_of(strategy="ewc")])
    assert set(found) == {"data", "scenario", "results"}
    assert [one["strategy"] for one in found["results"]] == ["er", "ewc"]


ACCURACY = st.none() | st.floats(0, 1) | st.sampled_from([float("nan"), float("inf")])


@given(st.lists(st.lists(ACCURACY, min_size=9, max_size=9), min_size=1, max_size=3), ACCURACY)
@settings(max_examples=40)
def test_the_json_is_valid_whatever_was_measured(matrices: list[list[float | None]], other: float | None) -> None:
    runs = [
        run_of(
            seed,
            accuracy_matrix=[row[:3], row[3:6], row[6:]],
            untrained=row[:3],
            prequential_accuracy=other,
            lowest_old_accuracy=other,
            compute_s=other or 0.0,
        )
        for seed, row in enumerate(matrices)
    ]
    with np.errstate(invalid="ignore"):  # inf - inf, which no accuracy is
        text = json.dumps(result_of(*runs).as_json(), allow_nan=False)
    assert json.loads(text)["seeds"] == len(matrices)


def test_columns_without_a_figure_are_left_out() -> None:
    run = run_of(no_change=None, majority=None)
    assert [score.name for score in scores_of([result_of(run)])] == [
        "average", "forgetting", "lowest old", "backward", "forward", "prequential",
    ]  # fmt: skip
