"""Several sources through the daemon, with real files, signals, sockets and a broker: each sample once, as if alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import far_end, free_port, streaming_board, talking_line
from brokers import broker
from killed import killed_at
from recordings import LABELS, save, signals
from test_daemon import StopAt, assert_same_learner, examined, saved

from edge_cl.cli import main
from edge_cl.config import Config, load, resolve
from edge_cl.daemon import Daemon
from edge_cl.errors import Exit
from edge_cl.keeping.cursor import Cursor
from edge_cl.keeping.recovery import recover
from edge_cl.service.status import Status, Summary
from edge_cl.signals import Signals
from edge_cl.storage.checkpoint import CheckpointStore
from firmware_bridge.errors import EndOfSource
from firmware_bridge.frame import encode_hello, encode_label, encode_sample
from firmware_bridge.hello import Hello
from firmware_bridge.registry import make_sources
from firmware_bridge.sample import Label, Sample, SampleId, Schema
from firmware_bridge.window import Window
from firmware_bridge.windows import Windows
from firmware_bridge.wire import encode_body
from tools.fakes.far_ends import TcpEnd
from tools.fakes.signals import signal as signal_of

ROWS = 500  # of the faster recording, at 100 rows a second; the slower one has 50
LENGTH = 5
# Nothing that a clock decides: two runs of the same recordings are then the same run.
TIMELESS = (
    *("budget.step_ms=60000", "budget.predict_ms=60000", "budget.consolidation_ms=600000"),
    *("model.width=4", "consolidation.every_steps=6", f"window.length={LENGTH}", f"window.stride={LENGTH}"),
)
ALIGN_MS = 12  # every row of the faster one has a row of the slower one near enough
ALIGNED = f"bridge.align_ms={ALIGN_MS}"


def rows(path: Path, n: int, hz: float, *, seed: int, late_s: float = 0.0) -> str:
    """A recording of n rows of three channels, in stretches of 40 of one class; gives its source."""
    x, y = signals(-(-n // 40), seed=seed)
    times = np.arange(n) / hz + late_s
    named = {"label_names": np.array(LABELS), "channel_names": np.array(["x", "y", "z"])}
    save(path, x=x.reshape(-1, 3)[:n], y=np.repeat(y, 40)[:n], time_s=times, fs_hz=hz, **named)
    return f"recording:{path}"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two recordings of a kind, the second one at half the rate and 1 ms late."""
    folder = tmp_path_factory.mktemp("two")
    return [
        rows(folder / "fast.npz", ROWS, 100.0, seed=1),
        rows(folder / "slow.npz", ROWS // 2, 50.0, seed=2, late_s=0.001),
    ]


def settings(*overrides: str) -> Config:
    return resolve(None, (*TIMELESS, *overrides)).config


def run(state: Path, sources: Sequence[str], *overrides: str, **options: Any) -> Summary:
    return Daemon(settings(*overrides), state, source_url=sources, once=True, **options).run()


def edge_cl(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert int(caught.value.code or 0) == code


def beside(sources: Sequence[str]) -> list[str]:
    return [part for source in sources for part in ("--source", source)]


def played(sources: Sequence[str], align_us: int | None = None) -> list[Any]:
    """All that the sources hand out."""
    found = []
    with make_sources(sources, align_us=align_us) as source:
        try:
            while True:
                found.append(source.read(5.0))
        except EndOfSource:
            return found


# Played: what is learnt, and that it is learnt once


@pytest.mark.parametrize("aligned", [False, True])
def test_each_window_is_of_one_stream_and_every_one_is_learnt_once(
    aligned: bool, two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference reads each recording by itself, with a window of its own."""
    taken: list[Any] = []
    real = Windows.push

    def push(windows: Windows, sample: Sample) -> list[Sample]:
        made = real(windows, sample)
        taken.extend(made)
        return made

    monkeypatch.setattr(Windows, "push", push)
    told = run(tmp_path / "s", two, *([ALIGNED] if aligned else []))
    expected = []
    if aligned:
        window, joined = Window(LENGTH, LENGTH), played(two, 1000 * ALIGN_MS)
        assert len(joined) == ROWS
        expected += [made for sample in joined for made in window.push(sample)]
    else:
        for stream, source in enumerate(two):
            window = Window(LENGTH, LENGTH)
            for sample in played([source]):
                expected += [(stream, made) for made in window.push(sample)]
        assert [one.stream for one in taken] != sorted(one.stream for one in taken)  # they did come in turn
        expected = [made for stream in (0, 1) for at, made in expected if at == stream]
        taken.sort(key=lambda one: one.stream)
    assert len(taken) == len(expected) == told["samples"]
    for ours, theirs in zip(taken, expected, strict=True):
        assert (ours.seq, ours.time_us) == (theirs.seq, theirs.time_us)
        np.testing.assert_array_equal(ours.values, theirs.values, strict=True)
    labelled = sum(one.label is not None for one in taken)
    assert told["learned"] + examined(tmp_path / "s") == labelled > 0
    assert not any(count for reason, count in told["dropped"].items() if reason != "surplus")


@pytest.fixture(scope="module", params=[(), (ALIGNED,)], ids=["in turn", "aligned"])
def whole(request: pytest.FixtureRequest, two: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that nobody interrupted, and its overrides."""
    state = tmp_path_factory.mktemp("whole") / "s"
    return state, run(state, two, *request.param), request.param


def test_stopped_and_resumed_it_is_the_same_learner(whole: Any, two: list[str], tmp_path: Path) -> None:
    uninterrupted, told, overrides = whole
    for stop in (23, 61):
        asked: Any = StopAt(stop)
        daemon = Daemon(settings(*overrides), tmp_path / "s", source_url=two, once=True, signals=asked)
        asked.daemon = daemon
        daemon.run()
    rest = run(tmp_path / "s", two, *overrides)
    assert (rest["samples"], rest["learned"]) == (told["samples"], told["learned"])
    assert_same_learner(tmp_path / "s", uninterrupted)
    assert saved(tmp_path / "s").meta["positions"] == saved(uninterrupted).meta["positions"]


def learnt_of(state: Path) -> dict[str, bytes]:
    found = CheckpointStore(state).load()
    assert found is not None
    return {name: array.tobytes() for name, array in found.arrays.items()}


def test_killed_again_and_again_nothing_is_lost_and_nothing_is_learnt_twice(
    whole: Any, two: list[str], tmp_path: Path
) -> None:
    uninterrupted, told, overrides = whole
    for entry in (3, 6, 9):
        assert killed_at(entry, lambda: run(tmp_path / "s", two, *overrides, "storage.commit_ms=0")) == -signal.SIGKILL
        found = recover(tmp_path / "s")
        assert found is not None
        assert found.faults == []
    rest = run(tmp_path / "s", two, *overrides)
    assert (rest["samples"], rest["learned"]) == (told["samples"], told["learned"])
    assert learnt_of(tmp_path / "s") == learnt_of(uninterrupted)


def test_that_these_would_see_a_place_that_knows_the_last_sample_only(
    two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(cursor: Cursor, taken: SampleId) -> None:
        cursor.positions = {(taken.stream, taken.boot): taken}

    monkeypatch.setattr(Cursor, "take", forget)
    run(tmp_path / "s", two, samples=23)
    assert run(tmp_path / "s", two)["samples"] > (ROWS + ROWS // 2) / LENGTH


def test_the_command_goes_on_where_a_signal_ended_it(whole: Any, two: list[str], tmp_path: Path) -> None:
    uninterrupted, told, overrides = whole
    number = signal.SIGTERM if overrides else signal.SIGKILL
    chosen = [part for setting in (*TIMELESS, *overrides, "storage.commit_ms=0") for part in ("-s", setting)]
    line = [sys.executable, "-m", "edge_cl", "run", "--state", str(tmp_path / "s"), "--json", "--once", "--speed", "2"]
    with subprocess.Popen([*line, *beside(two), *chosen], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = next(found for found in map(json.loads, process.stdout) if found["learned"] > 0)
        process.send_signal(number)
        process.communicate()
    assert process.returncode == (0 if number == signal.SIGTERM else -number)
    assert seen["samples"] < told["samples"]
    rest = run(tmp_path / "s", two, *overrides)
    assert (rest["samples"], rest["learned"]) == (told["samples"], told["learned"])
    assert learnt_of(tmp_path / "s") == learnt_of(uninterrupted)


def test_other_sources_on_the_same_state_are_read_from_their_start(two: list[str], tmp_path: Path) -> None:
    run(tmp_path / "s", two, samples=40)
    assert run(tmp_path / "s", two[:1])["samples"] == 40 + ROWS // LENGTH
    third = rows(tmp_path / "third.npz", 100, 100.0, seed=9)
    more = (ROWS + ROWS // 2 + 100) // LENGTH
    assert run(tmp_path / "s", [*two, third])["samples"] == 40 + ROWS // LENGTH + more


def test_in_another_order_every_recording_begins_anew(two: list[str], tmp_path: Path) -> None:
    """Its ids are checksums, so the order alone would not show; but stream 0 is then another one."""
    run(tmp_path / "s", two, samples=40)
    assert run(tmp_path / "s", two[::-1])["samples"] == 40 + (ROWS + ROWS // 2) // LENGTH


# The commands


def test_the_file_names_them_in_a_list_and_status_shows_them_in_a_line(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "edge.yaml").write_text(f"source: ['{two[0]}', '{two[1]}']\nbridge: {{align_ms: 12}}\n")
    config = load(tmp_path / "edge.yaml")
    assert list(config.source) == two
    Daemon(config, tmp_path / "s", samples=30).run()
    edge_cl("status", "--state", str(tmp_path / "s"), "--json", code=Exit.NOT_RUNNING)
    assert json.loads(capsys.readouterr().out)["source"] == " + ".join(two)


def test_the_plan_counts_the_rows_of_every_streams_window(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def planned(sources: Sequence[str]) -> Any:
        edge_cl("check", *beside(sources), "--plan", "--json", "-s", "window.length=500", "-s", "window.stride=500")
        return json.loads(capsys.readouterr().out)["lines"]

    alone, both = planned(two[:1]), planned(two)
    grown = [line["measured"] - before["measured"] for line, before in zip(both, alone, strict=True)]
    assert 500 * (3 * 2 + 8 + 8) in grown  # rows of three int16, which the second stream keeps for itself


def test_the_bridge_shows_and_records_them_together(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edge_cl("bridge", "tail", *beside(two), "-n", "30", "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["stream"] for line in lines[:6]] == [0, 1, 0, 0, 1, 0]
    assert lines[-1].keys() == {"counters"}
    (tmp_path / "c.yaml").write_text("bridge: {align_ms: 12}\n")
    both = tmp_path / "both.npz"
    edge_cl("bridge", "record", str(both), *beside(two), "--config", str(tmp_path / "c.yaml"), "--json")
    with np.load(both) as kept:
        assert kept["x"].shape == (ROWS, 6)
        assert kept["channel_names"].tolist() == [f"{name}.{axis}" for name in ("fast", "slow") for axis in "xyz"]
    assert run(tmp_path / "s", [f"recording:{both}"])["samples"] == ROWS // LENGTH


# Live


class Watched(Signals):
    """Signals that ask the daemon to stop when what it reports says so, or after a while."""

    def __init__(self, enough: Callable[[Status], bool], patience_s: float = 30.0) -> None:
        super().__init__()
        self.daemon: Any = None
        self.seen: list[Status] = []
        self._enough, self._until = enough, time.monotonic() + patience_s

    def see(self, status: Status) -> None:
        self.seen.append(status)
        self.stop = self.stop or self._enough(status) or time.monotonic() > self._until


def live(state: Path, sources: Sequence[str], watched: Watched, *overrides: str) -> Summary:
    config = resolve(None, ("model.width=4", "budget.step_ms=5000", "storage.commit_ms=0", *overrides)).config
    watched.daemon = Daemon(config, state, source_url=sources, on_status=watched.see, signals=watched)
    return watched.daemon.run()


def test_two_boards_teach_one_learner_while_one_of_them_is_unplugged_and_back(tmp_path: Path) -> None:
    """The other one goes on meanwhile; who is gone is named; what was made meanwhile is nobody's loss."""
    port = free_port()
    with ExitStack() as stack:
        stays = stack.enter_context(streaming_board(far_end("tcp"), 100_000, rate_hz=200.0, seed=1))
        goes = stack.enter_context(streaming_board(TcpEnd(port, "length"), 100_000, rate_hz=200.0, seed=2))
        marks: dict[str, int] = {}

        def unplug_and_plug(status: Status) -> bool:
            if not marks and status["learned"] > 60:
                goes.unplug()
                marks["gone"] = status["samples"]
            elif len(marks) == 1 and "gone" in status["message"] and status["samples"] > marks["gone"] + 60:
                stack.enter_context(streaming_board(TcpEnd(port, "length"), 100_000, rate_hz=200.0, first_boot=7))
                marks["plugged"] = status["samples"]
            return len(marks) == 2 and status["samples"] > marks["plugged"] + 300 and "back" in status["message"]

        watched = Watched(unplug_and_plug)
        told = live(tmp_path / "s", [stays.url, goes.url], watched, "exam.share=0")
    said = [status["message"] for status in watched.seen]
    assert any(text.startswith("imu1: gone: tcp://") for text in said), set(said)
    assert any(text.startswith("imu1: back after") for text in said), set(said)
    positions = [tuple(one) for one in saved(tmp_path / "s").meta["positions"]]
    assert {(stream, boot) for stream, boot, _ in positions} == {(0, 1), (1, 1), (1, 7)}
    assert told["samples"] == sum(seq + 1 for _, _, seq in positions)
    assert told["dropped"]["wire_lost"] == told["dropped"]["queue_oldest"] == 0


def test_labels_that_come_late_find_the_sample_of_the_right_stream(tmp_path: Path) -> None:
    """The board knows its own number of its stream, a person the one that `tail` and `label --list` show."""
    schema = Schema("probe", "int16", (3,), label_names=("low", "high"))

    def wire(first: int, *events: bytes) -> bytes:
        rows = [Sample(0, 1, seq, 1000 * seq, np.full(3, first + seq, np.int16)) for seq in range(4)]
        return b"".join([encode_hello(Hello("d", "f", 1, {0: schema})), *map(encode_sample, rows), *events])

    said: list[bool] = []

    def label_one_of_them(status: Status) -> bool:
        if status["late_labels"]["waiting"] == 7 and not said:
            said.append(True)
            edge_cl("label", "1:1:2", "high", "--state", str(tmp_path / "s"))
        return status["learned"] == 2

    with talking_line(wire(10)) as one, talking_line(wire(20, encode_label(Label(0, 1, 3, 1)))) as other:
        sources = [f"serial:{one}", f"serial:{other}"]
        overrides = ("bridge.label_wait_bytes=1 MiB", "learning.max_wait_ms=300", "exam.share=0")
        told = live(tmp_path / "s", sources, Watched(label_one_of_them), *overrides)
    assert (told["samples"], told["learned"], told["dropped"]["label_unmatched"]) == (8, 2, 0)
    assert sorted(row[0] for row in saved(tmp_path / "s").arrays["replay.items"].tolist()) == [22, 23]


# A broker beside a board

AT_ONCE = """
from firmware_bridge.several import Several
def tell(self):
    for lane in self._lanes:
        lane.source.acknowledge(lane.taken)
Several._tell = tell
"""
DIE = """
import os, sys
from edge_cl.cli import main
from edge_cl.keeping.keeper import Keeper
real = Keeper.note
def note(self, *args):
    real(self, *args)
    if self.entry == 12:
        os.kill(os.getpid(), 9)
Keeper.note = note
main(sys.argv[1:])
"""
OFTEN = (
    *("exam.share=0", "model.width=4", "storage.commit_ms=0", "budget.step_ms=5000"),
    "consolidation.every_steps=1000",
)


@contextmanager
def killed_beside_a_board(folder: Path, patch: str = "") -> Iterator[tuple[list[Sample], list[str]]]:
    """What a broker was given for a daemon that was then killed in the middle, and both its sources."""
    schema, samples = signal_of("imu", 3, None)
    given = [replace(sample, boot=1) for sample in islice(samples, 400)]
    with ExitStack() as stack:
        mosquitto = stack.enter_context(broker(folder))
        board = stack.enter_context(streaming_board(far_end("tcp"), 100_000, rate_hz=50.0, seed=4, linger_s=60.0))
        mosquitto.send("imu", [encode_body(Hello("d", "f", 1, {0: schema}))], retain=True)
        sources = [mosquitto.url("imu", "client=one"), board.url]
        with make_sources(sources[:1]):
            pass  # from now on the broker keeps what comes
        mosquitto.send("imu", [encode_body(sample) for sample in given])
        chosen = [part for setting in OFTEN for part in ("-s", setting)]
        line = [sys.executable, "-c", patch + DIE, "run", "--state", str(folder / "s"), "--json"]
        done = subprocess.run([*line, *beside(sources), *chosen], stdout=subprocess.DEVNULL, check=False)
        assert done.returncode == -signal.SIGKILL
        yield given, sources


def test_what_the_broker_kept_is_learnt_once_though_its_neighbour_is_live(tmp_path: Path) -> None:
    with killed_beside_a_board(tmp_path) as (given, sources):

        def all_is_learnt(_: Status) -> bool:
            cursor = watched.daemon.cursor
            here = cursor.positions.get((0, 1))
            is_there = here is not None and here.seq == len(given) - 1
            return is_there and not any(one.stream == 0 for one in cursor.waiting)

        watched = Watched(all_is_learnt)
        live(tmp_path / "s", sources, watched, *OFTEN)
        with make_sources(sources[:1]) as again:
            assert again.read(0.5) is None  # the broker was told that all is safe
    learnt = Counter(item.tobytes() for item in saved(tmp_path / "s").arrays["replay.items"])
    assert [learnt[sample.values.tobytes()] for sample in given] == len(given) * [1]
    assert learnt.total() > len(given)  # the board's, too


def test_that_this_would_see_a_daemon_that_acknowledges_what_it_has_only_read(tmp_path: Path) -> None:
    with killed_beside_a_board(tmp_path, AT_ONCE) as (given, sources), make_sources(sources[:1]) as again:
        seqs = {item.seq for item in iter(lambda: again.read(1.0), None)}
    found = recover(tmp_path / "s")
    assert found is not None
    had = range(found.cursor.positions[0, 1].seq + 1)
    assert len({*had, *seqs}) < len(given)
