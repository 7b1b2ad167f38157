"""Tags and the replay floor: a frame that somebody else made, changed, kept or threw back changes nothing."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cobs import cobs

from firmware_bridge.auth import ReplayFloor, board_key, host_key, key_option
from firmware_bridge.frame import (
    CTRL_AGREE,
    CTRL_END,
    CTRL_SAY_HELLO,
    Control,
    Event,
    FrameDecoder,
    Log,
    encode,
    schema_seed,
)
from firmware_bridge.hello import Hello
from firmware_bridge.packet import LengthDecoder, encode_packet
from firmware_bridge.sample import Label, Sample, Schema

SECRET = b"sixteen bytes at least"
KEY = board_key(SECRET)
HELLO = Hello("d", "f", 3, {0: Schema("s", "int16", (4,))})
SEED = schema_seed(HELLO)


def sample(seq: int, boot: int = 3, stream: int = 0) -> Sample:
    return Sample(stream, boot, seq, seq * 1000, np.array([seq % 100, 1, 2, 3], np.int16), label=1)


def state(decoder: FrameDecoder) -> tuple[object, ...]:
    """All that a frame may change, but for counters."""
    return (decoder.floor(), decoder.agreed, decoder._seed)


def faults(decoder: FrameDecoder) -> dict[str, int]:
    return {reason: count for reason, count in decoder.counters.items() if count}


def session() -> list[bytes]:
    """One frame of each type that a board sends, with tags."""
    messages: list[tuple[Event, int]] = [
        (HELLO, 10),
        (sample(5), 0),
        (Label(0, 3, 5, 2), 6000),
        (Log(0, 3, 7000, "warm"), 0),
        (Control(0, 3, 6, CTRL_END), 8000),
    ]
    return [encode(message, time_us=at, key=KEY) for message, at in messages]


def test_with_the_key_all_is_taken_and_without_it_nothing() -> None:
    decoder = FrameDecoder(KEY)
    assert len(decoder.feed(b"".join(session()))) == 5
    assert not faults(decoder)
    for other in (FrameDecoder(), FrameDecoder(board_key(SECRET + b"!")), FrameDecoder(host_key(SECRET))):
        assert other.feed(b"".join(session())) == []
        assert faults(other) == {"auth": 5}
        assert state(other) == ({}, False, 0)


def test_without_a_tag_nothing_is_taken_but_the_request_for_hello() -> None:
    decoder = FrameDecoder(KEY)
    plain = [encode(message) for message in (HELLO, sample(5), Label(0, 3, 5, 2), Control(0, 3, 6, CTRL_AGREE))]
    ask = Control(0, 0, 0, CTRL_SAY_HELLO)
    assert decoder.feed(b"".join(plain) + encode(ask)) == [ask]
    assert faults(decoder) == {"auth": 4}
    assert state(decoder) == ({}, False, 0)


def test_no_flipped_bit_changes_any_state_even_where_the_crc_was_made_right_again() -> None:
    """The attacker knows the layout and CRC-32, but not the key."""
    for line in session():
        content = cobs.decode(line.strip(b"\0"))[:-4]
        decoder = FrameDecoder(KEY)
        for bit in range(8 * len(content)):
            forged = bytearray(content)
            forged[bit // 8] ^= 1 << bit % 8
            crc = struct.pack("<I", zlib.crc32(forged))
            assert decoder.feed(cobs.encode(bytes(forged) + crc) + b"\0") == []
            assert state(decoder) == ({}, False, 0)
        (taken,) = decoder.feed(line)
        assert taken is not None
        assert decoder.floor() != {}


def test_a_forged_frame_does_not_move_the_floor() -> None:
    """pymavlink once kept the timestamp of a frame before it looked at its signature: one forgery silenced the link."""
    decoder = FrameDecoder(KEY)
    decoder.feed(encode(sample(5), key=KEY))
    before = decoder.floor()
    forged = encode(sample(2**32 - 1, boot=65535), key=board_key(b"another key, but as long"))
    assert decoder.feed(forged) == []
    assert decoder.floor() == before
    assert len(decoder.feed(encode(sample(6), key=KEY))) == 1
    assert faults(decoder) == {"auth": 1}


def test_a_floor_that_is_moved_too_early_would_be_noticed() -> None:
    """The same with a decoder that has the fault."""

    class Early(FrameDecoder):
        def _check_tag(self, packet: bytes, end: int, tagged: int, kind: int, at: int) -> None:
            _, boot, seq = struct.unpack_from("<HHI", packet, 4)
            self._floor.rises(kind, 0, boot, seq + 1)
            super()._check_tag(packet, end, tagged, kind, at)

    decoder = Early(KEY)
    decoder.feed(encode(sample(2**32 - 1, boot=65535), key=board_key(b"another key, but as long")))
    assert decoder.feed(encode(sample(6), key=KEY)) == []


@pytest.mark.parametrize("line", session(), ids=["hello", "sample", "label", "log", "end"])
def test_the_same_frame_counts_once(line: bytes) -> None:
    decoder = FrameDecoder(KEY)
    assert len(decoder.feed(line)) == 1
    before = state(decoder)
    assert decoder.feed(line + line) == []
    assert faults(decoder) == {"replay": 2}
    assert state(decoder) == before


def test_seq_and_boot_must_rise_in_each_stream() -> None:
    decoder = FrameDecoder(KEY)
    order = [(0, 3, 5), (0, 3, 4), (0, 3, 9), (1, 3, 5), (0, 4, 0), (0, 3, 10), (1, 3, 6), (0, 4, 0), (0, 4, 1)]
    taken = [bool(decoder.feed(encode(sample(seq, boot, stream), key=KEY))) for stream, boot, seq in order]
    assert taken == [True, False, True, True, True, False, True, False, True]
    assert faults(decoder) == {"replay": 3}


def test_a_label_may_come_for_any_sample_but_its_frame_only_once() -> None:
    decoder = FrameDecoder(KEY)
    first, second = (encode(Label(0, 3, seq, 1), time_us=at, key=KEY) for seq, at in ((9, 50), (4, 51)))
    assert len(decoder.feed(first + second)) == 2
    assert decoder.feed(first) == []  # or an old label would undo the one that corrected it


def test_a_frame_of_before_a_restart_is_not_taken_after_it() -> None:
    decoder = FrameDecoder(KEY)
    decoder.feed(b"".join(session()))
    kept = json.loads(json.dumps(decoder.floor()))
    restarted = FrameDecoder(KEY)
    restarted.set_floor(kept)
    assert restarted.feed(b"".join(session())) == []
    assert faults(restarted) == {"replay": 5}
    restarted.set_floor({"1:0": [3, 1]})  # never lowers
    assert restarted.floor() == kept
    assert len(restarted.feed(encode(sample(6), key=KEY))) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"1": [1, 2]},
        {"1:x": [1, 2]},
        {"1:0": [1]},
        {"1:0": [1, -2]},
        {"1:0": [1, True]},
        {"1:0": ["a", 2]},
        {"1:70000": [1, 2]},
    ],
)
def test_what_is_no_floor_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="replay floor: '1"):
        FrameDecoder(KEY).set_floor(wrong)


def test_what_the_host_said_is_not_taken_from_the_board() -> None:
    decoder, far = FrameDecoder(KEY), FrameDecoder(host_key(SECRET))
    said = encode(Control(0, 3, 7, CTRL_AGREE), time_us=2**63, key=host_key(SECRET))
    assert len(far.feed(said)) == 1
    assert decoder.feed(said) == []
    assert state(decoder) == ({}, False, 0)


def test_seed_and_tag_go_together_and_over_tcp_too() -> None:
    lines = LengthDecoder(KEY)
    (hello,) = lines.feed(encode_packet(HELLO, time_us=1, key=KEY))
    assert isinstance(hello, Hello)
    (got,) = lines.feed(encode_packet(sample(5), seed=SEED, key=KEY))
    assert isinstance(got, Sample)
    assert lines.agreed
    other = replace(HELLO, streams={0: Schema("s", "int16", (2, 2))})
    assert lines.feed(encode_packet(sample(6), seed=schema_seed(other), key=KEY)) == []
    assert lines.counters["crc"] == 1


def test_a_key_comes_from_a_file_as_hex_and_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("00112233445566778899aabbccddeeff\n")
    assert key_option(f"@{path}") == bytes.fromhex("00112233445566778899aabbccddeeff")
    path.write_text("not hex, but secret all the same")
    with pytest.raises(ValueError, match="hex digits") as told:
        key_option(f"@{path}")
    assert "secret" not in str(told.value)
    path.write_text("0011")
    with pytest.raises(ValueError, match="16 to 64 bytes"):
        key_option(f"@{path}")
    for wrong in ("00112233445566778899aabbccddeeff", "@", f"@{tmp_path / 'none'}"):
        with pytest.raises(ValueError, match=r"must be @|cannot read the key: No such file"):
            key_option(wrong)


def test_keys_of_a_wrong_length_are_refused() -> None:
    for size in (0, 15, 65):
        with pytest.raises(ValueError, match=f"got {size}"):
            board_key(bytes(size))


def test_the_floor_is_kept_by_kind_and_stream() -> None:
    floor = ReplayFloor()
    assert floor.rises(1, 0, 3, 5)
    assert floor.rises(2, 0, 3, 5)
    assert not floor.rises(1, 0, 3, 5)
    assert floor.state() == {"1:0": [3, 5], "2:0": [3, 5]}
