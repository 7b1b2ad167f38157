"""From the learner as it is to a verified ONNX snapshot on the shelf.

Joins the two wings at one point: learning/ describes graph and weights, storage/ makes, checks and shelves the bytes.
The template is built by a child process while learning goes on, and built again when the classes change.
"""

from __future__ import annotations

import hashlib
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.assembly import Task
from edge_cl.config import Config
from edge_cl.learning.graph import OPSET, graph, weights
from edge_cl.learning.network import Network
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.storage.errors import DamagedFile, TemplateError
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.snapshot import answers, fill, verify
from edge_cl.storage.template import PendingTemplate, Template, start_build
from firmware_bridge.sample import Schema

BUILD_TIMEOUT_S = 120.0  # a loaded Raspberry Pi imports onnx in some ten seconds
PROBES = 32  # samples the snapshot must answer like the learner
MOST_LOOKED_AT = 256  # samples of the reservoir that tell the range of each channel
PROBE_SEED = 0
LEAST_EXAM = 10  # samples below which an exam says nothing
WORSE = 3.0  # standard errors: one look in some hundreds is past that by chance
SCHEMA_VERSION = 1


class Publisher:
    """Publishes snapshots of one learner on the shelf in `folder`."""

    def __init__(self, learner: OnlineLearner, task: Task, schema: Schema, config: Config, folder: Path) -> None:
        assert isinstance(learner.network, Network)  # modules of PyTorch describe no graph of themselves
        self._learner, self._network, self._task, self._schema = learner, learner.network, task, schema
        self._config_hash = hashlib.sha256(config.model_dump_json().encode()).hexdigest()
        self.shelf = Shelf(folder, keep=config.storage.keep_snapshots)
        self._n_classes = 0
        self._template: PendingTemplate | None = None
        self._published_at: float | None = None
        self.current_path: Path | None = None
        self.faults: list[str] = []
        try:
            current = self.shelf.current()
            if current is not None:
                current.read()
                self.current_path = current.path
        except DamagedFile as exc:  # the one who can mend it must not be stopped by it
            self.faults.append(f"{exc}; the next snapshot takes its place")

    def prepare(self, n_classes: int) -> None:
        """Have the template for that many classes built in the background; nothing happens if it already is.

        One without classes gives all its outputs.
        """
        n_classes = self._network.n_outputs if self._network.blueprint.aim else n_classes
        if n_classes and n_classes != self._n_classes:
            self.close()
            self._n_classes = n_classes
            self._template = start_build(graph(self._network.blueprint, n_classes))

    @property
    def age_s(self) -> float | None:
        """Seconds since this run last published, None if it has not yet."""
        return None if self._published_at is None else time.monotonic() - self._published_at

    def publish(self, label_names: tuple[str, ...], exam: dict[int, tuple[int, float]]) -> Path:
        """Fill the template, verify its answers against the learner's, put it on the shelf as `current`.

        Returns the path of model.onnx. Raises SnapshotMismatch, TemplateError or StorageFault; `current` then stays.
        """
        learner = self._learner
        template = self._built(len(label_names))
        values = weights(self._network, self._n_classes, learner.seen.numpy())
        facts = self._facts(label_names, exam)
        model = fill(template, values, {key: _text(value) for key, value in facts.items()})
        probes = self._probes()
        is_reconstruction = bool(self._network.blueprint.aim)
        expected = learner.predict(probes)[:, : self._n_classes]
        if is_reconstruction:
            expected = np.column_stack([expected, learner.losses(probes)])
        difference = verify(model, probes.astype(np.float32), expected, probabilities=not is_reconstruction)
        manifest = {**facts, "verification": {"samples": len(probes), "max_abs_difference": difference}}
        self.current_path = self.shelf.publish(model, manifest)
        self._published_at = time.monotonic()
        return self.current_path

    def would_be_worse(self) -> bool:
        """Whether the learner reconstructs its exam clearly worse than the published snapshot does.

        That is when the mean of what each sample's score has risen by is more than its standard error WORSE times over.
        """
        exam, current = self._learner.exam, self.shelf.current() if self.current_path else None
        if current is None or exam.size < LEAST_EXAM:
            return False
        x = exam.take(np.arange(exam.size))
        rise = self._learner.losses(x) - answers(current.read(), x.astype(np.float32))[:, -1]
        return bool(rise.mean() > WORSE * rise.std(ddof=1) / np.sqrt(len(rise)))

    def close(self) -> None:
        """End a build that is still going on."""
        if self._template is not None:
            self._template.close()

    def _built(self, n_classes: int) -> Template:
        self.prepare(n_classes)
        assert self._template is not None
        try:
            return self._template.result(BUILD_TIMEOUT_S)
        except TemplateError:
            self._n_classes = 0  # the machine may have been short of time or memory: the next snapshot tries again
            raise

    def _probes(self) -> NDArray[Any]:
        """Half real samples, half random ones over the range each channel has shown; all random if none is held."""
        held = self._learner.replay if self._learner.replay.size else self._learner.exam
        real = held.take(np.linspace(0, held.size - 1, min(held.size, MOST_LOOKED_AT)).astype(np.int64))
        if len(real):
            positions = tuple(range(real.ndim - 1))
            low, high = real.min(positions).astype(np.float64), real.max(positions).astype(np.float64)  # (C,)
        else:
            low, high = self._usual_range()
        drawn = np.random.default_rng(PROBE_SEED).uniform(low, high, (PROBES // 2, *self._task.shape))
        return np.concatenate([real[: PROBES // 2], drawn.astype(self._task.dtype)])

    def _usual_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Within three deviations of each channel's mean, as far as the sensor's dtype reaches."""
        standardise, dtype = self._network.standardise, self._task.dtype
        mean, spread = standardise.mean.double().cpu().numpy(), 3 * standardise.variance.double().sqrt().cpu().numpy()
        least, most = -np.inf, np.inf
        if dtype.kind in "iu":
            limits = np.iinfo(dtype.name)
            least, most = limits.min, limits.max
        return np.clip(mean - spread, least, most), np.clip(mean + spread, least, most)

    def _facts(self, label_names: tuple[str, ...], exam: dict[int, tuple[int, float]]) -> dict[str, Any]:
        """What metadata and manifest say: what goes in, what comes out, and what it was made of."""
        learner, schema = self._learner, self._schema
        return {
            "schema_version": SCHEMA_VERSION,
            "labels": list(label_names),
            "classes_seen": [name for name, seen in zip(label_names, learner.seen.tolist(), strict=False) if seen],
            "input": {
                "name": "input",
                "shape": ["batch", *self._task.shape],
                "values": f"raw sensor values of dtype {self._task.dtype}, given as float32",
                "channels": list(schema.channels),
                "unit": schema.unit,
                "scale": schema.scale,
                "rate_hz": schema.rate_hz,
            },
            "output": self._output(label_names),
            "opset": OPSET,
            "model": learner.network.kind,
            "parameters": learner.network.arena.flat.numel(),
            "training": {
                "learned": learner.learnt,
                "steps": learner.steps,
                "consolidations": learner.consolidations,
                "exam": {label_names[c]: {"samples": n, "accuracy": accuracy} for c, (n, accuracy) in exam.items()},
            },
            "config_sha256": self._config_hash,
            "versions": {name: version(name) for name in ("edge-cl", "torch", "onnx", "onnxruntime")},
        }

    def _output(self, label_names: tuple[str, ...]) -> dict[str, Any]:
        if not self._network.blueprint.aim:
            return {"name": "probabilities", "shape": ["batch", len(label_names)]}
        score = {"name": "score", "shape": ["batch", 1]}  # how unlike what was learnt: docs/ANOMALY.md
        return {"name": "reconstruction", "shape": ["batch", self._network.n_outputs], "beside": score}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
