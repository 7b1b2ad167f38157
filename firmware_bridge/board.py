"""The far end of any line: what a board says becomes the samples and labels of one or more of its streams.

Bytes go in, samples and labels come out, and so does what the host should answer. Does no I/O; knows no port, no
socket and no clock: whoever has those feeds it.

Counters are of two kinds. Faults of frames count frames, whatever was in them. wire_lost, restart_lost and away count
samples that never came, by their numbers, whatever the reason; so for a board that says where it is (CTRL NEXT, BEFORE)
made = handed out + wire_lost + restart_lost + away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

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
from firmware_bridge.sequence import COUNTERS, SequenceTracker

# Kept while waiting for HELLO; a board that sent so much without one, while it was asked again and again, has none.
MAX_EARLY_BYTES = 2 << 20
IN_VAIN_SAID = 200  # more than a sender repeats of its own accord
_UNKNOWN = Schema(name="", dtype="uint8", shape=())
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

    def floor(self) -> dict[str, Any]:
        """Replay floor, for JSON."""

    def set_floor(self, state: Mapping[str, Any]) -> None:
        """Go on from a floor of before."""


class _Stream:
    """A stream that is listened to: what its samples look like, and which came."""

    def __init__(self, after: Sequence[SampleId]) -> None:
        self.schema = _UNKNOWN
        taken = [(one.boot, one.seq) for one in after]
        self.tracker = SequenceTracker(taken[-1] if taken else None, taken[:-1])
        self.gap = False  # before the next sample, known from what the board said and not from that sample's number
        self.is_over = False
        self.in_vain = 0  # samples in a row that were dropped for their numbers


class Board:
    """Streams of a board; `name` is what errors call the board.

    streams: which of the board's streams, none named: its first. after: see make_source. schema, that of the first of
    them, and schemas are known when is_known. boot: the board's present one, as far as it is known.
    ready: samples and labels to hand out. answers: what the host should send. ended: why no more will come, or None.
    said: text of the board's last LOG, or of what happened to its line. stats: what it counts itself, if it tells.
    times: its answers to TIME, for whoever asked.
    """

    def __init__(
        self, name: str, decoder: Decoder, *, streams: Sequence[int] = (), after: Sequence[SampleId] = ()
    ) -> None:
        self.is_known = False
        self.ready: deque[Sample | Label] = deque()
        self.answers: deque[Event] = deque()
        self.ended: str | None = None
        self.said = ""
        self.stats: Stats | None = None
        self.times: deque[Time] = deque()
        self.boot: int | None = after[-1].boot if after else None
        self._name, self._decoder, self._after = name, decoder, after
        self._heard: dict[int, _Stream] = {}
        self._is_told_apart = len(streams) > 1  # of one alone all of `after` is
        for stream in streams:
            self._listen_to(stream)
        self._other_streams = 0
        self._hello: Hello | None = None
        self._greeted = False
        self._announced = False  # whether the schemas are a HELLO's
        self._early: list[Event] = []
        self._early_bytes = 0

    @property
    def streams(self) -> tuple[int, ...]:
        """Those that are listened to, in the order named; none before its first is known where none was named."""
        return tuple(self._heard)

    @property
    def schemas(self) -> Mapping[int, Schema]:
        """What the samples of each look like."""
        return {stream: heard.schema for stream, heard in self._heard.items()}

    @property
    def schema(self) -> Schema:
        """What the samples of the first look like."""
        return next((heard.schema for heard in self._heard.values()), _UNKNOWN)

    @property
    def counters(self) -> Mapping[str, int]:
        """Faults of frames by reason, and what the sequence numbers tell of samples; a restart is one of them all."""
        total = dict.fromkeys(COUNTERS, 0)
        for heard in self._heard.values():
            for reason, count in heard.tracker.counters.items():
                total[reason] = max(total[reason], count) if reason == "restarts" else total[reason] + count
        return {**self._decoder.counters, **total, "other_stream": self._other_streams}

    @property
    def awaits_hello(self) -> bool:
        """Whether no HELLO came since the line is there, or since the board started anew."""
        boots = (self.boot, None if self._hello is None else self._hello.boot)
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
        """Take the schemas from the first samples, for want of a HELLO; False if a stream that is wanted sent none."""
        first: dict[int, Sample] = {}
        for event in self._early:
            if isinstance(event, Sample) and (event.stream in self._heard or not (self._heard or first)):
                first.setdefault(event.stream, event)
        if not first or not self._heard.keys() <= first.keys():
            return False
        self._know({n: Schema(f"stream {n}", one.values.dtype.name, one.values.shape) for n, one in first.items()})
        return True

    def line_broke(self) -> None:
        """What comes next comes over a new line, and what is missing until then was made while nobody listened."""
        self._decoder.cut()
        for heard in self._heard.values():
            heard.tracker.absent()
        self._greeted = False
        self.answers.clear()

    def _greet(self, hello: Hello) -> None:
        """A HELLO may be repeated; one that says something else means that samples no longer mean what they meant."""
        if not self.is_known:
            self._choose(hello)
        elif self._changed(hello) is not None:
            raise SourceLost(
                f"{self._name}: the board now announces another schema for stream {self._changed(hello)}",
                hint="was its firmware changed? start again to take the new schema",
            )
        if hello != self._hello or not self._greeted:
            self.answers.append(agreement(hello))
        self._hello, self._greeted = hello, True
        if self.boot is None:
            self.boot = hello.boot

    def _choose(self, hello: Hello) -> None:
        wanted = self.streams or (min(hello.streams),)
        for stream in wanted:
            if stream not in hello.streams:
                known = ", ".join(map(str, sorted(hello.streams)))
                raise SourceUnavailable(f"{self._name}: the board has no stream {stream}", hint=f"it has: {known}")
        self._announced = True
        self._know({stream: hello.streams[stream] for stream in wanted})

    def _changed(self, hello: Hello) -> int | None:
        """Which of our streams it says something else of; a schema taken from a sample has no names to compare."""
        for stream, before in self.schemas.items():
            now = hello.streams.get(stream)
            if now != before and (
                now is None or self._announced or (now.dtype, now.shape) != (before.dtype, before.shape)
            ):
                return stream
        return None

    def _listen_to(self, stream: int) -> _Stream:
        own = [one for one in self._after if one.stream == stream] if self._is_told_apart else self._after
        return self._heard.setdefault(stream, _Stream(own))

    def _know(self, schemas: Mapping[int, Schema]) -> None:
        for stream, schema in schemas.items():
            self._listen_to(stream).schema = schema
        self.is_known = True
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
        elif event.stream not in self._heard:
            self._other_streams += isinstance(event, (Sample, Label))
        elif isinstance(event, Sample):
            self._judge_sample(self._heard[event.stream], event)
        elif isinstance(event, Label):
            self.ready.append(event)
        elif isinstance(event, Stats):
            self.stats = event
        elif isinstance(event, Control):
            self._obey(self._heard[event.stream], event)

    def _judge_sample(self, heard: _Stream, sample: Sample) -> None:
        if sample.values.shape != heard.schema.shape or sample.values.dtype.name != heard.schema.dtype:
            self._decoder.counters["schema"] += 1
            return
        missing = heard.tracker.accept(sample.boot, sample.seq)
        if missing is None:
            heard.in_vain += 1
            if heard.in_vain == IN_VAIN_SAID:
                self.said = (
                    f"{self._name}: the last {IN_VAIN_SAID} samples carry numbers that came before: does the board "
                    f"count from 0 again under the same boot id ({sample.boot})? It must change at every start"
                )
        else:
            heard.in_vain = 0
            self.boot = sample.boot
            self.ready.append(replace(sample, gap=True) if missing or heard.gap else sample)
            heard.gap = False

    def _obey(self, heard: _Stream, control: Control) -> None:
        if heard.tracker.is_over(control.boot, control.seq):
            return  # sent again: what a boot said that is over is no news
        if control.code == CTRL_BEFORE:
            heard.gap |= heard.tracker.made_before(control.boot, control.seq) > 0
        elif control.code in (CTRL_NEXT, CTRL_END):
            heard.gap |= heard.tracker.expect(control.boot, control.seq) > 0
            self.boot = control.boot
        if control.code == CTRL_END:
            heard.is_over = True
            if all(one.is_over for one in self._heard.values()):
                self.ended = f"{self._name}: the board sent its last sample"
