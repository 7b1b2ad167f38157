"""A simulated board: starts fake_board.py as a process and reads it through SerialPort over a real pseudo-terminal.

So simulated samples take the same road as real ones: bytes, frames, decoder. Knows the process, not the physics.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from firmware_bridge.errors import BadSourceUrl, SourceLost, SourceUnavailable
from firmware_bridge.motor import boot_of
from firmware_bridge.options import speed as parse_speed
from firmware_bridge.options import whole
from firmware_bridge.sample import Label, Sample, SampleId, Schema, newest_of
from firmware_bridge.source import SourceBase
from firmware_bridge.sources.serial_port import SerialPort

_BAUD = 921600  # what a real board would need for 22.8 kB/s; a pseudo-terminal does not care
_HELLO_WAIT_S = 20.0
_END_WAIT_S = 5.0


class Simulated(SourceBase):
    """Samples of a simulated board; the only model is motor.

    speed: 1 is real time, inf as fast as it is read. samples: the board falls silent after this many frames of its
    boot, and the source ends. seed: seed of scenario and noise, and so the board's boot id. after: go on behind this
    sample if it is of the same boot, else from the start.
    """

    has_clock = True
    OPTIONS: Mapping[str, Callable[[str], Any]] = {"speed": parse_speed, "samples": whole(1), "seed": whole(0)}

    def __init__(
        self,
        model: str,
        *,
        after: Sequence[SampleId] = (),
        seed: int = 0,
        speed: float = 1.0,
        samples: int | None = None,
    ) -> None:
        if model != "motor":
            raise BadSourceUrl(f"simulated:{model}: no such model", hint="the only model is simulated:motor")
        # Faster than real time the board waits for the line; in real time it drops what the line does not take.
        self.can_wait = speed > 1
        last = newest_of(after, boot_of(seed))
        self._after = [] if last is None else [last]
        self._arguments = (seed, speed, samples, 0 if last is None else last.seq + 1)
        self._process: subprocess.Popen[str] | None = None
        self._port = SerialPort("", wait=_HELLO_WAIT_S, reconnect=0)

    @property
    def schema(self) -> Schema:
        """What the board announced."""
        return self._port.schema

    @property
    def counters(self) -> Mapping[str, int]:
        """Faults of the line by reason, and what the sequence numbers tell."""
        return self._port.counters

    @property
    def pid(self) -> int | None:
        """Process of the board while it is open."""
        return None if self._process is None else self._process.pid

    def open(self) -> None:
        """Start the board and open its line. Raises SourceUnavailable if it does not start."""
        # Its own session: Ctrl-C at a terminal stops the daemon in its own good order, not the board under it.
        self._process = subprocess.Popen(
            _command(*self._arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            path = self._line_path()
            self._port = SerialPort(path, after=self._after, baud=_BAUD, wait=_HELLO_WAIT_S, reconnect=0)
            self._port.open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the line and end the process; a second call does nothing."""
        self._port.close()
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_END_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def host_us(self, sample: Sample) -> int | None:
        """As of any board."""
        return self._port.host_us(sample)

    def read(self, timeout_s: float) -> Sample | Label | None:
        """Next sample, None if none came in time. Raises EndOfSource, SourceLost."""
        if self._process is None:
            raise SourceLost("the simulated board is not open")
        return self._port.read(timeout_s)

    def _line_path(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SourceUnavailable(f"the simulated board did not start (exit {self._process.wait()})")
        return str(json.loads(line)["port"])


def _command(seed: int, speed: float, samples: int | None, start: int) -> list[str]:
    command = [sys.executable, "-m", "firmware_bridge.fake_board", "--parent", str(os.getpid())]
    command += ["--seed", str(seed), "--start", str(start), "--speed", "max" if math.isinf(speed) else str(speed)]
    return command if samples is None else [*command, "--samples", str(samples)]
