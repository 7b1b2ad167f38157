"""What every line to a board must be able to do, and what breaks. Knows no board.

A line is opened, and opened again after it broke, by the thread that reads it; nothing in it may wait longer than it
is told to.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from firmware_bridge.auth import Key
from firmware_bridge.board import Decoder
from firmware_bridge.frame import CTRL_SAY_HELLO, Control, Event


class LineBrokenError(Exception):
    """The far end is gone; the cause is the system's error that told it, if one did. Never leaves sources/."""


class Signature:
    """How what we say is signed: the arguments that every encoder takes for it.

    The time rises from frame to frame and, unlike a monotonic clock, over a restart of this machine, too: a board takes
    nothing that is not newer than what it heard.
    """

    def __init__(self, key: Key | None) -> None:
        self._key = key
        self._last_us = 0

    def of(self, message: Event) -> dict[str, Any]:
        """Arguments for this message; whoever has no key yet, or another one, may ask for HELLO all the same."""
        self._last_us = max(self._last_us + 1, time.time_ns() // 1000)
        asks = isinstance(message, Control) and message.code == CTRL_SAY_HELLO
        return {"time_us": self._last_us, "key": None if asks else self._key}


class Line(Protocol):
    """Bytes to and from a board."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def decoder(self) -> Decoder:
        """What understands the bytes that it receives."""

    @property
    def no_frames(self) -> str:
        """What to ask when bytes come and no frames."""

    def connect(self, timeout_s: float) -> bool:
        """Open the line, or go on doing so; False if that takes longer. Raises SourceUnavailable if it cannot be."""

    def receive(self, timeout_s: float) -> bytes:
        """Bytes that came, none if none did in time. Raises LineBrokenError."""

    def send(self, message: Event) -> bool:
        """Say something to the board; False if the line does not take it now. Raises LineBrokenError."""

    def close(self) -> None:
        """Let the line go; a second call does nothing."""
