"""Several sources as one: each read by its own inlet and its own rule, their streams numbered in the order given.

Without alignment samples come as they are, so that several boards of a kind teach one learner; with it the samples of
all streams that were taken at one time are one sample (align.py). What is played is merged by time, the same way each
time; what is not is read in turn, so that no source waits for another. Knows no wire and no learner.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from firmware_bridge.align import common_labels
from firmware_bridge.errors import EndOfSource, IncompatibleSources
from firmware_bridge.inlet import Inlet
from firmware_bridge.joiner import Joiner
from firmware_bridge.lane import Lane
from firmware_bridge.receipts import Receipts
from firmware_bridge.sample import Label, Sample, Schema
from firmware_bridge.source import Part, Source, SourceBase

# Who says when a sample was taken: the board, by answering TIME; its own stamps, that are UNIX time; or this machine.
CLOCKS: Final = ("board", "unix", "arrival")
JOINING: Final = ("unaligned", "surplus", "unsynced")  # counters of joining
ONE_KIND: Final = "one learner takes one kind of sample: set bridge.align_ms to put them side by side"
TELL_EVERY_S: Final = 0.05


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
        self._joiner: Joiner | None = None
        self._changed = threading.Condition()
        self._closing = ExitStack()
        self._schemas: list[Schema] = []
        self.schema = Schema(name="", dtype="uint8", shape=())
        self._ready: deque[Sample | Label] = deque()
        self._turn = self._handed_out = self._safe = 0
        self._told = (0,) * len(sources)
        self._receipts = Receipts(TELL_EVERY_S, self._told)  # how much of each source stands behind so many items
        self._is_played = self._is_warned = False
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
        if not self._is_warned and self._joiner is not None and (why := self._joiner.complaint(self._handed_out)):
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
        """Of all of them together, by reason, and what joining them cost."""
        total = Counter[str]()
        for lane in self._lanes:
            total.update(lane.counters)
        if self._align_us is None:
            return total
        return {**total, **(dict.fromkeys(JOINING, 0) if self._joiner is None else self._joiner.counters)}

    @property
    def streams(self) -> Sequence[int]:
        """Of all, numbered in order; the first one alone if they are aligned."""
        return (0,) if self._joiner is not None else range(len(self._schemas))

    def schema_of(self, stream: int) -> Schema:
        """Of that stream; of all together if they are aligned."""
        return self.schema if self._joiner is not None else self._schemas[stream]

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
        behind = zip(self._lanes, self._receipts.at(n), strict=True)
        floors = [lane.source.floor_at(own) for lane, own in behind]
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
                raise EndOfSource("all sources are over" if self._joiner is None else "the first source is over")
            lane = self._next(deadline)
            if lane is not None:
                self._take(lane)
            if self._see_ends() or lane is not None:
                continue
            if self._joiner is not None:
                self._ready += self._joiner.idle()
                self._note()
            if time.monotonic() >= deadline:
                return None
        self._handed_out += 1
        item = self._ready.popleft()
        self._note()
        return item

    def _is_over(self) -> bool:
        """Whether nothing more can come."""
        return all(lane.is_over for lane in self._lanes) if self._joiner is None else self._joiner.is_over

    def _call_by_name(self) -> None:
        """Each by its own name, those that are called alike by their places, too."""
        names = [lane.source.schema.name for lane in self._lanes]
        for place, (lane, name) in enumerate(zip(self._lanes, names, strict=True)):
            lane.name = name if names.count(name) == 1 else f"{name}{place}"

    def _fit(self) -> None:
        """Settle what the samples look like. Raises IncompatibleSources."""
        if self._align_us is not None:
            room, played = self._queue_bytes // 2, self._is_played
            self._joiner = Joiner(self._lanes, self._schemas, self._align_us, most_bytes=room, is_played=played)
            self.schema = self._joiner.schema
            return
        first = self._schemas[0]
        for schema in self._schemas[1:]:
            if (schema.dtype, schema.shape) != (first.dtype, first.shape):
                raise IncompatibleSources(
                    f"{schema.name}: its samples are {schema.dtype} {list(schema.shape)}, those of {first.name} are "
                    f"{first.dtype} {list(first.shape)}",
                    hint=ONE_KIND,
                )
            for what in ("unit", "scale", "channels"):
                now, before = getattr(schema, what), getattr(first, what)
                if now and before and now != before:
                    raise IncompatibleSources(
                        f"{schema.name}: its {what} is {now}, that of {first.name} is {before}",
                        hint=ONE_KIND,
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
        if self._joiner is None:
            self._ready.append(item)
        elif isinstance(item, Sample):
            self._ready += self._joiner.take(lane, item)
        elif not self._joiner.late(item):
            self._ready.append(item)
        if not self._ready:
            self._note()

    def _see_ends(self) -> bool:
        """Have what waited for a source that is over go on; whether there was one."""
        ended = [lane for lane in self._lanes if lane.is_over and not lane.is_seen]
        for lane in ended:
            lane.is_seen = True
            if self._joiner is not None:
                self._ready += self._joiner.end(lane)
        if ended:
            self._note()
        return bool(ended)

    def _note(self) -> None:
        """Note how much of each source is behind us once the learner has all that was handed out."""
        if not self._ready:
            behind = tuple(lane.taken if self._joiner is None else self._joiner.behind(lane) for lane in self._lanes)
            self._receipts.note(self._handed_out, behind, time.monotonic())

    def _tell(self) -> None:
        """Pass on what is safe."""
        safe = self._receipts.safe(self._safe)
        if safe != self._told:
            self._told = safe
            for lane, n in zip(self._lanes, safe, strict=True):
                lane.source.acknowledge(n)


def _time_of_head(lane: Lane) -> int:
    """Labels first: they are of samples that came before."""
    return lane.head.time_us if isinstance(lane.head, Sample) else -1
