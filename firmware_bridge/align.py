"""Samples of several streams that were taken at the same time become one, within a stated tolerance.

The first stream sets the times. To each of its rows at time t comes of every other stream the row whose time is nearest
to t, if it is at most the tolerance away; the channels stand side by side, in the order of the streams.

    row(t) = [row₀(t), row₁(t₁), …]        t_k = the time of stream k that is nearest to t, |t_k - t| ≤ tolerance

What is nearest is known once stream k has passed t, so a sample waits until every other stream has; if one is silent,
until any has gone on for LATE_US beyond the tolerance. Up to there the result depends on times alone, and not on who
arrived first. Knows no source and no clock of this machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

import numpy as np

from firmware_bridge.errors import IncompatibleSources
from firmware_bridge.held_rows import HeldRows
from firmware_bridge.inlet import ITEM_BYTES
from firmware_bridge.sample import SENSOR_DTYPES, Label, Sample, SampleId, Schema, Values

ROW_BYTES: Final = 80  # that CPython spends on the times of a row while it is held
LATE_US: Final = 1_000_000  # that a stream may be behind the others, over and above the tolerance
_NEVER: Final = -(2**63)
BACK_US: Final = 100_000  # a time further back than this is another clock; less is one that was set right


@dataclass(slots=True)
class _Taken:
    """A sample that is held, and the time of its last row in µs; number: its place among all that its source gave."""

    id: SampleId
    label: int | None
    last_us: int
    number: int
    used: bool = False


@dataclass(slots=True)
class _Waiting(_Taken):
    """One of the first stream, and the times of its rows in µs."""

    sample: Sample = field(kw_only=True)
    times: list[int] = field(kw_only=True)


class _Stream:
    """What a stream's samples look like, and how far it has come."""

    def __init__(self, schema: Schema) -> None:
        self.n_rows, self.n_channels = schema.rows, schema.shape[-1] if schema.shape else 1
        self.shape = schema.shape
        self.nbytes = 2 * schema.nbytes + ROW_BYTES * self.n_rows + ITEM_BYTES  # an array that grows has room to spare
        self.passed_us: int | float = _NEVER  # no row before that will come any more
        row_us = 1e6 / schema.rate_hz if schema.rate_hz else 0.0
        self._offsets = [round(place * row_us) for place in range(self.n_rows)]

    def times_of(self, time_us: int) -> list[int]:
        """Times of a sample's rows, of which the first was taken at time_us; never before what has passed."""
        return [int(max(time_us + offset, self.passed_us)) for offset in self._offsets]

    def rows(self, sample: Sample) -> Values:
        """Its values as rows (n, C)."""
        rows: Values = sample.values.reshape(self.n_rows, self.n_channels)
        return rows


class _First(_Stream):
    """The stream that sets the times, and its samples that wait."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.held: deque[_Waiting] = deque()


class _Other(_Stream):
    """Another stream, and its rows that may be wanted yet."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.held: deque[_Taken] = deque()
        self.held_rows = HeldRows(self.n_channels, schema.dtype)


class Aligner:
    """Samples of streams 0, 1, … in, samples of all of them out; `schema` is what these look like.

    counters: unaligned, samples of the first stream for which another one had no row near enough; surplus, samples of
    the others that none of the first wanted. nbytes: of what waits, at most most_bytes after `joined`; where that is
    not enough, the oldest waits no longer. Raises IncompatibleSources for streams that cannot stand side by side.
    """

    def __init__(self, schemas: Sequence[Schema], tolerance_us: int, *, most_bytes: int) -> None:
        self.schema = _joined(schemas)
        self.counters = {"unaligned": 0, "surplus": 0}
        self._first = _First(schemas[0])
        self._others = [_Other(schema) for schema in schemas[1:]]
        self._streams: list[_First | _Other] = [self._first, *self._others]
        self._n_channels = sum(stream.n_channels for stream in self._streams)
        self._tolerance_us, self._most_bytes = tolerance_us, most_bytes
        self.nbytes = 0
        self.crowded = 0  # samples of the first stream that could not wait for want of room
        self._now_us = -inf
        self._gap = False

    def now(self, time_us: int) -> None:
        """That much time has passed on the clock that all share, though nobody sends."""
        self._now_us = time_us

    def push(self, stream: int, sample: Sample, time_us: int, number: int) -> None:
        """Take a sample of a stream; time_us is on the clock that all streams share.

        Raises ValueError if it is not shaped as the stream's schema says.
        """
        taker = self._streams[stream]
        if sample.values.shape != taker.shape:
            raise ValueError(f"stream {stream}: samples are of shape {taker.shape} (got {sample.values.shape})")
        if time_us < taker.passed_us - BACK_US:
            self._forget(taker)
        times = taker.times_of(time_us)
        taker.passed_us = last_us = times[-1]
        if isinstance(taker, _First):
            held = _Waiting(sample.id, sample.label, last_us, number, sample=sample, times=times)
            taker.held.append(held)
        else:
            taker.held.append(_Taken(sample.id, sample.label, last_us, number))
            taker.held_rows.put(times, taker.rows(sample))
        self.nbytes += taker.nbytes

    def late(self, label: Label) -> bool:
        """Attach a label to its sample that is still held; False if it has left, or has been handed out with others."""
        for held in reversed(self._streams[label.stream].held):
            if held.id == label.id:
                held.label = label.label
                return not held.used
        return False

    def end(self, stream: int) -> None:
        """No more will come of it."""
        self._streams[stream].passed_us = inf

    def restart(self) -> None:
        """The clock that all share began anew: what waits belongs to the old one."""
        for stream in self._streams:
            self._forget(stream)

    def joined(self) -> list[Sample]:
        """Samples that are complete now, in the order of the first stream."""
        done: list[Sample] = []
        while self._first.held and self._is_due(self._first.held[0]):
            waiting = self._first.held.popleft()
            self.nbytes -= self._first.nbytes
            found = self._found(waiting)
            if found is None:
                self.counters["unaligned"] += 1
                self._gap = True
                continue
            values, label = self._values(waiting, found), self._label(waiting, found)
            done.append(replace(waiting.sample, values=values, label=label, gap=waiting.sample.gap or self._gap))
            self._gap = False
        self._trim()
        return done

    def oldest(self, stream: int) -> int | None:
        """Number of the oldest sample of the stream that is still held."""
        held = self._streams[stream].held
        return held[0].number if held else None

    def _is_due(self, waiting: _Waiting) -> bool:
        """Whether nothing nearer can come, or it has waited long enough."""
        if all(other.passed_us >= waiting.last_us for other in self._others):
            return True
        if self.nbytes > self._most_bytes:
            self.crowded += 1
            return True
        return self._newest_us() > waiting.last_us + self._tolerance_us + LATE_US

    def _newest_us(self) -> float:
        """The latest time that any stream has come to; one that is over has no time any more."""
        running = [stream.passed_us for stream in self._streams if stream.passed_us < inf]
        return max([self._now_us, *running]) if running else inf

    def _found(self, waiting: _Waiting) -> list[list[int]] | None:
        """Of each other stream the places of the rows that belong to it, None if one has no row near enough."""
        found: list[list[int]] = []
        for other in self._others:
            places = other.held_rows.nearest(waiting.times, self._tolerance_us)
            if places is None:
                return None
            found.append(places)
        return found

    def _values(self, waiting: _Waiting, found: list[list[int]]) -> Values:
        values: Values = np.empty((self._first.n_rows, self._n_channels), self.schema.dtype)
        done = self._first.n_channels
        values[:, :done] = self._first.rows(waiting.sample)
        for other, places in zip(self._others, found, strict=True):
            for owner in {place // other.n_rows for place in places}:
                other.held[owner].used = True
            rows = other.held_rows.values
            values[:, done : done + other.n_channels] = rows[places] if len(places) > 1 else rows[places[0]]
            done += other.n_channels
        values = values if len(self._first.shape) == 2 else values[0]
        values.flags.writeable = False
        return values

    def _label(self, waiting: _Waiting, found: list[list[int]]) -> int | None:
        """The first stream's label; where it has none, that of the first other one that has one at its last row."""
        if waiting.label is not None:
            return waiting.label
        labels = [o.held[places[-1] // o.n_rows].label for o, places in zip(self._others, found, strict=True)]
        return next((label for label in labels if label is not None), None)

    def _trim(self) -> None:
        """Let rows of the others go that no sample can want any more; where there is no room, the oldest of all."""
        wanted_us = float(self._first.held[0].times[0]) if self._first.held else self._first.passed_us
        wanted_us = max(wanted_us, self._newest_us() - LATE_US - self._tolerance_us) - self._tolerance_us
        for other in self._others:
            while other.held and other.held[0].last_us < wanted_us:
                self._leave(other)
        while self.nbytes > self._most_bytes and (rich := [other for other in self._others if other.held]):
            self._leave(min(rich, key=lambda other: other.held[0].last_us))

    def _forget(self, stream: _First | _Other) -> None:
        if isinstance(stream, _First):
            self.counters["unaligned"] += len(stream.held)
            self.nbytes -= stream.nbytes * len(stream.held)
            stream.held.clear()
            self._gap = True
        else:
            while stream.held:
                self._leave(stream)
        stream.passed_us = _NEVER

    def _leave(self, other: _Other) -> None:
        self.counters["surplus"] += not other.held.popleft().used
        other.held_rows.let_go(other.n_rows)
        self.nbytes -= other.nbytes


def _joined(schemas: Sequence[Schema]) -> Schema:
    """What samples of all streams together look like. Raises IncompatibleSources."""
    first = schemas[0]
    for schema in schemas:
        if len(schema.shape) > 2:
            rule = f"{schema.name}: only channels can stand side by side, samples of shape {schema.shape} have none"
            raise IncompatibleSources(rule, hint="set bridge.align_ms to null, or leave that source out")
        if len(schema.shape) == 2 and not schema.rate_hz:
            rule = f"{schema.name}: rows of a sample have a time each only if the source says rate_hz"
            raise IncompatibleSources(rule, hint="send a sample a row, or say the rate")
    widths = [schema.shape[-1] if schema.shape else 1 for schema in schemas]
    named = [schema.channels or tuple(map(str, range(width))) for schema, width in zip(schemas, widths, strict=True)]
    return replace(
        first,
        name="+".join(schema.name for schema in schemas),
        dtype=common_dtype([schema.dtype for schema in schemas]),
        shape=(*first.shape[:-1], sum(widths)),
        channels=_channels([schema.name for schema in schemas], named),
        unit=first.unit if all(schema.unit == first.unit for schema in schemas) else "",
        scale=first.scale if all(schema.scale == first.scale for schema in schemas) else None,
        label_names=common_labels(schemas),
    )


def common_dtype(names: Sequence[str]) -> str:
    """The sensor dtype that holds the values of all: the smallest that does, else float32."""
    wide = np.result_type(*map(np.dtype, names))
    return wide.name if wide.name in SENSOR_DTYPES else "float32"


def common_labels(schemas: Sequence[Schema]) -> tuple[str, ...]:
    """The class names of the streams that name any. Raises IncompatibleSources if they name different ones."""
    named = [schema for schema in schemas if schema.label_names]
    for schema in named[1:]:
        if schema.label_names != named[0].label_names:
            raise IncompatibleSources(
                f"{schema.name}: its classes are {', '.join(schema.label_names)}, those of {named[0].name} are "
                f"{', '.join(named[0].label_names)}",
                hint="sources that are learnt together must name the same classes in the same order",
            )
    return named[0].label_names if named else ()


def _channels(names: Sequence[str], channels: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Names of all channels in order; behind their stream's where two are called alike."""
    flat = [channel for group in channels for channel in group]
    if len(set(flat)) == len(flat):
        return tuple(flat)
    labelled = zip(range(len(names)), names, channels, strict=True)
    prefixes = [name if names.count(name) == 1 else f"{name}{place}" for place, name, _ in labelled]
    return tuple(f"{prefix}.{channel}" for prefix, group in zip(prefixes, channels, strict=True) for channel in group)
