"""A board's firmware as a loop: makes samples at its pace, puts frames into its FIFO, restarts, and keeps account.

It is asked once before it begins, as real boards that talk to a host are. With a rate it behaves as hardware does: it
never waits, and what does not fit its FIFO is dropped (seq tells). Without one it waits for the line. Knows its line as
bytes only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from firmware_bridge.auth import board_key
from firmware_bridge.frame import (
    CTRL_AGREE,
    CTRL_BEFORE,
    CTRL_END,
    CTRL_NEXT,
    CTRL_SAY_HELLO,
    Ack,
    Control,
    Event,
    Stats,
    Time,
    encode,
    schema_seed,
)
from firmware_bridge.hello import Hello
from firmware_bridge.sample import Label, Sample, Schema
from tools.fakes.far_ends import FarEnd
from tools.fakes.faults import BadLine

_FIFO_BYTES = 32768
_ACCOUNT_EVERY = 100  # samples between two times that the board says where it is
_HELLO_EVERY = 5000
_SAY_AGAIN_S = 0.2  # the end, or to nobody yet, HELLO
_LOOK_S = 0.05


@dataclass(frozen=True)
class Habits:
    """How a board behaves; see ../fake_board.py for each."""

    samples: int
    rate_hz: float | None = None
    burst: int = 1
    reboot_every: int = 0
    drift_ppm: float = 0.0
    silence_s: float = 0.0
    label_delay: int = 0
    linger_s: float = 10.0
    first_boot: int = 1
    secret: bytes | None = None


@dataclass
class Account:
    """What became of it. in_flight: samples that never left the FIFO."""

    generated: int = 0
    sent: int = 0
    dropped: int = 0
    in_flight: int = 0
    labels: int = 0
    boots: int = 1
    acknowledged: int = 0


class StreamingBoard:
    """One board on one line; source: samples of all its streams in the order of their times, numbered by `schemas`.

    made: samples of each stream, of all boots together.
    """

    def __init__(
        self, end: FarEnd, schemas: Schema | Sequence[Schema], source: Iterator[Sample], habits: Habits, bad: BadLine
    ) -> None:
        self.account = Account()
        self._end, self._source, self._habits, self._bad = end, source, habits, bad
        self._key = None if habits.secret is None else board_key(habits.secret)
        self._said_us = 0
        streams = dict(enumerate([schemas] if isinstance(schemas, Schema) else schemas))
        self._hello = Hello("fake board", "tools", habits.first_boot, streams)
        self._seed = 0
        self._before, self._next = dict.fromkeys(streams, 0), dict.fromkeys(streams, 0)
        self._fifo: deque[tuple[bytes, bool]] = deque()  # frame, and whether it holds a sample
        self._fifo_bytes = 0
        self._halves = b""  # what the line did not take yet of the frame that is on it
        self._half_holds = False
        self._overrun = self._asked = False
        self._late: deque[tuple[int, Label]] = deque()
        self._born = time.monotonic()
        self._absent_since = time.monotonic()
        self.is_stopped = False

    @property
    def made(self) -> dict[int, int]:
        """How many samples it made of each stream."""
        return {stream: before + self._next[stream] for stream, before in self._before.items()}

    def stop(self) -> None:
        """End `run` from another thread, in the middle of whatever it does."""
        self.is_stopped = True

    def run(self) -> None:
        """Make all samples, then say so until the host hangs up; ends sooner if nobody is there for too long."""
        if not self._end.hears:
            self._asked, self._born = True, time.monotonic()
            self._introduce()
        while not self._asked:
            if not self._end.is_stream:
                self._put(self._hello)
            if not self._look(_SAY_AGAIN_S):
                return
        started = self._born
        for made, sample in zip(range(self._habits.samples), self._source, strict=False):
            if not self._wait_until_due(started, made):
                break
            self._make(sample)
        self._finish()

    def _wait_until_due(self, started: float, made: int) -> bool:
        """Wait for the next sample's time; False if nobody is there any more."""
        habits = self._habits
        silent_s = habits.silence_s if made >= habits.samples // 2 else 0.0
        if made == habits.samples // 2 and silent_s and not self._rest(time.monotonic() + silent_s):
            return False
        if habits.rate_hz is None:
            while self._fifo_bytes >= _FIFO_BYTES // 2:
                if not self._look(_LOOK_S, for_room=True):
                    return False
            return made % 64 != 0 or self._look(0.0)
        if made % habits.burst:
            return True
        return self._rest(started + silent_s + made / habits.rate_hz)

    def _rest(self, until: float) -> bool:
        while (left_s := until - time.monotonic()) > 0.0005:
            if not self._look(min(left_s, _LOOK_S), for_room=bool(self._fifo)):
                return False
        return True

    def _make(self, sample: Sample) -> None:
        habits, account = self._habits, self.account
        if habits.reboot_every and sum(self._next.values()) >= habits.reboot_every:
            self._reboot()
        drifted = int(sample.time_us * (1 + habits.drift_ppm / 1e6))
        place = self._next[sample.stream]
        sample = replace(sample, boot=self._hello.boot, seq=place, time_us=drifted, gap=self._overrun)
        self._next[sample.stream] += 1
        account.generated += 1
        if habits.label_delay and sample.label is not None:
            late = Label(sample.stream, sample.boot, sample.seq, sample.label)
            self._late.append((account.generated + habits.label_delay, late))
            sample = replace(sample, label=None)
        account.labels += sample.label is not None
        self._overrun = not self._put(sample)
        account.dropped += self._overrun
        self._send_late_labels()
        n_made = sum(self._next.values())
        if n_made % _ACCOUNT_EVERY == 0:
            self._say_where()
        if n_made % _HELLO_EVERY == 0:
            self._put(self._hello)
        self._push()

    def _send_late_labels(self, *, all_of_them: bool = False) -> None:
        while self._late and (all_of_them or self._late[0][0] <= self.account.generated):
            self.account.labels += self._put(self._late.popleft()[1])

    def _reboot(self) -> None:
        """What is in the FIFO, and the rest of the frame that is on the line, is gone."""
        lost = sum(holds for _, holds in self._fifo) + self._half_holds
        self.account.dropped += lost
        self.account.boots += 1
        self._fifo.clear()
        self._fifo_bytes, self._halves, self._half_holds = 0, b"", False
        self._before, self._next = self.made, dict.fromkeys(self._next, 0)
        self._hello = replace(self._hello, boot=(self._hello.boot + 1) & 0xFFFF)
        self._seed, self._overrun = 0, False
        self._introduce()

    def _introduce(self) -> None:
        if self._end.encode is encode:
            self._append(b"\0", holds=False)  # ends whatever was on the line before
        self._put(self._hello)
        for _ in range(2):
            self._say_where()

    def _say_where(self) -> None:
        account, boot = self.account, self._hello.boot
        for stream, place in self._next.items():
            self._put(Control(stream, boot, place, CTRL_NEXT))
            self._put(Control(stream, boot, self._before[stream], CTRL_BEFORE))
        self._said_us = max(self._said_us + 1, self._clock_us())
        self._put(Stats(0, boot, self._said_us, account.generated, account.dropped, account.sent))

    def _finish(self) -> None:
        self._send_late_labels(all_of_them=True)
        ended, has_said_so = time.monotonic(), False
        while self._end.is_there and time.monotonic() - ended < self._habits.linger_s:
            if not self._fifo and not self._halves:
                self._say_where()
                for stream, place in self._next.items():
                    self._put(Control(stream, self._hello.boot, place, CTRL_END))
                has_said_so = True
            if not self._look(_SAY_AGAIN_S):
                break
            if has_said_so and not (self._end.hears or self._fifo or self._halves):
                break  # nobody will be heard to hang up
        self.account.in_flight = sum(holds for _, holds in self._fifo) + self._half_holds

    def _look(self, timeout_s: float, *, for_room: bool = False) -> bool:
        """Write what the line takes, hear what the host says; False if stopped, or nobody is there for too long."""
        if self.is_stopped:
            return False
        self._push()
        self._end.wait(timeout_s, for_room=for_room and self._end.is_there)
        for event in self._end.decoder.feed(data) if (data := self._end.receive()) else []:
            self._obey(event)
        self._push()
        now = time.monotonic()
        if self._end.is_there:
            self._absent_since = now
        elif not self._asked or now - self._absent_since < self._habits.linger_s:
            time.sleep(min(timeout_s, 0.01))
        else:
            return False
        return True

    def _obey(self, event: Event) -> None:
        if isinstance(event, Control) and event.code == CTRL_SAY_HELLO:
            if not self._asked:
                self._asked, self._born = True, time.monotonic()
            self._introduce()
        elif isinstance(event, Control) and event.code == CTRL_AGREE and event.seq == schema_seed(self._hello):
            self._seed = event.seq
        elif isinstance(event, Time):
            self._put(replace(event, boot=self._hello.boot, board_us=self._clock_us()))
        elif isinstance(event, Ack):
            self.account.acknowledged += 1

    def _clock_us(self) -> int:
        return int((time.monotonic() - self._born) * (1e6 + self._habits.drift_ppm))

    def _put(self, message: Event) -> bool:
        """Put it into the FIFO; False if that is full, as it can only be of a board that does not wait."""
        self._said_us = max(self._said_us + 1, self._clock_us())  # with a key it must rise
        frame = self._end.encode(message, time_us=self._said_us, seed=self._seed, key=self._key)
        return self._append(frame, holds=isinstance(message, Sample))

    def _append(self, frame: bytes, *, holds: bool) -> bool:
        waits = self._habits.rate_hz is None and holds
        if not waits and self._fifo_bytes + len(frame) > _FIFO_BYTES:
            return False
        self._fifo.append((frame, holds))
        self._fifo_bytes += len(frame)
        return True

    def _push(self) -> None:
        while self._end.is_there:
            if not self._halves:
                if not self._fifo:
                    return
                frame, self._half_holds = self._fifo.popleft()
                self._fifo_bytes -= len(frame)
                self._halves = self._bad.pass_on(frame)
            if self._halves:
                written = self._end.write(self._halves)
                self._halves = self._halves[written:]
                if self._halves:
                    return
            self.account.sent += self._half_holds
            self._half_holds = False

    def told(self) -> dict[str, int]:
        """The account, and what the line did."""
        return {**asdict(self.account), "bits_flipped": self._bad.flipped, "bytes_dropped": self._bad.dropped}
