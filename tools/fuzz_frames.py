#!/usr/bin/env python3
"""Bytes that are no frames, frames with damage, and frames somebody forged: does a decoder raise, or believe one?

    python tools/fuzz_frames.py [--frames N] [--seed S] [--json]

Five sorts, in turn: noise between delimiters; a line's frames with bytes changed, left out and added; the same of TCP's
packets and of datagrams; frames of a wrong content under a right CRC; and, to a decoder with a key, frames with a right
CRC and a wrong tag. wrong_accepted counts events that nobody sent, and forged frames that changed any state. exceptions
counts what a decoder raised. peak_buffer_bytes is the most that one held between two calls. frames_per_s is the
decoders' time alone. valid_bytes_per_s is for undamaged frames of 6 × f32, about the shortest that boards send, best of
100 short rounds; line_ratio is how many lines of 3 Mbaud (300,000 bytes a second) that would be. Exit 1 if anything was
raised or believed, or a buffer outgrew its cap.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import time
import zlib
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from cobs import cobs

from firmware_bridge.auth import board_key
from firmware_bridge.decoder import BodyDecoder
from firmware_bridge.frame import (
    CTRL_END,
    MAX_FRAME_BYTES,
    Ack,
    Control,
    Event,
    FrameDecoder,
    Log,
    Stats,
    Time,
    encode,
)
from firmware_bridge.hello import Hello, hello_json, schema_seed
from firmware_bridge.packet import MAX_PACKET_BYTES, LengthDecoder, encode_packet
from firmware_bridge.sample import Label, Sample, Schema
from firmware_bridge.wire import encode_body

LINE_BYTES_PER_S = 300_000  # 3 Mbaud, ten bits a byte
KEY = board_key(b"the key that the forger lacks")
HELLO = Hello("fuzz", "1", 3, {0: Schema("s", "int16", (6,))})
SEED = schema_seed(HELLO)
POOL = 1000  # samples that are damaged again and again
BATCH = 2000  # of noise
ROUNDS = 100  # short ones, so that some of them had the processor for themselves


@dataclass
class Found:
    """What went wrong, and how much was tried."""

    frames: int = 0
    exceptions: int = 0
    wrong_accepted: int = 0
    accepted: int = 0
    peak_buffer_bytes: int = 0
    over_cap: int = 0
    decoding_s: float = 0.0
    by_reason: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def blame(self, example: str, wrong: int = 1) -> None:
        """Count something that was believed and should not have been, and keep the first few."""
        self.wrong_accepted += wrong
        if len(self.examples) < 10:
            self.examples.append(example)

    def watch(self, decoder: BodyDecoder) -> None:
        """Look at what a decoder holds between two calls."""
        if isinstance(decoder, (FrameDecoder, LengthDecoder)):
            self.peak_buffer_bytes = max(self.peak_buffer_bytes, decoder.buffered_bytes)
            cap = MAX_FRAME_BYTES if isinstance(decoder, FrameDecoder) else MAX_PACKET_BYTES + 4
            self.over_cap += decoder.buffered_bytes > cap

    def add_counters(self, decoder: BodyDecoder) -> None:
        """Add up the faults that a decoder named."""
        for reason, count in decoder.counters.items():
            self.by_reason[reason] = self.by_reason.get(reason, 0) + count


def main() -> int:
    """Parse, fuzz, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000, metavar="N", help="at least so many (1000000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="what they are drawn with (0)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    if options.frames < 1:
        parser.error("--frames: must be at least 1")
    result = report(fuzz(options.frames, options.seed)) | throughput()
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:20} {value}")
    return 0 if result["exceptions"] == result["wrong_accepted"] == result["over_cap"] == 0 else 1


def report(found: Found) -> dict[str, Any]:
    """The figures, rates worked out."""
    return {
        "frames": found.frames,
        "frames_per_s": round(found.frames / found.decoding_s),
        "exceptions": found.exceptions,
        "wrong_accepted": found.wrong_accepted,
        "accepted": found.accepted,
        "peak_buffer_bytes": found.peak_buffer_bytes,
        "over_cap": found.over_cap,
        "by_reason": found.by_reason,
        "examples": found.examples,
    }


def fuzz(n_frames: int, seed: int) -> Found:
    """Everything that can go wrong, in turn, until so many frames were tried."""
    rng, found = random.Random(seed), Found()
    sent = messages()
    true = {known(message) for message, _ in sent}
    lines, packets, bodies, tagged = (
        [encoder(message, **how) for message, how in sent]
        for encoder in (encode, encode_packet, encode_body, partial(encode_body, key=KEY))
    )
    unended(rng, found)
    while found.frames < n_frames:
        noise(rng, found)
        damaged(rng, found, FrameDecoder(), lines, true)
        damaged(rng, found, LengthDecoder(), packets, true)
        datagrams(rng, found, bodies, true)
        wrong_content(rng, found, bodies)
        forged(rng, found, tagged)
    return found


def messages() -> list[tuple[Event, dict[str, Any]]]:
    """All types, no two alike, clocks rising; every other sample and label is seeded as the HELLO agrees."""
    rng = np.random.default_rng(1)
    sent: list[tuple[Event, dict[str, Any]]] = [(HELLO, {"time_us": 1})]
    for seq in range(POOL):
        at, how = 1000 * seq + 2, {"seed": SEED if seq % 2 else 0}
        values = rng.integers(-300, 300, rng.integers(1, 40)).astype((np.int16, np.float32)[seq % 2])
        sent.append((Sample(0, 3, seq, at, values, label=seq if seq % 3 else None), how))
        others: tuple[Event, ...] = (
            *(Label(0, 3, seq, seq + 1), Time(0, 3, seq, at + 1), Stats(0, 3, at + 1, generated=seq)),
            *(Log(0, 3, at + 1, f"line {seq}"), Control(0, 3, seq, CTRL_END), Ack(0, 3, seq)),
        )
        if seq % 5 == 0:
            message = others[seq // 5 % len(others)]
            sent.append((message, {"time_us": at + 1} | (how if isinstance(message, Label) else {})))
    return sent


def known(event: Event) -> str:
    """What tells two events apart, values included."""
    if isinstance(event, Hello):
        return hello_json(event).decode()
    if not isinstance(event, Sample):
        return repr(event)
    values = event.values
    return (
        f"{event.id} {event.time_us} {event.label} {event.gap} {values.dtype} {values.shape} {values.tobytes().hex()}"
    )


def unended(rng: random.Random, found: Found) -> None:
    """Frames that are announced and never end: the buffers must stop at their caps."""
    feed(found, FrameDecoder(), [b"\1" * 4000] * 5, 1, frozenset())
    body = encode_body(Sample(0, 3, 1, 1, np.zeros((64, 65_000), np.uint8)))  # 4.16 of 4.19 MB, and never its end
    packet = struct.pack("<I", len(body)) + body[:-1]
    feed(found, LengthDecoder(), pieces(rng, packet), 1, frozenset())


def noise(rng: random.Random, found: Found) -> None:
    """Random bytes, one in twelve a delimiter, through a line's decoder and TCP's."""
    data = rng.randbytes(BATCH * 12).translate(bytes(byte if byte % 12 else 0 for byte in range(256)))
    for decoder in (FrameDecoder(), LengthDecoder(), FrameDecoder(KEY)):
        feed(found, decoder, pieces(rng, data), data.count(0), frozenset())


def damaged(
    rng: random.Random, found: Found, decoder: FrameDecoder | LengthDecoder, frames: list[bytes], true: AbstractSet[str]
) -> None:
    """A stream with one byte in thirty or in a thousand changed, left out or doubled."""
    data = bytearray(b"".join(frames))
    for _ in range(len(data) // rng.choice((30, 1000))):
        at = rng.randrange(len(data))
        data[at : at + 1] = rng.choice((rng.randbytes(1), rng.randbytes(1), b"", rng.randbytes(2)))
    feed(found, decoder, pieces(rng, bytes(data)), len(frames), true)


def datagrams(rng: random.Random, found: Found, bodies: list[bytes], true: AbstractSet[str]) -> None:
    """Each with up to three bytes changed, and every tenth cut off or nothing but noise."""
    decoder = BodyDecoder()
    packets = [bodies[0], *(changed(rng, body) for body in bodies)]
    packets[::10] = [body[: rng.randrange(len(body))] for body in packets[::10]]
    packets[1::10] = [rng.randbytes(len(body)) for body in packets[1::10]]
    feed(found, decoder, packets, len(packets), true)


def wrong_content(rng: random.Random, found: Found, bodies: list[bytes]) -> None:
    """Changed bytes under a right CRC: any of them may be a frame, but none may raise or say what cannot be."""
    packets = [with_crc(changed(rng, body[:-4])) for body in bodies]
    for event in feed(found, BodyDecoder(), packets, len(packets), None):
        if isinstance(event, Sample):
            possible = bool(np.isfinite(event.values).all()) and (event.label is None or event.label >= 0)
        else:
            possible = not isinstance(event, Label) or (event.label >= 0 and 0 <= event.confidence <= 1)
        if not possible:
            found.blame(f"impossible: {event!r:.100}")


def forged(rng: random.Random, found: Found, tagged: list[bytes]) -> None:
    """Changed bytes under a right CRC, between true frames, to a decoder with the key: they must change nothing."""
    decoder, n_true = FrameDecoder(KEY), 0
    for body in tagged:
        before = (decoder.floor(), decoder.agreed)
        forgery = cobs.encode(with_crc(changed(rng, body[:-4]))) + b"\0"
        feed(found, decoder, [forgery], 1, frozenset(), last=False)
        if (decoder.floor(), decoder.agreed) != before:
            found.blame(f"state changed by {forgery.hex():.100}")
        n_true += len(feed(found, decoder, [cobs.encode(body) + b"\0"], 1, None, last=False))
    if n_true != len(tagged):
        found.blame(f"{len(tagged) - n_true} true frames refused between forged ones")
    found.add_counters(decoder)


def changed(rng: random.Random, body: bytes) -> bytes:
    """One to three bytes changed, more often in the header than behind it."""
    data = bytearray(body)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(min(len(data), 26) if rng.random() < 0.6 else len(data))
        data[at] ^= rng.choice((1 << rng.randrange(8), rng.randrange(1, 256)))
    # Two changes of one byte may undo each other: that would be the true frame.
    return bytes(data) if data != body else changed(rng, body)


def with_crc(content: bytes) -> bytes:
    """Content with the CRC that belongs to it."""
    return content + struct.pack("<I", zlib.crc32(content))


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """The same bytes as a port hands them out."""
    cuts = sorted({0, *(rng.randrange(len(data)) for _ in range(50)), len(data)})
    return [data[start:end] for start, end in pairwise(cuts)]


def feed(
    found: Found,
    decoder: BodyDecoder,
    parts: Iterable[bytes],
    n_frames: int,
    true: AbstractSet[str] | None,
    *,
    last: bool = True,
) -> list[Event]:
    """Events of these bytes; counts what was raised, what is not in `true` and what the decoder holds."""
    events: list[Event] = []
    found.frames += n_frames
    for part in parts:
        started = time.perf_counter()
        try:
            if isinstance(decoder, (FrameDecoder, LengthDecoder)):
                events += decoder.feed(part)
            else:
                event = decoder.decode_datagram(part)
                events += [] if event is None else [event]
        except Exception as exc:
            found.exceptions += 1
            found.blame(f"{type(exc).__name__}: {exc}", wrong=0)
        found.decoding_s += time.perf_counter() - started
        found.watch(decoder)
    found.accepted += len(events)
    for event in events:
        if true is not None and known(event) not in true:
            found.blame(f"nobody sent {event!r:.100}")
    if last:
        found.add_counters(decoder)
    return events


def throughput() -> dict[str, Any]:
    """How much of what is right a line's decoder takes, handed out as a port does."""
    values = np.arange(6, dtype=np.float32)
    frames = [encode(Sample(0, 1, seq, seq * 1000, values)) for seq in range(1000)]
    data = b"".join(frames)
    best_s = float("inf")
    for _ in range(ROUNDS):
        decoder, n = FrameDecoder(), 0
        started = time.perf_counter()
        for at in range(0, len(data), 4096):
            n += len(decoder.feed(data[at : at + 4096]))
        best_s = min(best_s, time.perf_counter() - started)
        assert n == len(frames)
    rate = len(data) / best_s
    return {
        "valid_frames_per_s": round(len(frames) / best_s),
        "valid_bytes_per_s": round(rate),
        "line_ratio": round(rate / LINE_BYTES_PER_S, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
