"""The daemon from a source to a snapshot on disk: every sample once, whatever stops it, and the same each time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import talking_line
from recordings import LABELS, record, save, signals

from edge_cl.cli import main
from edge_cl.config import Config, resolve
from edge_cl.daemon import Daemon
from edge_cl.errors import Exit
from edge_cl.service.status import Status, Summary, read_status
from edge_cl.signals import Signals
from edge_cl.storage.checkpoint import Checkpoint, CheckpointStore
from edge_cl.storage.errors import StateBusy
from edge_cl.storage.shelf import Shelf
from firmware_bridge.errors import SourceLost
from firmware_bridge.frame import CTRL_END, Control, encode_control, encode_hello, encode_label, encode_sample
from firmware_bridge.hello import Hello
from firmware_bridge.sample import Label, Sample, Schema

N = 240
SETTINGS = (
    *("model.width=4", "consolidation.every_steps=10", "consolidation.rehearsal_passes=2"),
    "budget.step_ms=5000",  # a loaded machine must not make the governor step in, and another run of the same one
)
PROMISED = {
    *("samples", "steps", "consolidations", "prequential_accuracy", "test_accuracy", "replay_bytes", "learner_bytes"),
    *("budget_bytes", "step_p50_ms", "step_p99_ms", "predict_p99_ms", "rss_peak_bytes", "dropped", "snapshot"),
}
COUNTED = ("samples", "learned", "steps", "consolidations", "prequential_accuracy", "test_accuracy", "exam", "dropped")
PACE = 0.8  # times real time: 20 samples a second, so that N take twelve seconds and a signal always comes in between


def settings(*overrides: str) -> Config:
    return resolve(None, (*SETTINGS, *overrides)).config


def run(state: Path, source: str, *overrides: str, once: bool = True, **options: Any) -> Summary:
    return Daemon(settings(*overrides), state, source_url=source, once=once, **options).run()


def command(state: Path, source: str, *options: str) -> list[str]:
    chosen = [word for setting in SETTINGS for word in ("-s", setting)]
    named = ["--state", str(state), "--source", source]
    return [sys.executable, "-m", "edge_cl", "run", "--json", *named, *chosen, *options]


def saved(state: Path) -> Checkpoint:
    found = CheckpointStore(state).load()
    assert found is not None
    return found


def counted(summary: Summary | dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key in COUNTED}


def examined(state: Path) -> int:
    return len(saved(state).arrays["exam.labels"])


def assert_same_learner(one: Path, other: Path) -> None:
    ours, theirs = saved(one), saved(other)
    assert ours.meta["learner"] == theirs.meta["learner"]
    assert ours.meta["telemetry"] == theirs.meta["telemetry"]
    assert ours.arrays.keys() == theirs.arrays.keys()
    for name, array in ours.arrays.items():
        np.testing.assert_array_equal(array, theirs.arrays[name], err_msg=name, strict=True)


class StopAt:
    """Signals that ask the daemon to stop after so many samples, to the sample."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.consolidate = False
        self.daemon: Daemon | None = None

    @property
    def stop(self) -> bool:
        return self.daemon is not None and self.daemon.telemetry.samples >= self.samples


def run_and_stop_at(samples: int, state: Path, source: str, *overrides: str, **options: Any) -> Summary:
    signals_: Any = StopAt(samples)
    signals_.daemon = daemon = Daemon(
        settings(*overrides), state, source_url=source, once=True, signals=signals_, **options
    )
    return daemon.run()


@dataclass
class Played:
    """A recording that a process of its own has played to its end."""

    source: str
    state: Path
    lines: list[dict[str, Any]]
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        return self.lines[-1]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recording") / "signals.npz", N)


@pytest.fixture(scope="module")
def played(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Played:
    state = tmp_path_factory.mktemp("played") / "state"
    source = f"recording:{recording}"
    done = subprocess.run(
        command(state, source, "--once", "--seed", "3"), capture_output=True, text=True, check=False, cwd=state.parent
    )
    assert done.returncode == 0, done.stderr
    return Played(source, state, [json.loads(line) for line in done.stdout.splitlines()], done.stderr)


# One whole run


def test_every_sample_of_a_recording_is_learnt_or_examined_once(played: Played) -> None:
    assert played.summary["samples"] == N
    assert played.summary["learned"] + examined(played.state) == N
    assert 0 < examined(played.state) < N / 10
    assert sum(result["samples"] for result in played.summary["exam"]) == examined(played.state)
    assert not any(played.summary["dropped"].values())


def test_the_summary_has_what_scripts_were_promised(played: Played) -> None:
    assert played.summary.keys() >= PROMISED
    assert played.summary["steps"] == N / 10
    assert played.summary["learner_bytes"] <= played.summary["budget_bytes"] == 8 * 2**20
    assert 0 < played.summary["step_p50_ms"] <= played.summary["step_p99_ms"]
    assert played.summary["prequential_accuracy"] > 0.4  # 0.33 is chance, 240 samples are few


def test_the_plan_is_shown_before_anything_is_learnt(played: Played) -> None:
    assert "memory plan" in played.stderr
    assert played.lines[0]["samples"] == 0
    assert played.lines[0]["message"] == "a new learner"


ONNXRUNTIME_ALONE = """
import json, sys
import numpy as np
import onnxruntime

model, recording = sys.argv[1:]
arrays = np.load(recording)
session = onnxruntime.InferenceSession(model)
probabilities = session.run(None, {"input": arrays["x_test"].astype(np.float32)})[0]
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
names = [labels[index] for index in probabilities.argmax(1)]
right = [name == arrays["label_names"][label] for name, label in zip(names, arrays["y_test"])]
print(json.dumps([float(np.mean(right)), sorted(m for m in ("torch", "edge_cl", "onnx") if m in sys.modules)]))
"""


def test_test_accuracy_is_what_numpy_and_onnxruntime_alone_get_from_raw_values(
    played: Played, recording: Path, tmp_path: Path
) -> None:
    model = played.state / "snapshots" / "current" / "model.onnx"
    done = subprocess.run(
        [sys.executable, "-I", "-c", ONNXRUNTIME_ALONE, str(model), str(recording)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    accuracy, others = json.loads(done.stdout)
    assert others == []
    assert accuracy == played.summary["test_accuracy"] > 0.6
    assert Path(played.summary["snapshot"]).resolve() == model.resolve()


def test_the_same_seed_gives_the_same_learner_bit_for_bit_and_another_seed_another(
    played: Played, tmp_path: Path
) -> None:
    again = run(tmp_path / "again", played.source, seed=3)
    assert counted(again) == counted(played.summary)
    assert_same_learner(tmp_path / "again", played.state)
    run_and_stop_at(30, tmp_path / "other", played.source, seed=4)
    assert not np.array_equal(saved(tmp_path / "other").arrays["parameters"], saved(played.state).arrays["parameters"])


def test_a_recording_played_to_its_end_teaches_nothing_more(played: Played, tmp_path: Path) -> None:
    state = copied(played.state, tmp_path)
    before = Shelf(state).current()
    again = run(state, played.source)
    assert counted(again) == counted(played.summary)
    assert_same_learner(state, played.state)
    assert Shelf(state).current() == before


def test_the_same_recording_by_another_path_is_the_same_recording(
    played: Played, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = copied(played.state, tmp_path)
    monkeypatch.chdir(recording.parent)
    again = run(state, f"recording:{recording.name}")
    assert (again["samples"], again["learned"]) == (N, played.summary["learned"])


def test_another_recording_is_played_from_its_start(played: Played, tmp_path: Path) -> None:
    state = copied(played.state, tmp_path)
    other = record(tmp_path / "other.npz", 30, seed=9)
    again = run(state, f"recording:{other}")
    assert again["samples"] == N + 30
    assert again["learned"] + examined(state) == N + 30


def copied(state: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", state, copy], check=True)
    return copy


# Stopped in the middle


@pytest.mark.parametrize("stops", [(7,), (100, 104, 163)])
def test_a_stopped_run_goes_on_to_the_same_learner_bit_for_bit(
    stops: tuple[int, ...], played: Played, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    for stop in stops:
        assert run_and_stop_at(stop, state, played.source, seed=3)["samples"] == stop
    summary = run(state, played.source)
    assert counted(summary) == counted(played.summary)
    assert summary["exam_history"] == played.summary["exam_history"]  # the curve that shows forgetting goes on, too
    assert_same_learner(state, played.state)


@pytest.mark.parametrize(
    "overrides",
    [
        ("replay.samples=0", "exam.share=0"),
        ("model.kind=slda_random", "model.width=64"),
        ("model.kind=nearest_mean", "exam.share=0"),
        ("consolidation.trigger=page_hinkley", "distillation.teacher=0.5", "learning.protect=1"),
    ],
    ids=["nothing kept", "templates", "templates and nothing kept", "every door"],
)
def test_every_kind_of_learner_publishes_and_goes_on_bit_for_bit(
    recording: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    source = f"recording:{recording}"
    whole = run(tmp_path / "whole", source, *overrides)
    run_and_stop_at(130, tmp_path / "cut", source, *overrides)
    rest = run(tmp_path / "cut", source, *overrides)
    assert whole["snapshot"]
    assert counted(rest) == counted(whole)
    assert_same_learner(tmp_path / "whole", tmp_path / "cut")
    assert whole["test_accuracy"] is not None
    assert whole["test_accuracy"] > 0.5
    if "replay.samples=0" in overrides:
        arrays = saved(tmp_path / "whole").arrays
        assert len(arrays["replay.items"]) == len(arrays["exam.items"]) == 0


def test_a_smaller_batch_than_what_waited_is_learnt_at_once(played: Played, tmp_path: Path) -> None:
    state = tmp_path / "state"
    run_and_stop_at(9, state, played.source)
    run_and_stop_at(29, state, played.source, "learning.batch_size=4")
    assert saved(state).meta["learner"]["counts"][0] + examined(state) >= 29 - 3
    assert len(saved(state).meta["waiting"]) < 4


@contextmanager
def playing(state: Path, source: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], Callable[..., Any]]]:
    """A daemon as a process, and how to wait until a line that it prints satisfies a condition."""
    process = subprocess.Popen(
        command(state, source, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=state.parent
    )
    with process:
        assert process.stdout is not None

        def until(condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            assert process.stdout is not None
            for line in process.stdout:
                if condition(found := json.loads(line)):
                    return dict(found)
            raise AssertionError(f"it ended before that: {process.stderr and process.stderr.read()}")

        try:
            yield process, until
        finally:
            process.kill()


@dataclass
class Interrupted:
    """A run that a signal ended: what it had shown by then, its last line and its exit code."""

    state: Path
    seen: dict[str, Any]
    last: dict[str, Any]
    code: int


@pytest.fixture(scope="module")
def interrupted(played: Played, tmp_path_factory: pytest.TempPathFactory) -> dict[signal.Signals, Interrupted]:
    """The same recording in three processes at once, each ended in the middle by another signal."""
    folder = tmp_path_factory.mktemp("interrupted")
    options = ("--once", "--seed", "3", "--speed", str(PACE), "-s", "storage.checkpoint_every_s=0.05")
    found = {}
    with ExitStack() as stack:
        running = {
            number: stack.enter_context(playing(folder / number.name, played.source, *options))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
        }
        for number, (process, until) in running.items():
            seen = until(lambda line: line["learned"] > 0)
            process.send_signal(number)
            lines = process.communicate()[0].splitlines()
            last = json.loads(lines[-1]) if lines else seen
            found[number] = Interrupted(folder / number.name, seen, last, process.returncode)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_is_exit_0_and_the_next_run_goes_on_from_there(
    number: signal.Signals, interrupted: dict[signal.Signals, Interrupted], played: Played
) -> None:
    one = interrupted[number]
    assert one.code == 0
    assert one.seen["samples"] <= one.last["samples"] == saved(one.state).meta["telemetry"][0] < N
    status = read_status(one.state)
    assert status is not None
    assert (status["state"], status["samples"]) == ("stopped", one.last["samples"])
    assert counted(run(one.state, played.source)) == counted(played.summary)
    assert_same_learner(one.state, played.state)


def test_a_killed_daemon_goes_on_from_its_last_checkpoint(
    interrupted: dict[signal.Signals, Interrupted], played: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    one = interrupted[signal.SIGKILL]
    assert one.code == -signal.SIGKILL
    assert 0 < saved(one.state).meta["telemetry"][0] < N
    assert edge_cl("status", "--state", str(one.state), "--json") == Exit.NOT_RUNNING
    last = json.loads(capsys.readouterr().out)
    assert (last["state"], last["message"]) == ("failed", "it ended without a word: killed, or no power")
    assert counted(run(one.state, played.source)) == counted(played.summary)
    assert_same_learner(one.state, played.state)


def test_samples_are_counted_from_where_the_run_before_stopped(played: Played, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = run(state, played.source, samples=25)
    assert (first["samples"], first["learned"] + examined(state)) == (25, 25)
    assert first["snapshot"] is not None
    second = run(state, played.source, samples=12, once=False)
    assert (second["samples"], second["learned"] + examined(state)) == (37, 37)


# A daemon that goes on until it is told to stop


@pytest.fixture
def _signal_handlers() -> Iterator[None]:
    """`edge-cl run` takes over signals of this process; pytest wants them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def edge_cl(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_without_once_it_waits_answers_commands_and_stops_when_told(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state, source = tmp_path / "state", f"recording:{recording}?limit=50"
    with playing(state, source) as (process, until):
        waiting = until(lambda line: "waiting to be stopped" in line["message"])
        assert (waiting["samples"], waiting["consolidations"]) == (50, 1)

        assert edge_cl("status", "--state", "state", "--json") == 0
        assert json.loads(capsys.readouterr().out)["running"] is True

        with pytest.raises(StateBusy, match=f"in use by process {process.pid}"):
            run(state, source)

        assert edge_cl("consolidate", "--state", "state", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["consolidations"] == 2
        current = Shelf(state).current()
        assert current is not None
        assert told["snapshot"] == str(current.path)

        process.send_signal(signal.SIGTERM)
        assert json.loads(process.communicate()[0].splitlines()[-1])["samples"] == 50
    assert process.returncode == 0

    assert edge_cl("status", "--state", "state", "--json") == Exit.NOT_RUNNING
    last = json.loads(capsys.readouterr().out)
    assert (last["running"], last["state"], last["samples"]) == (False, "stopped", 50)


@pytest.mark.usefixtures("_signal_handlers")
def test_a_second_daemon_is_refused_with_exit_75(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_cl.storage.state_dir import StateDir

    monkeypatch.chdir(tmp_path)
    state = copied(played.state, tmp_path)
    with StateDir(state):
        assert edge_cl("run", "--state", str(state), "--source", played.source, "--once") == Exit.TRY_AGAIN
    assert f"error: {state} is in use by process {os.getpid()}\nhint: stop that daemon first" in capsys.readouterr().err


# Other streams


def test_a_board_behind_a_real_line_is_learnt_from(tmp_path: Path) -> None:
    state = tmp_path / "state"
    source = "simulated:motor?speed=max&samples=600"
    summary = run(state, source, "replay.samples=50", seed=1)
    status = read_status(state)
    assert status is not None
    assert status["received"] == 600
    assert summary["samples"] == status["samples"] > 0
    assert summary["learned"] + examined(state) == status["labelled"]
    assert summary["snapshot"] is not None
    assert summary["test_accuracy"] is None
    manifest = json.loads((state / "snapshots" / "current" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["labels"] == status["label_names"]
    assert manifest["classes_seen"] == ["normal"]


def test_the_board_goes_on_where_the_last_run_stopped(tmp_path: Path) -> None:
    source = "simulated:motor?speed=max&samples=400"
    assert run_and_stop_at(40, tmp_path / "two", source, seed=1)["samples"] == 40
    run(tmp_path / "two", source, seed=1)
    run(tmp_path / "one", source, seed=1)
    assert_same_learner(tmp_path / "one", tmp_path / "two")


def test_a_board_that_vanishes_costs_nothing_that_was_learnt(tmp_path: Path) -> None:
    state = tmp_path / "state"
    seen: list[Status] = []

    def pull_the_plug(status: Status) -> None:
        seen.append(status)
        if status["learned"] and status["state"] == "running":
            with suppress(ProcessLookupError):
                os.kill(daemon.source.pid, signal.SIGKILL)  # type: ignore[attr-defined]

    daemon = Daemon(settings(), state, source_url="simulated:motor?speed=max", on_status=pull_the_plug)
    with pytest.raises(SourceLost, match="the board is gone"):
        daemon.run()
    assert seen[-1]["state"] == "failed"
    assert "the board is gone" in seen[-1]["message"]
    assert 0 < seen[-1]["samples"] == saved(state).meta["telemetry"][0]


SCHEMA = Schema("probe", "int16", (2, 3), label_names=("low", "high"), window=(4, 4))


def board(*events: bytes, n: int, schema: Schema = SCHEMA) -> bytes:
    """The wire of a board that says these frames, n samples in all, and falls silent."""
    return b"".join(
        [encode_hello(Hello("test", "1", 1, {0: schema})), *events, encode_control(Control(0, 1, n, CTRL_END))]
    )


def frame(seq: int, label: int | None = None) -> bytes:
    return encode_sample(Sample(0, 1, seq, 1000 * seq, np.full((2, 3), seq, np.int16), label))


def late(seq: int, label: int) -> bytes:
    return encode_label(Label(0, 1, seq, label))


def test_a_label_frame_finds_its_sample_or_is_counted(tmp_path: Path) -> None:
    # Two samples make a window: the label of 0 comes in time, that of 2 after its window was full, 99 never was.
    wire = board(frame(0), late(0, 1), frame(1), frame(2), frame(3), late(2, 0), late(99, 0), frame(4), n=5)
    with talking_line(wire) as path:
        summary = run(tmp_path / "state", f"serial:{path}")
    assert (summary["samples"], summary["learned"] + examined(tmp_path / "state")) == (2, 1)
    assert saved(tmp_path / "state").arrays["seen"].nonzero()[0].tolist() in ([1], [])
    assert summary["dropped"]["label_unmatched"] == 2


def test_labels_that_no_class_has_are_counted_and_their_samples_only_predicted(tmp_path: Path) -> None:
    frames = [frame(seq, label) for seq, label in enumerate([1, 1, 2, 2, 5, 5, 0, 0])]
    with talking_line(board(*frames, late(7, 5), n=8)) as path:
        summary = run(tmp_path / "state", f"serial:{path}", "exam.share=0")
    assert summary["dropped"]["label_out_of_range"] == 3  # two with their samples, one that came later
    assert (summary["samples"], summary["learned"]) == (4, 2)


def test_a_live_source_that_pauses_does_not_leave_a_started_batch_unlearnt(tmp_path: Path) -> None:
    signals_, deadline = Signals(), time.monotonic() + 20

    def stop_when_all_is_learnt(status: Status) -> None:
        signals_.stop = status["learned"] == 3 or time.monotonic() > deadline

    wire = encode_hello(Hello("test", "1", 1, {0: SCHEMA})) + b"".join(frame(seq, 1) for seq in range(6))  # and no end
    with talking_line(wire) as path:
        config = settings("exam.share=0", "learning.max_wait_ms=1")
        daemon = Daemon(
            config, tmp_path / "s", source_url=f"serial:{path}", on_status=stop_when_all_is_learnt, signals=signals_
        )
        summary = daemon.run()
    assert (summary["samples"], summary["learned"]) == (3, 3)  # of a batch of ten


def test_an_unlabelled_recording_is_only_predicted(tmp_path: Path) -> None:
    source = record(tmp_path / "plain.npz", 50, y_train=None)
    seen: list[Status] = []
    summary = run(tmp_path / "state", f"recording:{source}", on_status=seen.append)
    assert (summary["samples"], summary["learned"], summary["steps"], summary["consolidations"]) == (50, 0, 0, 0)
    assert summary["snapshot"] is summary["test_accuracy"] is summary["prequential_accuracy"] is None
    assert summary["exam"] == summary["exam_history"] == []
    assert seen[-1]["state"] == "stopped"
    assert seen[-1]["predicted_label"] is None


def test_classes_without_names_are_numbered_as_they_appear(tmp_path: Path) -> None:
    x, y = signals(90)
    source = save(tmp_path / "x.npz", x=x, y=y)
    state = tmp_path / "state"
    run(state, f"recording:{source}?order=class", "consolidation.every_steps=2", "snapshots.keep=9")
    labels = [entry.manifest["labels"] for entry in Shelf(state).entries()]
    assert labels[0] == ["0"]
    assert labels[-1] == ["0", "1", "2"]
    assert [len(names) for names in labels] == sorted(len(names) for names in labels)
    run(state, f"recording:{source}?order=class")  # and go on with them
    assert saved(state).meta["label_names"] == ["0", "1", "2"]


def test_classes_may_be_added_to_what_was_learnt(tmp_path: Path, recording: Path) -> None:
    """The head grows with the state there is: same step count, old answers kept, a snapshot with the new names."""
    state = tmp_path / "state"
    run_and_stop_at(120, state, f"recording:{recording}", "labels=[a, b, c]", "model.max_classes=3")
    before = saved(state)
    run(state, f"recording:{recording}", "labels=[a, b, c, d]", "model.max_classes=5")
    after = saved(state)
    assert after.meta["label_names"] == ["a", "b", "c", "d"]
    assert after.arrays["seen"].tolist() == [True, True, True, False, False]
    assert len(before.arrays["parameters"]) < len(after.arrays["parameters"])
    current = Shelf(state).current()
    assert current is not None
    assert current.manifest["labels"] == ["a", "b", "c", "d"]


def test_names_in_the_configuration_come_before_the_sources_own(tmp_path: Path, recording: Path) -> None:
    run(tmp_path / "state", f"recording:{recording}?limit=20", "labels=[a, b, c]")
    current = Shelf(tmp_path / "state").current()
    assert current is not None
    assert current.manifest["labels"] == ["a", "b", "c"]


def test_a_test_split_without_a_single_finite_sample_has_no_accuracy(tmp_path: Path) -> None:
    x = np.ones((20, 5), np.float32)
    source = save(tmp_path / "x.npz", x=x, y=np.arange(20) % 2, x_test=x * np.nan, y_test=np.arange(20) % 2)
    assert run(tmp_path / "state", f"recording:{source}")["test_accuracy"] is None


# Export


def test_export_hands_out_the_current_model(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert edge_cl("export", "--state", str(played.state), "--out", "m.onnx", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (tmp_path / "m.onnx").read_bytes() == (played.state / "snapshots" / "current" / "model.onnx").read_bytes()
    assert facts["labels"] == list(LABELS)
    assert facts["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert facts["training"]["learned"] == played.summary["learned"]


def test_export_before_the_first_snapshot_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "state", f"recording:{record(tmp_path / 'plain.npz', 5, y_train=None)}")
    assert edge_cl("export", "--state", "state", "--out", "m.onnx") == Exit.CONFIG
    assert capsys.readouterr().err == (
        "error: state: no snapshot was published yet\n"
        "hint: the first comes with the first consolidation; `edge-cl consolidate --state state` asks for one\n"
    )
    assert not (tmp_path / "m.onnx").exists()


def test_export_of_a_damaged_snapshot_or_to_nowhere_writes_nothing(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    copied(played.state, tmp_path)
    assert edge_cl("export", "--state", "copy", "--out", "missing/m.onnx") == Exit.IO
    assert "hint: create the folder first\n" in capsys.readouterr().err
    model = (tmp_path / "copy" / "snapshots" / "current" / "model.onnx").resolve()
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    assert edge_cl("export", "--state", "copy", "--out", "m.onnx") == Exit.IO
    assert "is damaged: its SHA-256 does not match" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["copy"]
