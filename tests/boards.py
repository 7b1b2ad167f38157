"""Real far ends: the fake board as a process, boards of tools/ in a thread, a line and a pipe that say what we like."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from firmware_bridge.frame import CTRL_SAY_HELLO, Control, FrameDecoder, encode_control
from tools.fakes.board import Habits, StreamingBoard
from tools.fakes.far_ends import FarEnd, PtyEnd, TcpEnd, UdpEnd
from tools.fakes.faults import BadLine
from tools.fakes.signals import signals

SAY_HELLO = b"\0" + encode_control(Control(0, 0, 0, CTRL_SAY_HELLO))


@contextmanager
def fake_board(*arguments: str) -> Iterator[str]:
    """The fake board as a process of its own; gives the path of its port."""
    command = [sys.executable, "-m", "firmware_bridge.fake_board", *arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["port"]
        finally:
            process.terminate()


@contextmanager
def talking_line(wire: bytes) -> Iterator[str]:
    """A pseudo-terminal that sends these bytes, less than its 4 KiB, once it was asked for HELLO; gives its path."""
    master, slave = os.openpty()
    tty.setraw(slave)

    def talk() -> None:
        decoder = FrameDecoder()
        while not decoder.feed(os.read(master, 4096)):
            pass
        os.write(master, wire)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield os.ttyname(slave)
    finally:
        os.write(slave, SAY_HELLO)  # ends the thread where nobody asked
        thread.join()
        os.close(slave)
        os.close(master)


class Running:
    """A board of tools/fakes in a thread of its own."""

    def __init__(self, end: FarEnd, name: str, habits: Habits, *, seed: int, flips: float, drops: float) -> None:
        schemas, samples = signals(name.split(","), seed, habits.rate_hz)
        self.board = StreamingBoard(end, schemas, samples, habits, BadLine(seed, flips, drops, is_stream=end.is_stream))
        self.url = end.url
        self._end = end
        self._thread = threading.Thread(target=self.board.run, daemon=True)
        self._thread.start()

    def told(self) -> dict[str, int]:
        """What it made of it all, once it has ended by itself."""
        self._thread.join(30.0)
        assert not self._thread.is_alive()
        return self.board.told()

    def unplug(self) -> None:
        """Close its end in the middle of whatever it does."""
        if self.board.is_stopped:
            return
        self.board.stop()
        self._thread.join()
        self._end.close()


@contextmanager
def streaming_board(
    end: FarEnd,
    samples: int,
    *,
    name: str = "imu",
    seed: int = 5,
    flips: float = 0.0,
    drops: float = 0.0,
    **habits: float,
) -> Iterator[Running]:
    """A board of tools/fakes on this end of a line; unplugged behind the block."""
    running = Running(end, name, Habits(samples, **habits), seed=seed, flips=flips, drops=drops)
    try:
        yield running
    finally:
        running.unplug()


def far_end(link: str, secret: bytes | None = None) -> FarEnd:
    """A new far end of that kind: pty, tcp, cobs (on TCP) or udp."""
    if link == "pty":
        return PtyEnd(secret)
    if link == "udp":
        return UdpEnd(free_port(socket.SOCK_DGRAM), secret)
    return TcpEnd(0, "cobs" if link == "cobs" else "length", secret)


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A port of loopback that nobody uses."""
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def standard_input(text: bytes = b"") -> Iterator[int]:
    """A pipe as standard input that holds this text; gives the end to write to, closed behind the block if not before.

    With text that end is a thread's and closed when all is written.
    """
    before, (reading, writing) = os.dup(0), os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    thread = threading.Thread(target=_write_all, args=(writing, text)) if text else None
    if thread is not None:
        thread.start()
    try:
        yield writing
    finally:
        os.dup2(before, 0)  # closes the pipe for reading: a writer that waits gives up
        os.close(before)
        if thread is not None:
            thread.join()
        else:
            with suppress(OSError):
                os.close(writing)


def _write_all(descriptor: int, text: bytes) -> None:
    with suppress(BrokenPipeError):
        while text:
            text = text[os.write(descriptor, text) :]
    os.close(descriptor)
