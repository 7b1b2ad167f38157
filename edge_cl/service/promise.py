"""Whether a time limit is kept, counted in seconds. Numbers only: no clock, and nothing of what was timed."""

from __future__ import annotations

from collections import deque
from typing import Final

SECONDS: Final = 100  # over which a limit is said to be kept or not: one of them is one in a hundred
STARTING: Final = 3  # first events of a process, in which libraries are loaded: they say nothing of what follows


class Promise:
    """A limit on the 99th percentile: in a second that keeps it at most one event in a hundred takes longer.

    It is kept while at most one second in a hundred does not, among the last ones in which anything happened; fewer
    than a hundred events, or seconds, have none to spare.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.seconds = self.late_seconds = 0  # that are over
        self._starting = STARTING
        self.late = 0  # events
        self.late_at_work = 0  # those of them whose own work took longer than the limit; the others had to wait
        self._over: deque[bool] = deque(maxlen=SECONDS)
        self._second = 0
        self._events = self._late = 0  # of the second under way

    def add(self, at_s: float, took_s: float, worked_s: float = 0.0) -> None:
        """Count one event that ended at `at_s` on a steady clock, after `took_s`, `worked_s` of it with the processor.

        The first STARTING ones do not count.
        """
        if self._starting:
            self._starting -= 1
            return
        if int(at_s) != self._second:
            self._close()
            self._second = int(at_s)
        late = took_s > self.limit_s
        self._events += 1
        self._late += late
        self.late += late
        self.late_at_work += late and worked_s > self.limit_s

    @property
    def recent(self) -> tuple[int, int]:
        """Late seconds among the last ones, and how many those are; the one under way is among them."""
        return sum(self._over) + self._is_over, len(self._over) + (self._events > 0)

    @property
    def kept(self) -> bool:
        """Whether the limit is kept."""
        late, seconds = self.recent
        return late * 100 <= seconds

    @property
    def _is_over(self) -> bool:
        return self._late * 100 > self._events

    def _close(self) -> None:
        if self._events:
            self.seconds += 1
            self.late_seconds += self._is_over
            self._over.append(self._is_over)
        self._events = self._late = 0
