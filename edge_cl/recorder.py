"""Samples from a live source into a recording that `run` and `evaluate` play back.

Knows what a recording looks like, no learner. All samples are held in memory until they are written: for a recording of
hours there is a number of samples to give.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_cl.errors import OperatorError
from edge_cl.storage.atomic import write_atomic
from firmware_bridge.sample import Sample, Schema

UNLABELLED = -1
MODE = 0o666  # less the umask: the file is for others


def write_recording(path: Path, schema: Schema, samples: Sequence[Sample], names: Sequence[str] = ()) -> None:
    """Write samples (in the order they came) and what the schema says of them; y is -1 where no label came.

    Raises OperatorError if there are none, StorageFault.
    """
    if not samples:
        raise OperatorError(f"{path}: no sample came, nothing was written", hint="edge-cl bridge tail shows what comes")
    write_atomic(path, _npz(_arrays(schema, samples, names)), mode=MODE)


def _arrays(schema: Schema, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Any]:
    shape, dtype = samples[0].values.shape, samples[0].values.dtype
    kept = [sample for sample in samples if (sample.values.shape, sample.values.dtype) == (shape, dtype)]
    labels = [UNLABELLED if sample.label is None else sample.label for sample in kept]
    arrays: dict[str, Any] = {
        "x": np.stack([sample.values for sample in kept]),
        "time_s": _times(kept),
        "boot": np.array([sample.boot for sample in kept], np.int64),
        "seq": np.array([sample.seq for sample in kept], np.int64),
    }
    if len({sample.stream for sample in kept}) > 1:  # played with ?order=stream they are apart again
        arrays["stream"] = np.array([sample.stream for sample in kept], np.int64)
    if any(label != UNLABELLED for label in labels):
        arrays["y"] = np.array(labels, np.int64)
        if known := tuple(names or schema.label_names):
            arrays["label_names"] = np.array(known)
    if schema.channels and arrays["x"].ndim > 1 and len(schema.channels) == arrays["x"].shape[-1]:
        arrays["channel_names"] = np.array(schema.channels)
    for key, value in (("scale", schema.scale), ("fs_hz", schema.rate_hz)):
        if value is not None and math.isfinite(value):
            arrays[key] = value
    if schema.window is not None:
        arrays["window"] = np.array(schema.window, np.int64)
    return arrays


def _times(samples: Sequence[Sample]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds from the first sample, which never go back: where a clock begins anew, time goes on where it was.

    Of several streams each has a clock of its own, which begins where the others are.
    """
    before: dict[int, Sample] = {}
    origins: dict[int, float] = {}
    times = [0.0]
    for sample in samples:
        last, now_s = before.get(sample.stream), sample.time_us / 1e6
        if last is None or last.boot != sample.boot or sample.time_us < last.time_us:
            origins[sample.stream] = times[-1] - now_s
        before[sample.stream] = sample
        times.append(max(times[-1], origins[sample.stream] + now_s))
    return np.array(times[1:])


def _npz(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
