"""A recording that passes on what the daemon acknowledges; for a forked child, which says to whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from firmware_bridge import registry
from firmware_bridge.sample import Sample
from firmware_bridge.sources.recording import Recording


class ToldRecording(Recording):
    """Tells how many of its samples are acknowledged, each time that rises; `early`: already those that were read."""

    tell: ClassVar[Callable[[int], None]]
    early: ClassVar[bool] = False

    def read(self, timeout_s: float) -> Sample | None:
        """As a recording does."""
        sample = super().read(timeout_s)
        if ToldRecording.early and sample is not None:
            ToldRecording.tell(sample.seq + 1)
        return sample

    def acknowledge(self, n: int) -> None:
        """All up to the n-th that this run had."""
        ToldRecording.tell(self._first + n)


def tell_of_recordings(tell: Callable[[int], None], *, early: bool = False) -> None:
    """From now on every recording that this process opens tells; `early` is how a broken daemon would acknowledge."""
    ToldRecording.tell, ToldRecording.early = staticmethod(tell), early
    registry.SOURCES = {**registry.SOURCES, "recording": (__name__, "ToldRecording")}
