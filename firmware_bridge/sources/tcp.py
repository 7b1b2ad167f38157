"""A board on TCP: it listens and is connected to, or, behind tcp-listen, it connects to us. Knows sockets, no frames.

Frames stand behind their length (packet.py); framing=cobs is for a device server that passes on what a serial line
carries. What TCP itself cannot tell, a far end that lost its power, keepalive and the user timeout do, within 10 s.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from firmware_bridge.auth import NO_FLOOR, board_key, host_key, key_option
from firmware_bridge.errors import BadSourceUrl, SourceUnavailable
from firmware_bridge.frame import Event, FrameDecoder, encode
from firmware_bridge.options import one_of, patience, seconds, streams
from firmware_bridge.packet import LengthDecoder, encode_packet
from firmware_bridge.sample import SampleId
from firmware_bridge.sources.board_source import BoardSource
from firmware_bridge.sources.line import LineBrokenError, Signature

_READ_BYTES = 65536
_ATTEMPT_S = 5.0  # of connecting, before it is tried anew
_GONE_MS = 10_000  # without any sign of life
_HINT = "tcp://HOST:PORT, the address at which the board listens"


class _Stream:
    """What a connected socket and one that was accepted have in common; see line.Line."""

    def __init__(self, name: str, framing: str, key: bytes | None) -> None:
        self.name = name
        theirs = None if key is None else board_key(key)
        self._signature = Signature(None if key is None else host_key(key))
        self.decoder = LengthDecoder(theirs) if framing == "length" else FrameDecoder(theirs)
        other = "cobs" if framing == "length" else "length"
        self.no_frames = f"are its frames set apart otherwise? try ?framing={other}"
        self._encode = encode_packet if framing == "length" else encode
        self._socket: socket.socket | None = None

    def receive(self, timeout_s: float) -> bytes:
        """See line.Line."""
        connection = self._connected()
        try:
            if not _is_ready(connection, select.POLLIN, timeout_s):
                return b""
            data = connection.recv(_READ_BYTES)
        except OSError as exc:
            raise LineBrokenError(_said(exc)) from exc
        if not data:
            raise LineBrokenError("the far end closed the connection")
        return data

    def send(self, message: Event) -> bool:
        """See line.Line."""
        connection = self._connected()
        wire = self._encode(message, **self._signature.of(message))
        try:
            # As much as a frame always finds room, unless the far end does not read: then it is not written at all,
            # since half a frame would cost what comes behind it.
            if not _is_ready(connection, select.POLLOUT, 0.0):
                return False
            connection.sendall(wire)
        except OSError as exc:
            raise LineBrokenError(_said(exc)) from exc
        return True

    def close(self) -> None:
        """See line.Line."""
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise LineBrokenError("not connected")
        return self._socket


class TcpLine(_Stream):
    """Connects to host:port."""

    def __init__(self, host: str, port: int, framing: str, key: bytes | None) -> None:
        super().__init__(f"tcp://{host}:{port}", framing, key)
        self._host, self._port = host, port
        self._attempt: socket.socket | None = None
        self._attempt_until = 0.0

    def connect(self, timeout_s: float) -> bool:
        """See line.Line; a name is looked up first, which takes what it takes."""
        try:
            attempt = self._attempt or self._begin()
            if not _is_ready(attempt, select.POLLOUT, timeout_s):
                if time.monotonic() < self._attempt_until:
                    return False
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            if fault := attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(fault, os.strerror(fault))
        except OSError as exc:
            self._give_up()
            raise self._unavailable(exc) from exc
        self._socket, self._attempt = attempt, None
        _keep_alive(attempt)
        return True

    def close(self) -> None:
        """See line.Line."""
        self._give_up()
        super().close()

    def _begin(self) -> socket.socket:
        family, kind, protocol, _, address = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0]
        self._attempt = socket.socket(family, kind, protocol)
        self._attempt.setblocking(False)
        self._attempt_until = time.monotonic() + _ATTEMPT_S
        fault = self._attempt.connect_ex(address)
        if fault not in (0, errno.EINPROGRESS):
            raise OSError(fault, os.strerror(fault))
        return self._attempt

    def _give_up(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.close()

    def _unavailable(self, exc: OSError) -> SourceUnavailable:
        if isinstance(exc, ConnectionRefusedError):
            hint = "the machine is there and nothing listens at that port; does the board's firmware run?"
        elif isinstance(exc, socket.gaierror):
            hint = "no such name; is it spelt right, is there a network?"
        else:
            hint = "can the board be reached from here? try: ping " + self._host
        return SourceUnavailable(f"{self.name}: {_said(exc)}", hint=hint)


class ListeningLine(_Stream):
    """Listens at host:port for the one board that connects; the next one is let in when it has gone."""

    def __init__(self, host: str, port: int, framing: str, key: bytes | None) -> None:
        super().__init__(f"tcp-listen://{host}:{port}", framing, key)
        self._host, self._port = host, port
        self._door: socket.socket | None = None

    def connect(self, timeout_s: float) -> bool:
        """See line.Line."""
        try:
            door = self._door or self._listen()
            if not _is_ready(door, select.POLLIN, timeout_s):
                return False
            self._socket = door.accept()[0]
            self._socket.setblocking(False)
        except BlockingIOError:
            return False  # it hung up between knocking and being let in
        except OSError as exc:
            raise SourceUnavailable(
                f"{self.name}: {_said(exc)}",
                hint="tcp-listen://ADDRESS:PORT, an address of this machine and a free port",
            ) from exc
        _keep_alive(self._socket)
        return True

    def close(self) -> None:
        """See line.Line."""
        super().close()
        door, self._door = self._door, None
        if door is not None:
            door.close()

    def _listen(self) -> socket.socket:
        self._door = socket.create_server((self._host, self._port), backlog=1)
        self._door.setblocking(False)
        return self._door


class Tcp(BoardSource):
    """Samples of one stream of the board that listens at HOST:PORT; see BoardSource.

    framing: length, each frame behind its length; cobs, as on a serial line. key: secret that frames are signed with.
    """

    OPTIONS: Mapping[str, Callable[[str], Any]] = {
        "stream": streams,
        "wait": seconds,
        "reconnect": patience,
        "framing": one_of("length", "cobs"),
        "key": key_option,
    }
    _LINE: Callable[[str, int, str, bytes | None], TcpLine | ListeningLine] = TcpLine

    def __init__(
        self,
        target: str,
        *,
        after: Sequence[SampleId] = (),
        stream: Sequence[int] = (),
        wait: float = 3.0,
        reconnect: float = math.inf,
        framing: str = "length",
        key: bytes | None = None,
        floor: Mapping[str, Any] = NO_FLOOR,
    ) -> None:
        host, port = address(target, _HINT)
        line = type(self)._LINE(host, port, framing, key)
        super().__init__(line, after=after, stream=stream, wait=wait, reconnect=reconnect, floor=floor)


class TcpListener(Tcp):
    """The same of the board that connects to us."""

    _LINE = ListeningLine


def address(target: str, hint: str, *, default: str = "") -> tuple[str, int]:
    """Host and port of HOST:PORT or [HOST]:PORT, or of :PORT where there is a default host. Raises BadSourceUrl."""
    host, separator, port = target.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or default
    if not separator or not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadSourceUrl(f"{target}: must be HOST:PORT with a port from 1 to 65535", hint=hint)
    return host, int(port)


def _is_ready(connection: socket.socket, what: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(connection, what)
    return bool(poll.poll(timeout_s * 1000))


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_MS)


def _said(exc: OSError) -> str:
    return exc.strerror or str(exc)
