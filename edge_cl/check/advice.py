"""The change of one setting that would mend a budget: by planning where it is bytes, by measuring where it is time.

Each advice reads `key old → new` and can be typed as `-s key=new`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_cl import assembly
from edge_cl.check.workload import Workload
from edge_cl.config import Config
from edge_cl.errors import BudgetExceeded
from firmware_bridge.inlet import ITEM_BYTES

Measure = Callable[[Config], float]
TRIED_STEPS = 40  # of each value that is tried
SURE = 0.85  # of the limit: what advice must keep to, so that the next check does not fail by a hair


def for_memory(config: Config, task: assembly.Task, needed: int) -> str:
    """The least painful single setting with which a learner fits into budget.memory_bytes; else a larger budget."""
    sample = int(np.prod(task.shape)) * task.dtype.itemsize + ITEM_BYTES
    for key, least in (("bridge.queue_bytes", 8 * sample), ("exam.samples", 20), ("model.width", 4)):
        found = largest(config, key, least, lambda changed: fits(changed, task))
        if found is not None:
            return _change(config, key, found)
    return _change(config, "budget.memory_bytes", needed)


def for_snapshot(config: Config, task: assembly.Task, size: int) -> str:
    """A width whose snapshot keeps budget.snapshot_bytes."""
    limit = config.budget.snapshot_bytes
    assert limit is not None
    beside = size - 4 * assembly.blueprint_of(config, task).n_parameters
    found = largest(
        config,
        "model.width",
        1,
        lambda changed: 4 * assembly.blueprint_of(changed, task).n_parameters + beside <= limit,
    )
    return _change(config, "budget.snapshot_bytes", size) if found is None else _change(config, "model.width", found)


def for_predict(config: Config, measured: float, predict_ms: Measure) -> str:
    """A width that answers in time."""
    return _by_measuring(config, ["model.width"], "budget.predict_ms", measured, predict_ms)


def for_step(config: Config, measured: float, step_ms: Measure) -> str:
    """Less replay in a step, or a width, that learns in time."""
    return _by_measuring(config, ["replay.per_step", "model.width"], "budget.step_ms", measured, step_ms)


def for_consolidation(workload: Workload, measured: float, rehearsed: int) -> str:
    """As many steps of rehearsal as there is time for."""
    config = workload.config
    alone, _ = workload.consolidate(most_steps=0)
    room = SURE * config.budget.consolidation_ms - alone
    if rehearsed and room > 0:
        steps = int(room / max(measured - alone, 1e-9) * rehearsed)
        return _change(config, "consolidation.rehearsal_steps", min(steps, rehearsed - 1))
    return _change(config, "budget.consolidation_ms", _ceil(measured / SURE))


def fits(config: Config, task: assembly.Task) -> bool:
    """Whether the plan of this configuration holds."""
    try:
        assembly.plan_of(config, task, assembly.blueprint_of(config, task))
    except BudgetExceeded:
        return False
    return True


def largest(config: Config, key: str, least: int, holds: Callable[[Config], bool]) -> int | None:
    """The largest value of a setting below the present one, and not below `least`, with which `holds`; else None.

    By bisection: what holds for a value must hold for every lower one.
    """
    low, high = least, value_of(config, key) - 1
    if low > high or not holds(changed(config, key, low)):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(changed(config, key, middle)) else (low, middle - 1)
    return low


def value_of(config: Config, key: str) -> Any:
    """The value of a setting, `group.name`."""
    group, name = key.split(".")
    return getattr(getattr(config, group), name)


def changed(config: Config, key: str, value: object) -> Config:
    """The configuration with one setting changed."""
    group, name = key.split(".")
    return config.model_copy(update={group: getattr(config, group).model_copy(update={name: value})})


def _by_measuring(config: Config, keys: list[str], budget: str, measured: float, measure: Measure) -> str:
    limit = SURE * value_of(config, budget)
    for key in keys:
        found = _largest_quick(config, key, lambda changed: measure(changed) <= limit)
        if found is not None:
            return _change(config, key, found)
    return _change(config, budget, _ceil(measured / SURE))


def _largest_quick(config: Config, key: str, holds: Callable[[Config], bool]) -> int | None:
    """As `largest`, in few tries, for trying takes time: three quarters, a half, a quarter … of the present value."""
    present = value_of(config, key)
    least = 0 if key == "replay.per_step" else 1
    tries = sorted({max(least, int(present * share)) for share in (0.75, 0.5, 0.25, 0.1, 0)} - {present}, reverse=True)
    if not tries or not holds(changed(config, key, tries[-1])):
        return None
    return next(value for value in tries if value == tries[-1] or holds(changed(config, key, value)))


def _change(config: Config, key: str, value: object) -> str:
    return f"{key} {value_of(config, key)} → {value}"


def _ceil(milliseconds: float) -> float:
    """Rounded up to two digits."""
    return float(f"{milliseconds * 1.05:.2g}")
