"""One of several sources: behind its own inlet, with the item that comes next and its clock. Knows no other source."""

from __future__ import annotations

import time
from collections.abc import Mapping

from firmware_bridge.errors import EndOfSource
from firmware_bridge.inlet import Inlet
from firmware_bridge.sample import Label, Sample
from firmware_bridge.source import Source


class Lane:
    """A source, and what there is to know of it beside the others.

    first: number of its first stream among all. taken: how many of its items were taken, with those left aside by its
    inlet. head: the item that comes next. unsynced: samples whose time nobody knew. clock: one of CLOCKS, None: the
    board's if it has one, else on arrival.
    """

    def __init__(self, source: Source, clock: str | None) -> None:
        self.source = source
        self._clock = clock or ("board" if source.has_clock else "arrival")
        self.inlet: Inlet | None = None
        self.head: Sample | Label | None = None
        self.is_over = self.is_seen = False
        self.first = self.taken = self.unsynced = 0
        self.name = ""
        self._said = ("", "")  # of the source, and of its queue

    @property
    def is_played(self) -> bool:
        """Whether others may wait for it; a broker can wait, but its device may be silent for ever."""
        return self.source.can_wait and not self.source.needs_acknowledgement

    @property
    def counters(self) -> Mapping[str, int]:
        """Of the source and of its queue."""
        return {**self.source.counters, "queue_oldest": 0} if self.inlet is None else self.inlet.counters

    def news(self) -> list[str]:
        """What has happened to the source or its queue since this was asked last."""
        queue = "" if self.inlet is None or self.is_played else self.inlet.said
        before, self._said = self._said, (self.source.said, queue)
        return [now for now, then in zip(self._said, before, strict=True) if now != then]

    @property
    def has_news(self) -> bool:
        """Whether look would find something, or raise, at once."""
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
