"""Everything the bridge raises; each error says what is wrong, and `hint` says what to do.

BridgeError
├── BadSourceUrl        the source's URL: unknown scheme or option, a value outside its rule
├── SourceUnavailable   the source cannot be opened: missing, no permission, busy, silent
├── BadRecording        a recording that cannot be played as it is
├── IncompatibleSources several sources whose samples cannot be learnt together
├── SourceLost          an open source vanished: cable pulled, board reset to another firmware, process dead
└── EndOfSource         a finite source is over; every sample of it was handed out

The names say what happened (N818 would have "Error" behind each).
"""

from __future__ import annotations


class BridgeError(Exception):
    """Base of all errors of the bridge; `hint` is one line on what to do, or empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class BadSourceUrl(BridgeError):  # noqa: N818
    """Raised by make_source, before anything is opened."""


class SourceUnavailable(BridgeError):  # noqa: N818
    """Raised by open() of a source that is missing, forbidden, busy or silent."""


class BadRecording(BridgeError):  # noqa: N818
    """Raised by open() of a recording; the message names file, array, value and rule."""


class IncompatibleSources(BridgeError):  # noqa: N818
    """Raised by open() of several sources; the message names the one that does not fit, and the rule."""


class SourceLost(BridgeError):  # noqa: N818
    """Raised by read() when a device that was open is gone."""


class EndOfSource(BridgeError):  # noqa: N818
    """Raised by read() behind the last sample of a finite source, then again at every read()."""
