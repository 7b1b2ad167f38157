"""What was heard on the line is nobody's to say again, in another run either; and a board that does not rise is told.

A daemon learns from a board with a key while somebody writes down all that the board sends. The daemon is stopped or
killed, and what was written down is put on its line when it runs again.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from boards import Running, free_port, streaming_board

from edge_cl.config import resolve
from edge_cl.daemon import Daemon
from edge_cl.keeping.cursor import Cursor
from edge_cl.keeping.recovery import recover
from edge_cl.service.status import Status, read_status
from edge_cl.signals import Signals
from firmware_bridge.auth import board_key, raised
from firmware_bridge.errors import EndOfSource, SourceUnavailable
from firmware_bridge.frame import CTRL_END, Control, Event, FrameDecoder, encode
from firmware_bridge.hello import Hello
from firmware_bridge.packet import LengthDecoder, encode_packet
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Label, Sample, SampleId, Schema
from firmware_bridge.sequence import BOOTS
from firmware_bridge.sources.board_source import REPLAYS_SAID
from firmware_bridge.wire import SAMPLE
from tools.fakes.far_ends import FarEnd, PtyEnd, TcpEnd

SECRET = bytes.fromhex("00112233445566778899aabbccddeeff")
KEY = board_key(SECRET)
SETTINGS = (
    *("model.width=4", "budget.step_ms=5000", "budget.predict_ms=5000", "consolidation.rehearsal_passes=1"),
    *("learning.max_wait_ms=50", "bridge.label_wait_bytes=1 MiB"),
)
ENDLESS = 1 << 30
A_BOOT, BOOTS_HEARD = 30, BOOTS + 4  # samples; more boots than a cursor remembers
LATER = 1000  # boot of the board when it is heard again
RATE_HZ = 400.0  # is in the schema, and so in the seed of the CRC: of another one nothing recorded would be understood


class Tap:
    """Writes down what the line takes, and puts `recorded` on it behind the first HELLO, between two frames."""

    def __init__(self, end: FarEnd, recorded: bytes = b"") -> None:
        self.heard = b""
        self.url, self.is_stream, self.hears, self.encode = end.url, end.is_stream, end.hears, end.encode
        self.wait, self.receive, self.close, self.decoder = end.wait, end.receive, end.close, end.decoder
        self._end, self._recorded, self._has_greeted = end, recorded, False
        self._own: FrameDecoder | LengthDecoder = FrameDecoder(KEY) if isinstance(end, PtyEnd) else LengthDecoder(KEY)

    @property
    def is_there(self) -> bool:
        return self._end.is_there

    def write(self, data: bytes) -> int:
        if self._has_greeted and self._recorded:
            self._recorded = self._recorded[self._end.write(self._recorded) :]
            if self._recorded:
                return 0
        written = self._end.write(data)
        self.heard += data[:written]
        self._has_greeted |= any(isinstance(event, Hello) for event in self._own.feed(data[:written]))
        return written


class Place:
    """Where boards are plugged in one after another: a port of TCP, or a name in the file system."""

    def __init__(self, link: str, folder: Path) -> None:
        self._link, self._name, self._port = link, folder / "port", free_port()
        key = folder / "key"
        key.write_text(SECRET.hex())
        target = f"serial://{self._name}" if link == "pty" else f"tcp://127.0.0.1:{self._port}"
        self.url = f"{target}?wait=2&key=@{key}"

    @contextmanager
    def board(self, recorded: bytes = b"", **habits: float) -> Iterator[tuple[Running, Tap]]:
        """A board with the key that sends without end."""
        end: FarEnd = PtyEnd(SECRET) if self._link == "pty" else TcpEnd(self._port, "length", SECRET)
        if self._link == "pty":
            self._name.unlink(missing_ok=True)
            self._name.symlink_to(end.url.removeprefix("serial://"))
        tap = Tap(end, recorded)
        with streaming_board(tap, ENDLESS, secret=SECRET, **habits) as board:  # type: ignore[arg-type]
            yield board, tap


class Run:
    """A daemon in a thread."""

    def __init__(self, state: Path, url: str) -> None:
        self._signals = Signals()
        self._seen: list[Status | None] = [None]
        config = resolve(None, SETTINGS).config
        self._daemon = Daemon(config, state, source_url=url, signals=self._signals, on_status=self._seen.append)
        self._thread = threading.Thread(target=self._daemon.run)
        self._thread.start()

    def until(self, true: Callable[[Status], bool]) -> Status:
        return until(lambda: self._seen[-1], true)

    def until_taken(self, boot: int, seq: int) -> None:
        def is_taken(status: Status) -> bool:
            newest = self._daemon.cursor.positions.get((0, boot))
            return newest is not None and newest.seq >= seq

        self.until(is_taken)

    def told(self) -> Status:
        """The last status, once it has ended."""
        assert self._seen[-1] is not None
        assert self._seen[-1]["state"] == "stopped"
        return self._seen[-1]

    def stop(self) -> None:
        self._signals.stop = True
        self._thread.join()


@contextmanager
def running(state: Path, url: str) -> Iterator[Run]:
    run = Run(state, url)
    try:
        yield run
    finally:
        run.stop()


def until(status: Callable[[], Status | None], true: Callable[[Status], bool]) -> Status:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        seen = status()
        if seen is not None and true(seen):
            return seen
        time.sleep(0.02)
    raise AssertionError(f"not within a minute: {status()}")


@dataclass
class Known:
    """What a state directory says: last sample taken of each boot, samples taken and labelled in all runs."""

    last: dict[int, int]
    samples: int
    labelled: int


def known(state: Path) -> Known:
    found = recover(state)
    assert found is not None
    samples, labelled, _ = found.cursor.telemetry
    return Known({boot: one.seq for (_, boot), one in found.cursor.positions.items()}, samples, labelled)


@dataclass
class Past:
    """A run that is over, and what was written down meanwhile."""

    place: Place
    state: Path
    recorded: bytes
    samples: list[SampleId]
    n_labels: int

    def fresh(self) -> list[SampleId]:
        """Recorded samples that the run did not take any more."""
        newest = max(known(self.state).last.items())
        return [one for one in self.samples if (one.boot, one.seq) > newest]


@pytest.fixture(scope="module", params=["tcp killed", "pty stopped"])
def past(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Past:
    link, how = request.param.split()
    folder = tmp_path_factory.mktemp(link)
    place, state = Place(link, folder), folder / "state"
    enough = A_BOOT * BOOTS_HEARD
    with place.board(rate_hz=RATE_HZ, reboot_every=A_BOOT, label_delay=10) as (_, tap):
        if how == "killed":
            chosen = [word for setting in SETTINGS for word in ("-s", setting)]
            command = [sys.executable, "-m", "edge_cl", "run", "--state", str(state), "--source", place.url, *chosen]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                try:
                    until(lambda: read_status(state), lambda status: status["samples"] >= enough)
                finally:
                    os.kill(process.pid, signal.SIGKILL)
        else:
            with running(state, place.url) as run:
                run.until(lambda status: status["samples"] >= enough)
        recorded = tap.heard
    events = decoded(recorded, link)
    samples = [event.id for event in events if isinstance(event, Sample)]
    return Past(place, state, recorded, samples, sum(isinstance(event, Label) for event in events))


def decoded(recorded: bytes, link: str) -> list[Event]:
    decoder = FrameDecoder(KEY) if link == "pty" else LengthDecoder(KEY)
    return decoder.feed(recorded)


def attacked(past: Past, state: Path) -> tuple[int, Status]:
    """Run once more, with all that was recorded on the line before the board's first sample; samples of its own."""
    with past.place.board(past.recorded, rate_hz=RATE_HZ, first_boot=LATER), running(state, past.place.url) as run:
        run.until_taken(LATER, 50)  # which come behind all that was recorded
    told = run.told()
    return known(state).last[LATER] + 1 - told["dropped"]["wire_lost"] - told["dropped"]["queue_oldest"], told


def test_what_was_recorded_is_not_learnt_again_and_the_board_is_that_rose(past: Past, tmp_path: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(past.state, state)
    before = known(state)
    fresh = past.fresh()
    assert len({one.boot for one in past.samples}) > BOOTS
    own, told = attacked(past, state)
    after = known(state)
    assert own > 0
    assert 0 <= after.samples - before.samples - own <= len(fresh)
    assert 0 <= after.labelled - before.labelled - own <= past.n_labels - before.labelled
    assert told["line_faults"]["replay"] >= len(past.samples) - len(fresh)
    assert told["line_faults"]["auth"] == 0


def test_without_the_floor_it_would_be(past: Past, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    shutil.copytree(past.state, state)
    real = Cursor.carried_over
    monkeypatch.setattr(Cursor, "carried_over", lambda self, same: replace(real(self, same), floor={}))
    before = known(state)
    own, _ = attacked(past, state)
    assert known(state).samples - before.samples - own > len(past.fresh()) + A_BOOT


def test_a_board_that_does_not_rise_is_told_when_it_is_opened(past: Past, tmp_path: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(past.state, state)
    before = known(state)
    daemon = Daemon(resolve(None, SETTINGS).config, state, source_url=past.place.url)
    with (
        past.place.board(rate_hz=200.0, first_boot=1),
        pytest.raises(SourceUnavailable, match="all its frames are older than what came before") as told,
    ):
        daemon.run()
    assert "boot id must rise" in str(told.value.hint)
    assert known(state) == before


def test_a_board_that_starts_again_without_rising_is_told_while_it_runs(tmp_path: Path) -> None:
    place, state = Place("tcp", tmp_path), tmp_path / "state"
    with place.board(rate_hz=200.0, first_boot=7) as (board, _), running(state, place.url) as run:
        run.until(lambda status: status["samples"] >= 20)
        board.unplug()
        run.until(lambda status: status["message"].startswith("gone"))
        with place.board(rate_hz=200.0, first_boot=7):
            told = run.until(lambda status: "refused as replays" in status["message"])
    assert "boot id must rise" in told["message"]
    with place.board(rate_hz=200.0, first_boot=8), running(state, place.url) as run:
        run.until(lambda status: status["samples"] >= told["samples"] + 20)
    assert known(state).last.keys() == {7, 8}


HELLO = Hello("d", "f", 9, {0: Schema("s", "int16", (2,))})


def packet(message: Event, at: int = 0) -> bytes:
    return encode_packet(message, time_us=at, key=KEY)


def sample(boot: int, seq: int) -> Sample:
    return Sample(0, boot, seq, seq, np.array([1, 2], np.int16))


@contextmanager
def talker(*packets: bytes) -> Iterator[int]:
    """Somebody who listens at a port and sends these packets one after another, each in a read of its own."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def talk() -> None:
            with door.accept()[0] as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for one in packets:
                    connection.sendall(one)
                    time.sleep(0.02)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=talk)
        thread.start()
        yield door.getsockname()[1]
        thread.join()


def read_all(
    folder: Path, *packets: bytes, after: tuple[SampleId, ...] = (), floor: dict[str, list[int]] | None = None
) -> tuple[list[tuple[int, int]], dict[str, int], set[str]]:
    """Samples that are handed out until the end, the counters, and all that was said."""
    (folder / "key").write_text(SECRET.hex())
    taken, said = [], set()
    with talker(*packets, packet(Control(0, 9, 1, CTRL_END), 99)) as port:
        url = f"tcp://127.0.0.1:{port}?key=@{folder / 'key'}"
        with make_source(url, after=after, floor=floor or {}) as source:
            try:
                while True:
                    item = source.read(0.2)
                    said.add(source.said)
                    if isinstance(item, Sample):
                        taken.append((item.boot, item.seq))
            except EndOfSource:
                return taken, {name: count for name, count in source.counters.items() if count}, said


def test_one_stray_frame_of_before_says_nothing_and_a_row_of_them_does(tmp_path: Path) -> None:
    old = [packet(sample(8, seq)) for seq in range(REPLAYS_SAID)]
    floor = {"1:0": [8, 50]}
    taken, counters, said = read_all(tmp_path, packet(HELLO, 1), old[0], packet(sample(9, 0)), floor=floor)
    assert (taken, counters, said) == ([(9, 0)], {"replay": 1}, {""})
    taken, counters, said = read_all(tmp_path, packet(HELLO, 1), *old, packet(sample(9, 0)), floor=floor)
    assert (taken, counters["replay"]) == ([(9, 0)], len(old))
    assert any("refused as replays" in one for one in said)


def test_under_another_key_boots_begin_anew(tmp_path: Path) -> None:
    """As they must after 65,535 starts; what was sent under the key of before has another tag."""
    first = FrameDecoder(KEY)
    first.feed(encode(sample(9, 50), key=KEY))
    other = board_key(SECRET[::-1])
    for key, taken in ((other, [(2, 0)]), (KEY, [])):
        restarted = FrameDecoder(key)
        restarted.set_floor(raised(first.floor(), SAMPLE, [SampleId(0, 9, 51)]))
        assert [(one.boot, one.seq) for one in restarted.feed(encode(sample(2, 0), key=key))] == taken  # type: ignore[union-attr]
        assert restarted.counters["replay"] == (not taken)
    assert SECRET.hex() not in str(first.floor())


def test_what_was_taken_is_below_the_floor_though_it_was_not_safe_long(tmp_path: Path) -> None:
    """A sample of an older boot that had never come, held back by whoever sends it now, beside one that had."""
    after = (SampleId(0, 7, 30), SampleId(0, 8, 3))
    floor = {"1:0": [7, 20]}  # as it was a moment before
    packets = [packet(HELLO, 1), packet(sample(7, 25)), packet(sample(7, 40)), packet(sample(8, 3))]
    taken, counters, _ = read_all(tmp_path, *packets, packet(sample(9, 0)), after=after, floor=floor)
    assert taken == [(9, 0)]
    assert (counters["replay"], counters.get("duplicate", 0)) == (3, 0)
    taken, counters, _ = read_all(tmp_path, *packets, packet(sample(9, 0)), after=after)  # the first run with a key
    assert taken == [(7, 40), (9, 0)]  # of what came before it knows only what was taken
    assert counters["duplicate"] == 2
