"""A board that sends datagrams, each with one frame, to a port of ours. Knows sockets, no frames.

Listens on loopback unless the URL names another address: whoever can reach the port can send samples, so on a network
give it a key. One board a port: the first address from which a frame comes is the board's, until it falls silent.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from firmware_bridge.auth import NO_FLOOR, board_key, host_key, key_option
from firmware_bridge.decoder import BodyDecoder
from firmware_bridge.errors import SourceUnavailable
from firmware_bridge.frame import Event
from firmware_bridge.options import seconds, streams
from firmware_bridge.packet import MAX_DATAGRAM_BYTES, encode_datagram
from firmware_bridge.sample import SampleId
from firmware_bridge.sources.board_source import BoardSource
from firmware_bridge.sources.line import LineBrokenError, Signature
from firmware_bridge.sources.tcp import address

LOOPBACK = "127.0.0.1"
_SILENT_S = 5.0  # then another address may be the board's: a router gave it a new one
_ROOM_BYTES = 4 << 20  # asked of the kernel; it gives what net.core.rmem_max allows
_HINT = "udp://:PORT on this machine only, udp://0.0.0.0:PORT for the network"


class DatagramDecoder(BodyDecoder):
    """Events of datagrams, one at a time; good counts them."""

    buffered_bytes = 0
    good = 0

    def feed(self, data: bytes) -> list[Event]:
        """The event of this datagram, if it is a good one."""
        event = self.decode_datagram(data)
        self.good += event is not None
        return [] if event is None else [event]

    def cut(self) -> None:
        """Nothing is ever held."""


class UdpLine:
    """Receives at host:port, answers to where the board sends from; see line.Line."""

    def __init__(self, host: str, port: int, key: bytes | None) -> None:
        self.name = f"udp://{host}:{port}"
        self.decoder = DatagramDecoder(None if key is None else board_key(key))
        self.no_frames = "are these datagrams a board's?"
        self.strangers = 0
        self._address, self._signature = (host, port), Signature(None if key is None else host_key(key))
        self._socket: socket.socket | None = None
        self._board: Any = None  # address that the last good frame came from
        self._heard_at = 0.0
        self._sender, self._good = None, 0  # of the last datagram, and how many were good before it

    def connect(self, timeout_s: float) -> bool:
        """See line.Line."""
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM_BYTES)
            self._socket.bind(place)
        except OSError as exc:
            self.close()
            raise SourceUnavailable(f"{self.name}: {exc.strerror or exc}", hint=_HINT) from exc
        self._socket.setblocking(False)
        return True

    def receive(self, timeout_s: float) -> bytes:
        """See line.Line; one datagram."""
        if self._socket is None:
            raise LineBrokenError("not open")
        self._look_who_it_was()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return b""
        try:
            data, sender = self._socket.recvfrom(MAX_DATAGRAM_BYTES + 1)
        except OSError:
            return b""  # what an answer of before met; the port is as good as it was
        return data if self._is_board(sender) else b""

    def send(self, message: Event) -> bool:
        """See line.Line."""
        self._look_who_it_was()
        if self._socket is None or self._board is None:
            return False
        packet = encode_datagram(message, **self._signature.of(message))
        with suppress(OSError):  # nobody there, or no room: as if it were lost on its way
            self._socket.sendto(packet, self._board)
        return True

    def close(self) -> None:
        """See line.Line."""
        opened, self._socket = self._socket, None
        if opened is not None:
            opened.close()

    def _is_board(self, sender: Any) -> bool:
        """Whether this may be the board's: its port may be another after it restarted, its host not so soon."""
        is_stranger = self._board is not None and sender[0] != self._board[0]
        if is_stranger and time.monotonic() - self._heard_at < _SILENT_S:
            self.strangers += 1
            return False
        self._sender = sender
        return True

    def _look_who_it_was(self) -> None:
        """Only who sent a good frame is the board."""
        if self.decoder.good > self._good:
            self._board, self._heard_at, self._good = self._sender, time.monotonic(), self.decoder.good


class Udp(BoardSource):
    """Samples of one stream of the board that sends to HOST:PORT, by default of loopback; see BoardSource.

    key: secret that frames are signed with.
    """

    OPTIONS: Mapping[str, Callable[[str], Any]] = {"stream": streams, "wait": seconds, "key": key_option}

    def __init__(
        self,
        target: str,
        *,
        after: Sequence[SampleId] = (),
        stream: Sequence[int] = (),
        wait: float = 3.0,
        key: bytes | None = None,
        floor: Mapping[str, Any] = NO_FLOOR,
    ) -> None:
        self._udp = UdpLine(*address(target, _HINT, default=LOOPBACK), key)
        super().__init__(self._udp, after=after, stream=stream, wait=wait, reconnect=math.inf, floor=floor)

    @property
    def counters(self) -> Mapping[str, int]:
        """As of any board, and datagrams that came from another address than the board's."""
        return {**super().counters, "stranger": self._udp.strangers}
