"""Standard input as a source, so that a shell pipe is one: stdin:jsonl and stdin:csv; text_lines.py says what may stand
on a line.

A line that cannot be used is counted by reason and left out; the next sample is flagged gap. Knows lines and numbers,
no wire. Reads no more than is asked for, so that the pipe holds its writer back.
"""

from __future__ import annotations

import math
import os
import select
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from firmware_bridge.errors import BadSourceUrl, EndOfSource, SourceLost, SourceUnavailable
from firmware_bridge.options import names, one_of, seconds, shape, speed, whole
from firmware_bridge.sample import SENSOR_DTYPES, Label, Sample, SampleId, Schema, Values
from firmware_bridge.sequence import SequenceTracker
from firmware_bridge.source import SourceBase
from firmware_bridge.sources.text_lines import BadLineError, CsvLines, JsonLines, Row

STDIN = 0
MAX_LINE_BYTES = 1 << 20
_READ_BYTES = 65536
REASONS = ("text", "schema", "range", "nonfinite", "oversize", "label")


class Stdin(SourceBase):
    """Samples from the lines of standard input.

    dtype, shape: of a sample; default float32 and the shape of the first line. labels: names of the classes, separated
    by commas; a label may then be a name. rate: lines a second, for the time of lines that do not tell it. wait:
    seconds that open() waits for the first line if it needs one. after: lines that give their seq, which are all of
    boot 0, go on behind it; lines without are a new boot at every start.
    """

    OPTIONS: Mapping[str, Callable[[str], Any]] = {
        "dtype": one_of(*SENSOR_DTYPES),
        "shape": shape,
        "labels": names,
        "rate": speed,
        "stream": whole(0, 0xFFFF),
        "wait": seconds,
    }
    can_wait = True

    def __init__(
        self,
        form: str,
        *,
        after: Sequence[SampleId] = (),
        dtype: str = "float32",
        shape: tuple[int, ...] | None = None,
        labels: tuple[str, ...] = (),
        rate: float | None = None,
        stream: int = 0,
        wait: float = 10.0,
    ) -> None:
        if form not in ("jsonl", "csv"):
            raise BadSourceUrl(f"stdin:{form}: no such form", hint="stdin:jsonl or stdin:csv")
        rate = None if rate is None or math.isinf(rate) else rate
        self.schema = Schema(name="stdin", dtype=dtype, shape=shape or (), rate_hz=rate, label_names=labels)
        self._lines: JsonLines | CsvLines = JsonLines() if form == "jsonl" else CsvLines()
        self._form, self._stream, self._wait_s = form, stream, wait
        self._is_known = shape is not None
        self._after = after
        self._tracker = SequenceTracker((after[-1].boot, after[-1].seq) if after else None)
        self._faults = dict.fromkeys(REASONS, 0)
        self._input: int | None = None
        self._partial = bytearray()
        self._skipping = self._is_over = False
        self._ready: deque[Sample | Label] = deque()
        self._boot = (after[-1].boot + 1) & 0xFFFF if after else 0
        self._next, self._gap = 0, False
        self._opened_at = 0.0

    @property
    def counters(self) -> Mapping[str, int]:
        """Lines that were left out by reason (label: only their label), and what the numbers of numbered ones tell."""
        return {**self._faults, **self._tracker.counters}

    def open(self) -> None:
        """Take standard input and learn the schema, if need be from the first line. Raises SourceUnavailable."""
        self._opened_at = time.monotonic()
        try:
            self._input = os.dup(STDIN)
        except OSError as exc:
            raise SourceUnavailable("stdin: standard input is closed", hint="pipe something into it") from exc
        deadline = self._opened_at + self._wait_s
        while not self._is_known and not self._is_over and (left_s := deadline - time.monotonic()) > 0:
            self._receive(left_s)
        if not self._is_known:
            self.close()
            raise self._nothing()

    def close(self) -> None:
        """Let standard input go; a second call does nothing."""
        taken, self._input = self._input, None
        if taken is not None:
            os.close(taken)

    def read(self, timeout_s: float) -> Sample | Label | None:
        """Next sample or late label, None if no line came in time. Raises EndOfSource behind the last line."""
        if self._input is None:
            raise SourceLost("stdin: not open")
        deadline = time.monotonic() + timeout_s
        while not self._ready:
            if self._is_over:
                raise EndOfSource("stdin: its writer closed it")
            self._receive(max(0.0, deadline - time.monotonic()))
            if not self._ready and not self._is_over and time.monotonic() >= deadline:
                return None
        return self._ready.popleft()

    def _receive(self, timeout_s: float) -> None:
        assert self._input is not None
        poll = select.poll()
        poll.register(self._input, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return
        data = os.read(self._input, _READ_BYTES)
        self._is_over = not data
        *whole_lines, rest = (data or b"\n").split(b"\n")
        for line in whole_lines:
            if self._partial or self._skipping:
                line = b"" if self._skipping else bytes(self._partial) + line
                self._partial.clear()
                self._skipping = False
            if len(line) > MAX_LINE_BYTES:
                self._leave_out("oversize")
            elif line.strip():
                self._take(line)
        self._keep(rest)

    def _keep(self, rest: bytes) -> None:
        if self._skipping:
            return
        if len(self._partial) + len(rest) > MAX_LINE_BYTES:
            self._leave_out("oversize")
            self._partial.clear()
            self._skipping = True
        else:
            self._partial += rest

    def _take(self, line: bytes) -> None:
        try:
            row = self._lines.row(line)
            if row is None:
                return
            if row.values is None:
                self._take_label(row)
            else:
                self._take_sample(row, row.values)
        except BadLineError as bad:
            self._leave_out(bad.reason)

    def _leave_out(self, reason: str) -> None:
        self._faults[reason] += 1
        self._next += 1
        self._gap = True

    def _take_label(self, row: Row) -> None:
        label = self._label(row)
        if label is not None and row.seq is not None:
            self._ready.append(Label(self._stream, 0, row.seq, label))

    def _take_sample(self, row: Row, said: Values) -> None:
        values = self._values(said)
        sample = Sample(self._stream, self._boot, self._next, 0, values, self._label(row), self._gap)
        if row.seq is not None:
            missing = self._tracker.accept(0, row.seq)
            if missing is None:
                return
            sample = replace(sample, boot=0, seq=row.seq, gap=self._gap or missing > 0)
        self._next, self._gap = sample.seq + 1, False
        self._ready.append(replace(sample, time_us=self._time_us(sample.seq) if row.time_us is None else row.time_us))

    def _values(self, said: Values) -> Values:
        """The values in the schema's dtype, read-only. Raises BadLineError."""
        if not self._is_known:
            if said.ndim > 4:
                raise BadLineError("schema")
            self.schema = replace(self.schema, shape=said.shape, channels=self._channels(said))
            self._is_known = True
        if said.shape != self.schema.shape:
            raise BadLineError("schema")
        if said.dtype.kind == "f" and not np.isfinite(said).all():
            raise BadLineError("nonfinite")
        dtype = np.dtype(self.schema.dtype)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            if (said < limits.min).any() or (said > limits.max).any() or (said != np.floor(said)).any():
                raise BadLineError("range")
        with np.errstate(over="ignore"):
            values: Values = said.astype(dtype)
        if dtype.kind == "f" and not np.isfinite(values).all():
            raise BadLineError("range")
        values.flags.writeable = False
        return values

    def _channels(self, said: Values) -> tuple[str, ...]:
        names_of = self._lines.channels
        return names_of if said.shape == (len(names_of),) else ()

    def _label(self, row: Row) -> int | None:
        """Number of the row's label, None if it has none or none that is known, which is counted."""
        label, known = row.label, self.schema.label_names
        if label is None:
            return None
        if isinstance(label, str) and label in known:
            return known.index(label)
        if isinstance(label, str) and label.isascii() and label.isdecimal():
            label = int(label)
        if isinstance(label, int) and 0 <= label < (len(known) or 1 << 31):
            return label
        self._faults["label"] += 1
        return None

    def _time_us(self, seq: int) -> int:
        rate = self.schema.rate_hz
        return int(1e6 * (seq / rate if rate else time.monotonic() - self._opened_at))

    def _nothing(self) -> SourceUnavailable:
        left_out = ", ".join(f"{count} {reason}" for reason, count in self._faults.items() if count)
        if left_out:
            return SourceUnavailable(
                f"stdin: no line of it can be used ({left_out})", hint=f"is it {self._form}? see stdin: in the README"
            )
        if self._is_over:
            return SourceUnavailable("stdin: it is empty", hint="pipe something into it, as in: cat FILE | …")
        return SourceUnavailable(
            f"stdin: no line came in {self._wait_s:g} s", hint="wait longer with ?wait=…, or give shape and dtype"
        )
