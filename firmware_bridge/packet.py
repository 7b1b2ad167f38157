"""Frames on TCP and in files: a u32 length before each body and CRC, no COBS; encoder and LengthDecoder.feed(bytes).

A wrong length would cost everything behind it, so a length is believed only where the header behind it, which says how
long its frame must be, agrees. Where it does not, the next place is looked for at which both do: one damaged byte costs
one frame here, too. A datagram (UDP, MQTT) is one body and CRC: BodyDecoder.decode_datagram. Does no I/O.
"""

from __future__ import annotations

import math
import re

from firmware_bridge.auth import TAG_BYTES, Key
from firmware_bridge.decoder import BodyDecoder
from firmware_bridge.wire import AUTH, CODES, HAS_LABEL, HEADER, SHAPES, U32, VERSION, Event, encode_body

# A camera's picture in full HD is 6 MiB, one that a model takes is far below; and this much a decoder may have to hold.
MAX_PACKET_BYTES = 4 << 20
MAX_DATAGRAM_BYTES = 65_507  # what UDP over IPv4 carries

_PREFIX = U32.size
_ITEM_BYTES = {code: dtype.itemsize for dtype, code in CODES.items()}
_MIN_PACKET = HEADER.size + 1 + U32.size
# What every frame looks like that this version can read; the rest of it is checked by _needed.
_LOOKS_LIKE_ONE = re.compile(rb"(?=..[\x00-\x40]\x00\x01[\x00-\x07][\x00\x01].{17}[\x01-\x07][\x00-\x04])", re.DOTALL)


def encode_packet(message: Event, *, time_us: int = 0, seed: int = 0, key: Key | None = None) -> bytes:
    """Length, body and CRC of any message; see wire.encode_body. Raises ValueError if it is longer than a packet."""
    body = encode_body(message, time_us=time_us, seed=seed, key=key)
    if len(body) > MAX_PACKET_BYTES:
        raise ValueError(f"a packet of {len(body)} bytes: the limit is {MAX_PACKET_BYTES}; send smaller samples")
    return U32.pack(len(body)) + body


def encode_datagram(message: Event, *, time_us: int = 0, seed: int = 0, key: Key | None = None) -> bytes:
    """Body and CRC of any message; see wire.encode_body. Raises ValueError if it is longer than a datagram."""
    body = encode_body(message, time_us=time_us, seed=seed, key=key)
    if len(body) > MAX_DATAGRAM_BYTES:
        raise ValueError(f"a datagram of {len(body)} bytes: the limit is {MAX_DATAGRAM_BYTES}; send smaller samples")
    return body


class LengthDecoder(BodyDecoder):
    """Bytes in, events out, in any pieces; `counters` holds the faults by reason, one for each stretch of bad bytes.

    Holds at most MAX_PACKET_BYTES and a length between two calls.
    """

    def __init__(self, key: Key | None = None) -> None:
        super().__init__(key)
        self._held = bytearray()
        self._lost = False

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the frame that has not ended yet."""
        return len(self._held)

    def feed(self, data: bytes) -> list[Event]:
        """Events that became complete with these bytes, in order; never raises on bad bytes."""
        self._held += data
        events: list[Event] = []
        at = 0
        while (size := self._size_at(at)) is not None:
            if size == 0:
                at = self._look_from(at + 1)
                continue
            if at + _PREFIX + size > len(self._held):
                break
            self._lost = False
            event = self.decode_datagram(bytes(self._held[at + _PREFIX : at + _PREFIX + size]))
            at += _PREFIX + size
            if event is not None:
                events.append(event)
        del self._held[:at]
        return events

    def cut(self) -> None:
        """The line broke: what comes next begins a frame."""
        self._held.clear()
        self._lost = False

    def _size_at(self, at: int) -> int | None:
        """Bytes of the frame whose length stands there; 0: none stands there; None: that cannot be told yet."""
        held = len(self._held) - at
        if held < _PREFIX + _MIN_PACKET:
            return None
        (size,) = U32.unpack_from(self._held, at)
        needed = self._needed(at + _PREFIX)
        if needed is None:
            return None
        if size == needed and size <= MAX_PACKET_BYTES:
            return int(size)
        self._count(size, at + _PREFIX)
        return 0

    def _needed(self, at: int) -> int | None:
        """Bytes that the header there asks for; 0: there is none; None: its shape has not come yet."""
        version, _, must, flags, _, _, _, _, code, ndim = HEADER.unpack_from(self._held, at)
        if version != VERSION or must & ~AUTH or code not in _ITEM_BYTES or ndim >= len(SHAPES):
            return 0
        if at + HEADER.size + SHAPES[ndim].size > len(self._held):
            return None
        values = math.prod(SHAPES[ndim].unpack_from(self._held, at + HEADER.size)) * _ITEM_BYTES[code]
        around = HEADER.size + SHAPES[ndim].size + 4 * (flags & HAS_LABEL) + TAG_BYTES * must + U32.size
        return int(values) + around if values else 0

    def _count(self, size: int, at: int) -> None:
        """Count a stretch of bad bytes once, under what its beginning looks like."""
        if self._lost:
            return
        self._lost = True
        version, _, must = self._held[at : at + 3]
        if size > MAX_PACKET_BYTES:
            self.counters["oversize"] += 1
        elif version != VERSION:
            self.counters["version"] += 1
        else:
            self.counters["incompat" if must & ~AUTH else "length"] += 1

    def _look_from(self, at: int) -> int:
        """The next place that looks like a length and a header; else the last that may yet become one."""
        found = _LOOKS_LIKE_ONE.search(self._held, at)
        return found.start() if found else max(at, len(self._held) - _PREFIX - HEADER.size + 1)
