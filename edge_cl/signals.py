"""What the operating system asks of the daemon, as two flags. Imports nothing heavy: it is installed before torch is.

SIGINT and SIGTERM ask it to stop; a second one ends the process at once. SIGUSR1 asks for a consolidation.
"""

from __future__ import annotations

import signal
from types import FrameType


class Signals:
    """`stop` and `consolidate` become True when asked for."""

    def __init__(self) -> None:
        self.stop = False
        self.consolidate = False

    def install(self) -> Signals:
        """Take over the three signals; only from the main thread."""
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_consolidate)
        return self

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        signal.signal(number, signal.SIG_DFL)

    def _on_consolidate(self, number: int, frame: FrameType | None) -> None:
        self.consolidate = True
