"""The vectors of docs/WIRE.md: bytes built from the fields alone, this side's encoders and its decoders all agree."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firmware_bridge import wire
from firmware_bridge.auth import Key, board_key, host_key
from firmware_bridge.decoder import _RESIDUE, FAULTS, BodyDecoder
from firmware_bridge.frame import MAX_FRAME_BYTES, FrameDecoder, encode
from firmware_bridge.hello import Hello, parse_hello, schema_seed
from firmware_bridge.packet import (
    MAX_DATAGRAM_BYTES,
    MAX_PACKET_BYTES,
    LengthDecoder,
    encode_datagram,
    encode_packet,
)
from firmware_bridge.sample import Label, Sample, Schema

ROOT = Path(__file__).parent.parent
VECTORS = json.loads((ROOT / "firmware_bridge" / "mcu" / "vectors.json").read_text(encoding="utf-8"))
SECRET = bytes.fromhex(VECTORS["key"])
KINDS = {"Label": Label} | {name: getattr(wire, name) for name in ("Control", "Time", "Stats", "Log", "Ack")}

every_frame = pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda vector: vector["name"])


def stuffed(data: bytes) -> bytes:
    """COBS as its paper says it, with no look at how the library does it."""
    out, run = bytearray(), bytearray()
    for byte in data + b"\0":
        if byte:
            run.append(byte)
        if not byte or len(run) == 254:
            out += bytes((len(run) + 1,)) + run
            run.clear()
    if len(data) >= 254 and out.endswith(b"\1") and 0 not in data[-254:]:
        del out[-1]  # a run of 254 at the end needs nothing behind it
    return bytes(out)


def tag_of(content: bytes, sender: str) -> bytes:
    """HMAC as RFC 2104 says it."""
    key = SECRET.ljust(64, b"\0")
    letter = {"board": b"B", "host": b"H"}[sender]
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + letter + content).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()[:8]


def body_of(vector: dict[str, Any]) -> bytes:
    """Body and CRC from the fields of WIRE.md's table."""
    h = vector["header"]
    names = ("ver", "type", "iflags", "cflags", "stream", "boot", "seq", "t_us", "dtype", "ndim")
    content = struct.pack("<BBBBHHIQBB", *(h[name] for name in names)) + struct.pack(f"<{h['ndim']}H", *h["shape"])
    content += b"" if h["label"] is None else struct.pack("<i", h["label"])
    content += bytes.fromhex(h["payload"])
    content += tag_of(content, vector["sender"]) if vector["tagged"] else b""
    return content + struct.pack("<I", zlib.crc32(content, vector["seed"]))


def message_of(vector: dict[str, Any]) -> wire.Event:
    """What the frame means."""
    said = dict(vector["event"])
    kind = said.pop("kind")
    if kind == "Sample":
        return Sample(values=np.array(said.pop("values"), said.pop("dtype")), **said)
    if kind == "Hello":
        lists = ("shape", "channels", "label_names")
        schemas: dict[int, Schema] = {}
        for stream, schema in said.pop("streams").items():
            fields: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in schema.items()}
            schemas[int(stream)] = Schema(**fields)
        return Hello(streams=schemas, **said)
    message: wire.Event = KINDS[kind](**said)
    return message


def key_of(vector: dict[str, Any]) -> Key | None:
    made = {"board": board_key, "host": host_key}[vector["sender"]]
    return made(SECRET) if vector["tagged"] else None


def assert_same(got: wire.Event | None, meant: wire.Event) -> None:
    if isinstance(meant, Sample):
        assert isinstance(got, Sample)
        assert (got.id, got.time_us, got.label, got.gap) == (meant.id, meant.time_us, meant.label, meant.gap)
        assert got.values.dtype == meant.values.dtype
        np.testing.assert_array_equal(got.values, meant.values)
    else:
        assert got == meant


def knows_the_schema(decoder: BodyDecoder, vector: dict[str, Any]) -> BodyDecoder:
    """The decoder, behind a HELLO if the frame needs one."""
    if vector["seed"]:
        hello = next(v for v in VECTORS["frames"] if v["event"]["kind"] == "Hello" and v["tagged"] == vector["tagged"])
        assert decoder.decode_datagram(bytes.fromhex(hello["body"])) is not None
    return decoder


@every_frame
def test_the_bytes_follow_from_the_fields(vector: dict[str, Any]) -> None:
    body = body_of(vector)
    assert body.hex() == vector["body"]
    assert stuffed(body).hex() + "00" == vector["line"]
    assert struct.pack("<I", len(body)) + body == bytes.fromhex(vector["packet"])


@every_frame
def test_the_encoders_write_these_bytes(vector: dict[str, Any]) -> None:
    message = message_of(vector)
    how: dict[str, Any] = {"time_us": vector["header"]["t_us"], "seed": vector["seed"], "key": key_of(vector)}
    assert encode(message, **how).hex() == vector["line"]
    assert encode_packet(message, **how).hex() == vector["packet"]
    assert encode_datagram(message, **how).hex() == vector["body"]


@every_frame
def test_all_three_decoders_understand_them(vector: dict[str, Any]) -> None:
    meant = message_of(vector)
    for make, name in ((FrameDecoder, "line"), (LengthDecoder, "packet")):
        decoder = knows_the_schema(make(key_of(vector)), vector)
        assert isinstance(decoder, (FrameDecoder, LengthDecoder))
        (got,) = decoder.feed(bytes.fromhex(vector[name]))
        assert_same(got, meant)
        assert not any(decoder.counters.values())
    decoder = knows_the_schema(BodyDecoder(key_of(vector)), vector)
    assert_same(decoder.decode_datagram(bytes.fromhex(vector["body"])), meant)


@pytest.mark.parametrize("vector", VECTORS["faults"], ids=lambda vector: vector["name"])
def test_faults_are_refused_and_counted_under_their_name(vector: dict[str, Any]) -> None:
    decoder = FrameDecoder(board_key(SECRET) if vector["with_key"] else None)
    assert decoder.feed(bytes.fromhex(vector["line"])) == []
    assert {fault: count for fault, count in decoder.counters.items() if count} == {vector["fault"]: 1}
    assert decoder.floor() == {}


def test_every_type_dtype_and_fault_of_a_line_has_a_vector() -> None:
    headers = [vector["header"] for vector in VECTORS["frames"]]
    assert {header["type"] for header in headers} == set(range(8))
    assert {header["dtype"] for header in headers if header["type"] == wire.SAMPLE} == set(range(1, 8))
    # oversize takes 8 KiB and replay two frames: tests/test_frame.py and tests/test_auth.py have them.
    assert {vector["fault"] for vector in VECTORS["faults"]} == set(FAULTS) - {"oversize", "replay"}


def test_the_agreed_schema_is_the_bytes_of_the_streams() -> None:
    said = VECTORS["schemas"].encode()
    assert zlib.crc32(said) == VECTORS["seed"]
    assert bytes.fromhex(VECTORS["frames"][0]["header"]["payload"]).endswith(b'"streams":' + said + b"}")


def test_the_file_is_what_its_tool_writes() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "frame_vectors.py"), "--check"]
    subprocess.run(tool, check=True, cwd=ROOT, timeout=60)


# The page


def tables(heading: str) -> list[list[str]]:
    """Rows of the tables below a heading of docs/WIRE.md, cell by cell."""
    page = (ROOT / "docs" / "WIRE.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows]


def test_the_page_lays_the_header_out_as_the_code_does() -> None:
    rows = [row for row in tables("Body") if row[0].isdigit()]
    letters = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "u16 × `ndim`": ""}
    packed = struct.Struct("<" + "".join(letters[row[1]] for row in rows))
    assert packed.format == wire.HEADER.format
    at = 0
    for row in rows:
        assert int(row[0]) == at
        at += struct.calcsize("<" + letters[row[1]])


def test_the_page_names_every_type_and_every_fault_and_no_other() -> None:
    types = {row[0] for row in tables("Every type")[1:]}
    assert types == {"HELLO", "SAMPLE", "LABEL", "TIME", "STATS", "CTRL", "LOG", "ACK"}
    named = [name for row in tables("What is wrong, and what it is called") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(FAULTS)


def test_the_limits_and_check_values_of_the_page_are_the_codes() -> None:
    page = (ROOT / "docs" / "WIRE.md").read_text(encoding="utf-8")
    for limit in (MAX_FRAME_BYTES, MAX_PACKET_BYTES, MAX_DATAGRAM_BYTES):
        assert f"{limit:,} bytes" in page
    assert zlib.crc32(b"123456789") == 0xCBF43926
    assert "0xCBF43926" in page
    assert f"0x{_RESIDUE:08X}" in page
    hello = re.search(r'^    (\{"boot".*?\}\}\})$', page, re.MULTILINE | re.DOTALL)
    assert hello is not None
    said = re.sub(r"\n +", "", hello[1]).encode()
    assert parse_hello(said).streams == parse_hello(encode_datagram(message_of(VECTORS["frames"][0]))[24:-4]).streams
    assert schema_seed(parse_hello(said)) == VECTORS["seed"]
