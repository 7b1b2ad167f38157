"""Windows against a slow and obvious second version, and every way in which rows must not be joined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.sample import Label, Sample
from firmware_bridge.window import Window

NO_DRAW = settings(max_examples=150, deadline=None)


def frame(seq, n=2, *, label=None, gap=False, boot=1, stream=0, time_us=None):
    values = np.arange(2 * n, dtype=np.int16).reshape(n, 2) + 100 * seq
    return Sample(stream, boot, seq, 1000 * seq if time_us is None else time_us, values, label, gap)


def push_all(window, samples):
    return [done for sample in samples for done in window.push(sample)]


def slow_windows(samples, length, stride):
    """All rows in one list, cut at every stride."""
    rows = [(row, sample.seq) for sample in samples for row in sample.values]
    starts = range(0, len(rows) - length + 1, stride)
    return [(np.array([row for row, _ in rows[at : at + length]]), rows[at + length - 1][1]) for at in starts]


@NO_DRAW
@given(st.integers(1, 9), st.integers(1, 12), st.lists(st.integers(1, 7), max_size=15))
def test_windows_are_those_of_the_slow_version(length, stride, sizes):
    samples = [frame(seq, n) for seq, n in enumerate(sizes)]
    got, expected = push_all(Window(length, stride), samples), slow_windows(samples, length, stride)
    assert len(got) == len(expected)
    for window, (rows, seq) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(window.values, rows)
        assert (window.seq, window.time_us, window.boot) == (seq, 1000 * seq, 1)
        assert window.values.flags.c_contiguous
        assert window.values.dtype == np.int16
        assert not window.values.flags.writeable


@NO_DRAW
@given(st.integers(1, 6), st.integers(1, 8), st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_a_window_saved_and_loaded_anywhere_goes_on_as_if_nothing_had_been(length, stride, sizes, data):
    samples = [frame(seq, n, label=seq // 3, gap=seq == 5) for seq, n in enumerate(sizes)]
    at = data.draw(st.integers(0, len(samples)))
    whole, first, second = Window(length, stride), Window(length, stride), Window(length, stride)
    expected = push_all(whole, samples)
    got = push_all(first, samples[:at])
    second.load_state(first.state())
    got += push_all(second, samples[at:])
    assert [(w.id, w.label, w.gap, w.values.tobytes()) for w in got] == [
        (w.id, w.label, w.gap, w.values.tobytes()) for w in expected
    ]
    assert second.counters == whole.counters


def test_the_state_of_another_window_is_refused():
    with pytest.raises(ValueError, match="4/4 rows, not of 8/4"):
        Window(8, 4).load_state(Window(4, 4).state())


@pytest.mark.parametrize("values", [np.zeros(3, np.uint8), np.float32(1.5)])
def test_a_sample_of_one_axis_or_none_is_one_row(values):
    window = Window(2, 2)
    first, second = (Sample(0, 1, seq, seq, np.asarray(values)) for seq in (0, 1))
    assert window.push(first) == []
    (done,) = window.push(second)
    assert done.values.shape == (2, values.size)


def test_all_labelled_rows_must_agree():
    window = Window(4, 4)
    assert [w.label for w in push_all(window, [frame(0), frame(1)])] == [None]
    assert [w.label for w in push_all(window, [frame(2, label=7), frame(3)])] == [7]
    assert [w.label for w in push_all(window, [frame(4, label=0), frame(5, label=0)])] == [0]
    assert window.counters["mixed_label"] == 0
    assert [w.label for w in push_all(window, [frame(6, label=0), frame(7, label=1)])] == [None]
    assert window.counters["mixed_label"] == 1


def test_a_late_label_reaches_rows_that_are_still_inside():
    window = Window(4, 2)
    push_all(window, [frame(0), frame(1)])
    assert not window.late(Label(0, 1, 0, 3))  # its rows have left
    assert not window.late(Label(0, 2, 1, 3))
    assert not window.late(Label(1, 1, 1, 3))
    assert window.late(Label(0, 1, 1, 3))
    assert [w.label for w in window.push(frame(2))] == [3]


def test_a_late_label_before_any_sample_finds_nothing():
    assert not Window(4, 2).late(Label(0, 1, 0, 3))


@pytest.mark.parametrize(
    "broken",
    [frame(1, gap=True), frame(1, boot=2), frame(1, stream=4), frame(1, time_us=-1), frame(1, time_us=2001)],
    ids=["gap", "boot", "stream", "time backwards", "time ahead"],
)
def test_a_break_throws_the_rows_away_and_flags_the_next_window(broken):
    window = Window(4, 4, rate_hz=2000.0)  # 2 rows in 1,000 µs; twice that is too late
    assert push_all(window, [frame(0, n=2), broken]) == []
    assert window.counters["gap_rows"] == 2
    after = frame(2, boot=broken.boot, stream=broken.stream, time_us=max(0, broken.time_us) + 1000)
    (done,) = window.push(after)
    np.testing.assert_array_equal(done.values, np.concatenate([broken.values, after.values]))
    assert done.gap
    again = [frame(seq, boot=broken.boot, stream=broken.stream, time_us=after.time_us + 1000) for seq in (3, 4)]
    assert [w.gap for w in push_all(window, again)] == [False]


def test_an_overlap_never_bridges_a_gap():
    window = Window(4, 2)
    push_all(window, [frame(0), frame(1)])
    assert window.push(frame(3, gap=True)) == []
    assert window.counters["gap_rows"] == 2


def test_without_a_rate_a_pause_of_the_clock_is_no_break():
    window = Window(4, 4)
    assert len(push_all(window, [frame(0), frame(1, time_us=10**9)])) == 1


def test_rows_of_another_kind_are_refused():
    window = Window(4, 4)
    window.push(frame(0))
    for values in (np.zeros((2, 3), np.int16), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 2), np.int16)):
        with pytest.raises(ValueError, match=r"int16 rows of|uint8 rows of|have no rows"):
            window.push(Sample(0, 1, 1, 1000, values))


def test_a_window_must_have_rows_and_move():
    for length, stride in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            Window(length, stride)
