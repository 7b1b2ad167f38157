"""Templates that are built once for all children of a campaign: they depend on the configuration alone, and take a
second of a processor each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_cl.storage import record
from edge_cl.storage.atomic import write_atomic
from edge_cl.storage.template import PendingTemplate, Template, start_build


class KeptTemplate:
    """A template that lies in a file, or will once its first user has waited for it; as PendingTemplate for callers."""

    def __init__(self, file: Path, build: Callable[[], PendingTemplate]) -> None:
        self._file = file
        self._pending = None if file.exists() else build()

    @property
    def ready(self) -> bool:
        """Whether `result` would return at once."""
        return self._pending is None or self._pending.ready

    def result(self, timeout_s: float) -> Template:
        """The template. Raises TemplateError."""
        if self._pending is not None:
            template = self._pending.result(timeout_s)
            places = {name: list(place) for name, place in template.offsets.items()}
            held = {"offsets": places, "unused": sorted(template.unused), "opset": template.opset}
            write_atomic(self._file, record.pack({"model": np.frombuffer(template.model, np.uint8)}, held))
            return template
        arrays, noted = record.unpack(self._file.read_bytes())
        offsets = {name: (offset, size) for name, (offset, size) in noted["offsets"].items()}
        return Template(arrays["model"].tobytes(), offsets, frozenset(noted["unused"]), noted["opset"])

    def close(self) -> None:
        """End the child that builds it, if there is one."""
        if self._pending is not None:
            self._pending.close()


def keeping(folder: Path) -> Callable[..., KeptTemplate]:
    """What stands in for `start_build`."""

    def build(graph: Mapping[str, Any], builder: str | None = None) -> KeptTemplate:
        name = hashlib.sha256(json.dumps([graph, builder], sort_keys=True).encode()).hexdigest()
        return KeptTemplate(folder / name[:16], lambda: start_build(graph, builder))

    return build
