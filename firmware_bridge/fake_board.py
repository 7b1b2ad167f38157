"""A board that is not there: `python -m firmware_bridge.fake_board` talks frames on a real pseudo-terminal.

Opens the pseudo-terminal, prints one JSON line with the path of its far end, starts when the far end asks for HELLO,
sends HELLO and SAMPLE frames and CTRL END behind the last sample, and ends when the far end hangs up or the process
that started it is gone. In real time (speed up to 1) it behaves as hardware does: it never waits, and what does not fit
its FIFO is dropped (seq tells). Faster, it waits for the line: a reader that keeps reading loses nothing. Knows the
physics only as samples.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import select
import sys
import time
import tty
from collections.abc import Iterator
from dataclasses import replace

from firmware_bridge.frame import (
    CTRL_END,
    CTRL_SAY_HELLO,
    Control,
    FrameDecoder,
    encode_control,
    encode_hello,
    encode_sample,
)
from firmware_bridge.hello import Hello
from firmware_bridge.motor import FRAME_ROWS, RATE_HZ, Motor, boot_of, schema
from firmware_bridge.options import speed as parse_speed
from firmware_bridge.options import whole
from firmware_bridge.sample import Sample

_FIFO_BYTES = 32768  # as a small board has: 1.4 s of samples in real time
_HELLO_EVERY = 1000  # frames; who joins late learns the schema within 10 s
_LOOK_UP_S = 0.5  # how often a waiting board looks whether its parent lives
_MAX_LAG_S = 0.2  # a sped-up board that had to wait longer does not rush to catch up
_MAX_BATCH = 64  # frames written at once at full speed; about 14 KiB


class HungUpError(Exception):
    """The far end closed the line, or the process that started the board is gone."""


class Line:
    """The board's end of the pseudo-terminal: writes with or without waiting, and hears requests for HELLO."""

    def __init__(self, parent: int | None = None) -> None:
        self._master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(slave)
        # Held until the far end has spoken: without an open far end a pseudo-terminal reads as hung up.
        self._slave: int | None = slave
        self._parent = os.getppid() if parent is None else parent
        self._requests = FrameDecoder()
        self._pending = bytearray()
        self._poll = select.poll()

    def wait_for_request(self) -> None:
        """Return when the far end has asked for HELLO; then a hang-up of the far end is the end."""
        while not self.listen(_LOOK_UP_S):
            pass
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None

    def listen(self, timeout_s: float) -> bool:
        """Wait up to timeout_s for a request for HELLO; True if one came. Raises HungUpError."""
        if not self._wait(select.POLLIN, timeout_s):
            return False
        try:
            events = self._requests.feed(os.read(self._master, 4096))
        except OSError as exc:
            raise HungUpError from exc
        return any(isinstance(event, Control) and event.code == CTRL_SAY_HELLO for event in events)

    def send(self, data: bytes) -> None:
        """Send all of it, waiting for the line as long as it takes. Raises HungUpError."""
        self._pending += data
        while self._pending:
            self._push()
            if self._pending:
                self._wait(select.POLLOUT, _LOOK_UP_S)

    def offer(self, data: bytes) -> bool:
        """Send what the line takes at once and keep the rest in the FIFO; False: full, nothing was taken."""
        self._push()
        if len(self._pending) + len(data) > _FIFO_BYTES:
            return False
        self._pending += data
        self._push()
        return True

    def _push(self) -> None:
        try:
            while self._pending:
                del self._pending[: os.write(self._master, self._pending)]
        except BlockingIOError:
            pass
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            raise HungUpError from exc

    def _wait(self, what: int, timeout_s: float) -> bool:
        self._poll.register(self._master, what)
        happened = self._poll.poll(timeout_s * 1000)
        if os.getppid() != self._parent:
            raise HungUpError
        events = happened[0][1] if happened else 0
        if events & (select.POLLHUP | select.POLLERR) and not events & select.POLLIN:
            raise HungUpError
        return bool(events & what)


class Board:
    """Sends a motor's samples down a line at a given speed."""

    def __init__(self, line: Line, *, seed: int, speed: float, start: int, samples: float) -> None:
        self._line, self._speed, self._start, self._samples = line, speed, start, samples
        self._boot = boot_of(seed)
        self._motor = Motor(seed)
        self._overrun = False

    def run(self) -> None:
        """Talk until the far end hangs up. Raises HungUpError."""
        self._line.wait_for_request()
        self._hello()
        frames = self._frames()
        if math.isinf(self._speed):
            self._run_flat_out(frames)
        else:
            self._run_paced(frames)
        self._line.send(encode_control(Control(0, self._boot, max(self._start, int(self._samples)), CTRL_END)))
        while True:  # closing now would take the bytes that the far end has not read yet
            self._listen(_LOOK_UP_S)

    def _frames(self) -> Iterator[Sample]:
        for sample in self._motor.samples(self._start):
            if sample.seq >= self._samples:
                return
            yield sample

    def _run_flat_out(self, frames: Iterator[Sample]) -> None:
        batch: list[bytes] = []
        for sample in frames:
            batch.append(encode_sample(sample))
            if len(batch) >= _MAX_BATCH:
                self._line.send(b"".join(batch))
                batch.clear()
                self._listen(0)
            self._repeat_hello(sample)
        self._line.send(b"".join(batch))

    def _run_paced(self, frames: Iterator[Sample]) -> None:
        period_s = FRAME_ROWS / RATE_HZ / self._speed
        due = time.monotonic()
        for sample in frames:
            due += period_s
            wait_s = due - time.monotonic()
            if wait_s > 0.001:  # poll's resolution: what is due within it goes out together
                self._rest(due)
            elif self._speed > 1 and wait_s < -_MAX_LAG_S:
                due = time.monotonic()
            self._emit(sample)
            self._repeat_hello(sample)

    def _emit(self, sample: Sample) -> None:
        if self._speed > 1:
            self._line.send(encode_sample(sample))
        else:
            sent = self._line.offer(encode_sample(replace(sample, gap=self._overrun)))
            self._overrun = not sent

    def _rest(self, until: float) -> None:
        while (wait_s := until - time.monotonic()) > 0:
            self._listen(min(wait_s, _LOOK_UP_S))

    def _listen(self, timeout_s: float) -> None:
        if self._line.listen(timeout_s):
            self._hello()

    def _repeat_hello(self, sample: Sample) -> None:
        if sample.seq % _HELLO_EVERY == _HELLO_EVERY - 1:
            self._hello()

    def _hello(self) -> None:
        hello = encode_hello(Hello("simulated motor", "fake_board", self._boot, {0: schema()}))
        if self._speed > 1:
            self._line.send(hello)
        else:
            self._line.offer(hello)


def main(arguments: list[str] | None = None) -> int:
    """Run the board as a process."""
    parser = argparse.ArgumentParser(prog="python -m firmware_bridge.fake_board", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of scenario and noise (0)")
    parser.add_argument("--speed", type=parse_speed, default=1.0, help="1 is real time; max: as fast as it is read (1)")
    parser.add_argument(
        "--samples", type=whole(1), default=math.inf, help="frames until the board falls silent (endless)"
    )
    parser.add_argument("--start", type=whole(0), default=0, help="seq of the first frame (0)")
    parser.add_argument("--parent", type=whole(1), help="end when this process, which starts the board, is gone")
    options = parser.parse_args(arguments)
    line = Line(options.parent)
    sys.stdout.write(json.dumps({"port": line.path, "boot": boot_of(options.seed)}) + "\n")
    sys.stdout.flush()
    board = Board(line, seed=options.seed, speed=options.speed, start=options.start, samples=options.samples)
    try:
        board.run()
    except (HungUpError, KeyboardInterrupt):
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
