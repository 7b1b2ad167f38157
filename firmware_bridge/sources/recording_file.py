"""What may stand in a recording, and the loader that holds it to that before anything is learnt from it.

    x or x_train        (N, …) samples as the sensor made them: uint8, int8, int16, uint16, int32, float32, float16
                        (bool, int64, uint32, uint64 and float64 are narrowed where the values fit)
    y or y_train        (N,) whole numbers from 0, -1 where there is no label; without it no sample has one
    x_test, y_test      a test split, both or none; handed out as held_out, never played
    time_s              (N,) seconds; else fs_hz and the rows of a sample make the time; else it is 0
    window              (length, stride) in rows that the samples are to be made into, where they are not yet
    label_names, channel_names (or feature_names), scale, fs_hz      names and units for the schema
    any other (N,) array of whole numbers, such as subject or load   a mark to order or split by
    the same with _test behind its name, such as subject_test        that mark of the test split

Knows files and arrays, not playing.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from firmware_bridge.errors import BadRecording
from firmware_bridge.sample import SENSOR_DTYPES, HeldOut, Schema, Values

_NARROWER = {"bool": "uint8", "int64": "int32", "uint32": "int32", "uint64": "int32", "float64": "float32"}
_NAMES = (
    *("x", "x_train", "y", "y_train", "x_test", "y_test", "time_s", "scale", "fs_hz", "window"),
    *("label_names", "channel_names", "feature_names"),
)
_NO_LABEL = -1
_MAX_LABEL = 2**31 - 1
_HINT = "a recording is an .npz with x (N, …) and y (N,); firmware_bridge/sources/recording_file.py lists its arrays"


@dataclass(frozen=True)
class RecordingFile:
    """A checked recording: x (N, *shape), y (N,) int64 or None, time_us (N,) int64, all in the order of the file.

    identity is a 16-bit checksum of samples and labels. period_s is the mean time from sample to sample, if known.
    """

    schema: Schema
    x: Values
    y: Values | None
    time_us: Values
    period_s: float | None
    held_out: HeldOut | None
    nonfinite_held_out: int
    identity: int
    marks: Mapping[str, Values]
    held_out_marks: Mapping[str, Values]


def load(path: str) -> RecordingFile:
    """Load and check. Raises BadRecording naming file, array, rule and value."""
    arrays = _read(path)
    check = _Checker(path, arrays)
    x_name, y_name = check.one_of("x", "x_train"), check.one_of("y", "y_train")
    if x_name is None:
        known = sorted(arrays.keys() & set(_NAMES))
        check.refuse("x", "must be there, or x_train", f"only {', '.join(known) or 'other arrays'}")
    x = check.samples(x_name)
    label_names = check.texts("label_names")
    y = None if y_name is None else check.labels(y_name, len(x), label_names, least=_NO_LABEL)
    held_out, good = check.held_out(x, x_name, label_names)
    channels = check.texts(check.one_of("channel_names", "feature_names") or "channel_names")
    if channels and (x.ndim < 2 or len(channels) != x.shape[-1]):
        check.refuse("channel_names", f"must name the last axis of {x_name} {x.shape}", f"{len(channels)} names")
    rate_hz = check.positive("fs_hz")
    # A 1-D sample with channel names is one row; without, it is a window of one channel.
    rows = 1 if x.ndim == 1 or (x.ndim == 2 and channels) else x.shape[1]
    time_us, period_s = check.time(len(x), None if rate_hz is None else rows / rate_hz)
    return RecordingFile(
        schema=Schema(
            name=Path(path).stem,
            dtype=x.dtype.name,
            shape=x.shape[1:],
            channels=channels,
            rate_hz=rate_hz,
            scale=check.positive("scale"),
            label_names=label_names,
            window=check.window(),
        ),
        x=x,
        y=y,
        time_us=time_us,
        period_s=period_s,
        held_out=held_out,
        nonfinite_held_out=int((~good).sum()),
        marks=check.marks(len(x)),
        held_out_marks=check.held_out_marks(good),
        identity=zlib.crc32(b"" if y is None else y.tobytes(), zlib.crc32(x.data)) & 0xFFFF,
    )


def _read(path: str) -> dict[str, Values]:
    try:
        with Path(path).expanduser().open("rb") as file:  # np.load leaves a file of its own open when it fails
            return _members(path, np.load(file, allow_pickle=False))
    except (FileNotFoundError, IsADirectoryError) as exc:
        raise BadRecording(f"{path}: no such file", hint=_HINT) from exc
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise BadRecording(f"{path}: not an .npz file ({exc})", hint=_HINT) from exc


def _members(path: str, archive: Any) -> dict[str, Values]:
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise BadRecording(f"{path}: a single array, not an .npz file", hint=_HINT)
    with archive:
        return {
            name: _member(path, archive, name) for name in archive.files if name in _NAMES or _is_mark(archive, name)
        }


def _is_mark(archive: Any, name: str) -> bool:
    try:
        array = archive[name]
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return False  # an array nobody asked for may be of any kind
    return bool(array.ndim == 1 and array.dtype.kind in "iu")


def _member(path: str, archive: Mapping[str, Any], name: str) -> Values:
    try:
        array = np.asarray(archive[name])
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError) as exc:
        raise BadRecording(f"{path}: {name}: cannot be read ({exc})", hint=_HINT) from exc
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)).reshape(array.shape)


class _Checker:
    """The arrays of one file, each handed out as it must be or refused."""

    def __init__(self, path: str, arrays: Mapping[str, Values]) -> None:
        self._path, self._arrays = path, arrays

    def refuse(self, name: str, rule: str, got: object) -> NoReturn:
        raise BadRecording(f"{self._path}: {name}: {rule} (got {got})", hint=_HINT)

    def one_of(self, *names: str) -> str | None:
        present = [name for name in names if name in self._arrays]
        if len(present) > 1:
            self.refuse(present[0], "must be there once", " and ".join(present))
        return present[0] if present else None

    def samples(self, name: str) -> Values:
        x = self._arrays[name]
        if x.ndim == 0 or x.size == 0:
            self.refuse(name, "must hold at least one sample", f"shape {x.shape}")
        if x.dtype.name not in SENSOR_DTYPES and x.dtype.name not in _NARROWER:
            self.refuse(name, f"must be one of {', '.join(SENSOR_DTYPES)}", f"dtype {x.dtype}")
        x = self._narrowed(name, x)
        x.setflags(write=False)
        return x

    def labels(self, name: str, count: int, label_names: tuple[str, ...], *, least: int = 0) -> Values:
        y = self._arrays[name]
        if y.shape != (count,):
            self.refuse(name, f"must hold one label for each of {count} samples", f"shape {y.shape}")
        if y.dtype.kind not in "uibf":
            self.refuse(name, "must be whole numbers from 0", f"dtype {y.dtype}")
        with np.errstate(invalid="ignore"):
            bad = ~((y >= (least if (y >= 0).any() else 0)) & (y <= _MAX_LABEL) & (y == np.floor(y)))
        if bad.any():
            self.refuse(name, "must be whole numbers from 0", f"{y[bad][0]} at index {bad.argmax()}")
        labels: Values = y.astype(np.int64)
        if label_names and labels.max() >= len(label_names):
            at = labels.argmax()
            self.refuse(name, f"must be below {len(label_names)}, the number of label_names", f"{y[at]} at index {at}")
        labels.setflags(write=False)
        return labels

    def window(self) -> tuple[int, int] | None:
        """The window that the samples' rows are to be made into."""
        if "window" not in self._arrays:
            return None
        window = self._arrays["window"]
        if window.shape != (2,) or window.dtype.kind not in "ui" or window.min() < 1:
            self.refuse("window", "must be two whole numbers from 1, length and stride", f"{window.tolist()}")
        return int(window[0]), int(window[1])

    def held_out(self, x: Values, x_name: str, label_names: tuple[str, ...]) -> tuple[HeldOut | None, Values]:
        """The test split without its rows that hold NaN or Inf, and which of its rows (M,) are good."""
        if ("x_test" in self._arrays) != ("y_test" in self._arrays):
            self.refuse("x_test and y_test", "must be there both or not at all", "one of them")
        if "x_test" not in self._arrays:
            return None, np.ones(0, dtype=bool)
        test_x = self.samples("x_test")
        if test_x.shape[1:] != x.shape[1:] or test_x.dtype != x.dtype:
            rule = f"must be like {x_name}, {x.dtype} {x.shape[1:]}"
            self.refuse("x_test", rule, f"{test_x.dtype} {test_x.shape[1:]}")
        test_y = self.labels("y_test", len(test_x), label_names)
        if test_x.dtype.kind != "f":
            return HeldOut(test_x, test_y), np.ones(len(test_x), dtype=bool)
        good = np.asarray(np.isfinite(test_x).all(axis=tuple(range(1, test_x.ndim))))
        test_x, test_y = test_x[good], test_y[good]
        test_x.setflags(write=False)
        test_y.setflags(write=False)
        return HeldOut(test_x, test_y), good

    def marks(self, count: int) -> dict[str, Values]:
        """What else is known of each sample: whole numbers (N,) by name."""
        others = {name: array for name, array in self._arrays.items() if name not in _NAMES}
        return {
            name: array.astype(np.int64)
            for name, array in others.items()
            if len(array) == count and not ("x_test" in self._arrays and name.endswith("_test"))
        }

    def held_out_marks(self, good: Values) -> dict[str, Values]:
        """The same of the good rows (M,) of the test split, by name without `_test`."""
        others = {name: array for name, array in self._arrays.items() if name not in _NAMES}
        return {
            name.removesuffix("_test"): array[good].astype(np.int64)
            for name, array in others.items()
            if name.endswith("_test") and len(array) == len(good) > 0
        }

    def texts(self, name: str) -> tuple[str, ...]:
        names = self._arrays.get(name)
        if names is None:
            return ()
        if names.ndim != 1 or names.dtype.kind != "U":
            self.refuse(name, "must be a list of texts", f"{names.dtype} of shape {names.shape}")
        return tuple(str(text) for text in names)

    def positive(self, name: str) -> float | None:
        value = self._arrays.get(name)
        if value is None:
            return None
        if value.size != 1 or value.dtype.kind not in "uif":
            self.refuse(name, "must be one number above 0", f"{value.dtype} of shape {value.shape}")
        number = float(value.reshape(()))
        if not 0 < number < float("inf"):
            self.refuse(name, "must be one number above 0", number)
        return number

    def time(self, count: int, duration_s: float | None) -> tuple[Values, float | None]:
        """time_us (N,) counted from the earliest, and the mean period; from fs_hz where there is no time_s."""
        time_s = self._arrays.get("time_s")
        if time_s is None:
            steps = np.arange(count) * (duration_s or 0.0) * 1e6
            return np.rint(steps).astype(np.int64), duration_s
        if time_s.shape != (count,) or time_s.dtype.kind not in "uif":
            self.refuse("time_s", f"must hold one time for each of {count} samples", f"{time_s.dtype} {time_s.shape}")
        if not np.isfinite(time_s).all():
            self.refuse("time_s", "must be finite", f"{time_s[~np.isfinite(time_s)][0]}")
        since = time_s.astype(np.float64) - time_s.min()
        return np.rint(since * 1e6).astype(np.int64), float(since.max()) / max(1, count - 1)

    def _narrowed(self, name: str, x: Values) -> Values:
        target = _NARROWER.get(x.dtype.name)
        if target is None:
            return x
        if x.dtype.kind in "iu":
            limits = np.iinfo(target)
            outside = (x < limits.min) | (x > limits.max)
            if outside.any():
                self.refuse(name, f"must fit {target}", x[outside][0])
        with np.errstate(over="ignore"):  # what is too large for float32 becomes Inf, and is dropped as such
            return x.astype(target)
