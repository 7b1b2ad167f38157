"""A board behind a line that may break: the source that serial ports, TCP and UDP share.

A line that breaks is said once, and opened again and again until it is there; meanwhile nothing comes. What the board
made while it was away is counted as away, not as lost. Has no thread and no queue beyond one read's frames; knows
neither frames nor how its line is made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from firmware_bridge.auth import NO_FLOOR, raised
from firmware_bridge.board import Board
from firmware_bridge.errors import EndOfSource, SourceLost, SourceUnavailable
from firmware_bridge.frame import CTRL_SAY_HELLO, Ack, Control, Time
from firmware_bridge.receipts import Receipts
from firmware_bridge.sample import Label, Sample, SampleId, Schema
from firmware_bridge.source import SourceBase
from firmware_bridge.sources.line import Line, LineBrokenError
from firmware_bridge.timesync import ClockSync
from firmware_bridge.wire import SAMPLE

ASK_EVERY_S = 0.5  # the request for HELLO is a frame too, and may be lost
_ASK_EVERY_EVENTS = 64
_TRY_SOON_S = 0.05  # if nobody could be asked yet
# A line that is silent that long may have a board at its end that restarted and waits to be asked. Then twice as long.
SILENT_S, MOST_SILENT_S = 1.0, 4.0
RETRY_S = 0.25  # between two attempts to open a line that broke
ACK_EVERY_S = 1.0
FLOOR_EVERY_S = 0.1  # what is above it and was taken all the same may be taken once more after a restart
REPLAYS_SAID = 3  # in a row are no frame that was on its way
REPLAYS = "with a key the board's boot id must rise from start to start, and its time from frame to frame"


class BoardSource(SourceBase):
    """Samples of one or more streams of the board at the end of a line.

    stream: which of the board's streams, default its first. wait: seconds that open() waits for the board's HELLO;
    without one the schema is taken from the first sample. reconnect: seconds that a broken line is tried again, inf for
    ever, 0 not at all. after: see make_source. floor: the replay floor to go on from.
    """

    can_wait = False
    has_clock = True

    def __init__(
        self,
        line: Line,
        *,
        after: Sequence[SampleId] = (),
        stream: Sequence[int] = (),
        wait: float = 3.0,
        reconnect: float = math.inf,
        floor: Mapping[str, Any] = NO_FLOOR,
    ) -> None:
        self._line, self._wait_s, self._patience_s = line, wait, reconnect
        self._board = Board(line.name, line.decoder, streams=stream, after=after)
        self._is_open = self._is_there = self._asked = False
        self._reconnects = 0
        self._gone_at: float | None = None  # until a frame comes again
        self._there_at = self._retry_at = self._ask_at = self._ack_at = 0.0
        self._silent_s = SILENT_S
        self._handed_out = 0
        self._receipts = Receipts[SampleId | None](ACK_EVERY_S, None)
        line.decoder.set_floor(raised(floor, SAMPLE, after))
        self._floors = Receipts[Mapping[str, Any]](FLOOR_EVERY_S, line.decoder.floor())
        self._refused = 0  # frames that were no newer than others, since the last good one
        self._safe = 0  # of what was handed out; set by the learner's thread
        self._told: SampleId | None = None  # by the one that reads
        self.clock = ClockSync()
        self._clock_boot: int | None = None

    @property
    def schema(self) -> Schema:
        """What this source's samples look like."""
        return self._board.schema

    @property
    def streams(self) -> Sequence[int]:
        """Those that its samples are of, as the board numbers them."""
        return self._board.streams

    def schema_of(self, stream: int) -> Schema:
        """As the board announced it."""
        return self._board.schemas[stream]

    @property
    def counters(self) -> Mapping[str, int]:
        """Faults of the line by reason, what the sequence numbers tell, and how often the line came back."""
        return {**self._board.counters, "reconnects": self._reconnects}

    @property
    def said(self) -> str:
        """What happened last: to the line, or in the board's own words."""
        return self._board.said

    def open(self) -> None:
        """Open the line, ask the board for HELLO and learn the schema. Raises SourceUnavailable."""
        deadline = time.monotonic() + self._wait_s
        self._is_open = True
        try:
            while not self._line.connect(max(0.0, deadline - time.monotonic())):
                if time.monotonic() >= deadline:
                    raise SourceUnavailable(
                        f"{self._line.name}: no answer in {self._wait_s:g} s", hint="wait longer with ?wait=…"
                    )
            self._is_there = True
            self._wait_for_schema(time.monotonic() + self._wait_s)
        except LineBrokenError as exc:
            self.close()
            raise SourceUnavailable(f"{self._line.name}: {exc}", hint="is the board powered and running?") from exc
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the line go; a second call does nothing."""
        self._is_open = self._is_there = False
        self._line.close()

    def host_us(self, sample: Sample) -> int | None:
        """UNIX time in µs at which the sample was taken, None while that is not known, as of boards without TIME."""
        return self.clock.host_us(sample.time_us) if sample.boot == self._clock_boot else None

    def floor_at(self, n: int) -> Mapping[str, Any]:
        """As it was when these had been handed out, or up to FLOOR_EVERY_S before."""
        return self._floors.safe(n)

    def acknowledge(self, n: int) -> None:
        """Tell the board, within two seconds, that it may forget these samples."""
        self._safe = n  # the thread that reads sends it

    def read(self, timeout_s: float) -> Sample | Label | None:
        """Next sample or late label, None if none came in time, as while the line is away.

        Raises EndOfSource when the board said that it sends no more, SourceLost when the line is gone and not, or no
        longer, tried again, or when the board came back as another one.
        """
        if not self._is_open:
            raise SourceLost(f"{self._line.name}: not open")
        deadline = time.monotonic() + timeout_s
        board = self._board
        while not board.ready:
            if board.ended is not None:
                raise EndOfSource(board.ended)
            self._step(max(0.0, deadline - time.monotonic()))
            if not board.ready and board.ended is None and time.monotonic() >= deadline:
                return None
        item = board.ready.popleft()
        self._handed_out += 1
        if isinstance(item, Sample):
            self._receipts.note(self._handed_out, item.id, time.monotonic())
        if not board.ready:
            self._floors.note(self._handed_out, self._line.decoder.floor(), time.monotonic())
        return item

    def _wait_for_schema(self, deadline: float) -> None:
        board = self._board
        self._there_at = self._ask_at = time.monotonic()
        asked_at = 0
        while not board.is_known and board.is_patient and (left_s := deadline - time.monotonic()) > 0:
            self._exchange(min(left_s, max(0.0, self._ask_at - time.monotonic())))
            if board.n_early >= asked_at + _ASK_EVERY_EVENTS:  # it runs already, and its HELLO was damaged
                asked_at, self._ask_at = board.n_early, 0.0
        if not board.is_known and not board.settle():
            raise self._silent()

    def _step(self, timeout_s: float) -> None:
        """Wait for something to happen, and deal with it."""
        if not self._is_there and not self._reconnected(timeout_s):
            return
        try:
            self._exchange(timeout_s)
        except LineBrokenError as exc:
            self._gone(exc)

    def _exchange(self, timeout_s: float) -> None:
        self._speak()
        data = self._line.receive(min(timeout_s, ASK_EVERY_S))  # there may be something to say by then
        if not data:
            return
        replays = self._line.decoder.counters["replay"]
        if self._board.feed(data):
            self._refused = 0
            if self._gone_at is not None:
                self._back(self._gone_at)
        elif (more := self._line.decoder.counters["replay"] - replays) > 0:
            self._refuse(more)
        self._hear_times()
        if self._asked and not self._board.awaits_hello:
            self._silent_s = SILENT_S
            self._ask_at = time.monotonic() + SILENT_S

    def _speak(self) -> None:
        """Say what is to be said now: answers, acknowledgements, and that the board should introduce itself."""
        now = time.monotonic()
        if now >= self._ask_at:
            self._asked = self._line.send(Control(0, 0, 0, CTRL_SAY_HELLO))
            eager = self._board.awaits_hello and now - self._there_at < self._wait_s
            self._ask_at = now + (_TRY_SOON_S if not self._asked else ASK_EVERY_S if eager else self._silent_s)
            self._silent_s = min(2 * self._silent_s, MOST_SILENT_S)
        while self._board.answers:
            self._line.send(self._board.answers.popleft())
        if now >= self._ack_at:
            upto = self._receipts.safe(self._safe)
            if upto is not None and upto != self._told and self._line.send(Ack(*upto)):
                self._told = upto
            self._ack_at = now + ACK_EVERY_S
        if not self._board.awaits_hello:  # a board that says nothing of itself does not answer either
            self._ask_time()

    def _ask_time(self) -> None:
        boot, now_us = self._board.boot, time.time_ns() // 1000
        if boot != self._clock_boot:
            self.clock.forget()
            self._clock_boot = boot
        if boot is not None and self.clock.due(now_us):
            self._line.send(Time(0, boot, now_us, 0))

    def _hear_times(self) -> None:
        now_us = time.time_ns() // 1000
        while self._board.times:
            answer = self._board.times.popleft()
            self.clock.heard(answer.boot, answer.host_us, answer.board_us, now_us)

    def _gone(self, exc: LineBrokenError) -> None:
        self._line.close()
        self._is_there = False
        self._asked = False
        self._board.line_broke()
        if self._patience_s == 0:
            raise self._lost(exc) from exc.__cause__
        self._retry_at = time.monotonic() + RETRY_S
        if self._gone_at is None:
            self._gone_at = time.monotonic()
            self._board.said = f"gone: {self._line.name}: {exc}"

    def _reconnected(self, timeout_s: float) -> bool:
        now = time.monotonic()
        if now < self._retry_at:
            time.sleep(min(timeout_s, self._retry_at - now))
            return False
        try:
            self._is_there = self._line.connect(timeout_s)
        except SourceUnavailable as exc:
            self._retry_at = time.monotonic() + RETRY_S
            if self._gone_at is not None and now - self._gone_at >= self._patience_s:
                raise SourceLost(f"{exc}; tried for {self._patience_s:g} s", hint=exc.hint) from exc
        if self._is_there:
            self._there_at = self._ask_at = time.monotonic()
            self._silent_s = SILENT_S
        return self._is_there

    def _refuse(self, more: int) -> None:
        """A board that starts anew under a boot id of before would otherwise be silent for no reason that shows."""
        before, self._refused = self._refused, self._refused + more
        if before < REPLAYS_SAID <= self._refused:
            self._board.said = f"{self._line.name}: frames are refused as replays: {REPLAYS}"

    def _back(self, gone_at: float) -> None:
        """Only a frame shows that the board is there again: an open line alone may break at once."""
        self._gone_at = None
        self._reconnects += 1
        self._board.said = f"back after {time.monotonic() - gone_at:.1f} s"

    def _silent(self) -> SourceUnavailable:
        name, heard = self._line.name, self._board.heard
        if self._line.decoder.counters["replay"]:
            return SourceUnavailable(f"{name}: all its frames are older than what came before ({heard})", hint=REPLAYS)
        if heard:
            return SourceUnavailable(f"{name}: bytes came, but no frame ({heard})", hint=self._line.no_frames)
        return SourceUnavailable(
            f"{name}: nothing came in {self._wait_s:g} s",
            hint="is the board powered and its firmware running? wait longer with ?wait=…",
        )

    def _lost(self, exc: LineBrokenError) -> SourceLost:
        return SourceLost(f"{self._line.name}: the board is gone ({exc})", hint="is it still plugged in?")
