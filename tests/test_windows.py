"""Windows of several streams against one Window for each, pushed by itself; stopped and gone on anywhere."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.keeping.cursor import Cursor
from firmware_bridge.sample import Label, Sample
from firmware_bridge.window import Window
from firmware_bridge.windows import Windows

LENGTH, STRIDE = 4, 3
RATES = {0: 1000.0, 1: 500.0, 12: None}  # rows a second; 1 and 12 begin alike


def windows():
    return Windows(LENGTH, STRIDE, RATES.__getitem__)


def frames(pushes):
    """Samples of two rows, each stream counted by itself; now and then one is late, or behind a gap."""
    seqs, found = dict.fromkeys(RATES, 0), []
    for stream, label, step_us, gap in pushes:
        seqs[stream] += 1
        values = np.full((2, 2), 100 * stream + seqs[stream], np.int16)
        found.append(Sample(stream, 1, seqs[stream], step_us * seqs[stream], values, label, gap))
    return found


LABELS, STEPS_US = st.none() | st.integers(0, 1), st.sampled_from((4000, 9000))
PUSHES = st.lists(st.tuples(st.sampled_from(list(RATES)), LABELS, STEPS_US, st.booleans()), max_size=40)


def told(window):
    return (window.id, window.time_us, window.label, window.gap, window.values.tolist())


def restored(state):
    """The state as a checkpoint keeps it: arrays, and plain values as JSON."""
    arrays, plain = Cursor(window=state).state()
    return Cursor.restored(arrays, json.loads(json.dumps(plain))).window


@given(PUSHES, st.integers(0, 40))
def test_each_stream_has_a_window_of_its_own_also_behind_a_restart(pushes, stop):
    samples, alone = frames(pushes), {stream: Window(LENGTH, STRIDE, rate_hz=rate) for stream, rate in RATES.items()}
    together = windows()
    for place, sample in enumerate(samples):
        if place == stop:
            state, together = together.state(), windows()
            together.load_state(restored(state))
        assert list(map(told, together.push(sample))) == list(map(told, alone[sample.stream].push(sample)))
    for name, count in together.counters.items():
        assert count == sum(window.counters[name] for window in alone.values())


def test_a_late_label_is_for_its_own_stream():
    together = windows()
    for stream in (0, 1):
        assert not together.late(Label(stream, 1, 1, 5))  # nothing of it came yet
        together.push(Sample(stream, 1, 1, 0, np.zeros((2, 2), np.int16)))
    assert together.late(Label(1, 1, 1, 5))
    labels = {}
    for stream in (0, 1):
        (window,) = together.push(Sample(stream, 1, 2, 2000, np.zeros((2, 2), np.int16)))
        labels[stream] = window.label
    assert labels == {0: None, 1: 5}


@pytest.mark.parametrize(
    "change",
    [{"12.stride": 2}, {"7.length": LENGTH}, {"length": LENGTH}],
    ids=["another stride", "a stream that there is not", "of before there were streams"],
)
def test_what_does_not_fit_is_refused_whole(change):
    before = windows()
    for stream in (0, 12):
        before.push(Sample(stream, 1, 0, 0, np.ones((2, 2), np.int16)))
    after = windows()
    with pytest.raises(ValueError, match=r"state of a window|no stream 7|invalid literal"):
        after.load_state(before.state() | change)
    assert after.state() == {}
