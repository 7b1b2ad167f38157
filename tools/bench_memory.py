#!/usr/bin/env python3
"""The bytes of a learner: what was planned, what is allocated, and what 200,000 steps add to the process.

    python tools/bench_memory.py [--json] [--steps 200000]

The learner is built from a configuration by edge_cl.assembly, as the daemon does. planned_bytes is the plan without
what the daemon and not the learner holds (queue, window, snapshot). allocated_bytes is counted by walking everything
that can be reached from the learner after the steps, each tensor's storage and each array's memory once, whatever the
learner says of itself; working memory of its layers is in it. The process's resident set is read after a warm-up, in
which it has consolidated, and at the end. Then tracemalloc watches a further stretch: largest_growth names the lines
whose memory grew by most. (It sees Python's and numpy's memory; torch's shows in the resident set.)
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.interleave import progress
from bench.memory import resident
from bench.workloads import ROOT
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from edge_cl import assembly
from edge_cl.config import Config, parse
from edge_cl.learning.learner import Learner
from firmware_bridge.sample import Schema

STEPS, WARM_UP, TRACED = 200_000, 5_000, 1_000
CONSOLIDATIONS = 10  # in the steps that are measured
BATCHES = 64  # made once: making them must not be what grows
NAMED = 5
SCHEMA = Schema("bench", "int16", (128,), label_names=("a", "b", "c", "d", "e", "f"))
SETTINGS = ("model.kind=mlp", "replay.memory_bytes=null", "consolidation.rehearsal_passes=1")  # replay fills the budget
CONTRACT = ("planned_bytes", "allocated_bytes", "rss_growth_mb", "steps")


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps between the two readings ({STEPS})")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help=f"steps before the first ({WARM_UP})")
    options = parser.parse_args()
    result = measure(parse("", overrides=SETTINGS), options.steps, options.warm_up)
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(table(result))
    return 0


def measure(config: Config, steps: int, warm_up: int) -> dict[str, Any]:
    """Build, warm up, step, count."""
    task = assembly.task_of(config, SCHEMA)
    blueprint = assembly.blueprint_of(config, task)
    planned = assembly.plan_of(config, task, blueprint)
    learner = assembly.make_learner(config, task, blueprint, planned, seed=0)
    batches = _batches(task, config.learning.batch_size)
    while learner.replay.size < learner.replay.capacity:
        learner.learn(*batches[learner.steps % BATCHES])
    learner.consolidate()
    _learn(learner, batches, warm_up, "warm-up")
    started, before = time.monotonic(), resident()
    _learn(learner, batches, steps, "steps")
    after, seconds = resident(), time.monotonic() - started
    accuracy = np.mean([(learner.predict(x).argmax(1) == y).mean() for x, y in batches])
    assert accuracy > 0.5, f"the learner answers {accuracy:.2f} right: not the work that was meant"
    growth = largest_growth(learner, batches, min(TRACED, steps))
    held = holdings(learner)
    return {
        "planned_bytes": planned.nbytes - planned.promised,
        "allocated_bytes": sum(held.values()),
        "rss_growth_mb": round((after - before) / 1e6, 3),
        "steps": steps,
        "learner_nbytes": learner.nbytes,
        "rss_mb": round(after / 1e6, 1),
        "warm_up_steps": warm_up,
        "us_per_step": round(seconds / steps * 1e6, 1),
        "largest_holdings": dict(sorted(held.items(), key=lambda item: -item[1])[: 2 * NAMED]),
        "largest_growth": growth,
    }


def _batches(task: assembly.Task, n: int) -> list[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Labelled samples of a few well separated classes, in the sensor's dtype."""
    rng = np.random.default_rng(0)
    ideal = rng.normal(0, 1000, (len(SCHEMA.label_names), *task.shape))
    made = []
    for _ in range(BATCHES):
        y = rng.integers(0, len(ideal), n)
        made.append(((ideal[y] + rng.normal(0, 500, (n, *task.shape))).astype(task.dtype), y))
    return made


def _learn(learner: Learner, batches: list[tuple[NDArray[Any], NDArray[np.int64]]], steps: int, title: str) -> None:
    part = max(1, steps // CONSOLIDATIONS)
    for start in progress(range(0, steps, part), f"{title:8}"):
        for at in range(start, min(start + part, steps)):
            learner.learn(*batches[at % BATCHES])
        learner.consolidate()


def holdings(root: object) -> dict[str, int]:
    """Bytes of every distinct tensor storage and array that can be reached from an object, by the path to it."""
    found: dict[str, int] = {}
    seen: set[int] = set()  # of objects, by id
    regions: set[int] = set()  # of memory, by address
    waiting: deque[tuple[str, object]] = deque([("learner", root)])  # breadth first, for the shortest paths
    while waiting:
        path, value = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        memory = _memory(value)
        if memory is not None:
            address, size = memory
            if size and address not in regions:
                regions.add(address)
                found[path] = size
        else:
            waiting += _inside(path, value)
    return found


def _memory(value: object) -> tuple[int, int] | None:
    """Address and bytes of the memory behind a tensor or an array, whole even if it is a view of a part."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    if isinstance(value, np.ndarray):
        owner: Any = value
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if isinstance(owner.base, Tensor):  # what Tensor.numpy() gives
            return _memory(owner.base)
        return owner.__array_interface__["data"][0], owner.nbytes
    return None


def _inside(path: str, value: object) -> Iterator[tuple[str, object]]:
    """What an object of ours, or a container, refers to; classes, modules and the like are not state."""
    if isinstance(value, dict):
        yield from ((f"{path}[{key!r}]", one) for key, one in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"{path}[{index}]", one) for index, one in enumerate(value))
    elif isinstance(value, (torch.nn.Module, torch.optim.Optimizer)) or type(value).__module__.startswith("edge_cl"):
        names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        fields = {**{name: getattr(value, name, None) for name in names}, **getattr(value, "__dict__", {})}
        yield from ((f"{path}.{name}", one) for name, one in fields.items())
    elif callable(value):  # bound methods, partials and closures hold what they need
        for name in ("__self__", "func", "args", "keywords"):
            if getattr(value, name, None) is not None:
                yield f"{path}.{name}", getattr(value, name)
        for cell in getattr(value, "__closure__", None) or ():
            yield f"{path}.<closure>", cell.cell_contents


def largest_growth(
    learner: Learner, batches: list[tuple[NDArray[Any], NDArray[np.int64]]], steps: int
) -> list[dict[str, Any]]:
    """The lines whose memory grew by most over some steps, most first; empty where none did."""
    for at in range(steps):  # once untraced, for what a line keeps from its last call
        learner.learn(*batches[at % BATCHES])
    tracemalloc.start()
    for at in range(BATCHES):  # now what it keeps is known to the tracer
        learner.learn(*batches[at])
    _snapshot()  # the first one allocates for itself
    before = _snapshot()
    for at in range(steps):
        learner.learn(*batches[at % BATCHES])
    grown = [one for one in _snapshot().compare_to(before, "lineno") if one.size_diff > 0]
    tracemalloc.stop()
    return [{"where": _where(one), "bytes": one.size_diff, "blocks": one.count_diff} for one in grown[:NAMED]]


def _snapshot() -> tracemalloc.Snapshot:
    gc.collect()
    ignored = (tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__))
    return tracemalloc.take_snapshot().filter_traces(ignored)


def _where(statistic: tracemalloc.StatisticDiff) -> str:
    frame = statistic.traceback[0]
    file = Path(frame.filename)
    return f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name}:{frame.lineno}"


def table(result: dict[str, Any]) -> Table:
    """The figures for a person."""
    drawn = Table("", "", title="The bytes of a learner")
    for key in CONTRACT:
        drawn.add_row(key, f"{result[key]:,}")
    for path, size in result["largest_holdings"].items():
        drawn.add_row(f"  holds {path}", f"{size:,}")
    for one in result["largest_growth"]:
        drawn.add_row(f"  grew at {one['where']}", f"{one['bytes']:,} in {one['blocks']:,}")
    return drawn


if __name__ == "__main__":
    sys.exit(main())
