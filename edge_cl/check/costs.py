"""What a learner costs beside its bytes and its steps: snapshot, variants, checkpoint, process.

Writes into temporary folders only.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_cl.assembly import template_request
from edge_cl.check.line import CheckLine
from edge_cl.check.workload import Workload
from edge_cl.keeping import entry
from edge_cl.keeping.cursor import Cursor
from edge_cl.learning.graph import weights
from edge_cl.publishing.publisher import BUILD_TIMEOUT_S, PROBES, due_answers
from edge_cl.service.telemetry import rss_bytes
from edge_cl.storage.checkpoint import CheckpointStore
from edge_cl.storage.errors import VariantError
from edge_cl.storage.journal import Journal
from edge_cl.storage.snapshot import Deployed, fill, verify
from edge_cl.storage.template import start_build
from edge_cl.storage.variants import Latency, latency, make_variant
from firmware_bridge.sample import Sample

T = TypeVar("T")

JOURNALED_STEPS = 100
REPEATS = 5  # of what is done once in a while; the median is told
# What a process is that has imported all that the daemon imports, and has done nothing.
FLOOR = """
import edge_cl.cli, edge_cl.daemon, onnxruntime
from edge_cl.service.telemetry import rss_bytes
print(rss_bytes())
"""


def snapshot_lines(workload: Workload) -> tuple[list[CheckLine], bytes, NDArray[np.float32]]:
    """Time and size of a snapshot; its bytes, and the samples it was verified on. Raises TemplateError."""
    learner, config = workload.learner, workload.config
    without_classes = bool(workload.blueprint.aim)
    n_classes = learner.network.n_outputs if without_classes else workload.n_classes
    build = start_build(*template_request(config, learner, n_classes))
    template = build.result(BUILD_TIMEOUT_S)
    seen = learner.seen.cpu().numpy()
    model, fill_ms = _median(lambda: fill(template, weights(learner.network, n_classes, seen), {}))
    x = workload.samples(PROBES)[0]
    expected = due_answers(learner, x, n_classes)
    probes = x.astype(np.float32)
    _, verify_ms = _median(lambda: verify(Deployed(model), probes, expected, probabilities=not without_classes))
    return (
        [
            CheckLine("snapshot size", config.budget.snapshot_bytes, len(model), "bytes"),
            CheckLine("snapshot fill", None, fill_ms, "ms"),
            CheckLine("snapshot verify", None, verify_ms, "ms"),
        ],
        model,
        probes,
    )


def variant_lines(model: bytes, x: NDArray[np.float32]) -> tuple[list[CheckLine], dict[str, str]]:
    """Size of each precision and how fast it answers one sample; and why one could not be made."""
    lines, left_out = list(_variant("float32", model, latency(Deployed(model), x[:1]))), {}
    for precision in ("float16", "int8"):
        try:
            variant = make_variant(model, precision, x, {})
            lines += _variant(precision, variant, latency(Deployed(variant), x[:1]))
        except VariantError as exc:
            left_out[f"export {precision}"] = str(exc)
    return lines, left_out


def _variant(precision: str, model: bytes, took: Latency) -> Iterator[CheckLine]:
    yield CheckLine(f"export {precision} size", None, len(model), "bytes")
    yield CheckLine(f"export {precision} p50", None, took.p50 / 1e3, "ms")
    yield CheckLine(f"export {precision} p99", None, took.p99 / 1e3, "ms")


def checkpoint_lines(workload: Workload) -> list[CheckLine]:
    """What is written to the disk at each storage.checkpoint_every_s, and how long that takes."""
    arrays, values = workload.learner.state()
    with TemporaryDirectory(prefix="edge_cl-") as folder:
        store = CheckpointStore(Path(folder))
        _, save_ms = _median(lambda: store.save(arrays, {"learner": values}))
        size = max(path.stat().st_size for path in Path(folder).iterdir())
    per_hour = size * 3600 / workload.config.storage.checkpoint_every_s
    return [
        CheckLine("checkpoint size", None, size, "bytes"),
        CheckLine("checkpoint save", None, save_ms, "ms"),
        CheckLine("checkpoints an hour", None, per_hour, "bytes"),
    ]


def journal_lines(workload: Workload) -> list[CheckLine]:
    """What the journal writes for each sample learnt, in steps of a full batch brought to the disk together."""
    if workload.config.storage.durability == "checkpoint":
        return []
    batch = workload.config.learning.batch_size
    x, y = workload.samples(batch)
    samples = [Sample(0, 0, n, n, values, int(label)) for n, (values, label) in enumerate(zip(x, y, strict=True))]
    body = entry.learn(samples, Cursor(), most_replayed=workload.config.replay.per_step)
    with TemporaryDirectory(prefix="edge_cl-") as folder:
        journal = Journal(Path(folder), after=0, queue_bytes=JOURNALED_STEPS * len(body))
        for _ in range(JOURNALED_STEPS):
            journal.append(body)
        journal.close()
        written = sum(file.stat().st_size for file in Path(folder).iterdir())
    return [
        CheckLine("journal bytes a sample", None, written / (JOURNALED_STEPS * batch), "bytes"),
        CheckLine("of which the sample's own", None, x[0].nbytes, "bytes"),
    ]


def process_lines() -> list[CheckLine]:
    """This process, and one that only imported what the daemon imports."""
    floor = subprocess.run([sys.executable, "-c", FLOOR], capture_output=True, text=True, check=True)
    return [
        CheckLine("process", None, rss_bytes(), "bytes"),
        CheckLine("process floor", None, int(floor.stdout), "bytes"),
    ]


def _median(action: Callable[[], T]) -> tuple[T, float]:
    """What an action gives, and its median milliseconds."""
    took = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = action()
        took.append((time.perf_counter() - started) * 1e3)
    return result, float(np.median(took))
