"""Lines of text as rows: JSON lines and CSV, each line by itself, and why one cannot be used. Does no I/O.

jsonl   {"values": [0.1, 0.2], "label": 1, "time_us": 5000, "seq": 7}     all but values may be left out;
        {"seq": 7, "label": 1}                                            a label that comes later than its line
csv     a header that names the columns; label, time_us and seq may be among them, all others are channels
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from firmware_bridge.sample import Values

_NOT_VALUES = ("label", "time_us", "seq")


class BadLineError(Exception):
    """A line that cannot be used; reason is the counter that it belongs to. Never leaves sources/."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Row:
    """What one line says; values in double precision or as the whole numbers that stood there, None for a label."""

    values: Values | None
    label: int | str | None = None
    time_us: int | None = None
    seq: int | None = None


class JsonLines:
    """Rows of JSON lines."""

    channels: tuple[str, ...] = ()

    def row(self, line: bytes) -> Row | None:
        """Row of this line. Raises BadLineError."""
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            raise BadLineError("text") from None
        if not isinstance(document, dict):
            raise BadLineError("text")
        label, time_us, seq = (document.get(key) for key in _NOT_VALUES)
        if not isinstance(label, (int, str, type(None))) or isinstance(label, bool):
            label = ""  # none of any label set, so that it is counted
        whole_time, whole_seq = _whole(time_us, 64), _whole(seq, 32)
        if "values" in document:
            return Row(_numbers(document["values"]), label, whole_time, whole_seq)
        if label is None or whole_seq is None:
            raise BadLineError("text")
        return Row(None, label, whole_time, whole_seq)


class CsvLines:
    """Rows of CSV; the first line is the header."""

    def __init__(self) -> None:
        self.channels: tuple[str, ...] = ()
        self._columns: list[str] = []

    def row(self, line: bytes) -> Row | None:
        """Row of this line, None of the header. Raises BadLineError."""
        cells = _cells(line)
        if not self._columns:
            self._columns = [cell.strip() for cell in cells]
            self.channels = tuple(name for name in self._columns if name not in _NOT_VALUES)
            return None
        if len(cells) != len(self._columns):
            raise BadLineError("schema")
        said = dict(zip(self._columns, cells, strict=True))
        label, time_us, seq = (_cell(said, key) for key in _NOT_VALUES)
        channels = [cell for name, cell in zip(self._columns, cells, strict=True) if name not in _NOT_VALUES]
        try:
            values = np.array([float(cell) for cell in channels])
        except ValueError:
            raise BadLineError("text") from None
        return Row(values, label, _whole_text(time_us, 64), _whole_text(seq, 32))


def _cells(line: bytes) -> Sequence[str]:
    try:
        (cells,) = csv.reader([line.decode()])
    except (ValueError, csv.Error):
        raise BadLineError("text") from None
    return cells


def _cell(said: Mapping[str, str], key: str) -> str | None:
    return said.get(key, "").strip() or None


def _whole_text(text: str | None, bits: int) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal():
        raise BadLineError("text")
    return _whole(int(text), bits)


def _whole(value: Any, bits: int) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise BadLineError("text")
    return value


def _numbers(values: Any) -> Values:
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # lists of different lengths, or too deep
        raise BadLineError("schema") from None
    if array.dtype.kind not in "iuf" or not array.size:
        raise BadLineError("schema")
    return array
