"""The check from start to end: plan, build, fill, run, and say what it took.

Measures what the daemon would do, on samples of its source; changes nothing on disk but in temporary folders.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_cl import assembly
from edge_cl.budget import LEAST_REPLAY, Plan
from edge_cl.check import advice
from edge_cl.check.costs import checkpoint_lines, journal_lines, process_lines, snapshot_lines, variant_lines
from edge_cl.check.line import Checked, CheckLine
from edge_cl.check.parts import byte_lines, held
from edge_cl.check.workload import STEPS, WARM_UP, Stream, Times, Workload
from edge_cl.config import Config
from edge_cl.errors import BudgetExceeded, OperatorError
from edge_cl.intake import Urls, source_of
from edge_cl.learning.outline import Outline
from edge_cl.storage.checkpoint import CheckpointStore
from edge_cl.storage.state_dir import check_state_dir

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
Tell = Callable[[str], None]


def plan(config: Config, *, source_url: Urls) -> Checked:
    """The bytes that this configuration would take, part by part; nothing is measured and nothing allocated."""
    with source_of(config, source_url) as source:
        task = assembly.task_of(config, source.schema, len(source.streams))
    planned = _plan(config, task, assembly.blueprint_of(config, task))
    lines = [CheckLine(f"memory: {part.name}", None, part.nbytes, "bytes") for part in planned.parts]
    return Checked([_memory(config, task, planned.nbytes), *lines], {"replay_samples": planned.replay_samples})


def measure(config: Config, *, state: Path | None, source_url: Urls, tell: Tell = lambda what: None) -> Checked:
    """Measure the learner that this configuration makes of this source; `tell` hears what is being measured.

    With `state`, the learner saved there is measured. One that `run` would refuse for its bytes is measured at the
    least it could be. Raises OperatorError if no learner is in `state`, BridgeError if the source cannot be opened.
    """
    tell("memory")
    stream = Stream.of(config, source_url)
    task, workload = stream.task, _workload(config, stream)
    if state is None:
        workload.fill()
    else:
        _restore(workload, state)
    learner, planned = workload.learner, workload.planned
    tell("steps")
    times = workload.run(STEPS)
    tell("consolidation")
    consolidation_ms, rehearsed = workload.consolidate()
    parts = held(learner, planned)
    lines = [_memory(config, task, sum(parts.values())), *byte_lines(planned, parts)]
    lines += _times(workload, times, tell)
    lines += [_consolidation(workload, consolidation_ms, rehearsed)]
    tell("snapshot")
    made, model, probes = snapshot_lines(workload)
    lines += [_advised(line, lambda: advice.for_snapshot(config, task, len(model))) for line in made]
    lines += [*checkpoint_lines(workload), *journal_lines(workload)]
    tell("process")
    lines += process_lines()
    tell("export")
    exported, left_out = variant_lines(model, probes)
    conditions = {
        "warm_up_steps": WARM_UP,
        "steps": len(times.step),
        "predictions": len(times.predict),
        "threads": config.learning.threads,
        "batch": stream.batch,
        "made_up": times.made_up,
        "at_work": round(sum(times.at_work) / sum(times.step), 2),
        "rehearsal_steps": rehearsed,
        "replay_samples": learner.replay.size,
    }
    return Checked([*lines, *exported], conditions, left_out)


def _workload(config: Config, stream: Stream) -> Workload:
    blueprint = assembly.blueprint_of(config, stream.task)
    return Workload(config, stream, blueprint, _plan(config, stream.task, blueprint))


def _plan(config: Config, task: assembly.Task, blueprint: Outline) -> Plan:
    try:
        return assembly.plan_of(config, task, blueprint)
    except BudgetExceeded:  # here to be measured, not to be refused
        room = config.budget.model_copy(update={"memory_bytes": sys.maxsize})
        least = config.replay.model_copy(update={"samples": LEAST_REPLAY})
        return assembly.plan_of(config.model_copy(update={"budget": room, "replay": least}), task, blueprint)


def _restore(workload: Workload, state: Path) -> None:
    check_state_dir(state)
    task = workload.stream.task
    found = CheckpointStore(state, model=assembly.fingerprint(task, workload.blueprint)).load()
    if found is None:
        raise OperatorError(f"{state}: no learner was saved there yet", hint="leave --state out to check a new one")
    assembly.check_classes(task, len(found.arrays["seen"]), found.meta["label_names"])
    workload.learner.restore(found.arrays, found.meta["learner"])
    workload.know_classes(max(1, len(task.label_names or found.meta["label_names"])))


def _memory(config: Config, task: assembly.Task, measured: int) -> CheckLine:
    line = CheckLine("memory", config.budget.memory_bytes, measured, "bytes")
    return _advised(line, lambda: advice.for_memory(config, task, measured))


def _times(workload: Workload, times: Times, tell: Tell) -> list[CheckLine]:
    config = workload.config

    def tried(changed: Config, what: str) -> float:
        tell(f"a change that would mend {what}")
        other = _workload(changed, workload.stream)
        other.fill()
        return _percentile(getattr(other.run(advice.TRIED_STEPS), what), 99)

    predict, step = _percentile(times.predict, 99), _percentile(times.step, 99)
    return [
        *(
            _advised(line, lambda: advice.for_predict(config, predict, lambda changed: tried(changed, "predict")))
            for line in _timed("predict", config.budget.predict_ms, times.predict)
        ),
        *(
            _advised(line, lambda: advice.for_step(config, step, lambda changed: tried(changed, "step")))
            for line in _timed("step", config.budget.step_ms, times.step)
        ),
    ]


def _timed(name: str, limit_ms: float, times: Sequence[float]) -> list[CheckLine]:
    """Its percentiles; the 99th has a limit."""
    limits = {"p99": limit_ms}
    return [
        CheckLine(f"{name} {which}", limits.get(which), _percentile(times, q), "ms") for which, q in PERCENTILES.items()
    ]


def _consolidation(workload: Workload, took_ms: float, rehearsed: int) -> CheckLine:
    line = CheckLine("consolidation", workload.config.budget.consolidation_ms, took_ms, "ms")
    return _advised(line, lambda: advice.for_consolidation(workload, took_ms, rehearsed))


def _advised(line: CheckLine, advise: Callable[[], str]) -> CheckLine:
    """The line, with advice if it needs some."""
    return line if line.passed else replace(line, advice=advise())


def _percentile(times: Sequence[float], q: float) -> float:
    return float(np.percentile(times, q))
