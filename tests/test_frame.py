"""The wire format: what goes in comes out, each fault is counted under its own name, nothing raises."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from cobs import cobs

from firmware_bridge.decoder import BodyDecoder
from firmware_bridge.frame import (
    CTRL_AGREE,
    CTRL_END,
    MAX_FRAME_BYTES,
    Ack,
    Control,
    FrameDecoder,
    Log,
    Stats,
    Time,
    agreement,
    encode,
    encode_control,
    encode_hello,
    encode_label,
    encode_sample,
    schema_seed,
)
from firmware_bridge.hello import Hello, hello_json, parse_hello
from firmware_bridge.packet import LengthDecoder, encode_datagram, encode_packet
from firmware_bridge.sample import SENSOR_DTYPES, Label, Sample, Schema

HEADER = struct.Struct("<BBBBHHIQBB")
SCHEMA = Schema(
    name="imu",
    dtype="int16",
    shape=(4, 2),
    channels=("x", "y"),
    unit="g",
    rate_hz=100.0,
    scale=0.01,
    label_names=("rest", "run"),
    window=(16, 8),
)
HELLO = Hello(device="board ü", firmware="1.2", boot=7, streams={0: SCHEMA})


def sample(seq=5, values=None, **fields):
    values = np.arange(8, dtype=np.int16).reshape(4, 2) if values is None else values
    return Sample(stream=3, boot=9, seq=seq, time_us=2**40, values=values, **fields)


def body(*, version=1, kind=1, iflags=0, cflags=0, code=3, shape=(2,), payload=b"\1\0\2\0", label=b""):
    head = HEADER.pack(version, kind, iflags, cflags, 3, 9, 5, 77, code, len(shape))
    return head + struct.pack(f"<{len(shape)}H", *shape) + label + payload


def wire(content, seed=0):
    return cobs.encode(content + struct.pack("<I", zlib.crc32(content, seed))) + b"\0"


def faults(decoder):
    return {reason: count for reason, count in decoder.counters.items() if count}


def assert_same(first, second):
    assert first.id == second.id
    assert (first.time_us, first.label, first.gap) == (second.time_us, second.label, second.gap)
    assert first.values.dtype == second.values.dtype
    np.testing.assert_array_equal(first.values, second.values)


@pytest.mark.parametrize("dtype", SENSOR_DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (4, 2), (2, 3, 2), (2, 1, 2, 3)])
def test_a_sample_of_every_dtype_and_shape_survives_the_wire(dtype, shape):
    values = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    for label, gap in ((None, False), (0, True), (2**31 - 1, False)):
        sent = sample(values=values, label=label, gap=gap)
        (got,) = FrameDecoder().feed(encode_sample(sent))
        assert_same(got, sent)


def test_decoded_values_are_read_only():
    (got,) = FrameDecoder().feed(encode_sample(sample()))
    with pytest.raises(ValueError, match="read-only"):
        got.values[0, 0] = 1


def test_big_endian_values_go_over_the_wire_little_endian():
    values = np.arange(8, dtype=">i2").reshape(4, 2)
    (got,) = FrameDecoder().feed(encode_sample(sample(values=values)))
    np.testing.assert_array_equal(got.values, values)
    assert got.values.dtype == np.dtype("<i2")


def test_the_bytes_are_those_of_the_table():
    values = np.array([1, -2], np.int16)
    sent = Sample(stream=0x0102, boot=0x0304, seq=0x05060708, time_us=0x090A0B0C0D0E0F10, values=values, label=3)
    content = bytes.fromhex("010100010201040308070605100f0e0d0c0b0a0903010200030000000100feff")
    assert encode_sample(sent) == wire(content)


def test_six_float_channels_cost_54_bytes_unlabelled_and_58_labelled():
    values = np.zeros(6, np.float32)
    assert len(encode_sample(sample(values=values))) == 54
    assert len(encode_sample(sample(values=values, label=1))) == 58


def test_hello_label_and_control_survive_the_wire():
    label = Label(stream=3, boot=9, seq=5, label=2, source=4, confidence=0.5)
    control = Control(stream=3, boot=9, seq=6, code=CTRL_END)
    events = FrameDecoder().feed(encode_hello(HELLO) + encode_label(label) + encode_control(control))
    assert events == [HELLO, label, control]


def test_frames_sent_with_the_schema_seed_count_once_the_hello_is_known():
    seed = schema_seed(HELLO)
    frame = encode_sample(sample(), seed=seed)
    decoder = FrameDecoder()
    assert decoder.feed(frame) == []
    assert faults(decoder) == {"crc": 1}
    hello, got = decoder.feed(encode_hello(HELLO) + frame)
    assert hello == HELLO
    assert got.seq == 5
    other = Hello(device="board ü", firmware="1.2", boot=7, streams={0: replace(SCHEMA, scale=0.02)})
    assert decoder.feed(encode_sample(sample(), seed=schema_seed(other))) == []
    assert faults(decoder) == {"crc": 2}


def test_the_seed_is_of_the_schemas_alone_as_they_stood_on_the_wire():
    again = replace(HELLO, boot=8, device="other", firmware="2")
    assert schema_seed(again) == schema_seed(HELLO)
    assert schema_seed(replace(HELLO, streams={1: SCHEMA})) != schema_seed(HELLO)
    streams = b'{"0": {"shape":[3],"name":"axes","dtype":"uint8","colour":"of a newer board"}}'
    said = b'{"zone":"}","streams":' + streams + b',"protocol":1}'
    assert schema_seed(parse_hello(said)) == zlib.crc32(streams)
    blank = b'{"protocol":1,"streams": {"0":{"dtype":"uint8","name":"axes","shape":[3]}}}'
    assert schema_seed(parse_hello(blank)) == zlib.crc32(blank[25:-1])  # in the canonical spelling, then


def test_both_ends_agree_by_a_control_frame_and_the_decoder_tells_when_the_board_did():
    decoder = FrameDecoder()
    (hello,) = decoder.feed(encode_hello(HELLO))
    assert agreement(hello) == Control(0, 7, schema_seed(HELLO), CTRL_AGREE)
    decoder.feed(encode_sample(sample()))
    assert not decoder.agreed
    decoder.feed(encode_sample(sample(), seed=agreement(hello).seq))
    assert decoder.agreed
    decoder.feed(encode_hello(replace(HELLO, boot=8)))
    assert not decoder.agreed


@pytest.mark.parametrize(
    "message",
    [
        Time(stream=0, boot=9, host_us=2**63, board_us=77),
        Stats(stream=0, boot=9, time_us=3, generated=2**32 - 1, dropped=2, sent=3, received=4, crc=5),
        Log(stream=0, boot=9, time_us=3, text="grüß Gott"),
        Ack(stream=3, boot=9, seq=2**32 - 1),
        Control(stream=3, boot=9, seq=6, code=CTRL_AGREE),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_no_sample_survives_every_line(message):
    assert FrameDecoder().feed(encode(message)) == [message]
    assert LengthDecoder().feed(encode_packet(message)) == [message]
    assert BodyDecoder().decode_datagram(encode_datagram(message)) == message


def test_stats_may_have_fewer_or_more_counters_than_this_version_knows():
    short = wire(body(kind=4, code=1, shape=(8,), payload=struct.pack("<2I", 5, 6)))
    long = wire(body(kind=4, code=1, shape=(28,), payload=struct.pack("<7I", *range(7))))
    first, second = FrameDecoder().feed(short + long)
    assert (first.generated, first.dropped, first.crc) == (5, 6, 0)
    assert (second.generated, second.crc) == (0, 4)


def test_a_log_cannot_speak_to_the_terminal_and_cannot_be_long():
    (log,) = FrameDecoder().feed(encode(Log(0, 1, 2, "a\x1b[2Jb\nc")))
    assert log.text == "a?[2Jb?c"
    (log,) = FrameDecoder().feed(wire(body(kind=6, code=1, shape=(2,), payload=b"\xff\xc3")))
    assert log.text == "\ufffd\ufffd"
    (log,) = FrameDecoder().feed(encode(Log(0, 1, 2, "x" * 500)))
    assert log.text == "x" * 200


@pytest.mark.parametrize(
    ("reason", "frame"),
    [
        ("crc", wire(body())[:-3] + b"\x55\x55\0"),
        ("cobs", b"\xff\x01\x02\0"),
        ("length", b"\x05abcd\0"),
        ("version", wire(body(version=2))),
        ("type", wire(body(kind=8))),
        ("type", wire(body(kind=200))),
        ("auth", wire(body(iflags=1, payload=b"\1\0\2\0" + bytes(8)))),
        ("length", wire(body(iflags=1))),
        ("incompat", wire(body(iflags=2))),
        ("incompat", wire(body(iflags=5))),
        ("incompat", wire(body(iflags=128))),
        ("schema", wire(body(code=8))),
        ("schema", wire(body(shape=(1, 1, 1, 1, 2)))),
        ("schema", wire(body(kind=0, code=1, shape=(4,), payload=b"{]}}"))),
        ("schema", wire(body(kind=7, code=1, shape=(1, 1), payload=b"\0"))),
        ("schema", wire(body(kind=3, code=3, shape=(8,), payload=bytes(16)))),
        ("length", wire(body(kind=3, code=1, shape=(8,), payload=bytes(8)))),
        ("length", wire(body(kind=5, code=1, shape=(2,), payload=bytes(2)))),
        ("length", wire(body(kind=6, code=1, shape=(201,), payload=bytes(201)))),
        ("length", wire(body(kind=7, code=1, shape=(2,), payload=bytes(2)))),
        ("length", wire(body(shape=(3,)))),
        ("length", wire(body(shape=(65535, 65535, 65535, 65535)))),
        ("length", wire(body(shape=(0,), payload=b""))),
        ("length", wire(body(cflags=1, shape=(2,), payload=b"", label=b"\1\0\0\0"))),
        ("length", wire(body(kind=2, cflags=1, code=1, shape=(4,), label=b"\1\0\0\0"))),
        ("oversize", b"\x01" * (MAX_FRAME_BYTES + 1) + b"\0"),
        ("nonfinite", wire(body(code=6, shape=(1,), payload=struct.pack("<f", float("nan"))))),
        ("nonfinite", wire(body(code=7, shape=(2,), payload=struct.pack("<ee", 1, float("inf"))))),
        ("nonfinite", wire(body(kind=2, cflags=1, code=1, shape=(5,), label=b"\1\0\0\0", payload=b"\0\0\0\xc0\x7f"))),
        ("label", wire(body(kind=2, code=1, shape=(5,), payload=b"\0\0\0\x80\x3f"))),
        ("label", wire(body(kind=2, cflags=1, code=1, shape=(5,), label=b"\1\0\0\0", payload=b"\0\0\0\0\x40"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_is_counted_under_its_own_name_and_the_next_frame_is_read(reason, frame):
    decoder = FrameDecoder()
    (got,) = decoder.feed(frame + encode_sample(sample(seq=6)))
    assert faults(decoder) == {reason: 1}
    assert got.seq == 6


def test_a_negative_label_is_refused_but_its_sample_is_kept():
    decoder = FrameDecoder()
    (got,) = decoder.feed(wire(body(cflags=1, label=struct.pack("<i", -1))))
    assert got.label is None
    np.testing.assert_array_equal(got.values, [1, 2])
    assert faults(decoder) == {"label": 1}


def test_unknown_may_ignore_flags_are_ignored():
    (got,) = FrameDecoder().feed(wire(body(cflags=0b11111010)))
    assert (got.label, got.gap) == (None, False)


def test_a_frame_without_end_is_thrown_away_at_the_cap_and_counted_once():
    decoder = FrameDecoder()
    for _ in range(100):
        assert decoder.feed(b"\x05" * 1000) == []
        assert decoder.buffered_bytes <= MAX_FRAME_BYTES
    (got,) = decoder.feed(b"\x05\0" + encode_sample(sample()))
    assert got.seq == 5
    assert faults(decoder) == {"oversize": 1}


def test_what_does_not_fit_a_frame_is_not_encoded():
    with pytest.raises(ValueError, match="limit is 8192"):
        encode_sample(sample(values=np.zeros(4200, np.int16)))
    with pytest.raises(ValueError, match="float64"):
        encode_sample(sample(values=np.zeros(3)))
    with pytest.raises(ValueError, match="shape"):
        encode_sample(sample(values=np.zeros((1, 1, 1, 1, 1), np.int16)))
    largest = sample(values=np.full(4060, 257, np.int16))
    assert len(FrameDecoder().feed(encode_sample(largest))) == 1


def test_hello_json_is_canonical_and_leaves_defaults_out():
    bare = Hello(device="", firmware="", boot=1, streams={2: Schema(name="s", dtype="uint8", shape=())})
    expected = (
        b'{"boot":1,"device":"","firmware":"","protocol":1,"streams":{"2":{"dtype":"uint8","name":"s","shape":[]}}}'
    )
    assert hello_json(bare) == expected
    assert parse_hello(expected) == bare


def test_a_newer_board_may_say_more():
    said = hello_json(HELLO)[:-1] + b',"colour":"red","streams_to_come":{"1":2}}'
    assert parse_hello(said) == HELLO


def test_what_a_board_may_say_of_itself_survives():
    hello = replace(HELLO, max_frame=512, clock_us=0.5, key_id="a")
    assert parse_hello(hello_json(hello)) == hello
    for wrong in (b'"max_frame":0', b'"clock_us":-1', b'"key_id":7'):
        with pytest.raises(ValueError, match=r"."):
            parse_hello(hello_json(HELLO)[:-1] + b"," + wrong + b"}")


def test_the_boot_of_the_header_counts_because_every_frame_has_it():
    said = hello_json(HELLO).replace(b'"boot":7', b'"boot":1')
    (hello,) = FrameDecoder().feed(wire(body(kind=0, code=1, shape=(len(said),), payload=said)))
    assert hello.boot == 9


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[1]",
        b"{}",
        b"[" * 8000,
        hello_json(HELLO).replace(b'"protocol":1', b'"protocol":true'),
        hello_json(HELLO).replace(b'"boot":7', b'"boot":65536'),
        hello_json(HELLO).replace(b"int16", b"int64"),
        hello_json(HELLO).replace(b"[4,2]", b"[4,0]"),
        hello_json(HELLO).replace(b"[4,2]", b"[1,1,1,1,1]"),
        hello_json(HELLO).replace(b"[4,2]", b"4"),
        hello_json(HELLO).replace(b"0.01", b"NaN"),
        hello_json(HELLO).replace(b"0.01", b"1e999"),
        hello_json(HELLO).replace(b"0.01", b"-1"),
        hello_json(HELLO).replace(b"100.0", b'"100"'),
        hello_json(HELLO).replace(b"[16,8]", b"[16]"),
        hello_json(HELLO).replace(b'["x","y"]', b'"xy"'),
        hello_json(HELLO).replace(b'"imu"', b'"i\\u0000u"'),
        hello_json(HELLO).replace(b'"imu"', b'"' + b"i" * 129 + b'"'),
        hello_json(HELLO).replace(b'"0":', b'"zero":'),
        b'{"protocol":1,"streams":{}}',
    ],
)
def test_what_is_not_a_hello_raises_value_error_only(said):
    with pytest.raises(ValueError, match=r"."):
        parse_hello(said)
