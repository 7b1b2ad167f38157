"""Samples of several lanes to joined ones: which clock they share, what has no time, and why few find each other.

The arithmetic is align.py's. Knows lanes, and neither their queues nor what is safe.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from firmware_bridge.align import Aligner
from firmware_bridge.lane import Lane
from firmware_bridge.sample import Label, Sample, Schema

FARTHEST_US: Final = 1 << 60  # from 1970, of a time that can be one
MANY: Final = 200  # samples that were not joined, before that is said
FEW: Final = (
    "most of its samples find no partner in time: name the slowest source first, or set bridge.align_ms to at least "
    "half of what lies between two samples of the slowest"
)
NO_ROOM: Final = "what waits for its partners has not enough room: raise bridge.queue_bytes"
NO_CLOCK: Final = "its samples have no time, for it answers no TIME: with ?clock=arrival it is that of arrival"


class Joiner:
    """Joins the samples of open lanes, whose streams have these schemas, within a tolerance in µs; see Aligner.

    time_us is the common clock of what is played and of the streams of one source, else host_us.
    """

    def __init__(
        self, lanes: Sequence[Lane], schemas: Sequence[Schema], tolerance_us: int, *, most_bytes: int, is_played: bool
    ) -> None:
        self._lanes, self._aligner = lanes, Aligner(schemas, tolerance_us, most_bytes=most_bytes)
        self.schema = self._aligner.schema
        self._is_one, self._is_played = len(lanes) == 1, is_played
        self._boot: int | None = None  # of the one source
        self._gap = False

    @property
    def counters(self) -> Mapping[str, int]:
        """unaligned and surplus, see Aligner; unsynced: samples whose time on the common clock is not known."""
        return {**self._aligner.counters, "unsynced": sum(lane.unsynced for lane in self._lanes)}

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come: without the first nothing can."""
        return self._lanes[0].is_over and self._aligner.oldest(0) is None

    def take(self, lane: Lane, sample: Sample) -> list[Sample]:
        """Joined samples that this one completes; its stream is numbered among all."""
        if self._is_one and self._boot not in (None, sample.boot):
            self._aligner.restart()
        self._boot = sample.boot
        time_us = sample.time_us if self._is_one or self._is_played else sample.host_us
        if time_us is None or abs(time_us) > FARTHEST_US:
            lane.unsynced += 1
            self._gap |= sample.stream == 0
            return []
        if sample.stream == 0 and self._gap:
            sample, self._gap = replace(sample, gap=True), False
        self._aligner.push(sample.stream, sample, time_us, lane.taken)
        return self._aligner.joined()

    def late(self, label: Label) -> bool:
        """Attach a label to its sample while that waits; False if it has left."""
        return self._aligner.late(label)

    def end(self, lane: Lane) -> list[Sample]:
        """Joined samples that are complete now that nothing more comes of that lane."""
        for place in range(len(lane.source.streams)):
            self._aligner.end(lane.first + place)
        return self._aligner.joined()

    def idle(self) -> list[Sample]:
        """Joined samples that are complete though nobody sends: where all have the time of this machine, it passes."""
        if self._is_one or self._is_played:
            return []
        self._aligner.now(time.time_ns() // 1000)
        return self._aligner.joined()

    def behind(self, lane: Lane) -> int:
        """How many of a lane's items nothing waits for any more."""
        numbers = [self._aligner.oldest(lane.first + place) for place in range(len(lane.source.streams))]
        return min((number - 1 for number in numbers if number is not None), default=lane.taken)

    def complaint(self, n_joined: int) -> str:
        """Why most samples are not joined, so that hardly a window can fill; "" if most are."""
        for lane in self._lanes:
            if lane.unsynced >= MANY and lane.unsynced > n_joined:
                return f"{lane.name}: {NO_CLOCK}"
        first, unaligned = self._lanes[0].name, self._aligner.counters["unaligned"]
        if self._aligner.crowded >= MANY:
            return f"{first}: {NO_ROOM}"
        return f"{first}: {FEW}" if unaligned >= MANY and unaligned > n_joined else ""
