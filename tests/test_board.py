"""The far end without any line: bytes in, samples and labels of one stream out, and the account of what never came."""

import numpy as np
import pytest

from firmware_bridge.board import IN_VAIN_SAID, MAX_EARLY_BYTES, Board
from firmware_bridge.errors import SourceLost, SourceUnavailable
from firmware_bridge.frame import (
    CTRL_AGREE,
    CTRL_BEFORE,
    CTRL_END,
    CTRL_NEXT,
    Control,
    FrameDecoder,
    Log,
    Stats,
    encode,
    schema_seed,
)
from firmware_bridge.hello import Hello
from firmware_bridge.packet import LengthDecoder, encode_packet
from firmware_bridge.sample import Label, Sample, SampleId, Schema
from tools.fakes.faults import BadLine

SCHEMA = Schema(name="a", dtype="uint8", shape=(2,))


def hello(boot=1, **streams):
    return Hello("d", "f", boot, {int(name[1:]): schema for name, schema in streams.items()} or {0: SCHEMA})


def sample(seq, *, boot=1, stream=0, values=(1, 2)):
    return Sample(stream, boot, seq, seq, np.array(values, np.uint8))


def board(*messages, **options):
    made = Board("x", FrameDecoder(), **options)
    say(made, *messages)
    return made


def say(made, *messages):
    for message in messages:
        made.feed(encode(message))


def taken(made):
    items = list(made.ready)
    made.ready.clear()
    return items


def seen(made):
    return {name: count for name, count in made.counters.items() if count}


def test_what_came_before_the_hello_is_handed_out_behind_it():
    made = board(sample(0), sample(1))
    assert not made.is_known
    assert not made.ready
    say(made, hello(), sample(2))
    assert made.schema == SCHEMA
    assert [item.seq for item in taken(made)] == [0, 1, 2]


def test_without_a_hello_the_first_sample_tells_the_schema_and_a_later_hello_must_fit():
    made = board(sample(3))
    assert made.settle()
    assert made.schema == Schema(name="stream 0", dtype="uint8", shape=(2,))
    say(made, hello(), sample(4), hello())
    assert [item.seq for item in taken(made)] == [3, 4]
    with pytest.raises(SourceLost, match="another schema"):
        say(made, hello(s0=Schema(name="a", dtype="uint8", shape=(3,))))
    assert not board().settle()


def test_a_board_that_never_says_hello_is_waited_for_no_longer_than_there_is_room():
    made, n = board(), 0
    while made.is_patient:
        say(made, sample(n))
        n += 1
    assert n * 512 <= MAX_EARLY_BYTES
    assert made.settle()
    assert len(made.ready) == n


def test_the_hello_is_answered_with_the_schema_that_was_read_and_seeded_frames_are_understood():
    made = board(hello())
    (answer,) = made.answers
    seed = schema_seed(hello())
    assert answer == Control(0, 1, seed, CTRL_AGREE)
    made.feed(encode(sample(0), seed=seed))
    made.feed(encode(sample(1), seed=seed ^ 1))
    assert [item.seq for item in made.ready] == [0]
    assert seen(made) == {"crc": 1}


def test_a_hello_that_comes_again_is_not_answered_again_one_of_a_new_boot_is():
    made = board(hello(), hello(), hello(boot=2), hello(boot=2))
    assert [answer.boot for answer in made.answers] == [1, 2]


def test_the_stream_can_be_chosen_and_must_exist():
    two = hello(s1=SCHEMA, s2=SCHEMA)
    made = board(two, sample(0, stream=1), sample(9, stream=2), streams=[2])
    assert [item.id for item in made.ready] == [(2, 1, 9)]
    assert seen(made) == {"other_stream": 1}
    with pytest.raises(SourceUnavailable, match="no stream 3") as caught:
        board(two, streams=[3])
    assert caught.value.hint == "it has: 1, 2"


def test_streams_are_told_apart_each_with_its_own_numbers_and_its_own_end():
    made = board(hello(s0=SCHEMA, s1=SCHEMA), streams=(1, 0), after=[SampleId(0, 1, 4), SampleId(1, 1, 7)])
    say(made, sample(8, stream=1), sample(5), sample(7, stream=1), sample(7), sample(9, stream=1))
    assert [item.id[::2] for item in taken(made)] == [(1, 8), (0, 5), (0, 7), (1, 9)]
    assert seen(made) == {"duplicate": 1, "wire_lost": 1}
    say(made, Control(1, 1, 10, CTRL_END), sample(8))
    assert made.ended is None
    assert [item.seq for item in taken(made)] == [8]
    say(made, Control(0, 1, 11, CTRL_END))
    assert made.ended is not None
    assert seen(made) == {"duplicate": 1, "wire_lost": 3}


def test_a_restart_of_the_board_is_one_restart_however_many_streams_it_has():
    made = board(hello(s0=SCHEMA, s1=SCHEMA), streams=(0, 1))
    for boot in (1, 2):
        for stream in (0, 1):
            say(made, sample(0, boot=boot, stream=stream))
    assert seen(made) == {"restarts": 1}


def test_without_a_hello_each_stream_that_is_wanted_must_have_sent_something():
    made = board(sample(0), sample(1), sample(0, stream=2), streams=(0, 1))
    assert not made.settle()
    say(made, sample(0, stream=1, values=(1, 2, 3)))
    assert made.settle()
    assert {stream: schema.shape for stream, schema in made.schemas.items()} == {0: (2,), 1: (3,)}
    assert [item.id[::2] for item in taken(made)] == [(0, 0), (0, 1), (1, 0)]
    assert seen(made) == {"other_stream": 1}


def test_another_shape_is_counted_and_missing():
    made = board(hello(), sample(0), sample(1, values=(1, 2, 3)), sample(2))
    assert [(item.seq, item.gap) for item in made.ready] == [(0, False), (2, True)]
    assert seen(made) == {"schema": 1, "wire_lost": 1}


def test_late_labels_are_handed_out_in_their_place_and_those_of_other_streams_are_not():
    made = board(hello(), sample(0), Label(0, 1, 0, 5), Label(1, 1, 0, 5), sample(1))
    assert [type(item) for item in made.ready] == [Sample, Label, Sample]
    assert seen(made) == {"other_stream": 1}


def test_the_end_ends_it_and_shows_what_is_missing():
    made = board(hello(), sample(0), Control(0, 1, 4, CTRL_END))
    assert made.ended == "x: the board sent its last sample"
    assert seen(made) == {"wire_lost": 3}


def test_what_the_board_says_of_itself_is_kept():
    made = board(hello(), Log(0, 1, 0, "sensor warm"), Stats(0, 1, 5, generated=7, dropped=2))
    assert made.said == "sensor warm"
    assert (made.stats.generated, made.stats.dropped) == (7, 2)


def test_missing_samples_that_only_the_board_knew_of_are_a_gap_before_the_next_one():
    made = board(hello(), sample(0), Control(0, 1, 5, CTRL_NEXT), sample(5), sample(6))
    assert [(item.seq, item.gap) for item in made.ready] == [(0, False), (5, True), (6, False)]
    assert seen(made) == {"wire_lost": 4}


def test_a_restart_is_no_loss_and_asks_for_a_new_hello():
    made = board(hello(), sample(7))
    assert not made.awaits_hello
    say(made, sample(0, boot=2))
    assert made.awaits_hello
    assert [item.gap for item in made.ready] == [False, True]
    say(made, hello(boot=2))
    assert not made.awaits_hello
    assert seen(made) == {"restarts": 1}


def test_a_board_that_remembers_its_boots_has_no_sample_unaccounted_for():
    made = board(hello(), Control(0, 1, 0, CTRL_NEXT), Control(0, 1, 0, CTRL_BEFORE), sample(0))  # of 10
    say(made, sample(3, boot=2), Control(0, 2, 10, CTRL_BEFORE), Control(0, 2, 4, CTRL_END))
    assert seen(made) == {"restarts": 1, "restart_lost": 9 + 3}
    assert len(made.ready) + 12 == 10 + 4


def test_a_line_that_broke_cuts_the_frame_and_what_was_made_meanwhile_is_away():
    made = board(hello(), sample(0))
    made.feed(encode(sample(1))[:10])
    made.line_broke()
    assert made.awaits_hello
    say(made, hello(), sample(5), sample(7))
    assert [(item.seq, item.gap) for item in made.ready] == [(0, False), (5, True), (7, True)]
    assert seen(made) == {"away": 4, "wire_lost": 1}
    assert len(made.answers) == 1


def test_a_resumed_board_drops_what_was_consumed():
    made = board(hello(), *(sample(seq) for seq in range(5)), after=[SampleId(0, 1, 2)])
    assert [item.seq for item in made.ready] == [3, 4]
    assert seen(made) == {"duplicate": 3}


def a_life(rng, *, says_where):
    """What a board sends over seven boots, and how many samples it made; some it dropped itself."""
    before, messages = 0, []

    def where(boot, seq):
        return [Control(0, boot, seq, CTRL_NEXT), Control(0, boot, before, CTRL_BEFORE)] if says_where else []

    for boot in range(1, 8):
        messages += [hello(boot), *where(boot, 0), *where(boot, 0)]
        made = int(rng.integers(1, 400))
        for seq in range(made):
            if rng.random() > 0.02:
                messages.append(sample(seq, boot=boot))
            if seq % 50 == 49:
                messages += where(boot, seq + 1)
        before += made
    before -= made
    messages += 3 * [*where(7, made), Control(0, 7, made, CTRL_END)]
    return messages, before + made


def unexplained(seed, decoder, encoded, *, says_where=True):
    """Samples that were neither handed out nor counted, over a line that damages 1 byte of 1,000."""
    rng = np.random.default_rng(seed)
    messages, made = a_life(rng, says_where=says_where)
    line, far = BadLine(seed, 0.001, 0.0002, is_stream=True), Board("x", decoder)
    far.feed(b"".join(map(encoded, messages[:3])))  # the line is good when they meet
    for message in messages[3:]:
        far.feed(line.pass_on(encoded(message)))
    assert line.flipped > 20
    assert line.dropped > 0
    lost = sum(far.counters[name] for name in ("wire_lost", "restart_lost", "away"))
    return made - len(far.ready) - lost


@pytest.mark.parametrize("seed", range(5))
def test_all_that_was_made_is_handed_out_or_counted_over_a_bad_line_and_restarts(seed):
    assert unexplained(seed, FrameDecoder(), encode) == 0
    assert unexplained(seed, LengthDecoder(), encode_packet) == 0


def test_a_board_that_forgets_its_boots_leaves_samples_unexplained():
    assert any(unexplained(seed, FrameDecoder(), encode, says_where=False) for seed in range(5))


def test_a_board_that_counts_anew_under_the_same_boot_is_not_heard_and_that_is_said():
    made = board(hello(), *(sample(seq) for seq in range(500)))
    for seq in range(IN_VAIN_SAID - 1):
        made.take(sample(seq))
    assert made.said == ""
    made.take(sample(IN_VAIN_SAID - 1))
    assert "does the board count from 0 again under the same boot id (1)?" in made.said
    assert seen(made) == {"duplicate": IN_VAIN_SAID}
