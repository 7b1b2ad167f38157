"""A board on a serial line: bytes from serialx through FrameDecoder and SequenceTracker to samples.

The only file that knows serialx; none of its exceptions leaves it. Has no thread and no queue beyond one read's frames.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

import serialx

from firmware_bridge.errors import EndOfSource, SourceLost, SourceUnavailable
from firmware_bridge.frame import CTRL_END, CTRL_SAY_HELLO, Control, Event, FrameDecoder, encode_control
from firmware_bridge.hello import Hello
from firmware_bridge.options import seconds, whole
from firmware_bridge.sample import HeldOut, Label, Sample, SampleId, Schema
from firmware_bridge.sequence import SequenceTracker

_READ_BYTES = 65536
_ASK_EVERY_S = 0.5  # the request for HELLO is a frame too, and may be lost
_MAX_EARLY = 256  # events kept while waiting for HELLO: a board that sent so many without one has none


class SerialPort:
    """Samples of one stream of the board on the port `path`.

    baud: bits per second. stream: which of the board's streams, default its first. wait: seconds that open() waits for
    the board's HELLO; without one the schema is taken from the first sample. after: see make_source.
    """

    OPTIONS: Mapping[str, Callable[[str], Any]] = {
        "baud": whole(50, 20_000_000),
        "stream": whole(0, 0xFFFF),
        "wait": seconds,
    }
    held_out: HeldOut | None = None
    can_wait = False

    def __init__(
        self,
        path: str,
        *,
        after: SampleId | None = None,
        baud: int = 115200,
        stream: int | None = None,
        wait: float = 3.0,
    ) -> None:
        self.schema = Schema(name="", dtype="uint8", shape=())
        self._path, self._baud, self._stream, self._wait_s = path, baud, stream, wait
        self._port: serialx.BaseSerial | None = None
        self._buffer = bytearray(_READ_BYTES)
        self._decoder = FrameDecoder()
        self._tracker = SequenceTracker(None if after is None else (after.boot, after.seq))
        self._other_streams = 0
        self._announced = False
        self._ready: deque[Sample | Label] = deque()
        self._ended: str | None = None

    @property
    def counters(self) -> Mapping[str, int]:
        """Faults of the line by reason, and what the sequence numbers tell."""
        return {**self._decoder.counters, **self._tracker.counters, "other_stream": self._other_streams}

    def open(self) -> None:
        """Open the port, ask the board for HELLO and learn the schema. Raises SourceUnavailable."""
        self._port = self._open_port()
        try:
            early = self._wait_for_hello()
            self._choose_schema(early)
            for event in early:
                self._judge(event)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the port go; a second call does nothing."""
        port, self._port = self._port, None
        if port is not None:
            with suppress(OSError):  # the device is gone: nothing is left to close
                port.close()

    def acknowledge(self, upto: SampleId) -> None:
        """Nobody to tell."""

    def __enter__(self) -> SerialPort:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, timeout_s: float) -> Sample | Label | None:
        """Next sample or late label, None if none came in time.

        Raises EndOfSource when the board said that it sends no more, SourceLost when the port is gone.
        """
        deadline = time.monotonic() + timeout_s
        while not self._ready:
            if self._ended is not None:
                raise EndOfSource(self._ended)
            events = self._receive(max(0.0, deadline - time.monotonic()))
            for event in events:
                self._judge(event)
            if not self._ready and self._ended is None and time.monotonic() >= deadline:
                return None
        return self._ready.popleft()

    def _open_port(self) -> serialx.BaseSerial:
        try:
            port = serialx.serial_for_url(self._path, baudrate=self._baud)
            port.open()
        except Exception as exc:  # serialx raises OSError, ValueError, termios.error and its own
            raise unavailable(self._path, exc) from exc
        return port

    def _wait_for_hello(self) -> list[Event]:
        early: list[Event] = []
        now = time.monotonic()
        deadline, ask_at = now + self._wait_s, now
        while now < deadline and len(early) < _MAX_EARLY:
            if now >= ask_at:
                self._ask_for_hello()
                ask_at = now + _ASK_EVERY_S
            early += self._receive(min(ask_at, deadline) - now)
            if any(isinstance(event, Hello) for event in early):
                break
            now = time.monotonic()
        return early

    def _ask_for_hello(self) -> None:
        port = self._opened()
        try:
            port.write(b"\0" + encode_control(Control(0, 0, 0, CTRL_SAY_HELLO)), timeout=_ASK_EVERY_S)
        except TimeoutError:
            pass  # a board that does not listen may still talk
        except Exception as exc:  # as in _open_port
            raise self._lost(exc) from exc

    def _choose_schema(self, early: list[Event]) -> None:
        for event in early:
            if isinstance(event, Hello):
                stream = min(event.streams) if self._stream is None else self._stream
                if stream not in event.streams:
                    known = ", ".join(map(str, sorted(event.streams)))
                    raise SourceUnavailable(f"{self._path}: the board has no stream {stream}", hint=f"it has: {known}")
                self._stream, self.schema, self._announced = stream, event.streams[stream], True
                return
        for event in early:
            if isinstance(event, Sample) and self._stream in (None, event.stream):
                name, values = f"stream {event.stream}", event.values
                self._stream, self.schema = event.stream, Schema(name, values.dtype.name, values.shape)
                return
        raise self._silent()

    def _silent(self) -> SourceUnavailable:
        faults = ", ".join(f"{count} {reason}" for reason, count in self._decoder.counters.items() if count)
        if faults or self._decoder.buffered_bytes:
            hint = f"is {self._baud} the board's baud rate? set it with ?baud=…"
            return SourceUnavailable(f"{self._path}: bytes came, but no frame ({faults or 'none ended'})", hint=hint)
        return SourceUnavailable(
            f"{self._path}: nothing came in {self._wait_s:g} s",
            hint="is the board powered and its firmware running? wait longer with ?wait=…",
        )

    def _receive(self, timeout_s: float) -> list[Event]:
        port = self._opened()
        try:
            count = port.readinto(self._buffer, timeout=max(0.0, timeout_s))
        except Exception as exc:  # as in _open_port
            raise self._lost(exc) from exc
        return self._decoder.feed(bytes(memoryview(self._buffer)[:count])) if count else []

    def _opened(self) -> serialx.BaseSerial:
        if self._port is None:
            raise SourceLost(f"{self._path}: the port is not open")
        return self._port

    def _lost(self, exc: Exception) -> SourceLost:
        return SourceLost(f"{self._path}: the board is gone ({exc})", hint="is it still plugged in?")

    def _judge(self, event: Event) -> None:
        if isinstance(event, Hello):
            self._compare(event)
        elif event.stream != self._stream:
            self._other_streams += isinstance(event, (Sample, Label))
        elif isinstance(event, Sample):
            self._judge_sample(event)
        elif isinstance(event, Label):
            self._ready.append(event)
        elif event.code == CTRL_END:
            self._tracker.finish(event.boot, event.seq)
            self._ended = f"{self._path}: the board sent its last sample"

    def _judge_sample(self, sample: Sample) -> None:
        if sample.values.shape != self.schema.shape or sample.values.dtype.name != self.schema.dtype:
            self._decoder.counters["schema"] += 1
            return
        missing = self._tracker.accept(sample.boot, sample.seq)
        if missing is not None:
            self._ready.append(replace(sample, gap=True) if missing else sample)

    def _compare(self, hello: Hello) -> None:
        """A HELLO may be repeated; one that says something else means that samples no longer mean what they meant."""
        if self._announced and self._stream is not None and hello.streams.get(self._stream) != self.schema:
            raise SourceLost(
                f"{self._path}: the board now announces another schema for stream {self._stream}",
                hint="was its firmware changed? start again to take the new schema",
            )


def unavailable(path: str, exc: Exception) -> SourceUnavailable:
    """What an exception while opening a port means, with what to do about it."""
    number = exc.errno if isinstance(exc, OSError) else None
    if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        ports = sorted(port.device for port in serialx.list_serial_ports())
        hint = (
            f"ports that exist: {', '.join(ports)}" if ports else "no serial port exists here; is the board plugged in?"
        )
        return SourceUnavailable(f"{path}: no such serial port", hint=hint)
    if number in (errno.EACCES, errno.EPERM):
        hint = "join the group that owns it, usually: sudo usermod -aG dialout $USER, then log in again"
        return SourceUnavailable(f"{path}: permission denied", hint=hint)
    if number == errno.EBUSY:
        return SourceUnavailable(f"{path}: another program uses it", hint=f"find it with: fuser {path}")
    return SourceUnavailable(f"{path}: cannot be opened as a serial port ({exc})", hint="serial:///dev/ttyUSB0?baud=…")
