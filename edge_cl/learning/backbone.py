"""A frozen ONNX network in front of the learner: raw samples in, features out, by onnxruntime.

Knows the model's bytes and what goes in and out of it. Must not know who learns from the features, nor any file.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.learning.layers import Shape
from edge_cl.learning.standardise import channels_first

if TYPE_CHECKING:
    import onnxruntime

REMEMBERED = 16  # samples: a step's were answered just before, and need not go through it again


class Backbone:
    """features(x) = the model's first output, flattened, (B, D) float32, of raw samples x (B, *shape) as float32.

    The model takes samples as they are, or channels first: `layout` says how they lie with their channels last. Each
    goes through alone, so that its features never depend on who came with it, and a model with a batch of 1 serves as
    well. The last `REMEMBERED` samples are kept with their features.

    Raises ValueError, naming the rule, if onnxruntime refuses the model, if it has not one float32 input that fits, or
    if its first output is not so many finite numbers for every sample.
    """

    def __init__(
        self, model: bytes, shape: Shape, dtype: np.dtype[Any], *, layout: Shape | None = None, threads: int = 1
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.model_bytes = len(model)
        self._session = _session(model, threads)
        self._input, self.layout = _fitting(self._session, shape, layout or shape)
        self._output = self._session.get_outputs()[0].name
        self._remembered: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self.n_features = self._probe()

    @property
    def description(self) -> dict[str, Any]:
        """What a graph that begins with it must know, beside where its file lies."""
        layout = None if self.layout is None else list(self.layout)
        return {
            "sha256": self.sha256,
            "shape": list(self.shape),
            "layout": layout,
            "n_features": self.n_features,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the model, and of the samples kept with their features; onnxruntime's own come on top."""
        return self.model_bytes + REMEMBERED * (prod(self.shape) * self.dtype.itemsize + 4 * self.n_features)

    def features(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Features (B, D) of raw samples x (B, *shape)."""
        rows = [self._of_one(sample) for sample in x]
        return np.stack(rows) if rows else np.empty((0, self.n_features), np.float32)

    def recent(self) -> NDArray[Any]:
        """The last raw samples (n, *shape) that went through it, n ≤ `REMEMBERED`; the oldest first."""
        held = np.frombuffer(b"".join(self._remembered), self.dtype)
        return held.reshape(len(self._remembered), *self.shape)

    def _of_one(self, sample: NDArray[Any]) -> NDArray[np.float32]:
        key = sample.tobytes()
        known = self._remembered.get(key)
        if known is not None:
            return known
        found = self._run(sample)
        self._remembered[key] = found
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return found

    def _run(self, sample: NDArray[Any]) -> NDArray[np.float32]:
        given = sample.astype(np.float32)
        if self.layout is not None:
            given = np.ascontiguousarray(np.moveaxis(given.reshape(self.layout), -1, 0))
        found: NDArray[np.float32] = self._session.run([self._output], {self._input: given[None]})[0].ravel()
        return found

    def _probe(self) -> int:
        """Values of the output, the same number for two quite different samples."""
        found = []
        for value in (0.0, 1.0):
            sample = np.full(self.shape, value, self.dtype)
            try:
                found.append(self._run(sample))
            except Exception as exc:  # onnxruntime's classes share no base of their own
                raise ValueError(f"must answer samples of shape {self.shape} (onnxruntime: {exc})") from exc
        sizes = {one.size for one in found}
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError(f"must give equally many features for each sample (got {sorted(sizes)})")
        if any(one.dtype != np.float32 or not np.isfinite(one).all() for one in found):
            raise ValueError(f"must give finite float32 features (got {found[0].dtype}, or values that are not finite)")
        return found[0].size


def _session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime  # some 20 MB, which a learner without a backbone need not hold from the start

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what it has to say comes as an exception
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's classes share no base of their own
        raise ValueError(f"must be a model that onnxruntime loads ({exc})") from exc


def _fitting(session: onnxruntime.InferenceSession, shape: Shape, layout: Shape) -> tuple[str, Shape | None]:
    """The input's name, and the layout that samples are brought into first if the model takes channels first."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        got = ", ".join(f"{one.name} {one.type}" for one in inputs)
        raise ValueError(f"must have one input, of float32 (got {got or 'none'})")
    batch, *dims = inputs[0].shape or [None]
    if isinstance(batch, int) and batch != 1:
        raise ValueError(f"must take any number of samples at once, or one (got {batch})")
    if _fits(dims, shape):
        return inputs[0].name, None
    if len(layout) > 1 and _fits(dims, channels_first(layout)):
        return inputs[0].name, layout
    wanted = f"{shape}, or channels first {channels_first(layout)}" if len(layout) > 1 else f"{shape}"
    raise ValueError(f"must take samples of shape {wanted} (got {tuple(dims)})")


def _fits(dims: list[int | str | None], shape: Shape) -> bool:
    """Whether samples of that shape go in; a dimension with a name takes any size."""
    return len(dims) == len(shape) and all(d == n for d, n in zip(dims, shape, strict=True) if isinstance(d, int))
