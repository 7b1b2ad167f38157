"""`edge-cl check`: what it measures is what the daemon would hold, and its verdict is an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recordings import record

from edge_cl import assembly
from edge_cl.check import CheckLine, measure
from edge_cl.cli import main
from edge_cl.config import resolve
from edge_cl.daemon import Daemon
from edge_cl.errors import OperatorError
from firmware_bridge.registry import make_source

SMALL = ("model.width=4", "replay.samples=40", "consolidation.rehearsal_passes=1")
GENEROUS = ("budget.step_ms=5000", "budget.predict_ms=5000")  # a loaded machine must not fail a test


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"recording:{record(tmp_path_factory.mktemp('check') / 'signals.npz', 60)}"


def check(capsys: pytest.CaptureFixture[str], source: str, *overrides: str) -> tuple[int, dict[str, dict[str, float]]]:
    chosen = [word for setting in (*SMALL, *GENEROUS, *overrides) for word in ("-s", setting)]
    with pytest.raises(SystemExit) as caught:
        main(["check", "--json", "--source", source, *chosen])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = {line["name"]: line for line in found["lines"]}
    assert found["pass"] is all(line["pass"] for line in lines.values())
    return int(caught.value.code or 0), lines


def test_a_learner_within_its_budgets_passes(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = check(capsys, source)
    assert code == 0
    assert list(lines) == ["memory", "predict p99", "step p99"]
    for line in lines.values():
        assert line["pass"]
        assert 0 < line["measured"] < line["limit"]
        assert line["margin"] == line["limit"] - line["measured"]


def test_the_bytes_measured_are_those_planned(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = resolve(None, SMALL).config
    with make_source(source) as opened:
        task = assembly.task_of(config, opened.schema)
    plan = assembly.plan_of(config, task, assembly.blueprint_of(config, task))
    assert check(capsys, source)[1]["memory"]["measured"] == pytest.approx(plan.nbytes, rel=0.01)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("budget.predict_ms=0.0001", "predict p99"),
        ("budget.step_ms=0.0001", "step p99"),
        ("budget.memory_bytes=64 KiB", "memory"),
    ],
)
def test_each_budget_that_is_exceeded_is_exit_10(
    setting: str, name: str, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = check(capsys, source, setting)
    assert code == 10
    assert [line for line in lines if not lines[line]["pass"]] == [name]
    assert lines[name]["margin"] < 0
    assert lines[name]["advice"]


def test_what_check_measures_for_a_refused_plan_is_the_least_that_holds(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines = check(capsys, source, "budget.memory_bytes=64 KiB")
    least = int(lines["memory"]["measured"])
    assert check(capsys, source, f"budget.memory_bytes={least}")[0] == 0
    assert check(capsys, source, f"budget.memory_bytes={least - 1}")[0] == 10


def test_a_saved_learner_is_measured_and_left_as_it_is(source: str, tmp_path: Path) -> None:
    config = resolve(None, (*SMALL, *GENEROUS)).config
    with pytest.raises(OperatorError, match="no learner was saved there yet"):
        measure(config, state=empty_state(tmp_path / "empty"), source_url=source)
    state = tmp_path / "state"
    Daemon(config, state, source_url=source, once=True).run()
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    lines = measure(config, state=state, source_url=source)
    assert all(line.passed for line in lines)
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before


def empty_state(path: Path) -> Path:
    from edge_cl.storage.state_dir import StateDir

    with StateDir(path):
        return path


def test_exactly_the_limit_passes() -> None:
    assert CheckLine("memory", 10, 10, "bytes").passed
    assert not CheckLine("memory", 10, 11, "bytes").passed
