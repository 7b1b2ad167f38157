"""Weights → ONNX bytes → proof that they answer as the learner does.

Must not know the learner, nor where the bytes go. A snapshot is the template's bytes with other weights in place and
the metadata behind, one memory copy: no exporter, no graph, no onnx. onnxruntime is imported with the first `Deployed`.

    template.model[: offset₁] weight₁ template.model[offset₁ + nbytes₁ : offset₂] weight₂ … metadata_props
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edge_cl.storage.errors import SnapshotMismatch, TemplateError
from edge_cl.storage.protobuf import has_external_data, metadata_props
from edge_cl.storage.template import Template

if TYPE_CHECKING:
    import onnxruntime

# float32 rounds each of C probabilities by at most 2⁻²⁵ and their sum C times: for 1,000 classes well below this.
_ROW_SUM_TOLERANCE = 1e-4


def fill(template: Template, weights: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The ONNX model with these float32 weights and metadata.

    Raises TemplateError if a weight is missing, unknown, not float32 or of another size than the template's.
    """
    _check_names(template, weights)
    parts: list[memoryview | bytes] = []
    model, at = memoryview(template.model), 0
    for name, (offset, size) in sorted(template.offsets.items(), key=lambda item: item[1]):
        weight = weights[name]
        if weight.dtype != np.float32 or weight.nbytes != size:
            raise TemplateError(
                f"weight {name}: {weight.dtype}, {weight.nbytes} bytes (the template has float32, {size} bytes)",
                hint="a changed model needs a new template",
            )
        parts += [model[at:offset], np.ascontiguousarray(weight, "<f4").data.cast("B")]
        at = offset + size
    return b"".join([*parts, model[at:], metadata_props(metadata)])


class Deployed:
    """A model as those run it who deploy it: by onnxruntime alone, with one thread.

    Raises SnapshotMismatch if it keeps weights in other files, or onnxruntime refuses to load or run it.
    """

    def __init__(self, model: bytes) -> None:
        _refuse_external_data(model)
        self._session = _session(model)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, x: np.ndarray, *, batch: int = 256) -> np.ndarray:
        """What it gives (N, C) float64 for raw samples x (N, …) float32: outputs side by side, a score last."""
        return np.concatenate([self._run(x[start : start + batch]) for start in range(0, max(1, len(x)), batch)])

    def _run(self, x: np.ndarray) -> np.ndarray:
        try:
            outputs = self._session.run(None, {self._input: x})
        except Exception as exc:  # onnxruntime's classes share no base of their own
            raise SnapshotMismatch(f"onnxruntime does not run the model: {exc}") from exc
        return np.concatenate(outputs, axis=1, dtype=np.float64)


def verify(
    deployed: Deployed, x: np.ndarray, expected: np.ndarray, *, tolerance: float = 1e-5, probabilities: bool = True
) -> float:
    """The largest absolute difference between the model's answers and the learner's, found small enough.

    |a − b| ≤ tolerance · max(1, |b|) for each answer a and expected b, once with all rows as one batch and once with
    the first row alone. x (N, …) float32, expected (N, C) what the model gives, its outputs side by side, N ≥ 1.
    Raises SnapshotMismatch if a difference is larger, an answer is not finite or a row of `probabilities` does not sum
    to 1; ValueError if N is 0.
    """
    if len(x) == 0:
        raise ValueError("x: nothing to compare with (0 rows)")
    given = [deployed(x[:n], batch=len(x)) for n in (1, len(x))]
    if probabilities:
        _check_sums(given[-1])
    return max(_difference(answer, expected[: len(answer)], tolerance) for answer in given)


def _check_names(template: Template, weights: Mapping[str, np.ndarray]) -> None:
    missing, unknown = template.offsets.keys() - weights.keys(), weights.keys() - template.offsets.keys()
    unknown -= template.unused
    if missing or unknown:
        raise TemplateError(
            f"weights differ from the template's: missing {sorted(missing)}, unknown {sorted(unknown)}",
            hint="a changed model needs a new template",
        )


def _refuse_external_data(model: bytes) -> None:
    # A path inside a model would be opened by whoever loads it (CVE-2022-25882, CVE-2024-27318 and followers).
    try:
        external = has_external_data(model)
    except ValueError as exc:
        raise SnapshotMismatch(f"not an ONNX model: {exc}") from exc
    if external:
        raise SnapshotMismatch("the model keeps weights in other files (external data)")


def _session(model: bytes) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # the arena keeps the most it ever took; answers here are few
    options.log_severity_level = 4  # what it has to say comes as an exception
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # as above
        raise SnapshotMismatch(f"onnxruntime does not load the model: {exc}") from exc


def _check_sums(answer: np.ndarray) -> None:
    if np.abs(answer.sum(axis=1) - 1).max() > _ROW_SUM_TOLERANCE:
        raise SnapshotMismatch("the model's answers are no probabilities: a row does not sum to 1")


def _difference(answer: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    if answer.shape != expected.shape:
        raise SnapshotMismatch(f"the model answers {answer.shape}, the learner {expected.shape}")
    if not np.isfinite(answer).all():
        raise SnapshotMismatch("the model's answer is not finite")
    difference = np.abs(answer - expected)
    largest = float(difference.max())
    # "not all ≤" rather than "any >": a NaN in expected must not pass
    if not (difference <= tolerance * np.maximum(1, np.abs(expected))).all():
        raise SnapshotMismatch(
            f"the model's answers differ from the learner's by {largest:.3g} (allowed {tolerance:g})",
            difference=largest,
        )
    return largest
