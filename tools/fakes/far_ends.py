"""The board's end of a line: a pseudo-terminal, TCP, UDP. Bytes without waiting, and whether anybody is there.

Knows no sample and no fault; which framing a line has is all that it knows of frames.
"""

from __future__ import annotations

import os
import select
import socket
import tty
from collections.abc import Callable
from typing import Protocol

from firmware_bridge.auth import host_key
from firmware_bridge.frame import Event, FrameDecoder, encode
from firmware_bridge.packet import LengthDecoder, encode_datagram, encode_packet
from firmware_bridge.sources.udp import DatagramDecoder

_READ_BYTES = 4096
_LOOPBACK = "127.0.0.1"


class HostDecoder(Protocol):
    """What understands the host's requests."""

    def feed(self, data: bytes) -> list[Event]:
        """Events that became complete with these bytes."""

    def cut(self) -> None:
        """What comes next begins a frame."""


class FarEnd(Protocol):
    """One board's end of one line; url is what the bridge must be given. encode: see frame.encode.

    decoder understands the host, with a secret only what it signed. is_stream: what is written may arrive in pieces;
    else one write is one frame. hears: whether the host can say anything, and is waited for.
    """

    url: str
    is_stream: bool
    hears: bool
    encode: Callable[..., bytes]

    @property
    def decoder(self) -> HostDecoder:
        """Understands the host's requests."""

    @property
    def is_there(self) -> bool:
        """Whether anybody has opened the other end."""

    def wait(self, timeout_s: float, *, for_room: bool = False) -> None:
        """Wait for the other end to say something, or also for room to write, and see whether it is there."""

    def receive(self) -> bytes:
        """What the other end said, without waiting."""

    def write(self, data: bytes) -> int:
        """Write without waiting; number of bytes taken."""

    def close(self) -> None:
        """Hang up."""


class PtyEnd:
    """A pseudo-terminal; the other end may be opened, closed and opened again."""

    is_stream = hears = True

    def __init__(self, secret: bytes | None = None) -> None:
        self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        self._path = os.ttyname(slave)
        self._held: int | None = None
        self._hold(slave)
        self.url = f"serial://{self._path}"
        self.encode, self.decoder = encode, FrameDecoder(None if secret is None else host_key(secret))
        self.is_there = False

    def wait(self, timeout_s: float, *, for_room: bool = False) -> None:
        """See FarEnd."""
        poll = select.poll()
        poll.register(self._master, select.POLLIN | (select.POLLOUT if for_room else 0))
        for _, happened in poll.poll(timeout_s * 1000):
            if happened & select.POLLHUP and self._held is None:
                self.is_there = False
                self.decoder.cut()
                self._hold(os.open(self._path, os.O_RDWR | os.O_NOCTTY))

    def receive(self) -> bytes:
        """See FarEnd."""
        try:
            data = os.read(self._master, _READ_BYTES)
        except OSError:  # nothing there, or nobody
            return b""
        if data and self._held is not None:  # whoever speaks has opened its end: from now on its hang-up can be seen
            os.close(self._held)
            self._held = None
            self.is_there = True
        return data

    def write(self, data: bytes) -> int:
        """See FarEnd."""
        try:
            return os.write(self._master, data)
        except OSError:
            return 0

    def close(self) -> None:
        """See FarEnd."""
        if self._held is not None:
            os.close(self._held)
        os.close(self._master)

    def _hold(self, slave: int) -> None:
        """Hold the other end open: one that nobody has open reads as hung up, and forgets that it is raw."""
        tty.setraw(slave)
        self._held = slave


class TcpEnd:
    """Listens; the newest connection is the one that counts."""

    is_stream = hears = True

    def __init__(self, port: int, framing: str, secret: bytes | None = None) -> None:
        self._door = socket.create_server((_LOOPBACK, port))
        self._door.setblocking(False)
        self._host: socket.socket | None = None
        query = "" if framing == "length" else f"?framing={framing}"
        self.url = f"tcp://{_LOOPBACK}:{self._door.getsockname()[1]}{query}"
        self.encode: Callable[..., bytes] = encode_packet if framing == "length" else encode
        theirs = None if secret is None else host_key(secret)
        self.decoder: HostDecoder = LengthDecoder(theirs) if framing == "length" else FrameDecoder(theirs)

    @property
    def is_there(self) -> bool:
        """See FarEnd."""
        return self._host is not None

    def wait(self, timeout_s: float, *, for_room: bool = False) -> None:
        """See FarEnd."""
        poll = select.poll()
        poll.register(self._door, select.POLLIN)
        if self._host is not None:
            poll.register(self._host, select.POLLIN | (select.POLLOUT if for_room else 0))
        for descriptor, _ in poll.poll(timeout_s * 1000):
            if descriptor == self._door.fileno():
                self._let_in()

    def receive(self) -> bytes:
        """See FarEnd."""
        if self._host is None:
            return b""
        try:
            data = self._host.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self._hang_up()
        return data

    def write(self, data: bytes) -> int:
        """See FarEnd."""
        if self._host is None:
            return 0
        try:
            return self._host.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._hang_up()
            return 0

    def close(self) -> None:
        """See FarEnd."""
        self._hang_up()
        self._door.close()

    def _let_in(self) -> None:
        try:
            host = self._door.accept()[0]
        except OSError:
            return
        self._hang_up()
        host.setblocking(False)
        host.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = host

    def _hang_up(self) -> None:
        host, self._host = self._host, None
        self.decoder.cut()
        if host is not None:
            host.close()


class UdpEnd:
    """Sends datagrams to a port of this machine; that nobody listens there is told by the kernel, if at all."""

    is_stream, hears = False, True

    def __init__(self, port: int, secret: bytes | None = None) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((_LOOPBACK, port))
        self._socket.setblocking(False)
        self.url = f"udp://{_LOOPBACK}:{port}"
        self.encode, self.decoder = encode_datagram, DatagramDecoder(None if secret is None else host_key(secret))
        self.is_there = True

    def wait(self, timeout_s: float, *, for_room: bool = False) -> None:
        """See FarEnd."""
        self.is_there = True  # until the kernel says otherwise again
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if for_room else 0))
        poll.poll(timeout_s * 1000)

    def receive(self) -> bytes:
        """See FarEnd."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            self.is_there = False
            return b""
        self.is_there = True
        return data

    def write(self, data: bytes) -> int:
        """See FarEnd."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # refused: as if it were lost on its way
            self.is_there = False
            return len(data)

    def close(self) -> None:
        """See FarEnd."""
        self._socket.close()
