"""The queue: bounded in bytes, exact counters, labels never dropped, and what ends the source reaches the reader."""

import threading
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from boards import fake_board

from firmware_bridge.errors import BridgeError, EndOfSource, SourceLost
from firmware_bridge.frame import FrameDecoder, encode_sample
from firmware_bridge.inlet import ITEM_BYTES, Inlet
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Label, Sample, Schema
from firmware_bridge.source import SourceBase

SAMPLE_BYTES = 192
ROOM = ITEM_BYTES + SAMPLE_BYTES


def sample(seq):
    return Sample(0, 1, seq, seq, np.full((32, 3), seq, np.int16))


class ListSource(SourceBase):
    """Hands out what it is given as fast as it is read, then ends; `drained` is set when the last item was taken."""

    def __init__(self, items, *, can_wait, end=None):
        self.schema = Schema(name="list", dtype="int16", shape=(32, 3))
        self.can_wait, self.counters = can_wait, {"crc": 2}
        self.n_read, self.drained = 0, threading.Event()
        self._items, self._end = items, end or EndOfSource("over")

    def read(self, timeout_s):
        if self.n_read == len(self._items):
            self.drained.set()
            raise self._end
        self.n_read += 1
        return self._items[self.n_read - 1]


def take_all(inlet):
    items = []
    try:
        while (item := inlet.get(10.0)) is not None:
            items.append(item)
    except EndOfSource:
        return items
    pytest.fail("nothing came in 10 s")


def test_a_source_that_can_wait_loses_nothing_and_stays_inside_the_bound():
    source = ListSource([sample(seq) for seq in range(500)], can_wait=True)
    inlet = Inlet(source, 3 * ROOM + 1)
    for seq in range(500):
        assert inlet.queued_bytes <= 3 * ROOM + 1
        assert source.n_read <= seq + 4  # three queued, one in the reader's hand
        assert inlet.get(10.0).seq == seq
    with pytest.raises(EndOfSource):
        inlet.get(10.0)
    assert inlet.counters == {"crc": 2, "queue_oldest": 0}
    inlet.close()


def test_a_live_source_drops_its_oldest_and_flags_the_gap():
    source = ListSource([sample(seq) for seq in range(100)], can_wait=False)
    inlet = Inlet(source, 10 * ROOM)
    assert source.drained.wait(10.0)
    items = take_all(inlet)
    assert [item.seq for item in items] == list(range(90, 100))
    assert [item.gap for item in items] == [True] + 9 * [False]
    assert inlet.counters["queue_oldest"] == 90
    assert inlet.received == 100
    assert inlet.queued_bytes == 0
    inlet.close()


def test_labels_are_never_dropped_and_keep_their_place():
    items = [item for seq in range(50) for item in (sample(seq), Label(0, 1, seq, 1))]
    source = ListSource(items, can_wait=False)
    inlet = Inlet(source, 50 * ITEM_BYTES + 2 * ROOM)
    assert source.drained.wait(10.0)
    got = take_all(inlet)
    assert [item.seq for item in got if isinstance(item, Label)] == list(range(50))
    assert [(type(item), item.seq) for item in got[-4:]] == [(Sample, 48), (Label, 48), (Sample, 49), (Label, 49)]
    assert inlet.counters["queue_oldest"] == 48
    inlet.close()


def test_a_flood_of_labels_stops_the_reader_instead_of_breaking_the_bound():
    source = ListSource([Label(0, 1, seq, 1) for seq in range(200)], can_wait=False)
    inlet = Inlet(source, ROOM + 5 * ITEM_BYTES)
    for taken in range(200):
        assert inlet.queued_bytes <= ROOM + 5 * ITEM_BYTES
        assert source.n_read <= taken + 7
        assert inlet.get(10.0).seq == taken
    inlet.close()


def test_nothing_in_time_is_none():
    held = threading.Event()

    class Silent(ListSource):
        def read(self, timeout_s):
            assert timeout_s <= 0.1  # so that close() is not kept waiting
            held.wait(timeout_s)

    inlet = Inlet(Silent([], can_wait=False), ROOM)
    assert inlet.get(0.01) is None
    inlet.close()
    inlet.close()


@pytest.mark.parametrize("error", [SourceLost("unplugged"), ZeroDivisionError("a bug of ours")])
def test_what_ends_the_source_is_raised_behind_the_last_sample(error):
    inlet = Inlet(ListSource([sample(0)], can_wait=True, end=error), ROOM)
    assert inlet.get(10.0).seq == 0
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            inlet.get(10.0)
        assert caught.value is error
    inlet.close()


def test_closing_ends_a_reader_that_waits_for_room():
    source = ListSource([sample(seq) for seq in range(10)], can_wait=True)
    inlet = Inlet(source, ROOM)
    first = inlet.get(10.0)
    inlet.close()
    assert inlet.queued_bytes <= ROOM
    assert (first.seq, inlet.received) in ((0, 1), (0, 2))


def test_a_queue_too_small_for_one_sample_is_refused():
    with pytest.raises(
        BridgeError, match=f"of {ROOM - 1} bytes cannot hold one sample of list \\({ROOM} bytes\\)"
    ) as caught:
        Inlet(ListSource([], can_wait=True), ROOM - 1)
    assert caught.value.hint == "raise bridge.queue_bytes"


def test_a_queued_sample_costs_no_more_memory_than_it_is_counted_for():
    """Measured on samples as the decoder makes them, with large numbers as an old board has."""
    wire = [encode_sample(replace(sample(seq % 99), seq=seq + 10**6, time_us=10**12 + seq)) for seq in range(2000)]
    decoder = FrameDecoder()
    tracemalloc.start()
    source = ListSource([event for frame in wire for event in decoder.feed(frame)], can_wait=True)
    inlet = Inlet(source, 2000 * ROOM)
    assert source.drained.wait(10.0)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert inlet.queued_bytes == 2000 * ROOM
    assert 0.7 * inlet.queued_bytes < used <= inlet.queued_bytes
    inlet.close()


def test_generated_is_received_plus_dropped_plus_lost_over_a_real_line():
    """The identity of EDGE 1.3, from a board that does not wait for the learner to a queue that is too small for it."""
    n = 20_000
    with fake_board("--speed", "max", "--samples", str(n)) as path, make_source(f"serial:{path}") as source:
        inlet = Inlet(source, 5 * ROOM)
        items = take_all(inlet)
        inlet.close()
        assert not source.can_wait
        assert inlet.received == len(items) + inlet.counters["queue_oldest"]
        assert n == len(items) + inlet.counters["queue_oldest"] + inlet.counters["wire_lost"]
        gaps = [second.seq != first.seq + 1 for first, second in pairwise(items)]
        assert gaps == [item.gap for item in items[1:]]
        assert sum(inlet.counters.values()) == inlet.counters["queue_oldest"]


def test_the_gap_is_flagged_on_the_stream_that_lost_the_sample():
    of_two = [replace(sample(seq), stream=seq % 2) for seq in range(5)]
    source = ListSource(of_two, can_wait=False)
    inlet = Inlet(source, 4 * ROOM)
    assert source.drained.wait(10.0)
    assert [(item.stream, item.seq, item.gap) for item in take_all(inlet)] == [
        (1, 1, False),
        (0, 2, True),
        (1, 3, False),
        (0, 4, False),
    ]
    inlet.close()


class OfTwoStreams(ListSource):
    """The second one's samples are ten times as large."""

    streams = (0, 1)

    def schema_of(self, stream):
        return Schema(name="s", dtype="int16", shape=(32 * (1 + 9 * stream), 3))


def test_room_for_the_largest_sample_of_any_stream_is_needed():
    with pytest.raises(BridgeError, match="cannot hold one sample"):
        Inlet(OfTwoStreams([], can_wait=False), 3 * ROOM)
