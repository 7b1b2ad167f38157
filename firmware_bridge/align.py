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
from dataclasses import dataclass, replace
from math import inf
from typing import Final

import numpy as np

from firmware_bridge.errors import IncompatibleSources
from firmware_bridge.sample import SENSOR_DTYPES, Sample, Schema, Values

LATE_US: Final = 1_000_000  # that a stream may be behind the others, over and above the tolerance
_NEVER: Final = -(2**63)
BACK_US: Final = 100_000  # a time further back than this is another clock; less is one that was set right


@dataclass
class _Taken:
    """A sample and the times of its rows (n,) in µs; number: its place among all that its source handed out."""

    sample: Sample
    times: Values
    number: int
    used: bool = False


class _Stream:
    """What is held of one stream: rows that may be wanted yet, or, of the first one, samples that wait."""

    def __init__(self, schema: Schema) -> None:
        self.n_channels = schema.shape[-1] if schema.shape else 1
        self.is_block = len(schema.shape) == 2
        self.held: deque[_Taken] = deque()
        self.passed_us: int | float = _NEVER  # no row before that will come any more
        self._row_us = 1e6 / schema.rate_hz if schema.rate_hz else 0.0

    def times_of(self, time_us: int, n_rows: int) -> Values:
        """Times of a sample's rows, of which the first was taken at time_us."""
        times: Values = time_us + np.rint(np.arange(n_rows) * self._row_us).astype(np.int64)
        return times

    def rows(self, sample: Sample) -> Values:
        """Its values as rows (n, C)."""
        rows: Values = sample.values.reshape(-1, self.n_channels)
        return rows


class Aligner:
    """Samples of streams 0, 1, … in, samples of all of them out; `schema` is what these look like.

    counters: unaligned, samples of the first stream for which another one had no row near enough; surplus, samples of
    the others that none of the first wanted. most_bytes: of what waits; where that is not enough, the oldest waits no
    longer. Raises IncompatibleSources for streams that cannot stand side by side.
    """

    def __init__(self, schemas: Sequence[Schema], tolerance_us: int, *, most_bytes: int) -> None:
        self.schema = _joined(schemas)
        self.counters = {"unaligned": 0, "surplus": 0}
        self._streams = [_Stream(schema) for schema in schemas]
        self._first, *self._others = self._streams
        self._tolerance_us, self._most_bytes = tolerance_us, most_bytes
        self.nbytes = 0
        self._gap = False

    def push(self, stream: int, sample: Sample, time_us: int, number: int) -> None:
        """Take a sample of a stream; time_us is on the clock that all streams share.

        Raises ValueError if it is not shaped as the stream's schema says.
        """
        taker = self._streams[stream]
        rows = taker.rows(sample)
        if time_us < taker.passed_us - BACK_US:
            self._forget(taker)
        times = np.maximum(taker.times_of(time_us, len(rows)), taker.passed_us).astype(np.int64)
        taken = _Taken(sample, times, number)
        taker.passed_us = int(times[-1])
        taker.held.append(taken)
        self.nbytes += sample.values.nbytes

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
            taken = self._leave(self._first)
            values = self._values(taken)
            if values is None:
                self.counters["unaligned"] += 1
                self._gap = True
                continue
            sample, label = taken.sample, self._label(taken)
            done.append(replace(sample, values=values, label=label, gap=sample.gap or self._gap))
            self._gap = False
        self._trim()
        return done

    def oldest(self, stream: int) -> int | None:
        """Number of the oldest sample of the stream that is still held."""
        held = self._streams[stream].held
        return held[0].number if held else None

    def _is_due(self, taken: _Taken) -> bool:
        """Whether nothing nearer can come, or it has waited long enough."""
        last_us = float(taken.times[-1])
        if all(other.passed_us >= last_us for other in self._others) or self.nbytes > self._most_bytes:
            return True
        return self._newest_us() > last_us + self._tolerance_us + LATE_US

    def _newest_us(self) -> float:
        """The latest time that any stream has come to; one that is over has no time any more."""
        return max((s.passed_us for s in self._streams if s.passed_us < inf), default=inf)

    def _values(self, taken: _Taken) -> Values | None:
        """Values of the joined sample, None if a stream has no row near enough for one of its rows."""
        found = [self._rows_near(other, taken.times) for other in self._others]
        if any(near is None for near in found):
            return None
        parts = [self._first.rows(taken.sample)]
        for other, near in zip(self._others, found, strict=True):
            assert near is not None
            rows = np.concatenate([other.rows(held.sample) for held in other.held])
            owners = np.repeat(np.arange(len(other.held)), [len(held.times) for held in other.held])
            for place in set(owners[near].tolist()):
                other.held[place].used = True
            parts.append(rows[near])
        values = np.concatenate(parts, axis=1, dtype=self.schema.dtype, casting="same_kind")
        values = values if self._first.is_block else values[0]
        values.flags.writeable = False
        return values

    def _rows_near(self, other: _Stream, wanted: Values) -> Values | None:
        """Places of the rows that are nearest to the wanted times, None if one of them is not near enough."""
        if not other.held:
            return None
        times = np.concatenate([held.times for held in other.held])
        nearest = _nearest(times, wanted)
        return None if (np.abs(times[nearest] - wanted) > self._tolerance_us).any() else nearest

    def _label(self, taken: _Taken) -> int | None:
        """The first stream's label; where it has none, that of the first other one that has one at that time."""
        if taken.sample.label is not None:
            return taken.sample.label
        for other in self._others:
            times = np.array([held.times[-1] for held in other.held])
            label = other.held[int(_nearest(times, taken.times[-1:])[0])].sample.label
            if label is not None:
                return label
        return None

    def _trim(self) -> None:
        """Let rows of the others go that no sample can want any more."""
        wanted_us = float(self._first.held[0].times[0]) if self._first.held else self._first.passed_us
        wanted_us = max(wanted_us, self._newest_us() - LATE_US - self._tolerance_us) - self._tolerance_us
        for other in self._others:
            while other.held and (other.held[0].times[-1] < wanted_us or self.nbytes > self._most_bytes):
                self._leave(other)

    def _forget(self, stream: _Stream) -> None:
        while stream.held:
            self._leave(stream)
            self.counters["unaligned"] += stream is self._first
        self._gap |= stream is self._first
        stream.passed_us = _NEVER

    def _leave(self, stream: _Stream) -> _Taken:
        taken = stream.held.popleft()
        self.nbytes -= taken.sample.values.nbytes
        self.counters["surplus"] += stream is not self._first and not taken.used
        return taken


def _nearest(times: Values, wanted: Values) -> Values:
    """Indices into times, which rise, of those nearest to each of wanted; the earlier one of two as near."""
    after = (
        np.searchsorted(times, wanted).clip(1, len(times) - 1) if len(times) > 1 else np.zeros(len(wanted), np.int64)
    )
    before = np.maximum(after - 1, 0)
    return np.where(wanted - times[before] <= times[after] - wanted, before, after)


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
