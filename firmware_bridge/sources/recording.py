"""A recording, an .npz file, played as a stream of samples; recording_file.py says what may stand in it.

Samples with NaN or Inf are dropped and counted. Plays arrays; knows no wire and no window.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firmware_bridge.errors import BadRecording, EndOfSource, SourceLost
from firmware_bridge.options import name, part, whole
from firmware_bridge.options import speed as parse_speed
from firmware_bridge.sample import HeldOut, Sample, SampleId, Schema, Values, newest_of
from firmware_bridge.source import SourceBase
from firmware_bridge.sources.recording_file import RecordingFile, load
from firmware_bridge.sources.split import ordered, split_by_time


class Recording(SourceBase):
    """Samples of an .npz file in a stated order; seq is the place in that order.

    order: file, class (label after label), or the name of a mark in the file such as load_hp; in each the file's order.
    test: hold out the last part of each class as test split, if the file has none; within: of each class within each
    value of this mark. limit: play only the first so many. speed: 1 plays at the recording's own mean pace, inf as fast
    as it is read. after: go on behind the one of these that is of this recording, played likewise, else from its start.
    """

    OPTIONS: Mapping[str, Callable[[str], Any]] = {
        "order": name,
        "test": part,
        "within": name,
        "limit": whole(1),
        "speed": parse_speed,
    }
    can_wait = True

    def __init__(
        self,
        path: str,
        *,
        after: Sequence[SampleId] = (),
        order: str = "file",
        test: float | None = None,
        within: str | None = None,
        limit: int | None = None,
        speed: float = math.inf,
    ) -> None:
        self.schema = Schema(name=Path(path).stem, dtype="uint8", shape=())
        self.held_out: HeldOut | None = None
        self.counters = {"nonfinite": 0, "nonfinite_held_out": 0}
        self._path, self._after, self._limit, self._speed = path, after, limit, speed
        self._playing, self._test, self._within = order, test, within
        self._file: RecordingFile | None = None
        self._order: Values = np.empty(0, np.int64)
        self._boot = self._first = self._next = self._end = 0
        self._gap = False
        self._started_s = 0.0

    def open(self) -> None:
        """Load and check the recording. Raises BadRecording naming file, array, rule and value."""
        file = load(self._path)
        if math.isfinite(self._speed) and file.period_s is None:
            raise BadRecording(f"{self._path}: speed needs time_s or fs_hz in it", hint="play it without speed")
        rows = np.arange(len(file.x))
        self.held_out = file.held_out
        if self._test is not None:
            rows, self.held_out = self._split(file, self._test)
        self._order = ordered(rows, self._key(file))
        # The order belongs to the identity: seq 7 in class order is another sample than seq 7 of the file.
        self._boot = zlib.crc32(self._order.tobytes(), file.identity) & 0xFFFF
        last = newest_of(self._after, self._boot)
        self._first = self._next = 0 if last is None else last.seq + 1
        self._end = min(len(self._order), self._limit or len(self._order))
        self.schema, self._file = file.schema, file
        self.counters["nonfinite_held_out"] = file.nonfinite_held_out
        self._started_s = time.monotonic()

    def close(self) -> None:
        """Let the arrays go; a second call does nothing."""
        self._file = None

    def read(self, timeout_s: float) -> Sample | None:
        """Next sample, None if it is not due in time. Raises EndOfSource behind the last one."""
        file = self._file
        if file is None:
            raise SourceLost(f"{self._path}: the recording is not open")
        while self._next < self._end:
            if not self._wait_until_due(file, timeout_s):
                return None
            sample = self._sample(file, self._next)
            self._next += 1
            self._gap = sample.values.dtype.kind == "f" and not bool(np.isfinite(sample.values).all())
            if not self._gap:
                return sample
            self.counters["nonfinite"] += 1
        raise EndOfSource(f"{self._path}: played to its end")

    def _split(self, file: RecordingFile, test: float) -> tuple[Values, HeldOut]:
        if file.held_out is not None:
            raise BadRecording(f"{self._path}: test: the file has a test split of its own", hint="leave test out")
        labels = self._labels(file, "test")
        groups = [labels] if self._within is None else [labels, self._mark(file, "within", self._within)]
        rows, held_out = split_by_time(groups, test)
        if len(held_out) == 0:
            raise BadRecording(f"{self._path}: test: no class has two samples (got {test})", hint="leave test out")
        x = file.x[held_out]
        good = np.isfinite(x).all(axis=tuple(range(1, x.ndim))) if x.dtype.kind == "f" else slice(None)
        return rows, HeldOut(x[good], labels[held_out][good])

    def _key(self, file: RecordingFile) -> Values | None:
        if self._playing == "file":
            return None
        return (
            self._labels(file, "order=class") if self._playing == "class" else self._mark(file, "order", self._playing)
        )

    def _labels(self, file: RecordingFile, wanted_by: str) -> Values:
        if file.y is None:
            raise BadRecording(f"{self._path}: {wanted_by} needs labels", hint=f"play it without {wanted_by}")
        return file.y

    def _mark(self, file: RecordingFile, option: str, name: str) -> Values:
        if name not in file.marks:
            known = ", ".join(["file", "class", *sorted(file.marks)] if option == "order" else sorted(file.marks))
            raise BadRecording(
                f"{self._path}: {option}: no such array of whole numbers, one a sample (got {name})",
                hint=f"this file can be taken by {known or 'nothing'}",
            )
        return file.marks[name]

    def _sample(self, file: RecordingFile, seq: int) -> Sample:
        row = int(self._order[seq])
        label = None if file.y is None or file.y[row] < 0 else int(file.y[row])
        return Sample(0, self._boot, seq, int(file.time_us[row]), file.x[row, ...], label, self._gap)

    def _wait_until_due(self, file: RecordingFile, timeout_s: float) -> bool:
        if math.isinf(self._speed) or file.period_s is None:
            return True
        due_s = self._started_s + (self._next - self._first) * file.period_s / self._speed
        wait_s = due_s - time.monotonic()
        if wait_s > 0:
            time.sleep(min(wait_s, timeout_s))
        return wait_s <= timeout_s
