"""A learner of one workload and its publisher, as the daemon has them; and what a thousand snapshots leave in memory.

    python tools/bench/snapshots.py --workload W1 --data FOLDER --snapshots 1000 --warm-up 100

in a process of its own, so that nothing but publishing is measured; one JSON object on stdout.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from bench import workloads
from bench.memory import resident
from bench.sides import built_in_network
from bench.workloads import WORKLOADS, Data, Workload
from edge_cl import assembly
from edge_cl.assembly import Task, template_request
from edge_cl.config import Config, resolve
from edge_cl.heap import give_back, keep
from edge_cl.learning.graph import weights
from edge_cl.learning.learner import Learner
from edge_cl.learning.replay import Reservoir
from edge_cl.publishing.provenance import Provenance, as_metadata
from edge_cl.publishing.publisher import PROBES, Publisher
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.snapshot import Deployed, fill, verify
from edge_cl.storage.template import start_build
from firmware_bridge.sample import Schema

CALM = 0.01  # learning rate: weights change in every step, and a snapshot worth refusing is rare
PATIENCE_S = 120.0
READINGS = 20  # of which the least counts: the heap's top comes and goes by a model's bytes


class Publishing:
    """A learner that knows all classes of a workload, its publisher, and the next labelled samples."""

    def __init__(self, workload: Workload, data: Data, folder: Path) -> None:
        self.data, self.kept_aside = data, 0
        self.config = resolve(
            None, (f"learning.learning_rate={CALM}", f"snapshots.trial_samples={workload.new}")
        ).config
        self.names = tuple(map(str, range(workload.n_classes)))
        self.learner = learner_of(workload, self.config)
        self.batches = itertools.cycle(
            (part.raw[turn], part.labels[turn].numpy())
            for turn in data.old.turns(workload.new)
            for part in (data.old, data.new)
        )
        while self.learner.exam.size < self.learner.exam.capacity:
            self.learner.learn(*next(self.batches))
        self.learner.consolidate()
        schema = Schema("bench", workload.dtype, workload.shape, label_names=self.names)
        task = Task(workload.shape, np.dtype(workload.dtype), self.names, workload.n_classes, None)
        self.publisher = Publisher(self.learner, task, schema, self.config, folder / "daemon")
        self.publisher.prepare(workload.n_classes)
        self.provenance = Provenance.of(self.learner, task, schema, self.config)
        self.shelf = Shelf(folder / "parts", self.config.snapshots.keep)
        self.exam = self.learner.examine()
        for shelf in (self.publisher.shelf, self.shelf):
            shelf.folder.parent.mkdir()
        self.template = start_build(*template_request(self.config, self.learner, workload.n_classes)).result(PATIENCE_S)

    def learn(self) -> None:
        """One step instead of the hundred between two snapshots, and the exam that comes with a consolidation."""
        x, y = next(self.batches)
        self.publisher.judge(x, y)
        self.learner.learn(x, y)
        self.exam = self.learner.examine()

    def publish(self) -> None:
        """A snapshot of what was learnt, as the daemon makes it."""
        self.kept_aside += self.publisher.publish(self.names, self.exam).state == "bad"

    def snapshot(self) -> bytes:
        """The model's bytes alone."""
        outputs = {"name": "probabilities", "shape": ["batch", len(self.names)]}
        facts = self.provenance.facts(self.names, self.exam, outputs, self.template.opset)
        values = weights(self.learner.network, len(self.names), self.learner.seen.numpy())
        return fill(self.template, values, as_metadata(facts))

    def parts(self) -> dict[str, float]:
        """Milliseconds of what every snapshot needs: until its bytes are there, until they are proved, on the shelf."""
        marks = [time.perf_counter_ns()]
        model = self.snapshot()
        marks.append(time.perf_counter_ns())
        rows = self.data.old_held_out.raw[:PROBES]
        verify(Deployed(model), rows.astype(np.float32), self.learner.predict(rows))
        marks.append(time.perf_counter_ns())
        self.shelf.publish(model, {})
        marks.append(time.perf_counter_ns())
        taken = [(end - start) / 1e6 for start, end in itertools.pairwise(marks)]
        return dict(zip(("fill_ms", "verify_ms", "shelf_ms"), taken, strict=True))


def learner_of(workload: Workload, config: Config) -> Learner:
    """A learner of the workload's network by the configuration's rule, with its exam."""
    of = (workload.shape, np.dtype(workload.dtype))
    replay = Reservoir(workloads.BUFFER, *of, n_classes=workload.n_classes)
    exam = Reservoir(config.exam.samples, *of, n_classes=workload.n_classes, seed=1)
    return Learner(built_in_network(workload), replay, exam, assembly.rule_of(config))


@contextmanager
def publishing(workload: Workload, folder: Path) -> Iterator[Publishing]:
    """A publisher on a shelf in a folder of its own, which goes with it; `folder` is that of the samples."""
    with tempfile.TemporaryDirectory() as shelf:
        made = Publishing(workload, workloads.load(workload, folder), Path(shelf))
        try:
            yield made
        finally:
            made.publisher.close()


def growth_mb(made: Publishing, snapshots: int, warm_up: int) -> float:
    """Megabytes that the process has grown by, from after the warm-up until so many snapshots later."""
    least: list[int] = []
    for turn in (warm_up, snapshots - READINGS):
        for _ in range(turn):
            _next(made)
        least.append(min(_next(made) for _ in range(READINGS)))
    return (least[1] - least[0]) / 1e6


def _next(made: Publishing) -> int:
    """Learn, publish, give back as the daemon does; what is resident then."""
    made.learn()
    made.publish()
    give_back()
    return resident()


def main() -> int:
    """Parse, publish, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=list(WORKLOADS), required=True)
    parser.add_argument("--data", type=Path, default=workloads.DEFAULT_DATA)
    parser.add_argument("--snapshots", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep()  # as the daemon does
    with publishing(WORKLOADS[options.workload], options.data) as made:
        grown = growth_mb(made, options.snapshots, options.warm_up)
    found = {"rss_growth_mb": round(grown, 3), "rss_mb": round(resident() / 1e6, 1), "kept_aside": made.kept_aside}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
