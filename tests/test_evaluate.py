"""From a request to results, with real processes: replay as large as asked, runs that repeat, refusals before work."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from edge_cl.config import Config, parse
from edge_cl.errors import ConfigError, OperatorError
from edge_cl.evaluation.data import load_dataset
from edge_cl.evaluation.evaluate import (
    Contender,
    Job,
    Request,
    _names,
    _shuffled,
    _sized,
    contender_of,
    evaluate,
    run_job,
)
from edge_cl.evaluation.result import Result, comparison
from edge_cl.evaluation.run import Run
from edge_cl.evaluation.stream import ends
from edge_cl.evaluation.streams import Scenario, make_stream
from firmware_bridge.errors import BadRecording

SMALL = ("model.kind=mlp", "model.width=8", "replay.per_step=5", "consolidation.rehearsal_passes=1", "exam.share=0")
SCENARIO = Scenario("class", experiences=2, limit=60)
SEEDS = 2


def small(*overrides: str) -> Config:
    return parse("", overrides=[*SMALL, *overrides])


def request(**other: object) -> Request:
    """Two contenders on a few digits; `other` replaces fields."""
    contenders = (
        Contender("small", small()),
        Contender("iid", small("replay.per_step=0"), replays=False, shuffles=True),
    )
    return replace(Request("digits", SCENARIO, contenders, replay_samples=(7, 20), seeds=SEEDS), **other)


@pytest.fixture(scope="module")
def evaluated() -> tuple[list[Result], list[tuple[Job, int]]]:
    heard: list[tuple[Job, int]] = []
    return evaluate(request(), lambda job, samples: heard.append((job, samples))), heard


def same_figures(one: Run, other: Run) -> bool:
    return asdict(replace(one, compute_s=0.0)) == asdict(replace(other, compute_s=0.0))


def test_there_is_a_result_for_each_contender_and_size_in_order(evaluated: tuple[list[Result], object]) -> None:
    results, _ = evaluated
    assert [(result.strategy, result.replay_samples) for result in results[:2]] == [("small", 7), ("small", 20)]
    assert [result.strategy for result in results] == ["small", "small", "iid"]  # of which replay has no size
    for result in results:
        assert [run.seed for run in result.runs] == [0, 1]
        assert result.ends == (60, 120)
        assert len(result.experiences) == 2
        assert result.model.startswith("mlp, ")
    json.dumps(comparison(results), allow_nan=False)


def test_a_run_in_a_process_is_the_run_that_would_be_made_here(
    evaluated: tuple[list[Result], list[tuple[Job, int]]],
) -> None:
    results, heard = evaluated
    jobs = list(dict.fromkeys(job for job, _ in heard))
    job = next(job for job in jobs if str(job) == "small with 20 old samples, seed 1")
    assert same_figures(run_job(job, lambda share: None), results[1].runs[1])
    assert not same_figures(results[1].runs[0], results[1].runs[1])


def test_progress_of_every_run_ends_with_all_its_samples(evaluated: tuple[list[Result], list[tuple[Job, int]]]) -> None:
    _, heard = evaluated
    told: dict[str, list[int]] = {}
    for job, samples in heard:
        told.setdefault(str(job), []).append(samples)
    assert len(told) == 3 * SEEDS
    for counts in told.values():
        assert counts == sorted(counts)
        assert counts[-1] == 120


def test_the_settings_told_are_those_that_differ_from_the_defaults(evaluated: tuple[list[Result], object]) -> None:
    results, _ = evaluated
    assert parse("", overrides=results[0].settings).model_dump() == {
        **small().model_dump(),
        "replay": small("replay.samples=7", "replay.memory_bytes=null", "replay.bits=null").replay.model_dump(),
        "budget": parse("", overrides=results[0].settings).budget.model_dump(),
    }
    assert "model.width=8" in results[0].settings
    assert not any(setting.startswith(("storage", "bridge")) for setting in results[0].settings)


@pytest.mark.parametrize("overrides", [(), ("distillation.logits=0.5",), ("replay.bits=4",)])
def test_bytes_of_replay_are_used_and_not_exceeded(overrides: tuple[str, ...]) -> None:
    """Whatever a sample takes: its values in fewer bits, its label, its logits."""
    asked = 5000
    contender = Contender("small", small(*overrides))
    data = load_dataset("digits")
    sized = list(_sized(request(contenders=(contender,), replay_samples=(), replay_bytes=(asked,)), contender, data))
    job = Job("digits", SCENARIO, sized[0], 0, 0, 120)
    run = run_job(job, lambda share: None)
    assert run.replay_bytes <= asked
    assert run.replay_bytes + run.replay_bytes / run.replay_samples > asked


def test_a_strategy_is_overridden_before_and_after() -> None:
    config = contender_of(
        "er", before=["model.width=8", "replay.asymmetric=true"], after=["learning.learning_rate=1"]
    ).config
    assert (config.model.width, config.replay.asymmetric, config.learning.learning_rate) == (8, False, 1.0)
    with pytest.raises(ConfigError, match=r"model\.width"):
        contender_of("er", before=["model.width=0"])


def test_shuffling_deals_the_same_samples_to_experiences_of_the_same_lengths() -> None:
    stream = make_stream(load_dataset("digits"), SCENARIO, seed=0)
    dealt = _shuffled(stream, seed=0)
    assert ends(dealt) == ends(stream)
    everything = Counter(sample.tobytes() for part in stream for sample in part.x)
    assert Counter(sample.tobytes() for part in dealt for sample in part.x) == everything
    label_of = {x.tobytes(): y for part in stream for x, y in zip(part.x, part.y, strict=True)}
    for part, original in zip(dealt, stream, strict=True):
        assert [label_of[x.tobytes()] for x in part.x] == part.y.tolist()
        assert set(part.y) > set(original.y)
        np.testing.assert_array_equal(part.test_x, original.test_x)


def test_experiences_that_differ_between_seeds_are_called_by_number() -> None:
    scenario = Scenario("class", experiences=2, order="random", limit=30)
    stream = make_stream(load_dataset("digits"), scenario, seed=0)
    assert _names(stream, scenario) == ("experience 1", "experience 2")
    assert _names(stream, SCENARIO) == tuple(part.name for part in stream)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seeds": 0}, r"seeds: must be at least 1 \(got 0\)"),
        ({"replay_bytes": (1000,)}, r"in bytes and in samples"),
        ({"contenders": (Contender("a", Config()), Contender("a", Config()))}, r"once \(got a twice\)"),
        ({"scenario": Scenario("task")}, r"iid: is not for scenario task"),
        ({"replay_samples": (), "replay_bytes": (10,)}, r"replay-bytes: must be at least \d+, .* \(got 10\)"),
        ({"source": "nowhere.npz"}, r"nowhere\.npz: no such file"),
    ],
)  # fmt: skip
def test_a_request_that_nobody_can_mean_is_refused_before_any_work(other: dict[str, object], said: str) -> None:
    def told(job: Job, samples: int) -> None:
        pytest.fail("work was begun")

    with pytest.raises((OperatorError, BadRecording), match=said):
        evaluate(request(**other), told)
