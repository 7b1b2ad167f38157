"""A board on a serial line: a thin line on top of serialx, found again by its USB serial number when it was unplugged.

The only file that knows serialx; none of its exceptions leaves it.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import serialx

from firmware_bridge.auth import NO_FLOOR, board_key, host_key, key_option
from firmware_bridge.errors import SourceUnavailable
from firmware_bridge.frame import Event, FrameDecoder, encode
from firmware_bridge.options import patience, seconds, streams, whole
from firmware_bridge.sample import SampleId
from firmware_bridge.sources.board_source import BoardSource
from firmware_bridge.sources.line import LineBrokenError, Signature

_READ_BYTES = 65536
_SEND_S = 0.5


class SerialLine:
    """Line to the port `path`, or to wherever the board that was there is plugged in now; see line.Line."""

    def __init__(self, path: str, baud: int, key: bytes | None) -> None:
        self.name = path
        self.decoder = FrameDecoder(None if key is None else board_key(key))
        self.no_frames = f"is {baud} the board's baud rate? set it with ?baud=…"
        self._baud, self._signature = baud, Signature(None if key is None else host_key(key))
        self._port: serialx.BaseSerial | None = None
        self._number: str | None = None  # USB serial number of the board that was here first
        self._buffer = bytearray(_READ_BYTES)

    def connect(self, timeout_s: float) -> bool:
        """Open the port; takes what it takes, some 10 ms. Raises SourceUnavailable."""
        path = self._where()
        port: serialx.BaseSerial | None = None
        try:
            port = serialx.serial_for_url(path, baudrate=self._baud)
            port.open()
        except Exception as exc:  # serialx raises OSError, ValueError, termios.error and its own
            if port is not None:
                with suppress(Exception):  # it keeps the descriptor of a port that it could open and not lock
                    port.close()
            raise unavailable(path, exc) from exc
        self._port = port
        if self._number is None:
            self._number = _numbers().get(_real(path))
        return True

    def receive(self, timeout_s: float) -> bytes:
        """See line.Line."""
        if self._port is None:
            raise LineBrokenError("the port is not open")
        try:
            count = self._port.readinto(self._buffer, timeout=timeout_s)
        except Exception as exc:  # as in connect
            raise LineBrokenError(str(exc)) from exc
        return bytes(memoryview(self._buffer)[:count]) if count else b""

    def send(self, message: Event) -> bool:
        """See line.Line."""
        if self._port is None:
            raise LineBrokenError("the port is not open")
        wire = b"\0" + encode(message, **self._signature.of(message))
        try:
            self._port.write(wire, timeout=_SEND_S)
        except TimeoutError:
            return False  # a board that does not listen may still talk
        except Exception as exc:  # as in connect
            raise LineBrokenError(str(exc)) from exc
        return True

    def close(self) -> None:
        """See line.Line."""
        port, self._port = self._port, None
        if port is not None:
            with suppress(OSError):  # the device is gone: nothing is left to close
                port.close()

    def _where(self) -> str:
        """Path of the port that the board is on. Raises SourceUnavailable if another one took its place."""
        if self._number is None:
            return self.name
        numbers = _numbers()
        if numbers.get(_real(self.name)) == self._number:
            return self.name
        for path, number in numbers.items():
            if number == self._number:
                return path
        raise SourceUnavailable(
            f"{self.name}: no board with serial number {self._number} is plugged in",
            hint=f"USB serial ports that exist: {', '.join(sorted(numbers)) or 'none'}",
        )


class SerialPort(BoardSource):
    """Samples of one stream of the board on the port `path`; see BoardSource.

    baud: bits per second. key: secret that frames are signed with.
    """

    OPTIONS: Mapping[str, Callable[[str], Any]] = {
        "baud": whole(50, 20_000_000),
        "stream": streams,
        "wait": seconds,
        "reconnect": patience,
        "key": key_option,
    }

    def __init__(
        self,
        path: str,
        *,
        after: Sequence[SampleId] = (),
        baud: int = 115200,
        stream: Sequence[int] = (),
        wait: float = 3.0,
        reconnect: float = math.inf,
        key: bytes | None = None,
        floor: Mapping[str, Any] = NO_FLOOR,
    ) -> None:
        super().__init__(
            SerialLine(path, baud, key), after=after, stream=stream, wait=wait, reconnect=reconnect, floor=floor
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


def _numbers() -> dict[str, str]:
    """Serial number of each USB serial port that has one, by the path of its device."""
    found = {}
    for port in serialx.list_serial_ports():
        if port.serial_number:
            found[_real(port.device)] = port.serial_number
    return found


def _real(path: str) -> str:
    """The device itself, where the path is one of udev's links to it."""
    return str(Path(path).resolve())
