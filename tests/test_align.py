"""Aligned streams against a slow reference: for each row of the first stream, the nearest row of every other one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.align import BACK_US, LATE_US, ROW_BYTES, Aligner
from firmware_bridge.errors import IncompatibleSources
from firmware_bridge.inlet import ITEM_BYTES
from firmware_bridge.sample import Sample, Schema

AMPLE = 1 << 30
ROOM = 1 << 20


def schema(name: str = "a", width: int = 1, **more: object) -> Schema:
    return Schema(**{"name": name, "dtype": "int16", "shape": (width,), **more})  # type: ignore[arg-type]


def row(stream: int, seq: int, time_us: int, value: float, *, channels: int = 1, label: int | None = None) -> Sample:
    return Sample(stream, 1, seq, time_us, np.full(channels, value, np.int16), label)


def expected(times: Sequence[Sequence[int]], tolerance_us: int) -> list[tuple[int, ...]]:
    """Places of the rows that belong together, looked for one by one."""
    found = []
    for place, time_us in enumerate(times[0]):
        nearest = [min(range(len(t)), key=lambda i: (abs(t[i] - time_us), i), default=None) for t in times[1:]]
        if all(n is not None and abs(times[k][n] - time_us) <= tolerance_us for k, n in enumerate(nearest, 1)):
            found.append((place, *nearest))
    return found


def rising(steps: list[int]) -> list[int]:
    return [int(time_us) for time_us in np.cumsum(steps)]


@given(
    st.lists(st.lists(st.integers(0, 2000), max_size=40).map(rising), min_size=2, max_size=4),
    st.integers(0, 1500),
    st.randoms(use_true_random=False),
)
def test_who_belongs_together_depends_on_times_alone(times, tolerance_us, rng):
    """Whatever arrives when: only each stream's own order is given."""
    aligner = Aligner([schema(str(k)) for k in range(len(times))], tolerance_us, most_bytes=AMPLE)
    ways = [k for k, t in enumerate(times) for _ in t]
    rng.shuffle(ways)
    nexts, joined = [0] * len(times), []
    for number, k in enumerate(ways, 1):
        place = nexts[k]
        nexts[k] += 1
        aligner.push(k, row(k, place, times[k][place], place), times[k][place], number)
        joined += aligner.joined()
    for k in range(len(times)):
        aligner.end(k)
        joined += aligner.joined()
    wanted = expected(times, tolerance_us)
    assert [tuple(sample.values.tolist()) for sample in joined] == wanted
    assert [sample.seq for sample in joined] == [places[0] for places in wanted]
    assert aligner.counters["unaligned"] == len(times[0]) - len(wanted)
    used = {(k, places[k]) for places in wanted for k in range(1, len(times))}
    assert aligner.counters["surplus"] == sum(map(len, times[1:])) - len(used)
    assert all(aligner.oldest(k) is None for k in range(len(times)))
    assert aligner.nbytes == 0


def test_rows_of_a_block_have_each_their_own_time():
    fast = schema("fast", 2, shape=(4, 2), rate_hz=1000.0)
    slow = schema("slow", 1, rate_hz=500.0)
    aligner = Aligner([fast, slow], 1000, most_bytes=AMPLE)
    block = np.arange(8, dtype=np.int16).reshape(4, 2)
    aligner.push(0, Sample(0, 1, 0, 10_000, block), 10_000, 1)
    for number, time_us in enumerate((9_900, 11_900, 13_900), 2):
        assert aligner.joined() == []
        aligner.push(1, row(1, number, time_us, number), time_us, number)
    (sample,) = aligner.joined()
    np.testing.assert_array_equal(sample.values, np.hstack([block, [[2], [3], [3], [4]]]))
    assert not sample.values.flags.writeable
    assert aligner.schema.shape == (4, 3)


def test_what_is_missing_is_a_gap_and_is_counted():
    aligner = Aligner([schema("a"), schema("b")], 100, most_bytes=AMPLE)
    for seq, time_us in enumerate((0, 1000, 2000)):
        aligner.push(0, row(0, seq, time_us, seq), time_us, seq)
    for seq, time_us in enumerate((0, 1500, 2000)):
        aligner.push(1, row(1, seq, time_us, seq), time_us, seq)
    assert [(sample.seq, sample.gap) for sample in aligner.joined()] == [(0, False), (2, True)]
    assert aligner.counters == {"unaligned": 1, "surplus": 1}


def test_a_silent_stream_is_not_waited_for_longer_than_that():
    aligner = Aligner([schema("a"), schema("b")], 100, most_bytes=AMPLE)
    aligner.push(1, row(1, 0, 50, 7), 50, 1)
    aligner.push(0, row(0, 0, 60, 1), 60, 1)
    aligner.push(0, row(0, 1, 60 + LATE_US + 100, 2), 60 + LATE_US + 100, 2)
    assert aligner.joined() == []
    aligner.push(0, row(0, 2, 61 + LATE_US + 100, 3), 61 + LATE_US + 100, 3)
    (sample,) = aligner.joined()  # what is there is near enough, though something nearer might have come
    assert sample.values.tolist() == [1, 7]


@pytest.mark.parametrize("silent", [0, 1])
def test_what_waits_for_a_silent_stream_is_bounded(silent):
    aligner = Aligner([schema("a"), schema("b")], 100, most_bytes=50 * (ITEM_BYTES + ROW_BYTES + 4))
    for seq in range(1000):
        aligner.push(1 - silent, row(1 - silent, seq, seq, seq), seq, seq)
        assert aligner.joined() == []
        assert aligner.nbytes <= 50 * (ITEM_BYTES + ROW_BYTES + 4)
    assert sum(aligner.counters.values()) == 950


def test_where_there_is_no_room_a_fast_stream_does_not_drive_out_a_slow_one():
    streams = [schema("late"), schema("slow"), schema("fast")]
    aligner = Aligner(streams, 6000, most_bytes=20 * (ITEM_BYTES + 2))
    for seq, time_us in enumerate(range(0, 101_000, 1000)):
        for stream in (1, 2) if seq % 10 == 0 else (2,):
            aligner.push(stream, row(stream, seq, time_us, seq), time_us, seq)
            assert aligner.joined() == []
    aligner.push(0, row(0, 0, 94_000, 7), 94_000, 1)
    (sample,) = aligner.joined()
    assert sample.values.tolist() == [7, 90, 94]


def test_a_clock_that_is_set_back_begins_anew_and_one_that_is_set_right_does_not():
    aligner = Aligner([schema("a"), schema("b")], 100, most_bytes=AMPLE)
    aligner.push(0, row(0, 0, 10**6, 0), 10**6, 1)
    aligner.push(0, row(0, 1, 10**6 - 50, 1), 10**6 - 50, 2)
    for seq, time_us in enumerate((10**6, 10**6 + 1)):
        aligner.push(1, row(1, seq, time_us, 5), time_us, seq)
    assert [sample.seq for sample in aligner.joined()] == [0, 1]
    back = 10**6 - BACK_US - 1
    aligner.push(0, row(0, 2, 10**6 + 10, 2), 10**6 + 10, 3)
    for stream in (0, 1):
        aligner.push(stream, row(stream, 3, back, 3), back, 4)
    assert [(sample.seq, sample.gap) for sample in aligner.joined()] == [(3, True)]
    assert aligner.counters["unaligned"] == 1


def test_the_label_is_the_first_streams_else_another_ones_at_that_time():
    aligner = Aligner([schema("a"), schema("b", label_names=("on", "off")), schema("c")], 10, most_bytes=AMPLE)
    assert aligner.schema.label_names == ("on", "off")
    labels = [(4, 5, 6), (None, 5, 6), (None, None, 6), (None, None, None)]
    for seq, told in enumerate(labels):
        for stream, label in enumerate(told):
            aligner.push(stream, row(stream, seq, 100 * seq, 0, label=label), 100 * seq, seq)
    assert [sample.label for sample in aligner.joined()] == [4, 5, 6, None]


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        (("int16", "int16"), "int16"),
        (("uint8", "int8"), "int16"),
        (("int16", "float32"), "float32"),
        (("int32", "float32"), "float32"),
        (("uint16", "int16"), "int32"),
        (("float16", "float32"), "float32"),
    ],
)
def test_values_become_the_smallest_type_that_holds_them(dtypes, common):
    aligner = Aligner([schema(str(k), dtype=dtype) for k, dtype in enumerate(dtypes)], 0, most_bytes=AMPLE)
    assert aligner.schema.dtype == common
    for k, dtype in enumerate(dtypes):
        aligner.push(k, Sample(k, 1, 0, 0, np.array([k + 1], dtype)), 0, 1)
    (sample,) = aligner.joined()
    assert (sample.values.dtype.name, sample.values.tolist()) == (common, [1, 2])


def test_channels_are_named_after_their_stream_where_two_are_called_alike():
    names = [schema("left", 2, channels=("x", "y")), schema("right", 2, channels=("x", "z"))]
    assert Aligner(names, 0, most_bytes=ROOM).schema.channels == ("left.x", "left.y", "right.x", "right.z")
    names = [schema("imu", 1, channels=("x",)), schema("imu", 1, channels=("x",)), schema("t", 1)]
    assert Aligner(names, 0, most_bytes=ROOM).schema.channels == ("imu0.x", "imu1.x", "t.0")
    names = [schema("imu", 1, channels=("x",)), schema("t", 1, channels=("c",))]
    assert Aligner(names, 0, most_bytes=ROOM).schema.channels == ("x", "c")


def test_a_single_value_is_a_channel():
    aligner = Aligner([schema("a", shape=()), schema("b", shape=())], 0, most_bytes=ROOM)
    for k in (0, 1):
        aligner.push(k, Sample(k, 1, 0, 0, np.array(k + 1, np.int16)), 0, 1)
    (sample,) = aligner.joined()
    assert (aligner.schema.shape, sample.values.tolist()) == ((2,), [1, 2])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (schema("camera", shape=(8, 8, 3)), r"camera: only channels can stand side by side"),
        (schema("wave", shape=(8, 3)), r"wave: rows of a sample have a time each only if the source says rate_hz"),
        (schema("b", label_names=("off", "on")), r"b: its classes are off, on, those of a are on, off"),
    ],
)
def test_what_cannot_stand_side_by_side_is_refused_by_name(second, message):
    with pytest.raises(IncompatibleSources, match=message) as caught:
        Aligner([schema("a", label_names=("on", "off")), second], 0, most_bytes=ROOM)
    assert caught.value.hint
