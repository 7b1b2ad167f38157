"""From the file that `model.backbone` names to a frozen feature extractor, or to what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_cl.errors import OperatorError
from edge_cl.learning.backbone import Backbone
from edge_cl.learning.model import layout_of
from edge_cl.storage.protobuf import has_external_data

KEY = "model.backbone"


def load_backbone(path: str, shape: tuple[int, ...], dtype: np.dtype[np.generic], *, threads: int) -> Backbone:
    """The backbone in the ONNX file at `path`, for raw samples of `shape` and `dtype`.

    Raises OperatorError, naming the rule, if it cannot be read, keeps weights in other files, or does not fit.
    """
    try:
        model = Path(path).read_bytes()
    except OSError as exc:
        raise OperatorError(
            f"{KEY}: must be an ONNX file that can be read: {exc.strerror} (got {path})",
            hint="a relative path is looked for in the folder that edge-cl was started in",
        ) from exc
    try:
        _refuse_external_data(model)
        return Backbone(model, shape, dtype, layout=layout_of(shape), threads=threads)
    except ValueError as exc:
        raise OperatorError(
            f"{KEY}: {exc}, in {path}",
            hint="docs/MODELS.md says how to export one; what it takes are raw samples, as float32",
        ) from exc


def _refuse_external_data(model: bytes) -> None:
    try:
        external = has_external_data(model)
    except ValueError as exc:
        raise ValueError(f"must be an ONNX model ({exc})") from exc
    if external:
        raise ValueError("must hold its weights itself, not in other files (external data)")
