"""What had been handed out by when, for whoever is told later how much of it is safe.

Marks are a while apart, and of very many every other one goes, so that one that never says anything costs kilobytes;
what is said is rounded down to the mark before. Knows no clock and no sample.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final, Generic, TypeVar

What = TypeVar("What")

MOST_MARKS: Final = 1024


class Receipts(Generic[What]):
    """`safe(n)` is the newest `what` noted with at most n items handed out, `first` before any; marks every_s apart.

    The newest mark moves on with each note until it is old enough to stay, so the last one noted is never missing.
    """

    def __init__(self, every_s: float, first: What) -> None:
        self._every_s = every_s
        self._marks: deque[tuple[int, What]] = deque()
        self._begun_s = 0.0  # when the newest mark was
        self._safe = first
        self._lock = threading.Lock()  # who hands out is one thread, who is told another

    def note(self, n: int, what: What, now_s: float) -> None:
        """`what` is what stands behind the first n items."""
        with self._lock:
            if self._marks and now_s - self._begun_s < self._every_s:
                self._marks[-1] = (n, what)
                return
            if len(self._marks) == MOST_MARKS:
                self._marks = deque(list(self._marks)[::2])
            self._marks.append((n, what))
            self._begun_s = now_s

    def at(self, n: int) -> What:
        """What stands behind the first n items, which need not be safe."""
        with self._lock:
            return next((what for noted, what in reversed(self._marks) if noted <= n), self._safe)

    def safe(self, n: int) -> What:
        """What stands behind the items of which the first n are safe: nobody will ask for less again."""
        with self._lock:
            while self._marks and self._marks[0][0] <= n:
                self._safe = self._marks.popleft()[1]
            return self._safe
