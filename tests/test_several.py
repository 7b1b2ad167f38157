"""Several sources as one: real recordings, real boards on TCP, a real broker; each by its own rule, nothing twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import far_end, streaming_board, talking_line

from firmware_bridge.align import Aligner
from firmware_bridge.errors import BadSourceUrl, EndOfSource, IncompatibleSources, SourceLost
from firmware_bridge.frame import CTRL_END, Control, encode_control, encode_hello, encode_sample
from firmware_bridge.hello import Hello
from firmware_bridge.registry import make_source, make_sources
from firmware_bridge.sample import Label, Sample, SampleId, Schema
from firmware_bridge.several import Several
from firmware_bridge.source import SourceBase
from tools.fakes.signals import signals

ROOM = 1 << 20
AHEAD_US = time.time_ns() // 1000 + 3_600_000_000  # an hour from now: nothing waits in vain for it


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
    said = ""

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

    def floor_at(self, n: int) -> Mapping[str, Any]:
        return {"upto": n}

    def host_us(self, sample: Sample) -> int | None:
        return AHEAD_US + sample.time_us

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


def row(seq: int, time_us: int, value: int = 0, label: int | None = None) -> Sample:
    return Sample(0, 1, seq, time_us, np.full(1, value, np.int16), label)


def several(sources: list[Given], align_us: int | None = None, clock: str = "board") -> Several:
    return Several(sources, [clock] * len(sources), align_us=align_us, queue_bytes=ROOM)


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


def test_a_label_that_comes_while_its_sample_waits_is_the_joined_samples() -> None:
    """Handed out before its sample it would find nobody."""
    one, other = Given(can_wait=False), Given(can_wait=False)
    with several([one, other], align_us=10) as source:
        one.give(row(0, 1000), Label(0, 1, 0, 2))
        assert source.read(0.3) is None
        other.give(row(0, 1000), row(1, 2000), Label(0, 1, 1, 4))
        first = source.read(2.0)
        assert (first.seq, first.label) == (0, 2)
        assert source.read(0.3) is None
        one.give(row(1, 2000))
        second = source.read(2.0)
        assert (second.seq, second.label) == (1, 4)
        one.give(Label(0, 1, 1, 3))
        assert source.read(2.0) == Label(0, 1, 1, 3)
        other.give(Label(0, 1, 1, 5))
        assert source.read(2.0) == Label(1, 1, 1, 5)  # its row is held, but was handed out with another label


def test_a_broker_that_is_silent_keeps_nobody_waiting() -> None:
    """It can wait, as a recording can, and nobody knows for how long."""
    talks, silent = (Given(can_wait=True, needs_acknowledgement=True) for _ in range(2))
    talks.give(row(0, 0), row(1, 1))
    with several([talks, silent]) as source:
        assert [source.read(5.0).seq, source.read(5.0).seq] == [0, 1]


def test_devices_behind_brokers_are_aligned_by_this_machines_time_and_not_by_their_own() -> None:
    one, other = (Given(can_wait=True, needs_acknowledgement=True) for _ in range(2))
    with several([one, other], align_us=10_000_000, clock="arrival") as source:
        other.give(row(0, 1 << 40), row(1, 1 << 41))
        assert source.read(0.3) is None
        one.give(row(0, 5))
        assert source.read(0.3) is None
        other.give(row(2, 1 << 42))
        assert source.read(2.0).seq == 0


class SlowToOpen(Given):
    """Opens once the other source has been read, as a board that answers late; says whether it was."""

    def __init__(self, other: Given) -> None:
        super().__init__(can_wait=False)
        self.other, self.was_read = other, False

    def open(self) -> None:
        until = time.monotonic() + 2.0
        while self.other.items and time.monotonic() < until:
            time.sleep(0.01)
        self.was_read = not self.other.items


def test_a_source_is_read_while_the_next_one_opens() -> None:
    """Else the line of the first would overflow, and what came meanwhile would all be stamped with one time."""
    first = Given(can_wait=False)
    first.give(row(0, 0), row(1, 1))
    slow = SlowToOpen(first)
    with several([first, slow]) as source:
        assert slow.was_read
        assert [source.read(1.0).seq, source.read(1.0).seq] == [0, 1]


def test_who_is_gone_is_named_also_if_both_are_called_alike_and_go_at_once() -> None:
    one, other = Given(can_wait=False), Given(can_wait=False)
    with several([one, other]) as source:
        one.said, other.said = "gone: a", "gone: b"
        assert source.said == "given0: gone: a; given1: gone: b"
        other.said = "back"
        assert source.said == source.said == "given1: back"


def test_what_has_no_time_cannot_be_aligned_and_is_counted() -> None:
    one, other = Given(can_wait=False), Given(can_wait=False)
    one.give(row(0, 1 << 62), row(1, 100))
    other.give(row(0, 100))
    with several([one, other], align_us=10) as source:
        sample = source.read(2.0)
        assert (sample.seq, sample.gap) == (1, True)
        assert source.counters["unsynced"] == 1


# Several streams of one board

TWO = "imu@100,imu@40"
TOLERANCE_US = 6000


def test_streams_of_a_board_come_in_turn_if_they_are_of_a_kind() -> None:
    with streaming_board(far_end("tcp"), 140, name=TWO) as board, make_sources([f"{board.url}?stream=0,1"]) as source:
        samples = read_all(source)
        assert [source.schema_of(stream).rate_hz for stream in source.streams] == [100.0, 40.0]
        assert {reason: count for reason, count in source.counters.items() if count} == {}
    assert [sample.time_us for sample in samples] == sorted(sample.time_us for sample in samples)
    for stream, n in board.board.made.items():
        assert [sample.seq for sample in samples if sample.stream == stream] == list(range(n))


def test_streams_of_a_board_that_are_not_of_a_kind_need_to_be_aligned() -> None:
    with streaming_board(far_end("tcp"), 10, name="imu@100,motor") as board:
        source = make_sources([f"{board.url}?stream=0,1"])
        with pytest.raises(IncompatibleSources, match="motor: its samples are int16") as caught:
            source.open()
    assert "set bridge.align_ms" in str(caught.value.hint)


def test_the_order_of_the_url_is_the_order_of_the_streams() -> None:
    with streaming_board(far_end("tcp"), 140, name=TWO) as board, make_sources([f"{board.url}?stream=1,0"]) as source:
        samples = read_all(source)
        assert source.schema_of(0).rate_hz == 40.0
    assert sum(sample.stream == 0 for sample in samples) == board.board.made[1]


def test_each_stream_of_a_board_goes_on_behind_its_own_last_sample() -> None:
    after = [SampleId(0, 1, 9), SampleId(1, 1, 29)]  # numbered as the URL has them
    with ExitStack() as stack:
        board = stack.enter_context(streaming_board(far_end("tcp"), 140, name=TWO))
        source = stack.enter_context(make_sources([f"{board.url}?stream=1,0"], after=after))
        samples = read_all(source)
        assert source.counters["duplicate"] == 10 + 30
    for stream, first in ((0, 10), (1, 30)):
        n = board.board.made[1 - stream]
        assert [sample.seq for sample in samples if sample.stream == stream] == list(range(first, n))


class Heard(Aligner):
    """Remembers what it was given, life after life of the board."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lives: list[list[list[Sample]]] = [[[], []]]

    def push(self, stream: int, sample: Sample, time_us: int, number: int) -> None:
        assert time_us == sample.time_us
        self.lives[-1][stream].append(sample)
        super().push(stream, sample, time_us, number)

    def restart(self) -> None:
        self.lives.append([[], []])
        super().restart()


def side_by_side(lives: list[list[list[Sample]]]) -> list[tuple[int, int, list[float]]]:
    """Boot, seq and values of the rows that belong together, looked for one by one."""
    found = []
    for life, (ours, theirs) in enumerate(lives):
        for one in ours:
            other = min(theirs, key=lambda row: (abs(row.time_us - one.time_us), row.time_us), default=None)
            # What still waits when the board starts anew has a clock that is gone.
            in_time = life == len(lives) - 1 or any(row.time_us >= one.time_us for row in theirs)
            if other is not None and in_time and abs(other.time_us - one.time_us) <= TOLERANCE_US:
                found.append((one.boot, one.seq, [*one.values.tolist(), *other.values.tolist()]))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_over_a_bad_line_and_restarts_every_sample_of_each_stream_has_its_place(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was joined is what a slow reference joins of what came; and of each stream the account closes."""
    monkeypatch.setattr("firmware_bridge.joiner.Aligner", Heard)
    n, faults = 3000, {"flips": 0.0005, "reboot_every": 700}
    with streaming_board(far_end("cobs"), n, name=TWO, seed=seed, **faults) as board:
        url = f"{board.url}&stream=0,1"
        source: Any = make_sources([url], align_us=TOLERANCE_US)
        with source:
            joined, counters, aligner = read_all(source), dict(source.counters), source._joiner._aligner
        told = board.told()
    assert told["bits_flipped"] > 0
    assert told["boots"] == len(aligner.lives) == -(-n // 700)
    assert [(one.boot, one.seq, one.values.tolist()) for one in joined] == side_by_side(aligner.lives)
    _, generated = signals(TWO.split(","), seed, None)
    made = {(sample.stream, sample.time_us): sample.values for sample in islice(generated, n)}
    received = [[row for life in aligner.lives for row in life[stream]] for stream in (0, 1)]
    for stream, rows in enumerate(received):
        for row in rows:
            np.testing.assert_array_equal(row.values, made[stream, row.time_us])
    assert counters["unaligned"] + len(joined) == len(received[0])
    assert told["in_flight"] == 0
    for stream, heard in source._lanes[0].source._board._heard.items():
        lost = sum(heard.tracker.counters[reason] for reason in ("wire_lost", "restart_lost", "away"))
        assert board.board.made[stream] == len(received[stream]) + lost


SMALL = Schema("a", "int16", (1,))


def small(stream: int, seq: int, time_us: int) -> bytes:
    return encode_sample(Sample(stream, 1, seq, time_us, np.full(1, 10 * stream + seq, np.int16)))


def end(stream: int, n: int) -> bytes:
    return encode_control(Control(stream, 1, n, CTRL_END))


@pytest.mark.parametrize("says_hello", [True, False])
def test_a_stream_may_end_before_the_other_and_nobody_needs_to_say_hello(says_hello: bool) -> None:
    hello = encode_hello(Hello("d", "f", 1, {0: SMALL, 1: SMALL})) if says_hello else b""
    early = [small(0, 0, 1000), small(1, 0, 1001), small(1, 1, 2001), end(1, 2)]
    late = [small(0, 1, 2000), small(0, 2, 3000), end(0, 3)]
    with ExitStack() as stack:
        path = stack.enter_context(talking_line(b"".join([hello, *early, *late])))
        source = stack.enter_context(make_sources([f"serial:{path}?stream=0,1&wait=0.5"], align_us=5))
        joined = read_all(source)
        assert source.counters["unaligned"] == 1
    assert [(one.seq, one.values.tolist()) for one in joined] == [(0, [0, 10]), (1, [1, 11])]


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
        assert sorted(got) == [0, 0, 0, 1, 1, 1]
        source.acknowledge(3)
        with suppress(EndOfSource):
            source.read(0.1)
        assert (one.safe, other.safe) == (got[:3].count(0), got[:3].count(1))
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


def test_the_floor_of_each_source_goes_with_what_of_it_was_handed_out() -> None:
    one, other = Given(can_wait=False), Given(can_wait=False)
    one.give(*(row(seq, 100 * seq) for seq in range(4)))
    with several([one, other], align_us=10) as source:
        assert source.floor_at(0) == {"0": {"upto": 0}, "1": {"upto": 0}}
        other.give(row(0, 0), row(1, 100), row(2, 200))
        for _ in range(3):
            assert source.read(2.0) is not None
            time.sleep(0.06)
        assert source.floor_at(3) == {"0": {"upto": 3}, "1": {"upto": 3}}  # the fourth row of the first waits


@pytest.mark.parametrize("align_us", [None, 10])
def test_what_becomes_safe_behind_the_end_is_told_on_closing(align_us: int | None) -> None:
    one, other = (Given(can_wait=False, needs_acknowledgement=True) for _ in range(2))
    one.give(row(0, 100), row(1, 200), EndOfSource("over"))
    other.give(row(0, 100), row(1, 200), row(2, 300), EndOfSource("over"))
    with several([one, other], align_us=align_us) as source:
        n = len(read_all(source))
        assert n == (5 if align_us is None else 2)
        source.acknowledge(n)
    assert (one.safe, other.safe) == (2, 3)


def paced(n: int, period_us: int) -> Given:
    made = Given(can_wait=True)
    made.give(*(row(seq, period_us * seq) for seq in range(n)), EndOfSource("over"))
    return made


def test_where_most_find_no_partner_that_is_said_once() -> None:
    with several([paced(500, 1000), paced(50, 10_000)], align_us=1) as source:
        samples = read_all(source)
        assert len(samples) == 50
        assert "name the slowest source first" in source.said
    with several([paced(50, 10_000), paced(500, 1000)], align_us=1) as source:
        assert len(read_all(source)) == 50
        assert source.said == ""


def test_a_broker_that_waits_for_acknowledgements_is_not_waited_for_when_its_partner_is_silent() -> None:
    """It sends no more, so no time passes but this machine's."""
    broker, silent = Given(can_wait=True, needs_acknowledgement=True), Given(can_wait=False)
    now_us = time.time_ns() // 1000
    broker.give(*(row(seq, now_us + seq) for seq in range(20)))
    with Several([broker, silent], ["unix", "unix"], align_us=1000, queue_bytes=ROOM) as source:
        wait_until(source, lambda: broker.safe == 20)
        assert source.counters["unaligned"] == 20


def test_aligned_it_is_over_when_the_first_is() -> None:
    first, other = Given(can_wait=False), Given(can_wait=False)
    first.give(row(0, 10), EndOfSource("over"))
    other.give(row(0, 10), row(1, 20))
    with several([first, other], align_us=5) as source:
        assert source.read(2.0).seq == 0
        with pytest.raises(EndOfSource, match="the first source is over"):
            source.read(5.0)


def test_a_clock_that_nobody_has_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Given, "host_us", lambda self, sample: None)
    one, other = Given(can_wait=False), Given(can_wait=False)
    with Several([one, other], ["board", "board"], align_us=5, queue_bytes=ROOM) as source:
        one.give(*(row(seq, seq) for seq in range(250)))
        wait_until(source, lambda: source.counters["unsynced"] == 250)
        assert source.said.startswith("given0: its samples have no time, for it answers no TIME: with ?clock=arrival")


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        (["stdin:csv?clock=board", "udp://:9"], "clock: it cannot tell its time"),
        (
            ["mqtt://localhost/a", "udp://:9"],
            "what the broker kept for a while would be taken",
        ),
        (["udp://:9", "udp://:9"], "is named twice"),
    ],
)
def test_what_cannot_be_compared_in_time_is_refused(urls: list[str], message: str) -> None:
    with pytest.raises(BadSourceUrl, match=message) as caught:
        make_sources(urls, align_us=5)
    assert caught.value.hint
    make_sources(["mqtt://localhost/a?clock=unix", "mqtt://localhost/b?session=0"], align_us=5)


def test_units_that_are_not_the_same_do_not_teach_one_learner() -> None:
    one, other = Given(can_wait=True), Given(can_wait=True)
    one.schema, other.schema = (Schema("s", "int16", (1,), unit=unit) for unit in ("g", "m/s2"))
    with pytest.raises(IncompatibleSources, match=r"s: its unit is m/s2, that of s is g"):
        several([one, other]).open()
