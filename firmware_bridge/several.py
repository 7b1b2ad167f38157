"""Several sources as one: each read by its own inlet and its own rule, their streams numbered in the order given.

Without alignment samples come as they are, so that several boards of a kind teach one learner; with it the samples of
all streams that were taken at one time are one sample (align.py). What can wait is merged by time, the same way each
time it is played; what cannot is read in turn, so that no source starves another. Knows no wire and no learner.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from firmware_bridge.align import Aligner, common_labels
from firmware_bridge.errors import EndOfSource, IncompatibleSources
from firmware_bridge.inlet import Inlet
from firmware_bridge.receipts import Receipts
from firmware_bridge.sample import Label, Sample, Schema
from firmware_bridge.source import Source, SourceBase

# Who says when a sample was taken: the board, by answering TIME; its own stamps, that are UNIX time; or this machine.
CLOCKS: Final = ("board", "unix", "arrival")
TELL_EVERY_S: Final = 0.05
FARTHEST_US: Final = 1 << 60  # from 1970, of a time that can be one


class Several(SourceBase):
    """Open and close them all; `streams` of all, numbered from 0, each with its schema.

    align_us: tolerance in µs, None: not aligned. Of what is played, and of the streams of one source, time_us is the
    common clock; else UNIX time, which `clocks` says how to come by, source by source (CLOCKS), None: by its own, if it
    has one, else on arrival. queue_bytes: of all queues together.
    """

    is_queued = True  # each source by its own rule, so the learner may leave it unread

    def __init__(
        self, sources: Sequence[Source], clocks: Sequence[str | None], *, align_us: int | None, queue_bytes: int
    ) -> None:
        self._lanes = [_Lane(source, clock) for source, clock in zip(sources, clocks, strict=True)]
        self._align_us, self._queue_bytes = align_us, queue_bytes
        self._aligner: Aligner | None = None
        self._changed = threading.Condition()
        self._closing = ExitStack()
        self._schemas: list[Schema] = []
        self.schema = Schema(name="", dtype="uint8", shape=())
        self._ready: deque[Sample | Label] = deque()
        self._turn = self._handed_out = self._safe = 0
        self._receipts = Receipts[tuple[int, ...]](TELL_EVERY_S)
        self._told: tuple[int, ...] | None = None
        self._unsynced = 0
        self._gap = False
        self._said = ""

    @property
    def can_wait(self) -> bool:
        """Whether all of them can."""
        return all(lane.source.can_wait for lane in self._lanes)

    @property
    def needs_acknowledgement(self) -> bool:  # type: ignore[override]  # known once there are sources
        """Whether any of them waits to hear what is safe."""
        return any(lane.source.needs_acknowledgement for lane in self._lanes)

    @property
    def said(self) -> str:
        """What there last was to say of any of them, behind its name."""
        for lane in self._lanes:
            if lane.source.said != lane.said:
                lane.said = lane.source.said
                self._said = f"{lane.name}: {lane.said}"
        return self._said

    @property
    def counters(self) -> Mapping[str, int]:
        """Of all of them together, by reason; unsynced: samples whose time on the common clock is not known."""
        total: dict[str, int] = {}
        for lane in self._lanes:
            for reason, count in lane.counters.items():
                total[reason] = total.get(reason, 0) + count
        if self._align_us is None:
            return total
        aligned = {"unaligned": 0, "surplus": 0} if self._aligner is None else self._aligner.counters
        return {**total, **aligned, "unsynced": self._unsynced}

    @property
    def floor(self) -> Mapping[str, Any]:  # type: ignore[override]  # of each source, by its place
        """Of all of them, by their places."""
        return {str(place): lane.source.floor for place, lane in enumerate(self._lanes) if lane.source.floor}

    @property
    def streams(self) -> Sequence[int]:
        """Of all, numbered in order; the first one alone if they are aligned."""
        return (0,) if self._aligner is not None else range(len(self._schemas))

    def schema_of(self, stream: int) -> Schema:
        """Of that stream; of all together if they are aligned."""
        return self.schema if self._aligner is not None else self._schemas[stream]

    def open(self) -> None:
        """Open one after the other. Raises what they raise, and IncompatibleSources."""
        with ExitStack() as stack:
            for lane in self._lanes:
                lane.source.open()
                stack.callback(lane.source.close)
                lane.first = len(self._schemas)
                self._schemas += [lane.source.schema_of(stream) for stream in lane.source.streams]
            self._fit()
            share = self._queue_bytes // (2 * len(self._lanes))
            for lane in self._lanes:
                stamp = None if self._align_us is None or self.can_wait else lane.host_us
                lane.inlet = Inlet(lane.source, share, changed=self._changed, host_us=stamp)
                stack.callback(lane.inlet.close)
            self._closing = stack.pop_all()

    def close(self) -> None:
        """Let all go; a second call does nothing."""
        self._closing.close()

    def acknowledge(self, n: int) -> None:
        """Each is told, by the thread that reads, what of its own is in the first n items or was left aside."""
        self._safe = n

    def read(self, timeout_s: float) -> Sample | Label | None:
        """Next sample or late label, None if none came in time.

        Raises EndOfSource when all are over, and what any of them raises when it is lost.
        """
        deadline = time.monotonic() + timeout_s
        while not self._ready:
            self._tell()
            lane = self._next(deadline)
            if lane is not None:
                self._take(lane)
            if self._see_ends() or lane is not None:
                continue
            if all(lane.is_over for lane in self._lanes):
                raise EndOfSource("all sources are over")
            if time.monotonic() >= deadline:
                return None
        self._handed_out += 1
        item = self._ready.popleft()
        self._note()
        return item

    def _fit(self) -> None:
        """Settle what the samples look like. Raises IncompatibleSources."""
        if self._align_us is not None:
            self._aligner = Aligner(self._schemas, self._align_us, most_bytes=self._queue_bytes // 4)
            self.schema = self._aligner.schema
            return
        first = self._schemas[0]
        for schema in self._schemas[1:]:
            if (schema.dtype, schema.shape) != (first.dtype, first.shape):
                raise IncompatibleSources(
                    f"{schema.name}: its samples are {schema.dtype} {list(schema.shape)}, those of {first.name} are "
                    f"{first.dtype} {list(first.shape)}",
                    hint="one learner takes one kind of sample: set bridge.align_ms to put them side by side",
                )
        self.schema = replace(first, label_names=common_labels(self._schemas))

    def _next(self, deadline: float) -> _Lane | None:
        """The lane whose item is to be taken now, None if none came in time."""
        if self.can_wait:
            for lane in self._lanes:
                lane.look(max(0.0, deadline - time.monotonic()))
                if lane.head is None and not lane.is_over:
                    return None
            heads = [lane for lane in self._lanes if lane.head is not None]
            return min(heads, key=_time_of_head, default=None)
        while True:
            for _ in self._lanes:
                self._turn = (self._turn + 1) % len(self._lanes)
                lane = self._lanes[self._turn]
                lane.look(0.0)
                if lane.head is not None:
                    return lane
            with self._changed:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or all(lane.is_over for lane in self._lanes):
                    return None
                if not any(lane.has_news for lane in self._lanes):
                    self._changed.wait(left_s)

    def _take(self, lane: _Lane) -> None:
        item = lane.pop()
        streams = lane.source.streams
        item = replace(item, stream=lane.first + (streams.index(item.stream) if len(streams) > 1 else 0))
        if isinstance(item, Label) or self._aligner is None:
            self._ready.append(item)
        else:
            self._align(self._aligner, lane, item)
        if not self._ready:
            self._note()

    def _align(self, aligner: Aligner, lane: _Lane, sample: Sample) -> None:
        alone = len(self._lanes) == 1
        if alone and lane.boot not in (None, sample.boot):
            aligner.restart()
        lane.boot = sample.boot
        time_us = sample.time_us if alone or self.can_wait else sample.host_us
        if time_us is None or abs(time_us) > FARTHEST_US:
            self._unsynced += 1
            self._gap |= sample.stream == 0
            return
        if sample.stream == 0 and self._gap:
            sample, self._gap = replace(sample, gap=True), False
        aligner.push(sample.stream, sample, time_us, lane.taken)
        self._ready += aligner.joined()

    def _see_ends(self) -> bool:
        """Have what waited for a source that is over go on; whether there was one."""
        ended = [lane for lane in self._lanes if lane.is_over and not lane.is_seen]
        for lane in ended:
            lane.is_seen = True
            if self._aligner is not None:
                for place in range(len(lane.source.streams)):
                    self._aligner.end(lane.first + place)
                self._ready += self._aligner.joined()
        return bool(ended)

    def _note(self) -> None:
        """Note how much of each source is behind us once the learner has all that was handed out."""
        if not self._ready:
            self._receipts.note(self._handed_out, tuple(map(self._behind, self._lanes)), time.monotonic())

    def _behind(self, lane: _Lane) -> int:
        """How many items of a source nothing waits for any more."""
        if self._aligner is None:
            return lane.taken
        numbers = [self._aligner.oldest(lane.first + place) for place in range(len(lane.source.streams))]
        return min((number - 1 for number in numbers if number is not None), default=lane.taken)

    def _tell(self) -> None:
        """Pass on what is safe."""
        safe = self._receipts.safe(self._safe)
        if safe is not None and safe != self._told:
            self._told = safe
            for lane, n in zip(self._lanes, safe, strict=True):
                lane.source.acknowledge(n)


class _Lane:
    """A source, its inlet, and the item that comes next; first: number of its first stream."""

    def __init__(self, source: Source, clock: str | None) -> None:
        self.source = source
        self._clock = clock or ("board" if source.has_clock else "arrival")
        self.inlet: Inlet | None = None
        self.head: Sample | Label | None = None
        self.is_over = self.is_seen = False
        self.first = self.taken = 0
        self.boot: int | None = None
        self.said = ""

    @property
    def name(self) -> str:
        return self.source.schema.name

    @property
    def counters(self) -> Mapping[str, int]:
        return {**self.source.counters, "queue_oldest": 0} if self.inlet is None else self.inlet.counters

    @property
    def has_news(self) -> bool:
        return not self.is_over and self.inlet is not None and self.inlet.has_news

    def host_us(self, sample: Sample) -> int | None:
        """When a sample that came just now was taken, in UNIX time."""
        if self._clock == "unix":
            return sample.time_us
        if self._clock == "board":
            return self.source.host_us(sample)
        schema = self.source.schema_of(sample.stream)
        return time.time_ns() // 1000 - round(1e6 * (schema.rows - 1) / (schema.rate_hz or 1e6))

    def look(self, timeout_s: float) -> None:
        """See to it that `head` is what comes next, if that comes in time. Raises SourceLost."""
        if self.head is None and not self.is_over:
            assert self.inlet is not None, "open comes first"
            try:
                self.head = self.inlet.get(timeout_s)
            except EndOfSource:
                self.is_over = True

    def pop(self) -> Sample | Label:
        """What comes next, which must be there."""
        assert self.inlet is not None
        assert self.head is not None
        item, self.head = self.head, None
        self.taken = self.inlet.taken
        return item


def _time_of_head(lane: _Lane) -> int:
    """Labels first: they are of samples that came before."""
    return lane.head.time_us if isinstance(lane.head, Sample) else -1
