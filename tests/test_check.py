"""`edge-cl check`: what it measures is what the daemon would hold, its verdict is an exit code, its advice mends."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import record, save, signals

from edge_cl import assembly
from edge_cl.check import advice
from edge_cl.check.costs import snapshot_lines
from edge_cl.check.feed import MADE_UP, Feed, MadeUp, batch_of, look
from edge_cl.check.line import CheckLine
from edge_cl.check.measure import measure
from edge_cl.check.parts import held
from edge_cl.check.workload import LEAST_STEPS, Stream, Workload
from edge_cl.cli import main
from edge_cl.config import Config, resolve
from edge_cl.daemon import Daemon
from edge_cl.errors import OperatorError
from edge_cl.service.status import Status
from edge_cl.storage.state_dir import StateDir
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Schema

SMALL = ("model.width=4", "replay.samples=40", "consolidation.rehearsal_passes=1")
GENEROUS = ("budget.step_ms=5000", "budget.predict_ms=5000")  # a loaded machine must not fail a test
PERCENTILES = ("p50", "p90", "p99", "max")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"recording:{record(tmp_path_factory.mktemp('check') / 'signals.npz', 60)}"


Lines = dict[str, dict[str, Any]]


def check(
    capsys: pytest.CaptureFixture[str], source: str, *overrides: str, options: tuple[str, ...] = ()
) -> tuple[int, Lines]:
    chosen = [word for setting in (*SMALL, *GENEROUS, *overrides) for word in ("-s", setting)]
    with pytest.raises(SystemExit) as caught:
        main(["check", "--json", "--source", source, *chosen, *options])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = {line["name"]: line for line in found["lines"]}
    assert len(lines) == len(found["lines"])
    assert found["pass"] is all(line["pass"] for line in lines.values())
    return int(caught.value.code or 0), lines


def failed(lines: Lines) -> list[str]:
    return [name for name, line in lines.items() if not line["pass"]]


def advised(line: dict[str, Any]) -> str:
    """`key old → new` as an override."""
    key, _, change = line["advice"].partition(" ")
    return f"{key}={change.split(' → ')[1]}"


# What is measured


@pytest.fixture(scope="module")
def whole(source: str) -> Any:
    return measure(resolve(None, (*SMALL, *GENEROUS)).config, state=None, source_url=source)


def test_a_learner_within_its_budgets_passes_and_everything_is_told(whole: Any) -> None:
    lines = {line.name: line for line in whole.lines}
    assert whole.passed
    assert whole.left_out == {}
    assert not any(line.advice for line in whole.lines)
    told = [f"{what} {which}" for what in ("predict", "step") for which in PERCENTILES]
    told += ["memory", "consolidation", "snapshot size", "snapshot fill", "snapshot verify", "process", "process floor"]
    told += ["checkpoint size", "checkpoint save", "checkpoints an hour"]
    told += [f"export {bits} {what}" for bits in ("float32", "float16", "int8") for what in ("size", "p50", "p99")]
    assert [name for name in told if name not in lines] == []
    assert all(lines[name].measured > 0 for name in told)
    limited = {name for name, line in lines.items() if line.limit is not None and not name.startswith("memory: ")}
    assert limited == {"memory", "predict p99", "step p99", "consolidation"}
    for what in ("predict", "step"):
        quantiles = [lines[f"{what} {which}"].measured for which in PERCENTILES]
        assert quantiles == sorted(quantiles)
    assert whole.conditions["threads"] == 1
    assert whole.conditions["predictions"] == 10 * whole.conditions["steps"]
    assert 0 < whole.conditions["at_work"] <= 1.01
    assert lines["process"].measured > lines["process floor"].measured / 2


def test_its_bytes_are_those_that_the_daemon_says(whole: Any, source: str, tmp_path: Path) -> None:
    lines = {line.name: line for line in whole.lines}
    assert sum(line.measured for name, line in lines.items() if name.startswith("memory: ")) == lines["memory"].measured
    config = resolve(None, (*SMALL, *GENEROUS)).config
    summary = Daemon(config, tmp_path / "state", source_url=source, once=True).run()
    assert lines["memory"].measured == pytest.approx(summary["learner_bytes"], rel=0.01)


@pytest.mark.parametrize(
    "setting",
    [
        "replay.bits=8",
        "model.kind=slda",
        "model.kind=autoencoder",
        "distillation.teacher=1",
        "consolidation.importance=path",
        "consolidation.trigger=adwin",
        "model.module=user_modules:Flat",
    ],
)
def test_the_parts_of_every_learner_are_held_as_planned(setting: str, source: str) -> None:
    config = resolve(None, (*SMALL, "replay.bits=null", setting)).config
    workload = workload_of(config, source)
    found = held(workload.learner, workload.planned)
    planned = {part.name: part.nbytes for part in workload.planned.parts}
    assert {name for name, size in found.items() if size} <= planned.keys()
    for name, size in planned.items():
        assert found.get(name, 0) == pytest.approx(size, rel=0.01, abs=8), name
    assert sum(found.values()) == workload.learner.nbytes + workload.planned.promised


def workload_of(config: Config, source: str) -> Workload:
    stream = Stream.of(config, source)
    blueprint = assembly.blueprint_of(config, stream.task)
    return Workload(config, stream, blueprint, assembly.plan_of(config, stream.task, blueprint))


def test_a_saved_learner_is_measured_and_left_as_it_is(source: str, tmp_path: Path) -> None:
    config = resolve(None, (*SMALL, *GENEROUS)).config
    with StateDir(tmp_path / "empty"), pytest.raises(OperatorError, match="no learner was saved there yet"):
        measure(config, state=tmp_path / "empty", source_url=source)
    state = tmp_path / "state"
    Daemon(config, state, source_url=source, once=True).run()
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    found = measure(config, state=state, source_url=source)
    assert found.passed
    assert found.conditions["replay_samples"] <= 40
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before


def test_a_plan_is_the_bytes_alone(source: str, capsys: pytest.CaptureFixture[str], whole: Any) -> None:
    code, lines = check(capsys, source, options=("--plan",))
    assert code == 0
    assert all(name.startswith("memory") for name in lines)
    measured = {line.name: line.measured for line in whole.lines}
    assert lines["memory"]["measured"] == pytest.approx(measured["memory"], rel=0.01)
    code, lines = check(capsys, source, "budget.memory_bytes=64 KiB", options=("--plan",))
    assert (code, failed(lines)) == (10, ["memory"])


def test_a_plan_of_a_saved_learner_is_refused(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", "--plan", "--state", str(tmp_path), "--source", source])
    assert caught.value.code == 2
    assert "--plan / --state" in capsys.readouterr().err


def feed_of(source: str, *overrides: str) -> tuple[Feed, MadeUp]:
    config = resolve(None, (*SMALL, *overrides)).config
    stream = Stream.of(config, source)
    alike = MadeUp(stream.task, len(stream.task.label_names), stream.shown)
    return Feed(source, config, alike), alike


def test_a_recording_is_answered_as_it_is_and_again_when_it_is_over(source: str) -> None:
    x, y = signals(60 + 60)
    real = {values.tobytes(): int(label) for values, label in zip(x[:60], y[:60], strict=True)}
    feed, _ = feed_of(source)
    with feed:
        fed = [feed.next() for _ in range(100)]
    assert feed.made_up < 100  # those for which a loaded machine left the reader no time
    assert sum(real.get(values.tobytes()) == label for values, label in fed) == 100 - feed.made_up


def test_windows_of_a_board_are_its_own_and_what_it_does_not_send_in_time_is_made_up() -> None:
    feed, alike = feed_of("simulated:motor")  # a window each 80 ms
    with feed:
        started = time.monotonic()
        fed = [feed.next() for _ in range(20)]
        took_s = time.monotonic() - started
    assert feed.made_up > 0
    assert 20 - feed.made_up <= took_s / 0.08 + 1
    assert {values.shape for values, _ in fed} == {alike.task.shape}
    assert {values.dtype for values, _ in fed} == {alike.task.dtype}


def test_a_source_that_falls_silent_does_not_stop_the_check() -> None:
    feed, _ = feed_of("simulated:motor?speed=max&samples=4")  # half a window
    with feed:
        for _ in range(3):
            feed.next()
    assert feed.made_up == 3


def test_what_is_made_up_looks_like_the_source_channel_by_channel(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal((1000.0, -3.0), (10.0, 0.5), (64, 8, 2)).astype(np.float32)
    with make_source(f"recording:{save(tmp_path / 'two.npz', x=x, y=np.arange(64) % 3)}") as source:
        task = assembly.task_of(resolve(None, ()).config, source.schema)
        shown = look(source, task)
    made, labels = MadeUp(task, 3, shown).draw(MADE_UP)
    assert made.dtype == np.float32
    assert made.shape == (MADE_UP, 8, 2)
    assert set(labels) == {0, 1, 2}
    np.testing.assert_allclose(made.mean((0, 1)), (1000.0, -3.0), rtol=0.05)
    np.testing.assert_allclose(made.std((0, 1)), (10.0, 0.5), rtol=0.2)
    nothing = np.empty((0, *task.shape), np.float32)
    assert np.isfinite(MadeUp(task, 3, nothing).draw(10)[0]).all()


def test_a_step_is_of_as_many_samples_as_come_while_the_daemon_waits() -> None:
    config = resolve(None, ("learning.max_wait_ms=100",)).config

    def batch(schema: Schema, *, can_wait: bool = False) -> int:
        return batch_of(config, assembly.task_of(config, schema), schema, can_wait=can_wait)

    motor = Schema("motor", "int16", (32, 3), rate_hz=3200.0, window=(256, 256))  # a window each 80 ms
    assert batch(motor, can_wait=True) == 10
    assert batch(motor) == 2
    assert batch(replace(motor, rate_hz=None)) == 10  # nobody knows: the most it may be
    assert batch(replace(motor, rate_hz=32_000.0)) == 10
    assert batch(replace(motor, rate_hz=160.0)) == 1
    assert batch(Schema("slow", "float32", (5,), rate_hz=1.0)) == 1


def test_a_step_of_a_live_board_is_as_large_as_the_daemons(tmp_path: Path) -> None:
    source, config = "simulated:motor", resolve(None, (*SMALL, *GENEROUS, "exam.share=0")).config
    told: list[Status] = []
    Daemon(config, tmp_path / "state", source_url=source, samples=20, on_status=told.append).run()
    batch = Stream.of(config, source).batch
    assert told[-1]["learned"] / told[-1]["steps"] == pytest.approx(batch, rel=0.3)


def test_a_run_is_over_in_time_and_has_its_least_steps(source: str) -> None:
    workload = workload_of(resolve(None, SMALL).config, source)
    workload.fill()
    times = workload.run(LEAST_STEPS + 10, warm_up=1, longest_s=0.0)
    assert len(times.step) == LEAST_STEPS
    assert len(times.predict) == 10 * LEAST_STEPS
    assert len(workload.run(3, warm_up=1, longest_s=0.0).step) == 3


# Verdicts and advice


def test_exactly_the_limit_passes_and_without_one_nothing_fails() -> None:
    assert CheckLine("memory", 10, 10, "bytes").passed
    assert not CheckLine("memory", 10, 11, "bytes").passed
    assert CheckLine("memory", 10, 11, "bytes").margin == -1
    assert CheckLine("process", None, 10**12, "bytes").passed
    assert CheckLine("process", None, 10**12, "bytes").margin is None


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("budget.memory_bytes=200 KiB",), "bridge.queue_bytes"),
        (("budget.memory_bytes=100 KiB", "bridge.queue_bytes=16 KiB", "exam.samples=2000"), "exam.samples"),
        (
            ("budget.memory_bytes=300 KiB", "bridge.queue_bytes=4 KiB", "exam.samples=20", "model.width=64"),
            "model.width",
        ),
        (("budget.memory_bytes=10 KiB", "bridge.queue_bytes=4 KiB", "exam.samples=20"), "budget.memory_bytes"),
    ],
)
def test_advice_for_memory_passes_by_exactly_as_much_as_it_must(
    overrides: tuple[str, ...], key: str, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (*overrides, "storage.durability=checkpoint")  # a journal would need more than these budgets
    code, lines = check(capsys, source, *overrides, options=("--plan",))
    assert (code, failed(lines)) == (10, ["memory"])
    assert lines["memory"]["margin"] < 0
    mended = advised(lines["memory"])
    assert mended.startswith(f"{key}=")
    assert check(capsys, source, *overrides, mended, options=("--plan",))[0] == 0
    least = -1 if key == "budget.memory_bytes" else 1
    hair = f"{key}={int(mended.partition('=')[2]) + least}"
    assert check(capsys, source, *overrides, hair, options=("--plan",))[0] == 10


def test_less_replay_is_advised_first_and_as_much_as_there_is_time_for() -> None:
    config = resolve(None, ("replay.per_step=4000", "budget.memory_bytes=64 MiB")).config
    assert (
        advice.for_step(config, 401.0, lambda changed: 1 + changed.replay.per_step / 10) == "replay.per_step 4000 → 400"
    )


def test_a_step_far_over_its_limit_keeps_it_with_the_replay_that_is_advised(source: str) -> None:
    def step_ms(changed: Config) -> float:
        workload = workload_of(changed, source)
        workload.fill()
        return float(np.median(workload.run(10, warm_up=2).step))

    config = resolve(None, (*SMALL, "replay.per_step=4000", "budget.memory_bytes=64 MiB")).config
    measured = step_ms(config)
    config = advice.changed(config, "budget.step_ms", measured / 3)
    said = advice.for_step(config, measured, step_ms)
    replay = int(said.removeprefix("replay.per_step 4000 → "))
    assert replay < 2000
    assert step_ms(advice.changed(config, "replay.per_step", replay)) < measured


def steps_of(config: Config, milliseconds: float) -> str:
    return advice.for_step(config, milliseconds, lambda changed: 20.0 + changed.model.width)


def test_where_replay_does_not_mend_a_width_does_and_else_the_budget() -> None:
    config = resolve(None, ("model.width=64",)).config
    assert steps_of(config, 84.0) == "model.width 64 → 16"
    assert (
        steps_of(resolve(None, ("model.width=64", "budget.step_ms=10")).config, 84.0) == "budget.step_ms 10.0 → 100.0"
    )


def test_a_time_that_is_exceeded_is_exit_10_with_advice(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = check(capsys, source, "budget.predict_ms=0.0001", "budget.step_ms=0.0001", "budget.snapshot_bytes=1")
    assert code == 10
    assert failed(lines) == ["predict p99", "step p99", "snapshot size"]
    for name, key in (("predict p99", "budget.predict_ms"), ("step p99", "budget.step_ms")):
        mended = advised(lines[name])
        assert mended.startswith(key)  # no width answers within a tenth of a microsecond
        assert float(mended.partition("=")[2]) > lines[name]["measured"]


def test_advice_for_a_snapshot_is_a_width_that_keeps_its_size(source: str) -> None:
    config = resolve(None, ("model.width=16", "budget.snapshot_bytes=10 KiB")).config
    workload = workload_of(config, source)
    workload.learner.learn(*workload.samples(10))
    size = snapshot_lines(workload)[0][0]
    assert not size.passed
    said = advice.for_snapshot(config, workload.stream.task, int(size.measured))
    width = int(said.removeprefix("model.width 16 → "))
    mended = workload_of(advice.changed(config, "model.width", width), source)
    mended.learner.learn(*mended.samples(10))
    assert snapshot_lines(mended)[0][0].passed


def test_advice_for_a_consolidation_is_as_much_rehearsal_as_there_is_time_for(source: str) -> None:
    lengthy = (
        "consolidation.rehearsal_passes=1000",
        "consolidation.rehearsal_steps=1000",
        "budget.consolidation_ms=2000",
    )
    config = resolve(None, (*SMALL, *lengthy)).config
    workload = workload_of(config, source)
    workload.fill()
    took, rehearsed = workload.consolidate()
    assert rehearsed == 1000
    said = advice.for_consolidation(workload, max(took, 4000.0), rehearsed)
    steps = int(said.removeprefix("consolidation.rehearsal_steps 1000 → "))
    assert 0 < steps < 1000 * 2000 / max(took, 4000.0)
