"""What a full queue does, in words with numbers: that reading is paused or the oldest give way, and that this is over.

Said once it has lasted SAID_S, and over once it has not happened for as long, so that a queue that is full now and then
says nothing. Knows no queue and no clock (the caller says what time it is).
"""

from __future__ import annotations

from typing import Final

SAID_S: Final = 1.0


class Pressure:
    """Of a queue of so many bytes; `said(now_s)` is the latest there is to say."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._since_s: float | None = None
        self._latest_s = 0.0
        self._is_waiting = self._is_told = False
        self._dropped = self._queued_bytes = 0
        self._said = ""

    def wait(self, now_s: float, queued_bytes: int) -> None:
        """The reader waits for room from now on."""
        self._press(now_s, queued_bytes)
        self._is_waiting = True

    def go_on(self, now_s: float) -> None:
        """The reader waits no more."""
        self._is_waiting, self._latest_s = False, now_s

    def drop(self, now_s: float, queued_bytes: int) -> None:
        """A sample gave way to another one."""
        self._press(now_s, queued_bytes)
        self._dropped += 1

    def said(self, now_s: float) -> str:
        """The latest event in words, "" before the first."""
        if self._since_s is None:
            return self._said
        if not self._is_waiting and now_s - self._latest_s > SAID_S:
            if self._is_told:
                lasted = f"after {self._latest_s - self._since_s:.1f} s"
                gone = f"{self._dropped:,} samples gave way"
                self._said = f"the queue has room again {lasted}: {gone if self._dropped else 'nothing was lost'}"
            self._since_s, self._is_told, self._dropped = None, False, 0
        elif not self._is_told and now_s - self._since_s > SAID_S:
            self._is_told = True
            does = "the oldest samples give way" if self._dropped else "reading is paused"
            self._said = f"the queue is full ({self._queued_bytes:,} of {self._capacity_bytes:,} bytes): {does}"
        return self._said

    def _press(self, now_s: float, queued_bytes: int) -> None:
        if self._since_s is None or (not self._is_waiting and now_s - self._latest_s > SAID_S):
            self.said(now_s)
            self._since_s = now_s
        self._latest_s, self._queued_bytes = now_s, queued_bytes
