"""The one contract between the daemon and a device: open, read with a timeout, close.

A source has no thread and no queue of its own (inlet.py has both), and it knows no learner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

from firmware_bridge.sample import HeldOut, Label, Sample, Schema


class Part(NamedTuple):
    """One source, by itself or among several: its name, its streams, what it said last, and its counters."""

    name: str
    streams: tuple[int, ...]
    said: str
    counters: Mapping[str, int]


class Source(Protocol):
    """Where samples come from; schema, held_out and can_wait are known once open.

    can_wait: the producer can be slowed (a recording), so a full queue stops reading; a live producer cannot, so a full
    queue drops its oldest. is_queued: it has bounded queues of its own, which do so. needs_acknowledgement: the
    producer holds back what comes after too much that is not safe. said: text of the latest event of the device, as
    that it is gone. counters: samples dropped and faults seen, by reason; every key is there from the start.
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
    def is_queued(self) -> bool:
        """Whether it may be left unread for a while, whoever produces."""

    @property
    def needs_acknowledgement(self) -> bool:
        """Whether the producer waits to hear what is safe."""

    @property
    def has_clock(self) -> bool:
        """Whether it can tell when a sample was taken in the time of this machine."""

    @property
    def streams(self) -> Sequence[int]:
        """Numbers of the streams that its samples are of."""

    @property
    def said(self) -> str:
        """What there last was to say of the device, "" if nothing."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Drops and faults by reason."""

    @property
    def parts(self) -> Sequence[Part]:
        """The sources that it is made of: itself, if it is one."""

    def schema_of(self, stream: int) -> Schema:
        """What the samples of one of its streams look like."""

    def host_us(self, sample: Sample) -> int | None:
        """UNIX time in µs at which a sample of this boot was taken, None while that is not known."""

    def open(self) -> None:
        """Open the device and learn its schema. Raises SourceUnavailable or BadRecording."""

    def close(self) -> None:
        """Let the device go; a second call does nothing."""

    def read(self, timeout_s: float) -> Sample | Label | None:
        """Next sample or late label, None if none came in time. Raises EndOfSource, SourceLost."""

    def floor_at(self, n: int) -> Mapping[str, Any]:
        """What to keep with the first n items, so that no frame of theirs is taken again in another run.

        {} without a key. n never falls from call to call.
        """

    def acknowledge(self, n: int) -> None:
        """The first n items, samples and labels, that were read since it was opened are safe with the learner.

        A source that can tell its device does.
        """

    def __enter__(self) -> Source:
        """Open the source."""

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source."""


class _One(Protocol):
    @property
    def schema(self) -> Schema: ...

    @property
    def streams(self) -> Sequence[int]: ...

    @property
    def said(self) -> str: ...

    @property
    def counters(self) -> Mapping[str, int]: ...


Opened = TypeVar("Opened", bound="SourceBase")


class SourceBase:
    """What most sources have in common: one stream, no test split, no clock, nobody to tell, and a `with`."""

    held_out: HeldOut | None = None
    is_queued = needs_acknowledgement = has_clock = False

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

    @property
    def streams(self) -> Sequence[int]:
        """One, which has no number of its own."""
        return (0,)

    @property
    def parts(self: _One) -> Sequence[Part]:
        """It is one."""
        return [Part(self.schema.name, tuple(self.streams), self.said, self.counters)]

    def schema_of(self: _One, stream: int) -> Schema:
        """The one that all its samples have."""
        return self.schema

    def host_us(self, sample: Sample) -> int | None:
        """Nobody knows."""
        return None

    def floor_at(self, n: int) -> Mapping[str, Any]:
        """There is no key."""
        return {}

    def acknowledge(self, n: int) -> None:
        """Nobody to tell."""

    def __enter__(self: Opened) -> Opened:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
