"""What is inside a frame: BodyDecoder turns body and CRC into an event or counts why not. Does no I/O; knows no line.

In this order, so that nothing is believed before it was checked: CRC, layout, tag, replay floor, content. Nothing that
arrives can raise, and a frame whose tag is wrong changes nothing but the counter "auth".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any
from zlib import crc32

from numpy import isfinite, ndarray

from firmware_bridge.auth import TAG_BYTES, Key, ReplayFloor
from firmware_bridge.hello import Hello, parse_hello, schema_seed
from firmware_bridge.sample import Label, Sample
from firmware_bridge.wire import (
    ACK,
    AUTH,
    CODES,
    CTRL,
    CTRL_SAY_HELLO,
    HAS_LABEL,
    HEADER,
    HELLO,
    I32,
    LABEL,
    LABEL_PAYLOAD,
    LOG,
    MAX_LOG_BYTES,
    OVERRUN,
    SAMPLE,
    SHAPES,
    STATS,
    STATS_PAYLOAD,
    TIME,
    TIME_PAYLOAD,
    U32,
    VERSION,
    Ack,
    Control,
    Event,
    Log,
    Stats,
    Time,
)

FAULTS = (
    *("crc", "cobs", "version", "type", "incompat", "schema", "length", "oversize", "nonfinite", "label"),
    *("auth", "replay"),
)

_SHAPE_AT, _LABEL_BYTES, _CRC_BYTES = HEADER.size, I32.size, U32.size
_MIN_BYTES = _SHAPE_AT + 1 + _CRC_BYTES
# The header with dtype and ndim as one number, and what that number says: one look-up a frame instead of five.
_HEADER = struct.Struct("<BBBBHHIQH").unpack_from
_LAYOUTS = {
    code | ndim << 8: (dtype, dtype.itemsize, dtype.kind == "f", shape.unpack_from, _SHAPE_AT + shape.size)
    for dtype, code in CODES.items()
    for ndim, shape in enumerate(SHAPES)
}
_BYTES = 1 | 1 << 8  # u8 in one dimension
# CRC-32 of anything with its own CRC-32 behind it, whatever the seed: one call over all bytes is the check.
_RESIDUE = 0x2144DF1C


class BodyDecoder:
    """Events of bodies with their CRC, as datagrams carry them; `counters` holds the faults by reason.

    With a key every frame must carry a right tag and rise above the replay floor; alone CTRL SAY_HELLO, which asks for
    what the board would tell anybody, needs neither. Without one a frame with a tag is refused as "auth".
    """

    def __init__(self, key: Key | None = None) -> None:
        self.counters = dict.fromkeys(FAULTS, 0)
        self.agreed = False
        self._key = key
        self._floor = ReplayFloor(None if key is None else key.name)
        self._seed = 0

    def decode_datagram(self, packet: bytes) -> Event | None:
        """Event of one body with its CRC, None if it is not one; never raises on bad bytes."""
        try:
            return self._decode(packet)
        except FrameFaultError as fault:
            self.counters[fault.reason] += 1
            return None

    def floor(self) -> dict[str, Any]:
        """Replay floor for JSON; keep it, and a frame of before a restart is not taken again after it."""
        return self._floor.state()

    def set_floor(self, state: Mapping[str, Any]) -> None:
        """Go on from a floor of before; never lowers it. Raises ValueError if it is not one."""
        self._floor.restore(state)

    def _decode(self, packet: bytes) -> Event:
        if len(packet) < _MIN_BYTES:
            raise FrameFaultError("length")
        seeded = crc32(packet, self._seed) == _RESIDUE
        if not seeded and (not self._seed or crc32(packet) != _RESIDUE):
            raise FrameFaultError("crc")
        version, kind, must, flags, stream, boot, seq, time_us, layout = _HEADER(packet)
        if version != VERSION:
            raise FrameFaultError("version")
        if kind > ACK:
            raise FrameFaultError("type")
        if must & ~AUTH:
            raise FrameFaultError("incompat")
        if layout not in _LAYOUTS or (kind != SAMPLE and layout != _BYTES):
            raise FrameFaultError("schema")
        dtype, itemsize, is_float, shape_of, at = _LAYOUTS[layout]
        at += _LABEL_BYTES * (flags & HAS_LABEL)
        end = len(packet) - _CRC_BYTES - TAG_BYTES * must
        if at >= end:
            raise FrameFaultError("length")
        shape = shape_of(packet, _SHAPE_AT)
        if prod(shape) * itemsize != end - at:
            raise FrameFaultError("length")
        if must or self._key is not None:
            self._check_tag(packet, end, must, kind, at)
            if must and not self._floor.rises(kind, stream, boot, seq if kind == SAMPLE else time_us):
                raise FrameFaultError("replay")
        if seeded and self._seed:
            self.agreed = True
        label = I32.unpack_from(packet, at - _LABEL_BYTES)[0] if flags & HAS_LABEL else None
        if kind != SAMPLE:
            return self._rarely(kind, stream, boot, seq, time_us, label, packet[at:end])
        values = ndarray(shape, dtype, packet, at)  # over bytes, so read-only; reshape would make a second array
        # Bytes are searched sooner than .all() is called: half of a short frame's time went there.
        if is_float and b"\0" in isfinite(values).tobytes():
            raise FrameFaultError("nonfinite")
        if label is not None and label < 0:  # the values are good: only the label is refused
            self.counters["label"] += 1
            label = None
        return Sample(stream, boot, seq, time_us, values, label, bool(flags & OVERRUN))

    def _check_tag(self, packet: bytes, end: int, tagged: int, kind: int, at: int) -> None:
        if not tagged:
            if kind != CTRL or packet[at] != CTRL_SAY_HELLO:
                raise FrameFaultError("auth")
        elif self._key is None or not self._key.is_right(packet[:end], packet[end : end + TAG_BYTES]):
            raise FrameFaultError("auth")

    def _rarely(
        self, kind: int, stream: int, boot: int, seq: int, time_us: int, label: int | None, payload: bytes
    ) -> Event:
        """Event of every type but SAMPLE."""
        if kind == LABEL:
            return _label(stream, boot, seq, label, payload)
        if kind == HELLO:
            return self._hello(boot, payload)
        if kind == TIME:
            return Time(stream, boot, *TIME_PAYLOAD.unpack(_exactly(TIME_PAYLOAD.size, payload)))
        if kind == STATS:
            filled = payload[: STATS_PAYLOAD.size].ljust(STATS_PAYLOAD.size, b"\0")
            return Stats(stream, boot, time_us, *STATS_PAYLOAD.unpack(filled))
        if kind == LOG:
            return Log(stream, boot, time_us, _text(payload))
        if kind == CTRL:
            return Control(stream, boot, seq, _exactly(1, payload)[0])
        _exactly(1, payload)
        return Ack(stream, boot, seq)

    def _hello(self, boot: int, payload: bytes) -> Hello:
        try:
            hello = replace(parse_hello(payload), boot=boot)  # the header's counts: it is in every frame
        except ValueError:
            raise FrameFaultError("schema") from None
        self._seed, self.agreed = schema_seed(hello), False
        return hello


class FrameFaultError(Exception):
    """A frame that cannot be used; never leaves a decoder."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _label(stream: int, boot: int, seq: int, label: int | None, payload: bytes) -> Label:
    source, confidence = LABEL_PAYLOAD.unpack(_exactly(LABEL_PAYLOAD.size, payload))
    if not math.isfinite(confidence):
        raise FrameFaultError("nonfinite")
    if label is None or label < 0 or not 0 <= confidence <= 1:
        raise FrameFaultError("label")
    return Label(stream, boot, seq, label, source, confidence)


def _exactly(size: int, payload: bytes) -> bytes:
    if len(payload) != size:
        raise FrameFaultError("length")
    return payload


def _text(payload: bytes) -> str:
    """Text that a terminal shows and never obeys: what cannot be printed is a question mark."""
    if len(payload) > MAX_LOG_BYTES:
        raise FrameFaultError("length")
    return "".join(char if char.isprintable() else "?" for char in payload.decode(errors="replace"))
