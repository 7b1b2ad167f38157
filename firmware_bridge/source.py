"""The one contract between the daemon and a device: open, read with a timeout, close.

A source has no thread and no queue of its own (inlet.py has both), and it knows no learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, TypeVar

from firmware_bridge.sample import HeldOut, Label, Sample, SampleId, Schema


class Source(Protocol):
    """Where samples come from; schema, held_out and can_wait are known once open.

    can_wait: the producer can be slowed (a recording), so a full queue stops reading; a live producer cannot, so a full
    queue drops its oldest. needs_acknowledgement: the producer holds back what comes after too much that is not safe.
    said: text of the latest event of the device, as that it is gone. counters: samples dropped and faults seen, by
    reason; every key is there from the start.
    """

    @property
    def schema(self) -> Schema:
        """What this source's samples look like."""

    @property
    def held_out(self) -> HeldOut | None:
        """Test split of a recording, else None."""

    @property
    def can_wait(self) -> bool:
        """Whether the producer can be slowed without loss."""

    @property
    def needs_acknowledgement(self) -> bool:
        """Whether the producer waits to hear what is safe."""

    @property
    def said(self) -> str:
        """What there last was to say of the device, "" if nothing."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Drops and faults by reason."""

    def open(self) -> None:
        """Open the device and learn its schema. Raises SourceUnavailable or BadRecording."""

    def close(self) -> None:
        """Let the device go; a second call does nothing."""

    def read(self, timeout_s: float) -> Sample | Label | None:
        """Next sample or late label, None if none came in time. Raises EndOfSource, SourceLost."""

    def acknowledge(self, upto: SampleId) -> None:
        """All of this source's samples up to that one are safe with the learner; one that can tell its device does."""

    def __enter__(self) -> Source:
        """Open the source."""

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source."""


Opened = TypeVar("Opened", bound="SourceBase")


class SourceBase:
    """What most sources have in common: no test split, nobody to tell, and a `with` that opens and closes."""

    held_out: HeldOut | None = None
    needs_acknowledgement = False

    @property
    def said(self) -> str:
        """Nothing."""
        return ""

    def open(self) -> None:
        """Open the device."""
        raise NotImplementedError

    def close(self) -> None:
        """Let the device go."""
        raise NotImplementedError

    def acknowledge(self, upto: SampleId) -> None:
        """Nobody to tell."""

    def __enter__(self: Opened) -> Opened:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
