#!/usr/bin/env python3
"""Write firmware_bridge/mcu/vectors.json: frames as bytes, what they say, and faults, for whoever implements the wire.

    python tools/frame_vectors.py [--check]

--check only compares: exit 1 if the file is not what this would write. tests/test_wire_vectors.py builds the same bytes
a second way, from the fields alone, and tests/test_mcu.py holds the C side against them.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import zlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from cobs import cobs

from firmware_bridge.auth import board_key, host_key
from firmware_bridge.frame import encode
from firmware_bridge.hello import Hello, schema_seed
from firmware_bridge.packet import encode_packet
from firmware_bridge.sample import SENSOR_DTYPES, Label, Sample, Schema
from firmware_bridge.wire import (
    CTRL_AGREE,
    CTRL_BEFORE,
    CTRL_END,
    CTRL_NEXT,
    CTRL_SAY_HELLO,
    Ack,
    Control,
    Event,
    Log,
    Stats,
    Time,
    encode_body,
)

PATH = Path(__file__).parent.parent / "firmware_bridge" / "mcu" / "vectors.json"
KEY = bytes(range(32))
BOOT = 513
WAVE = Schema("wave", "int16", (2, 3), ("x", "y", "z"), "g", 100.0, 0.5, ("rest", "run"))
PLAIN = Hello("board", "1.0", BOOT, {0: WAVE})
SEED = schema_seed(PLAIN)
COUNTS = np.array([[1, -2, 3], [0, 256, -32768]], np.int16)
LONG = np.arange(1, 513, dtype=np.uint16).reshape(256, 2) | 0x0101  # no zero byte in it: COBS needs its longest runs
# A frame that ends in a zero byte ends, behind COBS, in an empty run.
ENDS_IN_ZERO = next(n for n in range(1000) if encode_body(Sample(0, BOOT, n, 5, COUNTS)).endswith(b"\0"))

Case = tuple[str, Event, dict[str, Any]]


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the file instead of writing it")
    options = parser.parse_args()
    text = document()
    if options.check:
        return 0 if PATH.read_text(encoding="utf-8") == text else 1
    PATH.write_text(text, encoding="utf-8")
    return 0


def document() -> str:
    """The file's text: one vector a line."""
    head = {
        "about": "Test vectors of docs/WIRE.md; bytes are hex. line: COBS and delimiter; packet: u32 length in front.",
        "key": KEY.hex(),
        "schemas": json.dumps(json.loads(encode_body(PLAIN)[24:-4])["streams"], separators=(",", ":"), sort_keys=True),
        "seed": SEED,
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    lines += ['  "frames": [', ",\n".join(f"    {json.dumps(frame(case))}" for case in cases()), "  ],"]
    lines += ['  "faults": [', ",\n".join(f"    {json.dumps(fault)}" for fault in faults()), "  ]"]
    return "{\n" + "\n".join(lines) + "\n}\n"


def cases() -> list[Case]:
    """Every type and dtype; each flag; with the seed; with a tag from either side."""
    by_dtype: list[Case] = [
        (f"sample of {name}", Sample(1, BOOT, 7, 10**6, np.array([0, 1, 2, 100]).astype(name)), {})
        for name in SENSOR_DTYPES
    ]
    board, host = {"key": board_key(KEY)}, {"key": host_key(KEY)}
    return [
        ("hello", PLAIN, {"time_us": 5}),
        *by_dtype,
        ("sample of one number", Sample(0, BOOT, 1, 2, np.array(-5, np.int8)), {}),
        ("sample of four dimensions", Sample(0, BOOT, 1, 2, np.zeros((1, 2, 3, 2), np.int16)), {}),
        ("sample that is labelled", Sample(0, BOOT, 2**32 - 1, 2**40 + 1, COUNTS, label=1), {}),
        ("sample behind dropped ones", Sample(0, BOOT, 9, 3, COUNTS, gap=True), {}),
        ("sample without a zero byte", Sample(0, BOOT, 10, 4, LONG), {}),
        ("sample whose CRC ends in a zero", Sample(0, BOOT, ENDS_IN_ZERO, 5, COUNTS), {}),
        ("sample with the schema's seed", Sample(0, BOOT, 11, 5, COUNTS, label=0), {"seed": SEED}),
        ("label", Label(0, BOOT, 11, 1, source=0, confidence=0.75), {"time_us": 6}),
        ("label with the schema's seed", Label(0, BOOT, 11, 0), {"time_us": 7, "seed": SEED}),
        ("end", Control(0, BOOT, 12, CTRL_END), {"time_us": 8}),
        ("next", Control(1, BOOT, 12, CTRL_NEXT), {"time_us": 8}),
        ("before", Control(1, BOOT, 2**32 - 2, CTRL_BEFORE), {"time_us": 8}),
        ("time, answered", Time(0, BOOT, 1_800_000_000_000_000, 9), {"time_us": 9}),
        ("stats", Stats(0, BOOT, 10, generated=12, dropped=3, sent=20, received=4, crc=1), {}),
        ("log", Log(0, BOOT, 11, "warm: 41 °C"), {}),
        ("sample with a tag", Sample(0, BOOT, 12, 12, COUNTS, label=1), board),
        ("sample with a tag and the seed", Sample(0, BOOT, 13, 13, COUNTS), board | {"seed": SEED}),
        ("hello with a tag", PLAIN, board | {"time_us": 14}),
        ("label with a tag", Label(0, BOOT, 12, 0), board | {"time_us": 15}),
        ("next with a tag", Control(0, BOOT, 12, CTRL_NEXT), board | {"time_us": 16}),
        ("before with a tag", Control(0, BOOT, 70000, CTRL_BEFORE), board | {"time_us": 17}),
        ("host: say hello", Control(0, 0, 0, CTRL_SAY_HELLO), {}),
        ("host: agree", Control(0, BOOT, SEED, CTRL_AGREE), {"time_us": 1_800_000_000_000_000}),
        ("host: time, asked", Time(0, BOOT, 1_800_000_000_000_001, 0), {"time_us": 1_800_000_000_000_001}),
        ("host: ack", Ack(0, BOOT, 11), {"time_us": 1_800_000_000_000_002}),
        ("host: agree with a tag", Control(0, BOOT, SEED, CTRL_AGREE), host | {"time_us": 1_800_000_000_000_003}),
        ("host: time with a tag", Time(0, BOOT, 18 * 10**14, 0), host | {"time_us": 1_800_000_000_000_004}),
        ("host: ack with a tag", Ack(0, BOOT, 12), host | {"time_us": 1_800_000_000_000_005}),
    ]


def frame(case: Case) -> dict[str, Any]:
    """One vector: header fields, what they mean, and all three ways to carry them."""
    name, message, how = case
    body = encode_body(message, **how)
    return {
        "name": name,
        "sender": "host" if name.startswith("host") else "board",
        "tagged": "key" in how,
        "seed": how.get("seed", 0),
        "header": header(body),
        "event": event(message),
        "body": body.hex(),
        "line": encode(message, **how).hex(),
        "packet": encode_packet(message, **how).hex(),
    }


def header(body: bytes) -> dict[str, Any]:
    """The fields of WIRE.md's table."""
    names = ("ver", "type", "iflags", "cflags", "stream", "boot", "seq", "t_us", "dtype", "ndim")
    found: dict[str, Any] = dict(zip(names, struct.unpack_from("<BBBBHHIQBB", body), strict=True))
    found["shape"] = struct.unpack_from(f"<{found['ndim']}H", body, 22)
    at = 22 + 2 * found["ndim"]
    found["label"] = struct.unpack_from("<i", body, at)[0] if found["cflags"] & 1 else None
    found["payload"] = body[at + 4 * (found["cflags"] & 1) : len(body) - 4 - 8 * found["iflags"]].hex()
    return found


def event(message: Event) -> dict[str, Any]:
    """What a receiver understands, as JSON."""
    if isinstance(message, Sample):
        ours = ("values", "host_us")  # the latter is not on the wire: the host works it out
        plain = {field.name: getattr(message, field.name) for field in fields(message) if field.name not in ours}
        return {"kind": "Sample", **plain, "dtype": message.values.dtype.name, "values": message.values.tolist()}
    if isinstance(message, Hello):
        streams = {str(stream): asdict(schema) for stream, schema in message.streams.items()}
        return {
            "kind": "Hello",
            "device": message.device,
            "firmware": message.firmware,
            "boot": BOOT,
            "streams": streams,
        }
    return {"kind": type(message).__name__, **asdict(message)}


def faults() -> list[dict[str, Any]]:
    """Lines that a receiver must refuse, with the counter; with_key: it has the key."""
    good = encode_body(Sample(0, BOOT, 1, 2, COUNTS))[:-4]
    tagged = encode_body(Sample(0, BOOT, 1, 2, COUNTS), key=board_key(KEY))[:-4]
    thrown_back = encode_body(Sample(0, BOOT, 1, 2, COUNTS), key=host_key(KEY))[:-4]
    as_float = good[:20] + b"\x06\x01\x01\x00" + struct.pack("<f", float("nan"))
    wrong = [
        ("crc: a bit", "crc", False, cobs.encode(crc(good)[:-1] + bytes((crc(good)[-1] ^ 1,))) + b"\0"),
        ("crc: another schema's seed", "crc", False, line(good, 12345)),
        ("cobs: a run longer than the frame", "cobs", False, b"\xff\x01\x02\0"),
        ("length: shorter than a header", "length", False, line(good[:20])),
        ("version: 2", "version", False, line(b"\2" + good[1:])),
        ("type: 8", "type", False, line(good[:1] + b"\x08" + good[2:])),
        ("incompat: a fragment", "incompat", False, line(good[:2] + b"\2" + good[3:])),
        ("schema: dtype 8", "schema", False, line(good[:20] + b"\x08" + good[21:])),
        ("schema: five dimensions", "schema", False, line(good[:21] + b"\5" + good[22:])),
        ("schema: a label of i16", "schema", False, line(good[:1] + b"\2" + good[2:])),
        ("length: a byte too many", "length", False, line(good + b"\0")),
        ("length: a shape with a zero", "length", False, line(good[:20] + b"\1\1\0\0")),
        ("label: a LABEL without one", "label", False, line(good[:1] + b"\2\0\0" + good[4:20] + LABELLED)),
        ("nonfinite: NaN", "nonfinite", False, line(as_float)),
        ("auth: a tag, and no key to check it", "auth", False, line(tagged)),
        ("auth: no tag", "auth", True, line(good)),
        ("auth: a bit of the tag", "auth", True, line(tagged[:-1] + bytes((tagged[-1] ^ 1,)))),
        ("auth: the host's own frame thrown back", "auth", True, line(thrown_back)),
    ]
    return [{"name": name, "fault": fault, "with_key": keyed, "line": data.hex()} for name, fault, keyed, data in wrong]


LABELLED = b"\1\1\5\0" + struct.pack("<Bf", 0, 1.0)


def crc(content: bytes, seed: int = 0) -> bytes:
    """Content with its CRC."""
    return content + struct.pack("<I", zlib.crc32(content, seed))


def line(content: bytes, seed: int = 0) -> bytes:
    """Content as a line carries it."""
    wire: bytes = cobs.encode(crc(content, seed)) + b"\0"
    return wire


if __name__ == "__main__":
    sys.exit(main())
