"""What the daemon says of itself: every promised key, true figures, said once, and no trouble from a full disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from recordings import LABELS, record
from test_atomic import tiny_disk

from edge_cl import assembly, report
from edge_cl.config import resolve
from edge_cl.daemon import Daemon
from edge_cl.governor import Governor
from edge_cl.keeping.keeper import Keeper
from edge_cl.keeping.room import Room
from edge_cl.publishing.publisher import Publisher
from edge_cl.report import MOST_EXAM_POINTS, Report
from edge_cl.service.status import Status, Summary, blank, read_status
from edge_cl.service.telemetry import Telemetry
from edge_cl.storage.checkpoint import CheckpointStore
from firmware_bridge.inlet import Inlet
from firmware_bridge.registry import make_source

SETTINGS = ("model.width=4", "replay.samples=40", "consolidation.every_steps=3", "consolidation.rehearsal_passes=1")


@contextmanager
def reporting(folder: Path, recording: Path, seen: list[Status]) -> Iterator[Report]:
    """A report on real parts that have learnt nothing yet."""
    config = resolve(None, SETTINGS).config
    with make_source(f"recording:{recording}") as source:
        task = assembly.task_of(config, source.schema)
        blueprint = assembly.blueprint_of(config, task)
        planned = assembly.plan_of(config, task, blueprint)
        learner = assembly.make_learner(config, task, blueprint, planned, seed=0)
        inlet = Inlet(source, config.bridge.queue_bytes)
        keeper = Keeper(CheckpointStore(folder), config.storage, queue_bytes=1024, entry=0, bases=2)
        try:
            yield Report(
                folder=folder,
                url="recording:x",
                config=config,
                planned=planned,
                learner=learner,
                telemetry=Telemetry(),
                governor=Governor(0.05, config.replay.per_step),
                inlet=inlet,
                publisher=Publisher(learner, task, source.schema, config, folder),
                keeper=keeper,
                room=Room(0, 1.0),
                label_names=list(LABELS),
                dropped=lambda: {"shape": 3},
                parts=lambda: source.parts,
                on_status=seen.append,
            )
        finally:
            keeper.close()
            inlet.close()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("report") / "signals.npz", 90)


@pytest.fixture(scope="module")
def told(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Status], Summary, Path]:
    """All that a whole run said."""
    seen: list[Status] = []
    state = tmp_path_factory.mktemp("told") / "state"
    config = resolve(None, SETTINGS).config
    summary = Daemon(config, state, source_url=f"recording:{recording}", once=True, on_status=seen.append).run()
    return seen, summary, state


def test_every_status_has_exactly_the_known_keys_and_is_json(told: tuple[list[Status], Summary, Path]) -> None:
    for status in told[0]:
        assert status.keys() == blank().keys()
        json.dumps(status, allow_nan=False)


def test_a_run_starts_running_and_ends_stopped(told: tuple[list[Status], Summary, Path]) -> None:
    seen, _, state = told
    assert [(s["state"], s["message"]) for s in (seen[0], seen[-1])] == [
        ("running", "a new learner"),
        ("stopped", "the source is over"),
    ]
    assert read_status(state) == seen[-1]


def test_the_last_status_and_the_summary_agree(told: tuple[list[Status], Summary, Path]) -> None:
    (*_, last), summary, state = told
    for key in summary.keys() & last.keys() - {"prequential_accuracy", "rss_peak_bytes"}:
        assert summary[key] == last[key], key  # type: ignore[literal-required]
    assert last["snapshot"] == str((state / "snapshots" / "current").resolve() / "model.onnx")
    assert last["learned"] + sum(result["samples"] for result in last["exam"]) == last["labelled"] == 90
    assert (last["received"], last["replay_samples"], last["replay_capacity"]) == (90, 40, 40)
    assert last["consolidations"] == len(last["exam_history"]) == 3
    assert last["learner_bytes"] == pytest.approx(sum(part["bytes"] for part in last["plan"]), rel=0.01)
    assert last["true_label"] in LABELS
    assert last["predicted_label"] in LABELS
    assert last["rss_peak_bytes"] >= last["rss_bytes"] * 0.9 > 0


def test_figures_never_go_back(told: tuple[list[Status], Summary, Path]) -> None:
    for key in ("samples", "labelled", "learned", "steps", "consolidations", "received", "updated_s"):
        values = [status[key] for status in told[0]]  # type: ignore[literal-required]
        assert values == sorted(values), key


def test_before_the_first_sample_nothing_is_made_up(recording: Path, tmp_path: Path) -> None:
    with reporting(tmp_path, recording, []) as made:
        status = made.status()
    assert status["state"] == "starting"
    assert status["dropped"] == {"shape": 3}
    unknown = ("prequential_accuracy", "step_p50_ms", "step_p99_ms", "predict_p99_ms", "snapshot", "true_label")
    assert [status[key] for key in unknown] == [None] * len(unknown)  # type: ignore[literal-required]


def test_a_fault_is_said_once_until_it_is_over(recording: Path, tmp_path: Path) -> None:
    seen: list[Status] = []
    with reporting(tmp_path, recording, seen) as made:
        made.recovered("checkpoint")
        made.fault("checkpoint", "no space")
        made.fault("checkpoint", "no space")
        made.fault("snapshot", "no space either")
        made.recovered("checkpoint")
        made.fault("checkpoint", "again")
    assert [status["message"] for status in seen] == [
        "no space",
        "no space either",
        "checkpoint works again",
        "again",
    ]


def test_the_exam_history_is_bounded_and_keeps_the_first_and_the_newest(recording: Path, tmp_path: Path) -> None:
    with reporting(tmp_path, recording, []) as made:
        for step in range(10 * MOST_EXAM_POINTS):
            made.learner.steps = step
            made.consolidated({0: (5, 1.0), 2: (4, 0.5)})
            assert len(made.exam_history) <= MOST_EXAM_POINTS
        status = made.status()
    assert status["exam_history"][0]["steps"] == 0
    assert status["exam_history"][-1] == {"steps": 10 * MOST_EXAM_POINTS - 1, "accuracy": {"slow": 1.0, "fast": 0.5}}
    assert [result["label"] for result in status["exam"]] == ["slow", "fast"]


def test_a_watcher_is_shown_now_and_then_and_not_at_every_sample(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Status] = []
    now = 1000.0
    monkeypatch.setattr(report.time, "monotonic", lambda: now)
    with reporting(tmp_path, recording, seen) as made:
        for tick in range(2001):
            now = 1000.0 + tick / 1000  # two seconds, a thousand samples a second
            made.tick()
    assert len(seen) == 9


def test_a_full_disk_stops_no_report(recording: Path, tmp_path: Path) -> None:
    seen: list[Status] = []
    with tiny_disk(tmp_path / "disk", "64k") as disk, reporting(disk, recording, seen) as made:
        made.say("before")
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        made.say("after")
        last = read_status(disk)
    assert [status["message"] for status in seen] == ["before", "after"]
    assert last is not None
    assert last["message"] == "before"
