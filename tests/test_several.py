"""Several sources as one: real recordings, real boards on TCP, a real broker; each by its own rule, nothing twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import far_end, streaming_board

from firmware_bridge.errors import BadSourceUrl, EndOfSource, IncompatibleSources, SourceLost
from firmware_bridge.registry import make_source, make_sources
from firmware_bridge.sample import Label, Sample, Schema
from firmware_bridge.several import Several
from firmware_bridge.source import SourceBase

ROOM = 1 << 20


def recording(path: Path, times_s: np.ndarray, first: int, **more: Any) -> str:
    x = np.arange(first, first + 2 * len(times_s), dtype=np.int16).reshape(-1, 2)
    np.savez(path, x=x, time_s=times_s, **more)
    return f"recording:{path}"


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Recordings of 100 and 50 rows of two channels, at 100 and 50 rows a second, the second one 1 ms late."""
    fast = recording(tmp_path / "fast.npz", np.arange(100) / 100, 0)
    return [fast, recording(tmp_path / "slow.npz", np.arange(50) / 50 + 0.001, 1000)]


def read_all(source: Any) -> list[Any]:
    items: list[Any] = []
    with suppress(EndOfSource):
        while (item := source.read(10.0)) is not None:
            items.append(item)
        pytest.fail("nothing came in 10 s")
    return items


class Given(SourceBase):
    """A source that hands out what it is given, when it is given it; remembers what it was told is safe."""

    OPTIONS: Mapping[str, Any] = {}

    def __init__(self, *, can_wait: bool, needs_acknowledgement: bool = False) -> None:
        self.schema = Schema("given", "int16", (1,))
        self.counters: dict[str, int] = {"strange": 0}
        self.can_wait, self.needs_acknowledgement = can_wait, needs_acknowledgement
        self.items: list[Any] = []
        self.safe = 0
        self._there = threading.Condition()

    def give(self, *items: Any) -> None:
        with self._there:
            self.items += items
            self._there.notify_all()

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def acknowledge(self, n: int) -> None:
        assert n >= self.safe
        self.safe = n

    def host_us(self, sample: Sample) -> int | None:
        return sample.time_us

    def read(self, timeout_s: float) -> Any:
        with self._there:
            if not self.items:
                self._there.wait(timeout_s)
            if not self.items:
                return None
            item = self.items.pop(0)
        if isinstance(item, Exception):
            self.items.insert(0, item)
            raise item
        return item


def row(seq: int, time_us: int, value: int = 0) -> Sample:
    return Sample(0, 1, seq, time_us, np.full(1, value, np.int16))


def several(sources: list[Given], align_us: int | None = None) -> Several:
    return Several(sources, ["unix"] * len(sources), align_us=align_us, queue_bytes=ROOM)


# Played


def test_recordings_are_merged_by_time_whatever_the_threads_do(two: list[str]) -> None:
    runs = []
    for _ in range(3):
        with make_sources(two) as source:
            runs.append([(sample.stream, sample.seq) for sample in read_all(source)])
    by_time = sorted([(0, seq, seq / 100) for seq in range(100)] + [(1, seq, seq / 50 + 0.001) for seq in range(50)],
                     key=lambda one: one[2])  # fmt: skip
    assert runs == 3 * [[(stream, seq) for stream, seq, _ in by_time]]


def test_recordings_go_on_each_behind_its_own_last_sample(two: list[str]) -> None:
    with make_sources(two) as source:
        first = [source.read(10.0) for _ in range(60)]
        rest = [sample.id for sample in read_all(source)]
    after = list({sample.stream: sample.id for sample in first}.values())
    with make_sources(two, after=after) as source:
        assert [sample.id for sample in read_all(source)] == rest


def test_aligned_recordings_are_one_sample_a_row_of_the_first(two: list[str]) -> None:
    with make_sources(two, align_us=2000) as source:
        samples = read_all(source)
        counters = dict(source.counters)
        assert (source.schema.shape, source.schema.name) == ((4,), "fast+slow")
        assert list(source.streams) == [0]
    assert [sample.seq for sample in samples] == list(range(0, 100, 2))
    for sample in samples:
        at = sample.seq
        assert sample.values.tolist() == [2 * at, 2 * at + 1, 1000 + at, 1000 + at + 1]
    assert (counters["unaligned"], counters["surplus"], counters["unsynced"]) == (50, 0, 0)


def test_aligned_recordings_go_on_at_the_same_row(two: list[str]) -> None:
    with make_sources(two, align_us=2000) as source:
        first = [source.read(10.0) for _ in range(20)]
        rest = [(sample.id, sample.values.tolist()) for sample in read_all(source)]
    with make_sources(two, after=[first[-1].id], align_us=2000) as source:
        assert [(sample.id, sample.values.tolist()) for sample in read_all(source)] == rest


def test_one_url_is_the_source_itself(two: list[str]) -> None:
    assert type(make_sources(two[:1], align_us=5)) is type(make_source(two[0]))


def test_a_recording_has_no_time_in_common_with_a_device(two: list[str]) -> None:
    with pytest.raises(BadSourceUrl, match=r"recording:.*a recording has no time in common with a device"):
        make_sources([two[0], "udp://:9"], align_us=5)


def test_samples_of_two_kinds_are_refused_unless_they_are_aligned(two: list[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros((5, 3), np.float32), time_s=np.arange(5) / 5)
    urls = [two[0], f"recording:{tmp_path / 'other.npz'}"]
    with pytest.raises(IncompatibleSources, match=r"other: .* float32 \[3\], those of fast are int16 \[2\]"):
        make_sources(urls).open()
    with make_sources(urls, align_us=1_000_000) as source:
        assert (source.schema.dtype, source.schema.shape) == ("float32", (5,))


def test_the_clock_is_for_all_sources_and_one_of_three() -> None:
    with pytest.raises(BadSourceUrl, match="clock: must be one of board, unix, arrival"):
        make_sources(["udp://:9?clock=moon", "udp://:8"])
    make_source("udp://:9?clock=arrival")


# Live


def test_two_boards_are_two_streams_and_each_counts_for_itself() -> None:
    with ExitStack() as stack:
        boards = [stack.enter_context(streaming_board(far_end("tcp"), 40, rate_hz=400.0, seed=k)) for k in (1, 2)]
        with make_sources([board.url for board in boards]) as source:
            samples = read_all(source)
            assert not source.can_wait
            assert {k: v for k, v in source.counters.items() if v} == {}
    for stream in (0, 1):
        mine = [sample for sample in samples if sample.stream == stream]
        assert [sample.seq for sample in mine] == list(range(40))
    assert len({sample.boot for sample in samples}) <= 2


def test_boards_with_clocks_of_their_own_are_aligned_by_the_time_of_this_machine() -> None:
    with ExitStack() as stack:
        boards = [stack.enter_context(streaming_board(far_end("tcp"), 400, rate_hz=100.0, seed=k)) for k in (1, 2)]
        with make_sources([board.url for board in boards], align_us=6000) as source:
            samples = read_all(source)
            counters = dict(source.counters)
    offsets = [sample.time_us - 10_000 * sample.seq for sample in samples]
    assert len(samples) > 300
    assert len(set(offsets)) == 1
    assert 400 - counters["unsynced"] <= len(samples) + counters["unaligned"] <= 400  # unsynced are of both boards
    assert source.schema.shape == (12,)


def test_no_source_starves_another() -> None:
    flood, calm = Given(can_wait=False), Given(can_wait=False)
    flood.give(*(row(seq, seq) for seq in range(500)))
    calm.give(row(0, 0))
    with several([flood, calm]) as source:
        time.sleep(0.3)
        first = [source.read(1.0) for _ in range(4)]
    assert 1 in {sample.stream for sample in first}


def test_a_source_that_is_lost_is_said_and_one_that_is_over_is_not_waited_for() -> None:
    over, lost = Given(can_wait=False), Given(can_wait=False)
    over.give(row(0, 0), EndOfSource("over"))
    with several([over, lost]) as source:
        assert source.read(1.0).stream == 0
        assert source.read(0.0) is None
        lost.give(row(0, 1))
        assert source.read(1.0).stream == 1
        lost.give(SourceLost("gone"))
        with pytest.raises(SourceLost, match="gone"):
            source.read(5.0)


def test_labels_keep_the_number_of_their_stream() -> None:
    one, other = Given(can_wait=False), Given(can_wait=False)
    with several([one, other]) as source:
        other.give(Label(0, 1, 7, 3))
        label = source.read(1.0)
    assert (label.stream, label.seq, label.label) == (1, 7, 3)


def test_what_has_no_time_cannot_be_aligned_and_is_counted() -> None:
    one, other = Given(can_wait=False), Given(can_wait=False)
    one.give(row(0, 1 << 62), row(1, 100))
    other.give(row(0, 100))
    with several([one, other], align_us=10) as source:
        sample = source.read(2.0)
        assert (sample.seq, sample.gap) == (1, True)
        assert source.counters["unsynced"] == 1


# What is safe


def wait_until(source: Several, what: Any) -> None:
    until = time.monotonic() + 5.0
    while not what():
        assert time.monotonic() < until, "never"
        source.read(0.02)


def test_each_source_is_told_what_of_its_own_is_safe() -> None:
    one, other = (Given(can_wait=True, needs_acknowledgement=True) for _ in range(2))
    one.give(*(row(seq, 10 * seq) for seq in range(3)), EndOfSource("over"))
    other.give(*(row(seq, 10 * seq + 5) for seq in range(3)), EndOfSource("over"))
    with several([one, other]) as source:
        assert source.needs_acknowledgement
        got = []
        for _ in range(6):
            got.append(source.read(1.0).stream)
            time.sleep(0.06)
        assert got == [0, 1, 0, 1, 0, 1]
        source.acknowledge(3)
        with suppress(EndOfSource):
            source.read(0.1)
        assert (one.safe, other.safe) == (2, 1)
        source.acknowledge(6)
        with suppress(EndOfSource):
            source.read(0.1)
        assert (one.safe, other.safe) == (3, 3)


def test_aligned_nothing_is_safe_that_still_waits_and_everything_is_that_nobody_wants() -> None:
    one, other = (Given(can_wait=wait, needs_acknowledgement=True) for wait in (False, True))
    with several([one, other], align_us=10) as source:
        other.give(*(row(seq, 1000 * seq) for seq in range(5)))
        one.give(row(0, 4000))
        sample = source.read(2.0)
        assert sample.seq == 0
        wait_until(source, lambda: source.read(0.0) is None)
        assert one.safe == 0
        assert other.safe in (0, 4)  # those before it are nobody's, and that may show before it is handed out
        source.acknowledge(1)
        wait_until(source, lambda: one.safe == 1 and other.safe == 4)  # the fifth may be wanted again
        other.give(*(row(seq, 1000 * seq) for seq in range(5, 3000)))  # nobody wants these: the first has stopped
        wait_until(source, lambda: other.safe > 1500)
        assert source.counters["surplus"] > 1500
