"""Samples to windows of a fixed number of rows; gaps are flagged, never bridged.

A sample of shape (C,) or () is one row, (n, C) is n rows. Legend: L rows in a window, n rows in a sample, C channels.
Knows neither sources nor learners.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from firmware_bridge.sample import Label, Sample, SampleId, Values

_NO_LABEL = -1


class Window:
    """Collects rows and emits every `stride` rows a window of the last `length`, named after its last row's sample.

    A window's label is the one that all its labelled rows agree on; where they do not it is None and counted
    mixed_label. A gap, another stream, a new boot, or time that runs backwards or (with rate_hz, rows per second)
    ahead by more than a sample throws the collected rows away, counted gap_rows, and flags the next window.
    """

    def __init__(self, length: int, stride: int, *, rate_hz: float | None = None) -> None:
        if length < 1 or stride < 1:
            raise ValueError(f"length and stride must be at least 1 (got {length}, {stride})")
        self.length, self.stride = length, stride
        self.counters = {"mixed_label": 0, "gap_rows": 0}
        self._rate_hz = rate_hz
        self._rows: Values | None = None  # (L, C), the first _filled of them in use
        self._labels = np.full(length, _NO_LABEL, np.int64)  # (L,)
        self._seqs = np.zeros(length, np.int64)  # (L,) seq of the sample that each row came from
        self._filled = 0
        self._skip = 0  # rows to pass over before the next window starts, when stride > length
        self._last: Sample | None = None
        self._gap = False

    def push(self, sample: Sample) -> list[Sample]:
        """Windows that this sample completes; values (L, C) contiguous, in the sensor's dtype.

        Raises ValueError for samples of more than two axes, or of another dtype or channel count than the first.
        """
        rows = self._as_rows(sample)  # (n, C)
        if self._is_broken(sample, len(rows)):
            self._discard()
        self._last = sample
        windows: list[Sample] = []
        while len(rows):
            rows = self._take(rows, sample)
            if self._filled == self.length:
                windows.append(self._emit(sample))
        return windows

    def late(self, label: Label) -> bool:
        """Attach a label to its sample's rows that are still here; False if there are none."""
        if self._last is None or (label.stream, label.boot) != (self._last.stream, self._last.boot):
            return False
        rows = np.flatnonzero(self._seqs[: self._filled] == label.seq)
        self._labels[rows] = label.label
        return len(rows) > 0

    def state(self) -> dict[str, Any]:
        """Everything that push depends on, as arrays and numbers, for load_state."""
        rows = np.empty((0, 0), np.uint8) if self._rows is None else self._rows[: self._filled].copy()
        last = self._last
        return {
            "length": self.length,
            "stride": self.stride,
            "rows": rows,
            **self._runs(),
            "skip": self._skip,
            "gap": int(self._gap),
            "last": [] if last is None else [*last.id, last.time_us],  # a clock may have 64 bits without a sign
            **self.counters,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where state() was taken. Raises ValueError if it is of another length or stride."""
        length, stride, rows = int(state["length"]), int(state["stride"]), np.asarray(state["rows"])
        if (length, stride) != (self.length, self.stride) or rows.ndim != 2 or len(rows) > length:
            raise ValueError(f"state of a window of {length}/{stride} rows, not of {self.length}/{self.stride}")
        if "run_rows" not in state or int(np.sum(state["run_rows"])) != len(rows):
            raise ValueError("state of a window whose rows say neither label nor sample")
        last = [int(value) for value in state["last"]]
        self._filled = len(rows)
        self._rows = None if not last else np.zeros((length, rows.shape[1]), rows.dtype)
        if self._rows is not None:
            self._rows[: len(rows)] = rows
        self._labels[: len(rows)] = np.repeat(state["run_labels"], state["run_rows"])
        self._seqs[: len(rows)] = np.repeat(state["run_seqs"], state["run_rows"])
        self._skip, self._gap = int(state["skip"]), bool(state["gap"])
        self._last = None if not last else Sample(*SampleId(*last[:3]), last[3], np.empty(0))
        self.counters = {name: int(state[name]) for name in self.counters}

    def _runs(self) -> dict[str, Values]:
        """Labels and samples of the rows as runs, (R,) each: every journal entry holds them, and few rows differ."""
        labels, seqs = self._labels[: self._filled], self._seqs[: self._filled]
        starts = np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1) | np.diff(seqs, prepend=seqs[:1]))
        return {
            "run_rows": np.diff(starts, append=self._filled).astype(np.uint32),
            "run_labels": labels[starts].astype(np.int32),
            "run_seqs": seqs[starts].astype(np.uint32),
        }

    def _as_rows(self, sample: Sample) -> Values:
        values = sample.values
        if values.ndim > 2:
            raise ValueError(f"samples of shape {values.shape} have no rows to make windows of")
        rows = values if values.ndim == 2 else values.reshape(1, -1)
        if self._rows is None:
            self._rows = np.zeros((self.length, rows.shape[1]), rows.dtype)
        if (rows.shape[1], rows.dtype) != (self._rows.shape[1], self._rows.dtype):
            known = f"{self._rows.dtype} rows of {self._rows.shape[1]}"
            raise ValueError(f"{rows.dtype} rows of {rows.shape[1]} channels in a window of {known}")
        return rows

    def _is_broken(self, sample: Sample, n_rows: int) -> bool:
        last = self._last
        if last is None:
            return False
        if sample.gap or (sample.stream, sample.boot) != (last.stream, last.boot):
            return True
        step_us = sample.time_us - last.time_us
        # From one sample to the next it takes n / rate; a whole sample is missing at twice that.
        return step_us < 0 or (self._rate_hz is not None and step_us > 2e6 * n_rows / self._rate_hz)

    def _discard(self) -> None:
        self.counters["gap_rows"] += self._filled
        self._filled = self._skip = 0
        self._gap = True

    def _take(self, rows: Values, sample: Sample) -> Values:
        """Take what fits, return the rest."""
        assert self._rows is not None
        skipped = min(self._skip, len(rows))
        self._skip -= skipped
        rows = rows[skipped:]
        count = min(len(rows), self.length - self._filled)
        taken = slice(self._filled, self._filled + count)
        self._rows[taken] = rows[:count]
        self._labels[taken] = _NO_LABEL if sample.label is None else sample.label
        self._seqs[taken] = sample.seq
        self._filled += count
        return rows[count:]

    def _emit(self, sample: Sample) -> Sample:
        assert self._rows is not None
        values = self._rows.copy()
        values.setflags(write=False)
        window = Sample(*sample.id, sample.time_us, values, self._agreed_label(), self._gap)
        self._gap = False
        kept = max(0, self.length - self.stride)
        for rows in (self._rows, self._labels, self._seqs):
            rows[:kept] = rows[self.length - kept :]
        self._filled, self._skip = kept, max(0, self.stride - self.length)
        return window

    def _agreed_label(self) -> int | None:
        labels = np.unique(self._labels[self._labels != _NO_LABEL])
        self.counters["mixed_label"] += len(labels) > 1
        return int(labels[0]) if len(labels) == 1 else None
