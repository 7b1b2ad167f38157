"""The far end of any line: what a board says becomes the samples and labels of one of its streams.

Bytes go in, samples and labels come out, and so does what the host should answer. Does no I/O; knows no port, no
socket and no clock: whoever has those feeds it.

Counters are of two kinds. Faults of frames count frames, whatever was in them. wire_lost, restart_lost and away count
samples that never came, by their numbers, whatever the reason; so for a board that says where it is (CTRL NEXT, BEFORE)
made = handed out + wire_lost + restart_lost + away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from firmware_bridge.errors import SourceLost, SourceUnavailable
from firmware_bridge.frame import (
    CTRL_BEFORE,
    CTRL_END,
    CTRL_NEXT,
    Control,
    Event,
    Log,
    Stats,
    Time,
    agreement,
)
from firmware_bridge.hello import Hello
from firmware_bridge.sample import Label, Sample, SampleId, Schema
from firmware_bridge.sequence import SequenceTracker

# Kept while waiting for HELLO; a board that sent so much without one, while it was asked again and again, has none.
MAX_EARLY_BYTES = 2 << 20
_EVENT_BYTES = 512  # what CPython spends on an event beside its values


class Decoder(Protocol):
    """What a board needs of a decoder of any framing; see frame.FrameDecoder."""

    counters: dict[str, int]

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the frame that has not ended yet."""

    def feed(self, data: bytes) -> list[Event]:
        """Events that became complete with these bytes."""

    def cut(self) -> None:
        """The line broke: what comes next begins a frame."""


class Board:
    """One stream of a board; `name` is what errors call the board.

    stream: which of the board's streams, None its first. after: see make_source. schema is known when is_known.
    ready: samples and labels to hand out. answers: what the host should send. ended: why no more will come, or None.
    said: text of the board's last LOG, or of what happened to its line. stats: what it counts itself, if it tells.
    times: its answers to TIME, for whoever asked.
    """

    def __init__(
        self, name: str, decoder: Decoder, *, stream: int | None = None, after: SampleId | None = None
    ) -> None:
        self.schema = Schema(name="", dtype="uint8", shape=())
        self.is_known = False
        self.ready: deque[Sample | Label] = deque()
        self.answers: deque[Event] = deque()
        self.ended: str | None = None
        self.said = ""
        self.stats: Stats | None = None
        self.times: deque[Time] = deque()
        self.stream = stream
        self._name, self._decoder = name, decoder
        self._tracker = SequenceTracker(None if after is None else (after.boot, after.seq))
        self._other_streams = 0
        self._gap = False  # before the next sample, known from what the board said and not from that sample's number
        self._hello: Hello | None = None
        self._greeted = False
        self._announced = False  # whether the schema is a HELLO's
        self._early: list[Event] = []
        self._early_bytes = 0

    @property
    def counters(self) -> Mapping[str, int]:
        """Faults of frames by reason, and what the sequence numbers tell of samples."""
        return {**self._decoder.counters, **self._tracker.counters, "other_stream": self._other_streams}

    @property
    def boot(self) -> int | None:
        """The board's present boot, as far as it is known."""
        return self._hello.boot if self._tracker.boot is None and self._hello is not None else self._tracker.boot

    @property
    def awaits_hello(self) -> bool:
        """Whether no HELLO came since the line is there, or since the board started anew."""
        boots = (self._tracker.boot, None if self._hello is None else self._hello.boot)
        return not self._greeted or (None not in boots and boots[0] != boots[1])

    @property
    def is_patient(self) -> bool:
        """Whether so much came without a HELLO that none will come."""
        return self._early_bytes < MAX_EARLY_BYTES

    @property
    def n_early(self) -> int:
        """Events kept while waiting for HELLO."""
        return len(self._early)

    @property
    def heard(self) -> str:
        """What came so far that is no frame, in words, empty if nothing."""
        faults = ", ".join(f"{count} {reason}" for reason, count in self._decoder.counters.items() if count)
        return faults or ("none ended" if self._decoder.buffered_bytes else "")

    def feed(self, data: bytes) -> bool:
        """Take bytes from the line; True if a frame was complete.

        Raises SourceUnavailable if the board has no such stream, SourceLost if it announces another schema than before.
        """
        events = self._decoder.feed(data)
        for event in events:
            self.take(event)
        return bool(events)

    def take(self, event: Event) -> None:
        """Take what the board said. Raises as feed does."""
        if isinstance(event, Hello):
            self._greet(event)
        elif self.is_known:
            self._judge(event)
        else:
            self._early.append(event)
            self._early_bytes += _EVENT_BYTES + (event.values.nbytes if isinstance(event, Sample) else 0)

    def settle(self) -> bool:
        """Take the schema from the first sample, for want of a HELLO; False if none came."""
        for event in self._early:
            if isinstance(event, Sample) and self.stream in (None, event.stream):
                schema = Schema(f"stream {event.stream}", event.values.dtype.name, event.values.shape)
                self._know(event.stream, schema)
                return True
        return False

    def line_broke(self) -> None:
        """What comes next comes over a new line, and what is missing until then was made while nobody listened."""
        self._decoder.cut()
        self._tracker.absent()
        self._greeted = False
        self.answers.clear()

    def _greet(self, hello: Hello) -> None:
        """A HELLO may be repeated; one that says something else means that samples no longer mean what they meant."""
        if not self.is_known:
            self._choose(hello)
        elif not self._is_as_before(hello):
            raise SourceLost(
                f"{self._name}: the board now announces another schema for stream {self.stream}",
                hint="was its firmware changed? start again to take the new schema",
            )
        if hello != self._hello or not self._greeted:
            self.answers.append(agreement(hello))
        self._hello, self._greeted = hello, True

    def _choose(self, hello: Hello) -> None:
        stream = min(hello.streams) if self.stream is None else self.stream
        if stream not in hello.streams:
            known = ", ".join(map(str, sorted(hello.streams)))
            raise SourceUnavailable(f"{self._name}: the board has no stream {stream}", hint=f"it has: {known}")
        self._announced = True
        self._know(stream, hello.streams[stream])

    def _is_as_before(self, hello: Hello) -> bool:
        """Whether it says the same of our stream; a schema taken from a sample has no names to compare."""
        now = hello.streams.get(-1 if self.stream is None else self.stream)
        if now is None or self._announced:
            return now == self.schema
        return (now.dtype, now.shape) == (self.schema.dtype, self.schema.shape)

    def _know(self, stream: int, schema: Schema) -> None:
        self.stream, self.schema, self.is_known = stream, schema, True
        early, self._early = self._early, []
        for event in early:
            self._judge(event)

    def _judge(self, event: Event) -> None:
        if isinstance(event, Hello):
            return
        if isinstance(event, Log):
            self.said = event.text
        elif isinstance(event, Time):
            self.times.append(event)
        elif event.stream != self.stream:
            self._other_streams += isinstance(event, (Sample, Label))
        elif isinstance(event, Sample):
            self._judge_sample(event)
        elif isinstance(event, Label):
            self.ready.append(event)
        elif isinstance(event, Stats):
            self.stats = event
        elif isinstance(event, Control):
            self._obey(event)

    def _judge_sample(self, sample: Sample) -> None:
        if sample.values.shape != self.schema.shape or sample.values.dtype.name != self.schema.dtype:
            self._decoder.counters["schema"] += 1
            return
        missing = self._tracker.accept(sample.boot, sample.seq)
        if missing is not None:
            self.ready.append(replace(sample, gap=True) if missing or self._gap else sample)
            self._gap = False

    def _obey(self, control: Control) -> None:
        if control.code == CTRL_BEFORE:
            self._gap |= self._tracker.made_before(control.boot, control.seq) > 0
        elif control.code in (CTRL_NEXT, CTRL_END):
            self._gap |= self._tracker.expect(control.boot, control.seq) > 0
        if control.code == CTRL_END:
            self.ended = f"{self._name}: the board sent its last sample"
