"""The wire format: encoders, and FrameDecoder.feed(bytes) -> events. Does no I/O; knows no port, no queue, no clock.

Little-endian. wire = 0x00? + COBS(body) + 0x00; a sender also emits a leading 0x00 after boot or idle.

    off  size   field
      0  u8     ver      = 1
      1  u8     type     0 HELLO  1 SAMPLE  2 LABEL  5 CTRL;  3 TIME  4 STATS  6 LOG  7 ACK are not used yet
      2  u8     iflags   must-understand: bit0 AUTH tag, bit1 fragment, bit2 compressed; none yet
      3  u8     cflags   may-ignore: bit0 has label, bit1 clock unsynced, bit2 overrun before this frame, bit3 replayed
      4  u16    stream
      6  u16    boot     changes at every start of the board
      8  u32    seq      per stream, +1 per sample GENERATED; LABEL: the labelled sample's; CTRL END: the next one's
     12  u64    t_us     device's monotonic clock, µs
     20  u8     dtype    1 u8  2 i8  3 i16  4 u16  5 i32  6 f32  7 f16
     21  u8     ndim     0..4
     22  u16×ndim        shape, no zeros
      …  i32    label    only if cflags bit0
      …         payload  exactly prod(shape) × itemsize bytes
    end  u32    crc      zlib.crc32(everything before, seed)

    HELLO   u8 payload: JSON, see hello.py          LABEL   label, then u8 payload: u8 source, f32 confidence
    CTRL    u8 payload: one code, see CTRL_*        SAMPLE  the values

seed is 0 until both ends agree on a HELLO, then crc32 of that HELLO's payload: two firmwares that disagree about the
schema then disagree about every CRC (MAVLink's CRC_EXTRA). One-way boards stay at 0, so both are accepted. The CRC is
checked before any field is believed. Nothing that arrives can raise: each fault is counted by reason.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cobs import cobs

from firmware_bridge.hello import Hello, hello_json, parse_hello
from firmware_bridge.sample import SENSOR_DTYPES, Label, Sample

VERSION = 1
HELLO, SAMPLE, LABEL, CTRL = 0, 1, 2, 5

CTRL_SAY_HELLO = 1  # host to board: send HELLO and, if not yet running, start
CTRL_END = 2  # board to host: nothing more will come; seq says how many samples there were

# Wire bytes between two delimiters. zlib's CRC-32 finds every error of up to 3 bits in up to 91,607 data bits
# (11.4 KiB); 8 KiB stays inside that, and is what a small board can buffer.
MAX_FRAME_BYTES = 8192

HAS_LABEL, OVERRUN = 1, 4  # cflags

_HEADER = struct.Struct("<BBBBHHIQBB")
_SHAPES = tuple(struct.Struct(f"<{ndim}H") for ndim in range(5))
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_LABEL_PAYLOAD = struct.Struct("<Bf")
_CODES = {np.dtype(name).newbyteorder("<"): code for name, code in SENSOR_DTYPES.items()}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_MIN_BODY = _HEADER.size + _U32.size

FAULTS = ("crc", "cobs", "version", "type", "incompat", "schema", "length", "oversize", "nonfinite", "label")


@dataclass(frozen=True, slots=True)
class Control:
    """A CTRL frame: code is one of CTRL_*, boot and seq are the sender's."""

    stream: int
    boot: int
    seq: int
    code: int


Event = Hello | Sample | Label | Control


def encode_hello(hello: Hello) -> bytes:
    """Wire bytes of a HELLO, with the leading delimiter that ends whatever was on the line before.

    Raises ValueError if it is longer than a frame.
    """
    payload = hello_json(hello)
    return b"\0" + _wire(_header(HELLO, 0, 0, hello.boot, 0, 0, 1, (len(payload),)) + payload, 0)


def encode_sample(sample: Sample, *, seed: int = 0) -> bytes:
    """Wire bytes of a sample; its gap is sent as an overrun. Raises ValueError if it does not fit a frame."""
    values = sample.values
    code = _CODES.get(values.dtype.newbyteorder("<"))
    if code is None or values.ndim > 4 or not values.size or max(values.shape, default=1) > 0xFFFF:
        raise ValueError(f"cannot send {values.dtype} of shape {values.shape}")
    flags = (OVERRUN if sample.gap else 0) | (0 if sample.label is None else HAS_LABEL)
    head = _header(SAMPLE, flags, sample.stream, sample.boot, sample.seq, sample.time_us, code, values.shape)
    label = b"" if sample.label is None else _I32.pack(sample.label)
    return _wire(head + label + values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes(), seed)


def encode_label(label: Label, *, time_us: int = 0, seed: int = 0) -> bytes:
    """Wire bytes of a label that comes later than its sample."""
    head = _header(LABEL, HAS_LABEL, label.stream, label.boot, label.seq, time_us, 1, (_LABEL_PAYLOAD.size,))
    return _wire(head + _I32.pack(label.label) + _LABEL_PAYLOAD.pack(label.source, label.confidence), seed)


def encode_control(control: Control) -> bytes:
    """Wire bytes of a CTRL frame."""
    head = _header(CTRL, 0, control.stream, control.boot, control.seq, 0, 1, (1,))
    return _wire(head + bytes((control.code,)), 0)


def schema_seed(hello: Hello) -> int:
    """CRC seed of SAMPLE and LABEL frames once both ends agree on this HELLO."""
    return zlib.crc32(hello_json(hello))


def _header(
    kind: int, flags: int, stream: int, boot: int, seq: int, time_us: int, code: int, shape: tuple[int, ...]
) -> bytes:
    head = _HEADER.pack(VERSION, kind, 0, flags, stream, boot, seq, time_us, code, len(shape))
    return head + _SHAPES[len(shape)].pack(*shape)


def _wire(body: bytes, seed: int) -> bytes:
    wire: bytes = cobs.encode(body + _U32.pack(zlib.crc32(body, seed)))
    if len(wire) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(wire)} bytes: the limit is {MAX_FRAME_BYTES}; send fewer rows in one sample")
    return wire + b"\0"


class FrameDecoder:
    """Bytes in, events out, in any pieces; `counters` holds the faults by reason.

    Holds at most MAX_FRAME_BYTES between two calls: what grows longer is thrown away up to the next delimiter.
    """

    def __init__(self) -> None:
        self.counters = dict.fromkeys(FAULTS, 0)
        self._partial = bytearray()
        self._skipping = False
        self._seed: int | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the frame that has not ended yet."""
        return len(self._partial)

    def feed(self, data: bytes) -> list[Event]:
        """Events that became complete with these bytes, in order; never raises on bad bytes."""
        *frames, rest = data.split(b"\0")
        events: list[Event] = []
        for frame in frames:
            if self._partial or self._skipping:
                frame = self._finish(frame)
            if not frame:
                continue
            event = self._decode(frame)
            if event is not None:
                events.append(event)
        self._keep(rest)
        return events

    def _finish(self, tail: bytes) -> bytes:
        frame = b"" if self._skipping else bytes(self._partial) + tail
        self._skipping = False
        self._partial.clear()
        return frame

    def _keep(self, rest: bytes) -> None:
        if self._skipping:
            return
        if len(self._partial) + len(rest) > MAX_FRAME_BYTES:
            self.counters["oversize"] += 1
            self._skipping = True
            self._partial.clear()
        else:
            self._partial += rest

    def _decode(self, frame: bytes) -> Event | None:
        try:
            if len(frame) > MAX_FRAME_BYTES:
                raise _FrameFaultError("oversize")
            return self._understand(self._checked(frame))
        except _FrameFaultError as fault:
            self.counters[fault.reason] += 1
            return None

    def _checked(self, frame: bytes) -> bytes:
        """Body of the frame without its CRC, which was right."""
        try:
            body: bytes = cobs.decode(frame)
        except cobs.DecodeError:
            raise _FrameFaultError("cobs") from None
        if len(body) < _MIN_BODY:
            raise _FrameFaultError("length")
        crc = _U32.unpack_from(body, len(body) - _U32.size)[0]
        body = body[: -_U32.size]
        if crc != zlib.crc32(body) and (self._seed is None or crc != zlib.crc32(body, self._seed)):
            raise _FrameFaultError("crc")
        return body

    def _understand(self, body: bytes) -> Event:
        version, kind, must, flags, stream, boot, seq, time_us, code, ndim = _HEADER.unpack_from(body)
        if version != VERSION:
            raise _FrameFaultError("version")
        if kind not in (HELLO, SAMPLE, LABEL, CTRL):
            raise _FrameFaultError("type")
        if must:
            raise _FrameFaultError("incompat")
        dtype, shape, label, payload = _contents(body, bool(flags & HAS_LABEL), code, ndim)
        if kind == SAMPLE:
            values = np.ndarray(shape, dtype, payload)  # over bytes, so read-only; reshape would make a second array
            return self._sample(Sample(stream, boot, seq, time_us, values, label, bool(flags & OVERRUN)))
        if kind == LABEL:
            return _label(stream, boot, seq, label, payload)
        if kind == HELLO:
            return self._hello(payload)
        return Control(stream, boot, seq, payload[0])

    def _sample(self, sample: Sample) -> Sample:
        if sample.values.dtype.kind == "f" and not np.isfinite(sample.values).all():
            raise _FrameFaultError("nonfinite")
        if sample.label is not None and sample.label < 0:  # the values are good: only the label is refused
            self.counters["label"] += 1
            return replace(sample, label=None)
        return sample

    def _hello(self, payload: bytes) -> Hello:
        try:
            hello = parse_hello(payload)
        except ValueError:
            raise _FrameFaultError("schema") from None
        self._seed = zlib.crc32(payload)
        return hello


def _contents(body: bytes, labelled: bool, code: int, ndim: int) -> tuple[Any, tuple[int, ...], int | None, bytes]:
    """dtype, shape, label and payload; the length is checked before anything of that size is allocated."""
    if code not in _DTYPES or ndim >= len(_SHAPES):
        raise _FrameFaultError("schema")
    label_at = _HEADER.size + _SHAPES[ndim].size
    payload_at = label_at + _I32.size * labelled
    if payload_at >= len(body):
        raise _FrameFaultError("length")
    shape = _SHAPES[ndim].unpack_from(body, _HEADER.size)
    if math.prod(shape) * _DTYPES[code].itemsize != len(body) - payload_at:
        raise _FrameFaultError("length")
    label = _I32.unpack_from(body, label_at)[0] if labelled else None
    return _DTYPES[code], shape, label, body[payload_at:]


def _label(stream: int, boot: int, seq: int, label: int | None, payload: bytes) -> Label:
    if len(payload) != _LABEL_PAYLOAD.size:
        raise _FrameFaultError("length")
    source, confidence = _LABEL_PAYLOAD.unpack(payload)
    if not math.isfinite(confidence):
        raise _FrameFaultError("nonfinite")
    if label is None or label < 0 or not 0 <= confidence <= 1:
        raise _FrameFaultError("label")
    return Label(stream, boot, seq, label, source, confidence)


class _FrameFaultError(Exception):
    """A frame that cannot be used; never leaves this file."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
