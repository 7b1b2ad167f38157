"""Frames on a serial line: wire = 0x00? + COBS(body and CRC) + 0x00; encoders, and FrameDecoder.feed(bytes) -> events.

COBS leaves no zero byte inside a frame, so that a reader that lost its place finds it at the next one. A sender also
emits a leading 0x00 after boot or idle. What is inside is wire.py's; whether it can be believed is decoder.py's. Does
no I/O; knows no port, no queue, no clock.
"""

from __future__ import annotations

from cobs import cobs

from firmware_bridge.auth import Key
from firmware_bridge.decoder import FAULTS, BodyDecoder, FrameFaultError
from firmware_bridge.hello import Hello, schema_seed
from firmware_bridge.sample import Label, Sample
from firmware_bridge.wire import (
    CTRL,
    CTRL_AGREE,
    CTRL_BEFORE,
    CTRL_END,
    CTRL_NEXT,
    CTRL_SAY_HELLO,
    HELLO,
    LABEL,
    SAMPLE,
    VERSION,
    Ack,
    Control,
    Event,
    Log,
    Stats,
    Time,
    agreement,
    encode_body,
)

# Whoever speaks frames needs one import.
__all__ = [
    "CTRL",
    "CTRL_AGREE",
    "CTRL_BEFORE",
    "CTRL_END",
    "CTRL_NEXT",
    "CTRL_SAY_HELLO",
    "FAULTS",
    "HELLO",
    "LABEL",
    "MAX_FRAME_BYTES",
    "SAMPLE",
    "VERSION",
    "Ack",
    "Control",
    "Event",
    "FrameDecoder",
    "Log",
    "Stats",
    "Time",
    "agreement",
    "encode",
    "encode_body",
    "encode_control",
    "encode_hello",
    "encode_label",
    "encode_sample",
    "schema_seed",
]

# Wire bytes between two delimiters. zlib's CRC-32 finds every error of up to 3 bits in up to 91,607 data bits
# (11.4 KiB); 8 KiB stays inside that, and is what a small board can buffer.
MAX_FRAME_BYTES = 8192


def encode(message: Event, *, time_us: int = 0, seed: int = 0, key: Key | None = None) -> bytes:
    """Wire bytes of any message; see wire.encode_body. Raises ValueError if it does not fit a frame."""
    wire: bytes = cobs.encode(encode_body(message, time_us=time_us, seed=seed, key=key))
    if len(wire) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(wire)} bytes: the limit is {MAX_FRAME_BYTES}; send fewer rows in one sample")
    return wire + b"\0"


def encode_hello(hello: Hello, *, time_us: int = 0, key: Key | None = None) -> bytes:
    """Wire bytes of a HELLO, with the leading delimiter that ends whatever was on the line before.

    Raises ValueError if it is longer than a frame.
    """
    return b"\0" + encode(hello, time_us=time_us, key=key)


def encode_sample(sample: Sample, *, seed: int = 0, key: Key | None = None) -> bytes:
    """Wire bytes of a sample; its gap is sent as an overrun. Raises ValueError if it does not fit a frame."""
    return encode(sample, seed=seed, key=key)


def encode_label(label: Label, *, time_us: int = 0, seed: int = 0, key: Key | None = None) -> bytes:
    """Wire bytes of a label that comes later than its sample."""
    return encode(label, time_us=time_us, seed=seed, key=key)


def encode_control(control: Control, *, time_us: int = 0, key: Key | None = None) -> bytes:
    """Wire bytes of a CTRL frame."""
    return encode(control, time_us=time_us, key=key)


class FrameDecoder(BodyDecoder):
    """Bytes in, events out, in any pieces; `counters` holds the faults by reason.

    Holds at most MAX_FRAME_BYTES between two calls: what grows longer is thrown away up to the next delimiter.
    """

    def __init__(self, key: Key | None = None) -> None:
        super().__init__(key)
        self._partial = bytearray()
        self._skipping = False

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
            event = self._unwrap(frame)
            if event is not None:
                events.append(event)
        self._keep(rest)
        return events

    def cut(self) -> None:
        """The line broke: what comes next begins a frame."""
        self._partial.clear()
        self._skipping = False

    def _unwrap(self, frame: bytes) -> Event | None:
        try:
            if len(frame) > MAX_FRAME_BYTES:
                raise FrameFaultError("oversize")
            return self._decode(cobs.decode(frame))
        except cobs.DecodeError:
            self.counters["cobs"] += 1
        except FrameFaultError as fault:
            self.counters[fault.reason] += 1
        return None

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
