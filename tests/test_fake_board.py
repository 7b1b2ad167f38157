"""The fake board as a process: it waits to be asked, keeps its pace, ends with its line, its parent, its samples."""

import json
import os
import select
import subprocess
import sys
import time
import tty

import numpy as np
import pytest
from boards import SAY_HELLO, fake_board

from firmware_bridge.fake_board import HungUpError, Line, main
from firmware_bridge.frame import CTRL_END, Control, FrameDecoder, encode_sample
from firmware_bridge.hello import Hello
from firmware_bridge.motor import Motor, boot_of, schema
from firmware_bridge.sample import Sample


class Port:
    """The far end, as bare as it can be: a file descriptor in raw mode and a decoder."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self.fd)
        self.decoder = FrameDecoder()

    def ask(self):
        os.write(self.fd, SAY_HELLO)

    def events(self, timeout_s=10.0):
        ready, _, _ = select.select([self.fd], [], [], timeout_s)
        return self.decoder.feed(os.read(self.fd, 65536)) if ready else []

    def until(self, done):
        events = []
        while not done(events):
            more = self.events()
            assert more or self.decoder.buffered_bytes, "the board fell silent"
            events += more
        return events


def ended(events):
    return bool(events) and isinstance(events[-1], Control)


def test_a_board_says_nothing_before_it_is_asked_then_hello_first():
    with fake_board("--speed", "max", "--samples", "5", "--seed", "3") as path:
        port = Port(path)
        assert port.events(timeout_s=0.05) == []
        port.ask()
        hello, *samples, end = port.until(ended)
        os.close(port.fd)
    assert hello == Hello("simulated motor", "fake_board", boot_of(3), {0: schema()})
    assert [sample.seq for sample in samples] == [0, 1, 2, 3, 4]
    assert end == Control(0, boot_of(3), 5, CTRL_END)


def test_full_speed_loses_nothing_and_repeats_hello():
    with fake_board("--speed", "max", "--samples", "3000", "--seed", "3") as path:
        port = Port(path)
        port.ask()
        events = port.until(ended)
        os.close(port.fd)
    samples = [event for event in events if isinstance(event, Sample)]
    assert [sample.seq for sample in samples] == list(range(3000))
    assert not any(sample.gap for sample in samples)
    assert sum(isinstance(event, Hello) for event in events) == 4
    assert sum(port.decoder.counters.values()) == 0
    for sample, true in zip(samples, Motor(3).samples(), strict=False):
        np.testing.assert_array_equal(sample.values, true.values)


def test_hello_is_said_again_when_asked_again():
    with fake_board("--speed", "max", "--samples", "5") as path:
        port = Port(path)
        port.ask()
        port.until(ended)
        port.ask()
        assert [type(event) for event in port.events()] == [Hello]
        os.close(port.fd)


@pytest.mark.parametrize(("speed", "n", "at_least_s"), [("1", 20, 0.19), ("10", 200, 0.19)])
def test_a_board_keeps_its_pace(speed, n, at_least_s):
    with fake_board("--speed", speed, "--samples", str(n)) as path:
        port = Port(path)
        start = time.monotonic()
        port.ask()
        events = port.until(ended)
        took_s = time.monotonic() - start
        os.close(port.fd)
    assert sum(isinstance(event, Sample) for event in events) == n
    assert took_s >= at_least_s  # n × 10 ms / speed, less poll's resolution; no upper bound on a busy machine


def test_a_board_starts_where_it_is_told_even_behind_its_end():
    for start, seqs in ((2995, [2995, 2996, 2997, 2998, 2999]), (4000, [])):
        with fake_board("--speed", "max", "--samples", "3000", "--start", str(start)) as path:
            port = Port(path)
            port.ask()
            events = port.until(ended)
            os.close(port.fd)
        assert [event.seq for event in events if isinstance(event, Sample)] == seqs
        assert events[-1].seq == max(start, 3000)


def test_a_board_ends_when_the_far_end_hangs_up():
    for speed in ("1", "max"):  # waiting for its next sample, waiting for the full line
        command = [sys.executable, "-m", "firmware_bridge.fake_board", "--speed", speed]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            port = Port(json.loads(process.stdout.readline())["port"])
            port.ask()
            port.until(lambda events: len(events) > 3)
            os.close(port.fd)
            assert process.wait(20) == 0


SIMULATED = """
import os, signal
from firmware_bridge.registry import make_source
source = make_source("simulated:motor?speed=max")
source.open()
assert source.read(10.0) is not None
os.kill(os.getpid(), signal.SIGKILL)
"""
ABANDONED = """
import os, subprocess, sys
command = [sys.executable, "-m", "firmware_bridge.fake_board", "--parent", str(os.getpid())]
board = subprocess.Popen(command, start_new_session=True)
"""


@pytest.mark.parametrize("parent", [SIMULATED, ABANDONED], ids=["killed while reading", "gone before opening"])
def test_a_board_does_not_outlive_the_process_that_started_it(parent):
    """Both share the pipe: it ends when the last of them has ended."""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        process.communicate(timeout=30)
    assert process.returncode in (0, -9)


def test_in_real_time_a_full_line_never_blocks_and_what_was_taken_arrives_whole():
    line, taken, got = Line(), [], []
    port = Port(line.path)
    for sample in Motor(0).samples():
        if not line.offer(encode_sample(sample)):
            break
        taken.append(sample.seq)
    assert 140 < len(taken) < 1000  # the FIFO's 32 KiB and what the kernel holds
    while len(got) < len(taken):
        got += [event.seq for event in port.events(timeout_s=0.05)]
        line.offer(b"\0")  # what the board says next pushes the FIFO on
    assert got == taken
    os.close(port.fd)


def test_a_line_notices_the_hang_up():
    line = Line()
    port = Port(line.path)
    port.ask()
    line.wait_for_request()
    os.close(port.fd)
    with pytest.raises(HungUpError):
        line.listen(1.0)
    with pytest.raises(HungUpError):
        line.send(bytes(100_000))


def test_wrong_arguments_are_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--speed", "fast"])
    assert caught.value.code == 2
    assert "--speed" in capsys.readouterr().err
