"""Smaller variants of a published model, made by a child process, and how each answers beside the float32 one.

Must not import onnx, nor what quantises: variants_child.py does, and gives the memory back. Does not know where the
real samples come from.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from edge_cl.storage.errors import VariantError
from edge_cl.storage.protobuf import metadata_props
from edge_cl.storage.snapshot import Deployed

CHILD = Path(__file__).with_name("variants_child.py")
TIMEOUT_S = 600.0
CALIBRATED_ON = 256  # samples, spread evenly over what is held
WARM_UP, TIMED = 50, 500  # answers to one sample

_MESSAGE_CHARACTERS = 2000  # the end of what the child said holds the reason

Precision = Literal["float32", "float16", "int8"]


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds that onnxruntime takes to answer one sample, with one thread."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two models answered the same real samples; accuracy where there are classes, the mean score where not.

    loss_points = 100 · (right_float32 - right) / n over the n samples `compared`; without classes
    100 · mean |score - score_float32| / mean score_float32. `exam_accuracy` is of the exam alone, None without one.
    """

    exam_samples: int
    compared: int
    exam_accuracy: float | None
    exam_accuracy_float32: float | None
    changed: float  # share of answers in `compared` that name another class
    score: float | None
    score_float32: float | None
    loss_points: float


def make_variant(
    model: bytes, precision: Literal["float16", "int8"], samples: np.ndarray, metadata: Mapping[str, str]
) -> bytes:
    """The float32 model in fewer bits, with this metadata instead of its own.

    samples (N, …) float32, N ≥ 1, raw as the model takes them: int8 is calibrated on `CALIBRATED_ON` of them.
    Raises VariantError with the child's own message, also if it was killed or late. Leaves no file behind.
    """
    if len(samples) == 0:
        raise ValueError("samples: nothing to calibrate on (0 rows)")
    places = np.linspace(0, len(samples) - 1, min(len(samples), CALIBRATED_ON)).astype(np.int64)
    chosen = np.ascontiguousarray(samples[places], "<f4")
    header = {
        "path": sys.path,
        "precision": precision,
        "model_bytes": len(model),
        "sample_shape": list(chosen.shape[1:]),
    }
    request = b"".join([json.dumps(header).encode(), b"\n", model, chosen.tobytes()])
    with TemporaryDirectory(prefix="edge_cl-") as folder:
        content = _child_answer(request, folder, precision)
    return content + metadata_props(metadata)


def _child_answer(request: bytes, folder: str, precision: str) -> bytes:
    try:
        child = subprocess.run(
            [sys.executable, "-I", str(CHILD)],
            input=request,
            capture_output=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "TMPDIR": folder},
        )
    except subprocess.TimeoutExpired:
        raise VariantError(
            f"no {precision} variant within {TIMEOUT_S:g} s", hint="try on a less loaded machine"
        ) from None
    if child.returncode != 0:
        said = child.stderr.decode(errors="replace").strip()[-_MESSAGE_CHARACTERS:]
        why = said or f"the child ended with status {child.returncode} and no message"
        raise VariantError(f"no {precision} variant: {why}", hint="export float32, which is the snapshot itself")
    return child.stdout


def compare(
    reference: Deployed, variant: Deployed, exam: np.ndarray, others: np.ndarray, labels: np.ndarray | None
) -> Comparison:
    """How the variant answers beside the float32 model, on the exam's samples and on others, raw float32 (N, …).

    labels (N,) of both, the exam's first; None where there are no classes. Raises SnapshotMismatch.
    """
    x = np.concatenate([exam, others])
    before, after = reference(x), variant(x)
    if labels is None:
        score, score_before = after[:, -1], before[:, -1]
        loss = 100 * float(np.abs(score - score_before).mean() / score_before.mean())
        return Comparison(len(exam), len(x), None, None, 0.0, float(score.mean()), float(score_before.mean()), loss)
    chosen, chosen_before = after.argmax(1), before.argmax(1)
    right, right_before = chosen == labels, chosen_before == labels
    n = len(exam)
    return Comparison(
        exam_samples=n,
        compared=len(x),
        exam_accuracy=float(right[:n].mean()) if n else None,
        exam_accuracy_float32=float(right_before[:n].mean()) if n else None,
        changed=float((chosen != chosen_before).mean()),
        score=None,
        score_float32=None,
        loss_points=100 * float(right_before.mean() - right.mean()),
    )


def latency(model: Deployed, sample: np.ndarray, *, warm_up: int = WARM_UP, timed: int = TIMED) -> Latency:
    """Time answers to one raw sample (1, …) float32, after a warm-up."""
    took = np.empty(timed)
    for run in range(-warm_up, timed):
        started = time.perf_counter()
        model(sample)
        took[run] = time.perf_counter() - started  # the warm-up's are overwritten
    p50, p99 = np.percentile(took, (50, 99)) * 1e6
    return Latency(float(p50), float(p99))
