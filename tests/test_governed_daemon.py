"""The daemon under load: its steps keep their limit or it says plainly that they do not, and nothing is lost unseen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import record, signals

from edge_cl import assembly
from edge_cl.config import Config, resolve
from edge_cl.daemon import Daemon
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.service.status import Status, Summary
from edge_cl.storage.checkpoint import CheckpointStore
from firmware_bridge.sample import Schema

N = 600
SETTINGS = ("model.width=4", "consolidation.every_steps=0", "exam.samples=20")
IMPOSSIBLE = "budget.step_ms=0.001"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"recording:{record(tmp_path_factory.mktemp('governed') / 'signals.npz', N)}"


def settings(*overrides: str) -> Config:
    return resolve(None, (*SETTINGS, *overrides)).config


def run(state: Path, source: str, *overrides: str, **options: Any) -> tuple[Summary, list[Status]]:
    seen: list[Status] = []
    daemon = Daemon(settings(*overrides), state, source_url=source, once=True, on_status=seen.append, **options)
    return daemon.run(), seen


def saved(state: Path) -> Any:
    found = CheckpointStore(state).load()
    assert found is not None
    return found


def assert_all_accounted_for(state: Path, summary: Summary) -> None:
    """Every sample was answered, and learnt, set aside for the exam, or counted as skipped."""
    learner = saved(state).meta["learner"]
    labelled, learnt = learner["counts"][:2]
    assert summary["samples"] == N
    assert labelled + summary["dropped"]["no_time_to_learn"] == N
    assert summary["dropped"]["no_time_to_learn"] == summary["governor"]["skipped_samples"]
    assert summary["learned"] == learnt <= labelled


@contextmanager
def busy_machine(processes: int = 2) -> Iterator[None]:
    children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_with_other_processes_at_work_the_limit_is_kept_or_the_status_says_that_it_is_not(
    source: str, tmp_path: Path
) -> None:
    quiet, _ = run(tmp_path / "quiet", source, "budget.step_ms=5000")
    assert quiet["governor"]["lowered"] == quiet["dropped"]["no_time_to_learn"] == 0
    assert quiet["step_p50_ms"] is not None
    with busy_machine():
        summary, seen = run(tmp_path / "busy", source, f"budget.step_ms={2 * quiet['step_p50_ms']}")
    assert_all_accounted_for(tmp_path / "busy", summary)
    kept = summary["step_limit"]
    assert kept["late"] * 100 <= kept["seconds"] or not all(status["step_limit"]["kept"] for status in seen)
    decisions = summary["governor"]
    assert 0 <= decisions["replay_per_step"] <= decisions["replay_wanted"] == 20


def test_a_limit_that_nothing_can_keep_is_said_to_be_missed_and_everything_skipped_is_counted(
    source: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    summary, seen = run(state, source, IMPOSSIBLE)
    assert_all_accounted_for(state, summary)
    assert summary["dropped"]["no_time_to_learn"] > N / 3
    assert summary["learned"] > 0
    assert summary["prequential_accuracy"] is not None  # what is not learnt is still answered, and scored
    assert not summary["step_limit"]["kept"]
    told = [status["message"] for status in seen]
    assert any(message.startswith("governor: replay 0 of 20 a step, 1 of ") for message in told)
    assert any(message.startswith("cannot keep budget.step_ms 0.001: over it in ") for message in told)


def test_the_next_run_goes_on_with_what_was_decided(source: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first, _ = run(state, source, IMPOSSIBLE, samples=300)
    second, seen = run(state, source, "budget.step_ms=5000")
    assert saved(state).meta["governor"]["counted"][0] == first["governor"]["lowered"] > 0
    assert seen[0]["governor"]["replay_per_step"] == first["governor"]["replay_per_step"] == 0
    assert second["governor"]["skipped_samples"] >= first["governor"]["skipped_samples"]


def test_answers_over_their_limit_are_said_to_be(source: str, tmp_path: Path) -> None:
    summary, seen = run(tmp_path / "state", source, "budget.predict_ms=0.001", "budget.step_ms=5000")
    assert not summary["predict_limit"]["kept"]
    assert summary["step_limit"]["kept"]
    assert any(status["message"].startswith("cannot keep budget.predict_ms 0.001: over it in ") for status in seen)


# What the governor asks of a learner


def learner() -> OnlineLearner:
    config = settings("exam.share=0")
    task = assembly.task_of(config, Schema("x", "int16", (40, 3), label_names=("a", "b", "c")))
    blueprint = assembly.blueprint_of(config, task)
    return assembly.make_learner(config, task, blueprint, assembly.plan_of(config, task, blueprint), seed=0)


def test_a_step_replays_no_more_than_it_may_and_else_as_always() -> None:
    x, y = signals(100)
    always, allowed, capped = learner(), learner(), learner()
    for start in range(0, 100, 10):
        rows = slice(start, start + 10)
        always.learn(x[rows], y[rows])
        allowed.learn(x[rows], y[rows], most_replayed=20)
        step = capped.learn(x[rows], y[rows], most_replayed=7)
        assert len(step.z) == 10 + (7 if start else 0)
    parameters = [one.network.arena.flat.numpy() for one in (always, allowed, capped)]
    np.testing.assert_array_equal(parameters[0], parameters[1])
    assert not np.array_equal(parameters[0], parameters[2])
    assert len(capped.learn(x[:10], y[:10], most_replayed=0).z) == 10
