"""The wire's layout: what one frame's body looks like, and the encoder of every message. docs/WIRE.md has the whole.

Little-endian. Knows no line: frame.py and packet.py put bodies on one, decoder.py understands them. Does no I/O.

    off  size   field
      0  u8     ver      = 1
      1  u8     type     0 HELLO  1 SAMPLE  2 LABEL  3 TIME  4 STATS  5 CTRL  6 LOG  7 ACK
      2  u8     iflags   must-understand: bit0 AUTH tag; bit1 fragment and bit2 compressed are reserved
      3  u8     cflags   may-ignore: bit0 has label, bit1 clock unsynced, bit2 overrun before this frame, bit3 replayed
      4  u16    stream
      6  u16    boot     changes at every start of the board, rises with a key; from the host: the board's it speaks to
      8  u32    seq      per stream, +1 per sample GENERATED; LABEL: the labelled sample's; CTRL END: the next one's
     12  u64    t_us     sender's monotonic clock, µs: of a SAMPLE when it was taken, else when it was sent
     20  u8     dtype    1 u8  2 i8  3 i16  4 u16  5 i32  6 f32  7 f16;  every type but SAMPLE: 1
     21  u8     ndim     0..4;                                           every type but SAMPLE: 1
     22  u16×ndim        shape, no zeros
      …  i32    label    only if cflags bit0
      …         payload  exactly prod(shape) × itemsize bytes
      …  8 B    tag      only if iflags bit0, see auth.py
    end  u32    crc      zlib.crc32(everything before, seed)

    HELLO   JSON, see hello.py                          STATS   u32 × n: see Stats; missing ones are 0, more are ignored
    SAMPLE  the values                                  CTRL    u8 code, see CTRL_*
    LABEL   label, then u8 source, f32 confidence       LOG     UTF-8, at most 200 bytes
    TIME    u64 host_us, u64 board_us                   ACK     u8 0: this stream's samples up to boot, seq are safe

seed is 0 until the host has sent CTRL AGREE with the CRC-32 of the schemas (hello.schema_seed), then that of the
board's SAMPLE and LABEL frames; all others stay at 0. Two firmwares that disagree about a schema then disagree about
every CRC (MAVLink's CRC_EXTRA). Boards that hear nothing stay at 0.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from firmware_bridge.auth import Key
from firmware_bridge.hello import Hello, hello_json, schema_seed
from firmware_bridge.sample import SENSOR_DTYPES, Label, Sample

VERSION = 1
HELLO, SAMPLE, LABEL, TIME, STATS, CTRL, LOG, ACK = range(8)

CTRL_SAY_HELLO = 1  # host to board: send HELLO and, if not yet running, start
CTRL_END = 2  # board to host: nothing more will come; seq says how many samples there were
CTRL_AGREE = 3  # host to board: seq is the CRC-32 of your schemas as I read them
CTRL_NEXT = 4  # board to host: the next sample of this stream will be seq, so that what is missing shows at once
CTRL_BEFORE = 5  # board to host: seq samples of this stream were made in all boots before this one, modulo 2^32

AUTH = 1  # iflags
HAS_LABEL, OVERRUN = 1, 4  # cflags

MAX_LOG_BYTES = 200

HEADER = struct.Struct("<BBBBHHIQBB")
SHAPES = tuple(struct.Struct(f"<{ndim}H") for ndim in range(5))
I32 = struct.Struct("<i")
U32 = struct.Struct("<I")
LABEL_PAYLOAD = struct.Struct("<Bf")
TIME_PAYLOAD = struct.Struct("<QQ")
STATS_PAYLOAD = struct.Struct("<5I")
CODES = {np.dtype(name).newbyteorder("<"): code for name, code in SENSOR_DTYPES.items()}

_U8 = 1


@dataclass(frozen=True, slots=True)
class Control:
    """A CTRL frame: code is one of CTRL_*, boot and seq are what the code says of them."""

    stream: int
    boot: int
    seq: int
    code: int


@dataclass(frozen=True, slots=True)
class Time:
    """The host's question (board_us 0), or the board's answer: host_us mirrored, and its own clock when it heard it."""

    stream: int
    boot: int
    host_us: int
    board_us: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What the board counted since its start, each modulo 2^32.

    generated: samples made; dropped: of these, that found its FIFO full; sent: frames of all types; received: frames
    that were right; crc: frames that were not.
    """

    stream: int
    boot: int
    time_us: int
    generated: int = 0
    dropped: int = 0
    sent: int = 0
    received: int = 0
    crc: int = 0


@dataclass(frozen=True, slots=True)
class Log:
    """A line for people: printable text, shown and never parsed."""

    stream: int
    boot: int
    time_us: int
    text: str


@dataclass(frozen=True, slots=True)
class Ack:
    """Host to board: this stream's samples up to boot, seq are safe with the learner."""

    stream: int
    boot: int
    seq: int


Event = Hello | Sample | Label | Control | Time | Stats | Log | Ack


def agreement(hello: Hello) -> Control:
    """CTRL AGREE that answers this HELLO."""
    return Control(0, hello.boot, schema_seed(hello), CTRL_AGREE)


def encode_body(message: Event, *, time_us: int = 0, seed: int = 0, key: Key | None = None) -> bytes:
    """Body and CRC of one message, as a datagram carries it.

    time_us is the sender's clock, of a message that holds none itself; with a key it must rise from frame to frame.
    Only samples and labels use the seed. Raises ValueError if a sample's values have no place in the layout.
    """
    if isinstance(message, Sample):
        return _sealed(_sample_parts(message, key), seed, key)
    if isinstance(message, Label):
        return _sealed(_label_parts(message, time_us, key), seed, key)
    return _sealed(_other_parts(message, time_us, key), 0, key)


def _sealed(content: bytes, seed: int, key: Key | None) -> bytes:
    if key is not None:
        content += key.tag(content)
    return content + U32.pack(zlib.crc32(content, seed))


def _sample_parts(sample: Sample, key: Key | None) -> bytes:
    values = sample.values
    code = CODES.get(values.dtype.newbyteorder("<"))
    if code is None or values.ndim > 4 or not values.size or max(values.shape, default=1) > 0xFFFF:
        raise ValueError(f"cannot send {values.dtype} of shape {values.shape}")
    flags = (OVERRUN if sample.gap else 0) | (0 if sample.label is None else HAS_LABEL)
    place = (sample.stream, sample.boot, sample.seq, sample.time_us)
    head = HEADER.pack(VERSION, SAMPLE, AUTH if key else 0, flags, *place, code, values.ndim)
    label = b"" if sample.label is None else I32.pack(sample.label)
    payload = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return head + SHAPES[values.ndim].pack(*values.shape) + label + payload


def _label_parts(label: Label, time_us: int, key: Key | None) -> bytes:
    head = _header(LABEL, HAS_LABEL, (label.stream, label.boot, label.seq, time_us), LABEL_PAYLOAD.size, key)
    return head + I32.pack(label.label) + LABEL_PAYLOAD.pack(label.source, label.confidence)


def _other_parts(message: Event, time_us: int, key: Key | None) -> bytes:
    kind, place, payload = _contents(message, time_us)
    if not 0 < len(payload) <= 0xFFFF:
        raise ValueError(f"cannot send {len(payload)} bytes as one {type(message).__name__}")
    return _header(kind, 0, place, len(payload), key) + payload


def _contents(message: Event, time_us: int) -> tuple[int, tuple[int, int, int, int], bytes]:
    """Type; stream, boot, seq and t_us; and payload."""
    match message:
        case Hello():
            return HELLO, (0, message.boot, 0, time_us), hello_json(message)
        case Control(stream, boot, seq, code):
            return CTRL, (stream, boot, seq, time_us), bytes((code,))
        case Time(stream, boot, host_us, board_us):
            return TIME, (stream, boot, 0, time_us), TIME_PAYLOAD.pack(host_us, board_us)
        case Stats(stream, boot, at_us, generated, dropped, sent, received, crc):
            return STATS, (stream, boot, 0, at_us), STATS_PAYLOAD.pack(generated, dropped, sent, received, crc)
        case Log(stream, boot, at_us, text):
            return LOG, (stream, boot, 0, at_us), text.encode()[:MAX_LOG_BYTES]
        case Ack(stream, boot, seq):
            return ACK, (stream, boot, seq, time_us), b"\0"
    raise TypeError(f"not a message: {message!r}")


def _header(kind: int, flags: int, place: tuple[int, int, int, int], size: int, key: Key | None) -> bytes:
    return HEADER.pack(VERSION, kind, AUTH if key else 0, flags, *place, _U8, 1) + SHAPES[1].pack(size)
