"""`edge-cl check`: memory and latency measured on this machine, with this configuration, against their budgets.

Builds the very learner that the daemon would build, on made-up samples or a saved state; changes nothing on disk.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl import assembly
from edge_cl.budget import LEAST_REPLAY, Plan
from edge_cl.config import Config
from edge_cl.errors import BudgetExceeded, OperatorError
from edge_cl.learning.model import Blueprint
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.service.telemetry import Timings
from edge_cl.storage.checkpoint import CheckpointStore
from edge_cl.storage.state_dir import check_state_dir
from firmware_bridge.registry import make_source

MEMORY_ADVICE = "lower model.width, exam.samples or bridge.queue_bytes, or raise budget.memory_bytes"
WARM_UP, RUNS = 20, 300  # with 300 runs the 99th percentile is the third slowest


@dataclass(frozen=True)
class CheckLine:
    """One budget: what was allowed, what was measured, what is left, and what would mend it."""

    name: str
    limit: float
    measured: float
    unit: str
    advice: str = ""

    @property
    def margin(self) -> float:
        """What is left of the limit; below 0 it was exceeded."""
        return self.limit - self.measured

    @property
    def passed(self) -> bool:
        """Whether the budget holds."""
        return self.margin >= 0


def measure(config: Config, *, state: Path | None, source_url: str) -> list[CheckLine]:
    """Measure the learner that this configuration makes of this source: bytes held, p99 of a prediction and of a step.

    With `state`, the learner saved there is measured. One that `run` would refuse for its bytes is measured at the
    least it could be. Raises OperatorError if no learner is in `state`, BridgeError if the source cannot be opened.
    """
    with make_source(source_url) as source:
        task = assembly.task_of(config, source.schema)
    blueprint = assembly.blueprint_of(config, task)
    planned = _plan(config, task, blueprint)
    learner = assembly.make_learner(config, task, blueprint, planned, seed=0)
    rng = np.random.default_rng(0)
    if state is None:
        _fill(learner, task, rng)
    else:
        _restore(learner, state, task, assembly.fingerprint(task, blueprint))
    x, y = _samples(task, config.learning.batch_size, rng)
    predict = _p99(lambda: learner.predict(x[:1]))
    step = _p99(lambda: learner.learn(x, y).predicted)
    held = learner.nbytes + planned.promised
    budget = config.budget
    return [
        CheckLine("memory", budget.memory_bytes, held, "bytes", MEMORY_ADVICE),
        CheckLine("predict p99", budget.predict_ms, predict, "ms", "lower model.width, or raise budget.predict_ms"),
        CheckLine(
            "step p99", budget.step_ms, step, "ms", "lower replay.per_step or model.width, or raise budget.step_ms"
        ),
    ]


def _plan(config: Config, task: assembly.Task, blueprint: Blueprint) -> Plan:
    try:
        return assembly.plan_of(config, task, blueprint)
    except BudgetExceeded:  # here to be measured, not to be refused
        room = config.budget.model_copy(update={"memory_bytes": sys.maxsize})
        least = config.replay.model_copy(update={"samples": LEAST_REPLAY})
        return assembly.plan_of(config.model_copy(update={"budget": room, "replay": least}), task, blueprint)


def _fill(learner: OnlineLearner, task: assembly.Task, rng: np.random.Generator) -> None:
    """Bring it to where it will spend its life: replay full, an anchor to be pulled to."""
    while not bool(learner.seen.all()):  # the exam may take some, and what replay is offered must be known
        learner.learn(*_samples(task, learner.rule.batch_size, rng))
    _fill_replay(learner, task, rng)
    learner.consolidate()  # which may find out that fewer bits serve, and make room
    _fill_replay(learner, task, rng)


def _fill_replay(learner: OnlineLearner, task: assembly.Task, rng: np.random.Generator) -> None:
    n_logits = learner.replay.n_logits
    while learner.replay.size < learner.replay.capacity:
        x, y = _samples(task, 256, rng)
        learner.replay.offer(x, y, np.zeros((len(y), n_logits), np.float32) if n_logits else None)


def _restore(learner: OnlineLearner, state: Path, task: assembly.Task, model: str) -> None:
    check_state_dir(state)
    found = CheckpointStore(state, model=model).load()
    if found is None:
        raise OperatorError(f"{state}: no learner was saved there yet", hint="leave --state out to check a new one")
    assembly.check_classes(task, len(found.arrays["seen"]), found.meta["label_names"])
    learner.restore(found.arrays, found.meta["learner"])


def _samples(task: assembly.Task, n: int, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[np.int64]]:
    x = rng.normal(0, 50, (n, *task.shape)).clip(-127, 127)
    x = x if task.dtype.kind in "if" else np.abs(x)
    return x.astype(task.dtype), rng.integers(0, task.n_outputs, n)


def _p99(action: Callable[[], object]) -> float:
    timings = Timings()
    for run in range(WARM_UP + RUNS):
        started = time.perf_counter()
        action()
        if run >= WARM_UP:
            timings.add(time.perf_counter() - started)
    return timings.percentile(99) or 0.0
