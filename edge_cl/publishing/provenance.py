"""What a snapshot says of itself, in its metadata and its manifest: what goes in, what comes out, what it was made of.

Reads learner, task, schema and configuration. Must not decide anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from edge_cl.assembly import TEMPLATES, Task
from edge_cl.config import Config
from edge_cl.learning.online_learner import OnlineLearner
from firmware_bridge.sample import Schema

SCHEMA_VERSION = 1

Exam = Mapping[int, tuple[int, float]]


@dataclass(frozen=True)
class Provenance:
    """The facts of all snapshots of one run."""

    learner: OnlineLearner
    task: Task
    schema: Schema
    kind: str
    config_sha256: str
    versions: Mapping[str, str]

    @classmethod
    def of(cls, learner: OnlineLearner, task: Task, schema: Schema, config: Config) -> Provenance:
        """Work out what does not change while it runs."""
        config_sha256 = hashlib.sha256(config.model_dump_json().encode()).hexdigest()
        # That of templates is not the network, which only makes features for them.
        kind = config.model.kind if config.model.kind in TEMPLATES else learner.network.kind
        versions = {name: version(name) for name in ("edge-cl", "torch", "onnx", "onnxruntime")}
        return cls(learner, task, schema, kind, config_sha256, versions)

    def facts(self, label_names: tuple[str, ...], exam: Exam, outputs: Mapping[str, Any], opset: int) -> dict[str, Any]:
        """All of them now; `exam` is samples and accuracy of each class, `opset` the template's."""
        learner, schema = self.learner, self.schema
        return {
            "schema_version": SCHEMA_VERSION,
            "labels": list(label_names),
            "classes_seen": [name for name, seen in zip(label_names, learner.seen.tolist(), strict=False) if seen],
            "input": {
                "name": "input",
                "shape": ["batch", *self.task.shape],
                "values": f"raw sensor values of dtype {self.task.dtype}, given as float32",
                "channels": list(schema.channels),
                "unit": schema.unit,
                "scale": schema.scale,
                "rate_hz": schema.rate_hz,
            },
            "output": dict(outputs),
            "opset": opset,
            "model": self.kind,
            "parameters": learner.network.arena.flat.numel(),
            "training": {
                "learned": learner.learnt,
                "steps": learner.steps,
                "consolidations": learner.consolidations,
                "exam": {label_names[c]: {"samples": n, "accuracy": accuracy} for c, (n, accuracy) in exam.items()},
            },
            "config_sha256": self.config_sha256,
            "versions": dict(self.versions),
        }


def as_metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts as ONNX metadata, which holds texts only: what is no text becomes JSON."""
    return {key: fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False) for key, fact in facts.items()}
