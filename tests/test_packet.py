"""Frames behind a length, as TCP carries them: any split, any damage, and never more lost than two."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.frame import CTRL_END, Control, Event, Time
from firmware_bridge.hello import Hello
from firmware_bridge.packet import (
    MAX_DATAGRAM_BYTES,
    MAX_PACKET_BYTES,
    LengthDecoder,
    encode_datagram,
    encode_packet,
)
from firmware_bridge.sample import Label, Sample, Schema


def sample(seq: int, values: object = (1, 2, 3)) -> Sample:
    return Sample(0, 1, seq, seq * 1000, np.array(values, np.int16))


def a_stream(seed: int, n_samples: int = 10) -> list[bytes]:
    """Packets of several types, lengths and dimensions."""
    rng = np.random.default_rng(seed)
    messages: list[Event] = [Hello("d", "f", 1, {0: Schema("s", "int16", (3,))})]
    for seq in range(n_samples):
        shape = tuple(int(size) for size in rng.integers(1, 6, seq % 5))
        values = rng.integers(-3, 300, shape).astype(np.int16)
        messages.append(Sample(0, 1, seq, seq * 1000, values, label=seq % 3 if seq % 2 else None))
    messages += [Label(0, 1, 2, 1), Time(0, 1, 5, 6), Control(0, 1, n_samples, CTRL_END)]
    return [encode_packet(message) for message in messages]


def key(event: Event) -> str:
    if isinstance(event, Sample):
        return f"{event.id} {event.time_us} {event.label} {event.values.shape} {event.values.tobytes().hex()}"
    return repr(event)


def decoded(data: bytes, cuts: list[int] | range = range(0)) -> list[str]:
    decoder, events = LengthDecoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        events += decoder.feed(data[start:end])
        assert decoder.buffered_bytes <= MAX_PACKET_BYTES + 4
    return [key(event) for event in events]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.data())
def test_packets_survive_any_split(seed: int, data: st.DataObject) -> None:
    wire = b"".join(a_stream(seed))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=30)))
    assert decoded(wire, cuts) == decoded(wire)
    assert len(decoded(wire)) == 14


def test_packets_survive_byte_after_byte() -> None:
    wire = b"".join(a_stream(0))
    assert decoded(wire, range(1, len(wire))) == decoded(wire)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.data())
def test_one_damaged_byte_costs_at_most_two_packets_and_gives_no_wrong_one(seed: int, data: st.DataObject) -> None:
    packets = a_stream(seed)
    wire = b"".join(packets)
    true = decoded(wire)
    at = data.draw(st.integers(0, len(wire) - 1))
    byte = data.draw(st.binary(max_size=2))  # another byte, none, or two: changed, deleted, inserted
    # More packets behind it: a damaged length at the very end waits for what never comes.
    got = decoded(wire[:at] + byte + wire[at + 1 :] + b"".join(a_stream(seed + 1)))
    assert set(got) <= set(true) | set(decoded(b"".join(a_stream(seed + 1))))
    assert len(got) >= 2 * len(true) - 2


def test_every_single_bit_flip_of_a_stream_costs_one_packet() -> None:
    packets = a_stream(1, 4)
    wire, behind = bytearray(b"".join(packets)), encode_packet(sample(1000)) + encode_packet(sample(1001))
    true = set(decoded(bytes(wire) + behind))
    for bit in range(8 * len(wire)):
        wire[bit // 8] ^= 1 << bit % 8
        got = set(decoded(bytes(wire) + behind))
        assert got <= true
        assert len(got) >= len(true) - 1
        wire[bit // 8] ^= 1 << bit % 8


def test_a_decoder_that_believed_every_length_would_lose_the_rest() -> None:
    """What the header is asked for: a MiB more than there is, and nothing behind it is ever seen."""

    class Believing(LengthDecoder):
        def _needed(self, at: int) -> int | None:
            return int(struct.unpack_from("<I", self._held, at - 4)[0])

    wire = bytearray(b"".join(a_stream(2)))
    wire[2] ^= 0x10  # the first length, one MiB more
    assert len(LengthDecoder().feed(bytes(wire))) == 13
    assert Believing().feed(bytes(wire)) == []


@pytest.mark.parametrize(
    ("reason", "packet"),
    [
        ("oversize", struct.pack("<I", MAX_PACKET_BYTES + 1) + encode_packet(sample(1))[4:]),
        ("version", encode_packet(sample(1)).replace(b"\x01\x01", b"\x02\x01", 1)),
        ("incompat", encode_packet(sample(1)).replace(b"\x01\x01\x00", b"\x01\x01\x02", 1)),
        ("length", struct.pack("<I", 7) + encode_packet(sample(1))[4:]),
        ("length", struct.pack("<I", 33) + encode_packet(sample(1))[4:]),
        ("crc", encode_packet(sample(1))[:-1] + b"\x00"),
        ("type", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_is_counted_once_and_the_next_packet_is_read(reason: str, packet: bytes | None) -> None:
    if packet is None:
        body = encode_packet(sample(1))[4:-4].replace(b"\x01\x01\x00", b"\x01\x09\x00", 1)
        packet = struct.pack("<I", len(body) + 4) + body + struct.pack("<I", zlib.crc32(body))
    decoder = LengthDecoder()
    (got,) = decoder.feed(packet + encode_packet(sample(2)))
    assert isinstance(got, Sample)
    assert got.seq == 2
    assert {name: count for name, count in decoder.counters.items() if count} == {reason: 1}


def test_a_picture_of_four_megabytes_arrives_and_a_larger_one_is_not_encoded() -> None:
    picture = Sample(0, 1, 0, 0, np.arange(64 * 65_000, dtype=np.uint32).astype(np.uint8).reshape(64, 65_000))
    wire, decoder = encode_packet(picture), LengthDecoder()
    events = [event for at in range(0, len(wire), 65_536) for event in decoder.feed(wire[at : at + 65_536])]
    (got,) = events
    assert isinstance(got, Sample)
    np.testing.assert_array_equal(got.values, picture.values)
    assert decoder.buffered_bytes == 0
    with pytest.raises(ValueError, match=f"limit is {MAX_PACKET_BYTES}"):
        encode_packet(Sample(0, 1, 0, 0, np.zeros((65, 65_000), np.uint8)))
    with pytest.raises(ValueError, match=f"limit is {MAX_DATAGRAM_BYTES}"):
        encode_datagram(picture)


def test_megabytes_that_are_no_packets_are_passed_by_quickly() -> None:
    """Zeros, ones, and what looks like a beginning again and again: the search must not crawl."""
    head = encode_packet(sample(1))[:26]
    for junk in (bytes(1 << 22), b"\x01" * (1 << 22), head[:-1] * 100_000, head * 20_000):
        decoder = LengthDecoder()
        events = decoder.feed(junk + encode_packet(sample(2)))
        events += decoder.feed(encode_packet(sample(3)))
        assert [event.seq for event in events if isinstance(event, Sample)] == [2, 3]
