"""A board's clock in the host's time, by questions and answers; arithmetic only, the clocks are the caller's.

    offset = board_us − (asked_us + heard_us) / 2        the line's delays cancel where they are the same both ways
    host   = host₀ + (t_us − board₀) · slope             of a line through the offsets of the last rounds of questions

The answer with the lowest round trip of eight counts: what waited in a queue, waited on one way only (MAVLink, NTP). It
is wrong by half its round trip at most. Once a minute it is asked again, and the slope, which is 1 + drift, refitted
over the last ten. docs/WIRE.md says what goes over the line; this file knows integers only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

QUESTIONS = 8  # of one round
QUESTION_EVERY_US = 100_000
ROUND_EVERY_US = 60_000_000
ANSWER_WITHIN_US = 1_000_000  # what takes longer says nothing about a clock
_ROUNDS_KEPT = 10
_MAX_DRIFT = 1e-3  # 1,000 ppm: quartz has 100, an RC oscillator that is off by more is no clock


class _Round(NamedTuple):
    """The best answer of one round: board_us was host_us, give or take half of round_trip_us."""

    board_us: int
    host_us: int
    round_trip_us: int


@dataclass(frozen=True, slots=True)
class _Line:
    """host = host_us + (t_us - board_us) * slope."""

    board_us: int
    host_us: int
    slope: float

    def host(self, t_us: int) -> int:
        ahead = t_us - self.board_us
        return self.host_us + ahead + round(ahead * (self.slope - 1))


class ClockSync:
    """Host time of one board's t_us; unsynced until its first answer, and after a restart until the next."""

    def __init__(self) -> None:
        self._boot: int | None = None
        self._rounds: deque[_Round] = deque(maxlen=_ROUNDS_KEPT)
        self._asked: list[int] = []
        self.forget()

    def forget(self) -> None:
        """The board restarted and its clock began anew: unsynced, to be asked at once."""
        self._line: _Line | None = None
        self._best: _Round | None = None
        self._rounds.clear()
        self._asked.clear()
        self._ask_at_us = 0

    @property
    def synced(self) -> bool:
        """Whether host_us has an answer."""
        return self._line is not None

    @property
    def drift_ppm(self) -> float:
        """By how many millionths the board's clock is fast; 0 before the second round."""
        return 0.0 if self._line is None else (1 / self._line.slope - 1) * 1e6

    @property
    def uncertainty_us(self) -> int | None:
        """Half the lowest round trip of the last round; None while unsynced."""
        best = self._rounds[-1] if self._rounds else self._best
        return None if best is None else best.round_trip_us // 2

    def host_us(self, t_us: int) -> int | None:
        """Host time of the board's t_us, None while unsynced."""
        line = self._line  # another thread may ask while this one forgets
        return None if line is None else line.host(t_us)

    def due(self, now_us: int) -> bool:
        """Whether to ask now; if so it counts as asked, with now_us as the question's host_us."""
        if now_us < self._ask_at_us:
            return False
        if len(self._asked) == QUESTIONS:
            self._ask_at_us = self._asked[0] + ROUND_EVERY_US
            self._finish_round()
            if now_us < self._ask_at_us:
                return False
        self._asked.append(now_us)
        self._ask_at_us = now_us + (QUESTION_EVERY_US if len(self._asked) < QUESTIONS else ANSWER_WITHIN_US)
        return True

    def heard(self, boot: int, asked_us: int, board_us: int, now_us: int) -> None:
        """Take an answer: its host_us and board_us, and when it came; one that nobody asked for is passed over."""
        round_trip_us = now_us - asked_us
        if asked_us not in self._asked or not 0 <= round_trip_us <= ANSWER_WITHIN_US:
            return
        if boot != self._boot:
            self._boot, self._line, self._best = boot, None, None
            self._rounds.clear()
        if self._best is None or round_trip_us < self._best.round_trip_us:
            self._best = _Round(board_us, asked_us + round_trip_us // 2, round_trip_us)
            if not self._rounds:  # better than nothing, until the round is over
                self._line = _Line(self._best.board_us, self._best.host_us, 1.0)

    def _finish_round(self) -> None:
        best, self._best = self._best, None
        self._asked.clear()
        if best is None:  # nobody answered: the line of before goes on
            return
        if self._rounds and self._jumped(best):
            self._rounds.clear()
        self._rounds.append(best)
        self._line = _fit(list(self._rounds))

    def _jumped(self, new: _Round) -> bool:
        """Whether one of the clocks was set: more apart than round trips and drift can tell."""
        last = self._rounds[-1]
        expected_us = last.host_us + new.board_us - last.board_us
        allowed_us = new.round_trip_us + last.round_trip_us + _MAX_DRIFT * abs(new.host_us - last.host_us)
        return abs(new.host_us - expected_us) > allowed_us


def _fit(rounds: list[_Round]) -> _Line:
    """Least squares through the rounds whose round trips are not much above the lowest, newest as the origin."""
    newest = rounds[-1]
    good_us = 2 * min(one.round_trip_us for one in rounds) + 100
    points = [
        (float(one.board_us - newest.board_us), float(one.host_us - newest.host_us - one.board_us + newest.board_us))
        for one in rounds
        if one.round_trip_us <= good_us
    ]
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    drift = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    return _Line(newest.board_us, newest.host_us + round(mean_y - drift * mean_x), 1 + drift)
