"""The decoder against bytes of any kind: no exception, a bounded buffer, no wrong frame, at most two frames lost."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.auth import board_key
from firmware_bridge.frame import (
    MAX_FRAME_BYTES,
    Control,
    FrameDecoder,
    Log,
    Time,
    encode,
    encode_control,
    encode_hello,
    encode_label,
    encode_sample,
)
from firmware_bridge.hello import Hello, schema_seed
from firmware_bridge.sample import Label, Sample, Schema
from firmware_bridge.sequence import SequenceTracker

HELLO = Hello(device="d", firmware="f", boot=1, streams={0: Schema(name="s", dtype="int16", shape=(6,))})

KEY = board_key(b"sixteen bytes at least")


def a_stream(seed, n_samples):
    """Frames of all types, as a list of wire bytes."""
    rng = np.random.default_rng(seed)
    frames = [encode_hello(HELLO)]
    for seq in range(n_samples):
        values = rng.integers(-3, 300, rng.integers(1, 40)).astype(np.int16)
        frames.append(encode_sample(Sample(0, 1, seq, seq * 1000, values, label=seq % 3 if seq % 2 else None)))
    return [*frames, encode_label(Label(0, 1, 2, 1)), encode_control(Control(0, 1, n_samples, 2))]


def key(event):
    """What tells two events apart, values included."""
    return (*event.id, event.time_us, event.label, event.values.tobytes()) if isinstance(event, Sample) else repr(event)


def decode(data, cuts=(), with_key=None):
    decoder, events = FrameDecoder(with_key), []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        events += decoder.feed(data[start:end])
        assert decoder.buffered_bytes <= MAX_FRAME_BYTES
    return [key(event) for event in events]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=600), max_size=20))
def test_any_bytes_in_any_pieces_neither_raise_nor_grow_the_buffer(pieces):
    decoder = FrameDecoder()
    for piece in pieces:
        decoder.feed(piece)
        assert decoder.buffered_bytes <= MAX_FRAME_BYTES


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.data())
def test_frames_survive_any_split(seed, data):
    wire = b"".join(a_stream(seed, 10))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=30)))
    events = decode(wire, cuts)
    assert events == decode(wire)
    assert len(events) == 13


def test_frames_survive_byte_after_byte():
    wire = b"".join(a_stream(0, 10))
    assert decode(wire, range(1, len(wire))) == decode(wire)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.data())
def test_one_damaged_byte_costs_at_most_two_frames_and_gives_no_wrong_one(seed, data):
    wire = b"".join(a_stream(seed, 10))
    true = decode(wire)
    at = data.draw(st.integers(0, len(wire) - 1))
    byte = data.draw(st.binary(max_size=2))  # another byte, none, or two: changed, deleted, inserted
    got = decode(wire[:at] + byte + wire[at + 1 :])
    assert set(got) <= set(true)
    assert len(got) >= len(true) - 2


def an_agreed_stream(key):
    """HELLO, and frames behind it that carry its seed, and tags if there is a key."""
    messages = [Sample(0, 1, seq, seq * 1000, np.full(6, seq, np.int16)) for seq in range(6)]
    messages += [Label(0, 1, 2, 1), Time(0, 1, 5, 6), Log(0, 1, 10**6, "ten"), Control(0, 1, 6, 2)]
    frames = [encode(message, time_us=10**6, seed=schema_seed(HELLO), key=key) for message in messages]
    return encode(HELLO, key=key), frames, key


@pytest.mark.parametrize(
    ("hello", "frames", "key"),
    [(b"", a_stream(1, 6), None), an_agreed_stream(None), an_agreed_stream(KEY)],
    ids=["plain", "agreed", "agreed and with tags"],
)
def test_every_single_bit_flip_of_a_stream_costs_at_most_two_frames(hello, frames, key):
    wire = bytearray(b"".join(frames))
    true = set(decode(hello + wire, with_key=key))
    assert len(true) >= len(frames)
    for bit in range(8 * len(wire)):
        wire[bit // 8] ^= 1 << bit % 8
        got = set(decode(hello + wire, with_key=key))
        assert got <= true
        assert len(got) >= len(true) - 2
        wire[bit // 8] ^= 1 << bit % 8


def resident_bytes():
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - /proc, read again and again
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_million_fuzzed_frames_raise_nothing_and_keep_memory_flat():
    """EDGE R7: half of them noise between delimiters, half of them real frames with one to three bytes changed."""
    rng = np.random.default_rng(0)
    real = np.frombuffer(b"".join(a_stream(2, 2000)), np.uint8)
    decoder, n_frames, warm = FrameDecoder(), 0, None
    while n_frames < 1_000_000:
        noise = rng.integers(0, 256, 1 << 18, dtype=np.uint8)
        noise[rng.random(len(noise)) < 1 / 12] = 0
        damaged = real.copy()
        hits = rng.integers(0, len(real), len(real) // 30)
        damaged[hits] = rng.integers(0, 256, len(hits), dtype=np.uint8)
        for data in (noise.tobytes(), damaged.tobytes()):
            n_frames += data.count(0)
            for start in range(0, len(data), 65536):
                decoder.feed(data[start : start + 65536])
                assert decoder.buffered_bytes <= MAX_FRAME_BYTES
        if warm is None and n_frames > 200_000:
            warm = resident_bytes()
    assert warm is not None
    assert resident_bytes() - warm < 1 << 20
    assert all(decoder.counters[reason] for reason in ("crc", "cobs", "length"))


def test_link_soak_counters_satisfy_the_identity_exactly():
    """EDGE R8: one wrong bit in 1,000 bytes; generated = received + lost, whatever the line did."""
    rng = np.random.default_rng(3)
    n_samples = 20_000
    frames = [encode_sample(Sample(0, 1, seq, 0, np.full(20, seq % 99, np.int16))) for seq in range(n_samples)]
    wire = np.frombuffer(b"".join(frames), np.uint8).copy()
    hits = rng.integers(0, len(wire), len(wire) // 1000)
    wire[hits] ^= (1 << rng.integers(0, 8, len(hits))).astype(np.uint8)
    decoder, tracker, received = FrameDecoder(), SequenceTracker(), 0
    for event in decoder.feed(wire.tobytes() + encode_control(Control(0, 1, n_samples, 2))):
        if isinstance(event, Sample):
            assert set(event.values) == {event.seq % 99}
            received += tracker.accept(event.boot, event.seq) is not None
        else:
            tracker.expect(event.boot, event.seq)
    assert n_samples == received + tracker.counters["wire_lost"]
    assert 0 < tracker.counters["wire_lost"] <= 2 * len(hits)
    assert tracker.counters["duplicate"] == tracker.counters["late"] == tracker.counters["restarts"] == 0
