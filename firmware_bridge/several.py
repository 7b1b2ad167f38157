"""Several sources as one: each read by its own inlet and its own rule, their streams numbered in the order given.

Without alignment samples come as they are, so that several boards of a kind teach one learner; with it the samples of
all streams that were taken at one time are one sample (align.py). What is played is merged by time, the same way each
time; what is not is read in turn, so that no source waits for another. Knows no wire and no learner.
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
from firmware_bridge.lane import Lane
from firmware_bridge.receipts import Receipts
from firmware_bridge.sample import Label, Sample, Schema
from firmware_bridge.source import Part, Source, SourceBase

# Who says when a sample was taken: the board, by answering TIME; its own stamps, that are UNIX time; or this machine.
CLOCKS: Final = ("board", "unix", "arrival")
TELL_EVERY_S: Final = 0.05
MANY_UNALIGNED: Final = 200
FEW_ALIGNED: Final = (
    "most of its samples find no partner in time: name the slowest source first, or set bridge.align_ms to at least "
    "half of what lies between two samples of the slowest"
)
NO_ROOM: Final = "what waits for its partners has not enough room: raise bridge.queue_bytes"
NO_CLOCK: Final = "its samples have no time, for it answers no TIME: with ?clock=arrival it is that of arrival"
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
        self._lanes = [Lane(source, clock) for source, clock in zip(sources, clocks, strict=True)]
        self._align_us, self._queue_bytes = align_us, queue_bytes
        self._aligner: Aligner | None = None
        self._changed = threading.Condition()
        self._closing = ExitStack()
        self._schemas: list[Schema] = []
        self.schema = Schema(name="", dtype="uint8", shape=())
        self._ready: deque[Sample | Label] = deque()
        self._turn = self._handed_out = self._safe = 0
        # How much of each source stands behind so many items: for what is safe, and for what only was handed out.
        self._receipts, self._places = Receipts[tuple[int, ...]](TELL_EVERY_S), Receipts[tuple[int, ...]](TELL_EVERY_S)
        self._told: tuple[int, ...] | None = None
        self._is_played = self._gap = self._is_warned = False
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
        news = [f"{lane.name}: {event}" for lane in self._lanes for event in lane.news()]
        if not self._is_warned and self._aligner is not None and (why := self._why_few(self._aligner)):
            self._is_warned = True
            news.append(why)
        self._said = "; ".join(news) or self._said
        return self._said

    @property
    def parts(self) -> Sequence[Part]:
        """Each of them by itself; its streams as they are numbered here."""
        ends = [lane.first + len(lane.source.streams) for lane in self._lanes]
        return [
            Part(lane.name, tuple(range(lane.first, end)), lane.source.said, lane.counters)
            for lane, end in zip(self._lanes, ends, strict=True)
        ]

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
        return {**total, **aligned, "unsynced": sum(lane.unsynced for lane in self._lanes)}

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
            # The learner's inlet has a quarter of it all, what waits to be joined the half.
            share = self._queue_bytes // 4 * (3 if self._align_us is None else 1) // len(self._lanes)
            for lane in self._lanes:
                lane.source.open()
                stack.callback(lane.source.close)
                lane.first = len(self._schemas)
                self._schemas += [lane.source.schema_of(stream) for stream in lane.source.streams]
                # Read at once: what comes while the others open must neither be lost nor stamped late.
                stamp = None if self._align_us is None else lane.host_us
                lane.inlet = Inlet(lane.source, share, changed=self._changed, host_us=stamp)
                stack.callback(lane.inlet.close)
            self._is_played = all(lane.is_played for lane in self._lanes)
            self._call_by_name()
            self._fit()
            stack.callback(self._tell)
            self._closing = stack.pop_all()

    def close(self) -> None:
        """Let all go; a second call does nothing."""
        self._closing.close()

    def floor_at(self, n: int) -> Mapping[str, Any]:
        """Of all of them, by their places; each as it was with what of its own is in the first n items, or before."""
        behind = self._places.safe(n) or (0,) * len(self._lanes)
        floors = [lane.source.floor_at(own) for lane, own in zip(self._lanes, behind, strict=True)]
        return {str(place): floor for place, floor in enumerate(floors) if floor}

    def acknowledge(self, n: int) -> None:
        """Each is told, when it is read or closed, what of its own is in the first n items or was left aside."""
        self._safe = n

    def read(self, timeout_s: float) -> Sample | Label | None:
        """Next sample or late label, None if none came in time.

        Raises EndOfSource when all are over, and what any of them raises when it is lost.
        """
        deadline = time.monotonic() + timeout_s
        while not self._ready:
            self._tell()
            if self._is_over():
                raise EndOfSource("all sources are over" if self._aligner is None else "the first source is over")
            lane = self._next(deadline)
            if lane is not None:
                self._take(lane)
            if self._see_ends() or lane is not None:
                continue
            if self._aligner is not None and not self._is_played and len(self._lanes) > 1:
                self._aligner.now(time.time_ns() // 1000)  # nobody sends: what waits is not to wait for ever
                self._ready += self._aligner.joined()
                self._note()
            if time.monotonic() >= deadline:
                return None
        self._handed_out += 1
        item = self._ready.popleft()
        self._note()
        return item

    def _is_over(self) -> bool:
        """Whether nothing more can come; of aligned ones, nothing can without the first."""
        if self._aligner is None:
            return all(lane.is_over for lane in self._lanes)
        return self._lanes[0].is_over and self._aligner.oldest(0) is None

    def _why_few(self, aligner: Aligner) -> str:
        """Why most samples are not joined, so that hardly a window can fill; "" if most are."""
        for lane in self._lanes:
            if lane.unsynced >= MANY_UNALIGNED and lane.unsynced > self._handed_out:
                return f"{lane.name}: {NO_CLOCK}"
        if aligner.crowded >= MANY_UNALIGNED:
            return f"{self._lanes[0].name}: {NO_ROOM}"
        unaligned = aligner.counters["unaligned"]
        few = unaligned >= MANY_UNALIGNED and unaligned > self._handed_out
        return f"{self._lanes[0].name}: {FEW_ALIGNED}" if few else ""

    def _call_by_name(self) -> None:
        """Each by its own name, those that are called alike by their places, too."""
        names = [lane.source.schema.name for lane in self._lanes]
        for place, (lane, name) in enumerate(zip(self._lanes, names, strict=True)):
            lane.name = name if names.count(name) == 1 else f"{name}{place}"

    def _fit(self) -> None:
        """Settle what the samples look like. Raises IncompatibleSources."""
        if self._align_us is not None:
            self._aligner = Aligner(self._schemas, self._align_us, most_bytes=self._queue_bytes // 2)
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
            for what in ("unit", "scale", "channels"):
                now, before = getattr(schema, what), getattr(first, what)
                if now and before and now != before:
                    raise IncompatibleSources(
                        f"{schema.name}: its {what} is {now}, that of {first.name} is {before}",
                        hint="one learner takes one kind of sample: set bridge.align_ms to put them side by side",
                    )
        self.schema = replace(first, label_names=common_labels(self._schemas))

    def _next(self, deadline: float) -> Lane | None:
        """The lane whose item is to be taken now, None if none came in time."""
        if self._is_played:
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

    def _take(self, lane: Lane) -> None:
        item = lane.pop()
        streams = lane.source.streams
        item = replace(item, stream=lane.first + (streams.index(item.stream) if len(streams) > 1 else 0))
        if self._aligner is None:
            self._ready.append(item)
        elif isinstance(item, Sample):
            self._align(self._aligner, lane, item)
        elif not self._aligner.late(item):
            self._ready.append(item)
        if not self._ready:
            self._note()

    def _align(self, aligner: Aligner, lane: Lane, sample: Sample) -> None:
        alone = len(self._lanes) == 1
        if alone and lane.boot not in (None, sample.boot):
            aligner.restart()
        lane.boot = sample.boot
        time_us = sample.time_us if alone or self._is_played else sample.host_us
        if time_us is None or abs(time_us) > FARTHEST_US:
            lane.unsynced += 1
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
        if ended:
            self._note()
        return bool(ended)

    def _note(self) -> None:
        """Note how much of each source is behind us once the learner has all that was handed out."""
        if not self._ready:
            behind, now = tuple(map(self._behind, self._lanes)), time.monotonic()
            self._receipts.note(self._handed_out, behind, now)
            self._places.note(self._handed_out, behind, now)

    def _behind(self, lane: Lane) -> int:
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


def _time_of_head(lane: Lane) -> int:
    """Labels first: they are of samples that came before."""
    return lane.head.time_us if isinstance(lane.head, Sample) else -1
