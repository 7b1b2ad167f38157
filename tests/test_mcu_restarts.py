"""The compiled C board over a noisy cable, reset and with its power cut: every sample that it made is accounted for."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from firmware_bridge.errors import EndOfSource
from firmware_bridge.frame import FrameDecoder
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Sample
from tests.test_mcu import CC, MCU, SANITIZED, compiled, told_at_the_end
from tools.fakes.faults import BadLine

SAMPLES, RESET_EVERY = 1500, 337
RESERVE = 1000  # as in example_board.c
FLIPS = 0.001  # of its bytes: every fifth sample is lost
LINE_BYTES, LINE_S = 1024, 0.003  # what the cable carries: 1,500 samples a second
FAST, SLOW = "2500", "500"  # samples a second: at FAST the board's FIFO runs over, and a reset finds it full

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("c"), MCU / "example_board.c", *SANITIZED)


def broken_board(folder: Path, right: str, wrong: str) -> Path:
    text = (MCU / "example_board.c").read_text(encoding="utf-8")
    assert text.count(right) == 1
    (folder / "broken.c").write_text(text.replace(right, wrong), encoding="utf-8")
    return compiled(folder, folder / "broken.c", "-std=c99", "-O1")


class Cable:
    """Between two terminals, in a thread: what goes into one end comes out of the other, slower and with bit errors.

    put_in: samples that the board put into it, whatever became of them. is_cut: nothing comes out.
    """

    def __init__(self, flips: float) -> None:
        self._ends = [os.openpty() for _ in range(2)]  # the far ends are held open, as a UART's pins are there
        for near, far in self._ends:
            tty.setraw(far)
            os.set_blocking(near, False)
        self.board_port, self.host_port = (os.ttyname(far) for _, far in self._ends)
        self.is_cut = self._is_over = False
        self._seen: set[tuple[int, int]] = set()
        self._decoder = FrameDecoder()
        self._noise = [BadLine(seed, flips, 0.0, is_stream=True) for seed in range(2)]
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    @property
    def put_in(self) -> int:
        return len(self._seen)

    def settle(self) -> None:
        """Wait until nothing is in it that was put in before."""
        before = -1
        while before != self.put_in:
            before = self.put_in
            time.sleep(0.2)

    def hang_up(self) -> None:
        self._is_over = True
        self._thread.join()
        for end in self._ends:
            for descriptor in end:
                os.close(descriptor)

    def _carry(self) -> None:
        board, host = (near for near, _ in self._ends)
        while not self._is_over:
            for source in select.select([board, host], [], [], 0.05)[0]:
                data = os.read(source, LINE_BYTES)
                if source == board:
                    events = self._decoder.feed(data)
                    self._seen |= {(event.boot, event.seq) for event in events if isinstance(event, Sample)}
                if not self.is_cut:
                    self._write(host if source == board else board, self._noise[source == board].pass_on(data))
            time.sleep(LINE_S)

    def _write(self, to: int, data: bytes) -> None:
        while data and not (self.is_cut or self._is_over):
            if select.select([], [to], [], 0.05)[1]:
                with suppress(BlockingIOError):
                    data = data[os.write(to, data) :]


@contextmanager
def cable(flips: float = FLIPS) -> Iterator[Cable]:
    line = Cable(flips)
    try:
        yield line
    finally:
        if not line._is_over:
            line.hang_up()


class Powered:
    """The board's program at one end of a cable, with power or without."""

    def __init__(self, program: Path, memory: Path, line: Cable) -> None:
        self._command = [str(program), "--memory", str(memory), line.board_port]
        self.process: subprocess.Popen[str] | None = None

    def on(self, *options: str) -> None:
        command = [*self._command, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def off(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@contextmanager
def powered(program: Path, memory: Path, line: Cable, *options: str) -> Iterator[Powered]:
    board = Powered(program, memory, line)
    board.on(*options)
    try:
        yield board
    finally:
        board.off()


def read(port: str, after_each: Callable[[int], None] = lambda handed_out: None) -> tuple[int, dict[str, int]]:
    """Samples handed out up to the board's end, and what was counted."""
    handed_out, deadline = 0, time.monotonic() + 60
    with make_source(f"serial://{port}") as source:
        with suppress(EndOfSource):
            while True:
                item = source.read(0.5)
                assert time.monotonic() < deadline, "the board has no end"
                if isinstance(item, Sample):
                    handed_out += 1
                    after_each(handed_out)
        return handed_out, dict(source.counters)


def lost(counters: dict[str, int]) -> int:
    return counters["wire_lost"] + counters["restart_lost"] + counters["away"]


def over_resets(program: Path, memory: Path) -> tuple[int, dict[str, int], dict[str, Any]]:
    """Handed out, counted, and what the board says itself."""
    with cable() as line:
        options = ("--rate", FAST, "--samples", str(SAMPLES), "--reboot-every", str(RESET_EVERY))
        with powered(program, memory, line, *options) as board:
            handed_out, counters = read(line.host_port)
            line.hang_up()
            assert board.process is not None
            return handed_out, counters, told_at_the_end(board.process)


def test_over_noise_and_resets_every_sample_is_handed_out_or_counted(board: Path, tmp_path: Path) -> None:
    memory = tmp_path / "eeprom"
    handed_out, counters, told = over_resets(board, memory)
    assert told["made"] == SAMPLES
    assert handed_out + lost(counters) == SAMPLES, counters
    assert counters["restarts"] == SAMPLES // RESET_EVERY
    assert min(handed_out, counters["wire_lost"], counters["restart_lost"]) > 0
    assert memory.read_text(encoding="utf-8").split()[1] == str(SAMPLES)  # an orderly end: the exact number


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("if (memory.path) ef_before(", "if (0) ef_before("),
        ("ef_before(link, 0, memory.before,", "ef_before(link, 0, 0,"),
    ],
    ids=["says nothing of the boots before", "forgets what it made"],
)
def test_a_board_that_does_not_remember_leaves_the_account_open(tmp_path: Path, right: str, wrong: str) -> None:
    handed_out, counters, _ = over_resets(broken_board(tmp_path, right, wrong), tmp_path / "eeprom")
    assert handed_out + lost(counters) != SAMPLES


def over_a_power_cut(program: Path, memory: Path) -> tuple[int, int, dict[str, Any]]:
    """Put into the cable, handed out or counted, and what the board says itself at the end of its last boot.

    The power fails behind a time in which the cable was cut: of what was made then only the board knows.
    """
    with cable() as line, powered(program, memory, line, "--rate", SLOW) as board:

        def fail_once(handed_out: int) -> None:
            if handed_out != 150:
                return
            line.is_cut, before = True, line.put_in
            deadline = time.monotonic() + 20
            while line.put_in < before + 100 and time.monotonic() < deadline:
                time.sleep(0.01)
            board.off()
            line.settle()
            line.is_cut = False
            board.on("--rate", SLOW, "--samples", "300")

        handed_out, counters = read(line.host_port, fail_once)
        assert counters["restarts"] == 1
        put_in = line.put_in
        line.hang_up()
        assert board.process is not None
        return put_in, handed_out + lost(counters), told_at_the_end(board.process)


def test_over_a_power_cut_no_sample_is_lost_in_silence(board: Path, tmp_path: Path) -> None:
    put_in, accounted, told = over_a_power_cut(board, tmp_path / "eeprom")
    assert put_in <= accounted == told["made"]
    assert told["made"] % RESERVE == 300  # all that it had reserved, and what it made since


def test_a_count_that_lags_behind_would_lose_samples_in_silence(tmp_path: Path) -> None:
    lagging = broken_board(tmp_path, "keep(made(link) + RESERVE)", "keep(made(link)), memory.total += RESERVE")
    put_in, accounted, _ = over_a_power_cut(lagging, tmp_path / "eeprom")
    assert accounted < put_in


def test_a_memory_that_is_none_is_refused(board: Path, tmp_path: Path) -> None:
    (tmp_path / "eeprom").write_text("worn out", encoding="utf-8")
    command = [str(board), "--memory", str(tmp_path / "eeprom")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, "eeprom: not the two numbers" in done.stderr) == (1, True)
