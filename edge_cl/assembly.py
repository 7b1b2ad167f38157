"""From settings and a stream's schema to a plan and a learner: the one place that knows which number goes where.

Daemon, `check` and `export` all build their learner here, so that they mean the same one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edge_cl.budget import Plan, plan
from edge_cl.config import Config
from edge_cl.errors import OperatorError
from edge_cl.learning.learner import Learner
from edge_cl.learning.model import SELF_SUPERVISED, Blueprint, design
from edge_cl.learning.network import Network
from edge_cl.learning.objective import Reconstruction
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.learning.prototypes import NearestMean, StreamingLDA
from edge_cl.learning.replay import Reservoir
from edge_cl.learning.rule import Rule, method_bytes, rows_of_a_step
from edge_cl.learning.template_learner import TemplateLearner, template_blueprint
from firmware_bridge.sample import Schema
from firmware_bridge.window import Window

TEMPLATES: dict[str, type[NearestMean]] = {
    "nearest_mean": NearestMean,
    "slda": StreamingLDA,
    "slda_random": StreamingLDA,
}
DEFAULT_CLASSES = 16  # outputs of a learner whose stream does not name its classes


@dataclass(frozen=True)
class Task:
    """What is to be learnt: observations of a shape and dtype, and the names of their classes as far as known.

    Without labels all observations are of one class, which has no name.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    label_names: tuple[str, ...]
    n_outputs: int
    window: tuple[int, int] | None

    @property
    def window_bytes(self) -> int:
        """Bytes of the rows that wait for their window to fill, and of the window handed on."""
        return 0 if self.window is None else 2 * int(np.prod(self.shape)) * self.dtype.itemsize


def task_of(config: Config, schema: Schema) -> Task:
    """The task that a source sets under this configuration.

    Raises OperatorError if there are more classes than model.max_classes, or samples of which no window can be made.
    """
    window = _window_of(config, schema)
    shape = schema.shape if window is None else (window[0], *(schema.shape[-1:] or (1,)))
    if config.model.kind in SELF_SUPERVISED:
        return Task(shape, np.dtype(schema.dtype), (), 1, window)
    names = config.labels or schema.label_names
    most = config.model.max_classes
    n_outputs = max(DEFAULT_CLASSES, len(names)) if most == "auto" else most
    if len(schema.label_names) > n_outputs or len(names) > n_outputs:
        raise OperatorError(
            f"model.max_classes: must hold the {max(len(names), len(schema.label_names))} classes of source "
            f"{schema.name} (got {n_outputs})",
            hint=f"set model.max_classes to {max(len(names), len(schema.label_names))} or more, or to auto",
        )
    return Task(shape, np.dtype(schema.dtype), tuple(names), n_outputs, window)


def _window_of(config: Config, schema: Schema) -> tuple[int, int] | None:
    length, stride = config.window.length, config.window.stride
    if length == "auto" and schema.window is None:
        return None
    if length is None:
        return None
    suggested = schema.window or (0, 0)
    length = suggested[0] if length == "auto" else length
    stride = (suggested[1] or length) if stride in ("auto", None) else stride
    if len(schema.shape) > 2:
        raise OperatorError(
            f"window.length: samples of shape {schema.shape} have no rows to make windows of (got {length})",
            hint="set window.length and window.stride to null or auto",
        )
    assert isinstance(length, int)
    assert isinstance(stride, int)
    return length, stride


def make_window(task: Task, schema: Schema) -> Window | None:
    """The window that makes observations of samples, None where samples are observations."""
    return None if task.window is None else Window(*task.window, rate_hz=schema.rate_hz)


def blueprint_of(config: Config, task: Task) -> Blueprint:
    """The network for a task. Raises OperatorError if the kind chosen does not take such samples."""
    try:
        if config.model.kind in TEMPLATES:
            n_features = config.model.width if config.model.kind == "slda_random" else 0
            return template_blueprint(task.shape, task.n_outputs, n_features)
        return design(config.model.kind, task.shape, task.n_outputs, config.model.width, config.model.depth)
    except ValueError as exc:
        raise OperatorError(str(exc), hint="set model.kind to auto") from exc


def plan_of(config: Config, task: Task, blueprint: Blueprint) -> Plan:
    """The bytes of the learner. Raises BudgetExceeded if they do not fit into budget.memory_bytes."""
    templates, rule = TEMPLATES.get(config.model.kind), rule_of(config)
    if templates is None:
        held = method_bytes(rule, blueprint.n_parameters, keeps_none=config.replay.samples == 0)
    else:
        n_classes, n_features = blueprint.layers[-1].shapes["weight"]
        held = templates(n_classes, n_features, "meta").nbytes
    return plan(
        blueprint,
        task.dtype,
        budget_bytes=config.budget.memory_bytes,
        queue_bytes=config.bridge.queue_bytes,
        window_bytes=task.window_bytes,
        replay_limit=config.replay.samples if templates is None else 0,
        replay_bytes=config.replay.memory_bytes,
        replay_bits=bits_of(config, blueprint),
        replay_logits=logits_of(config, blueprint),
        method_bytes=held,
        descends=templates is None,
        exam_samples=config.exam.samples if config.exam.share > 0 else 0,
        batch_rows=rows_of_a_step(rule),
        on_gpu=device_of(config).type == "cuda",
    )


def make_learner(config: Config, task: Task, blueprint: Blueprint, planned: Plan, *, seed: int) -> OnlineLearner:
    """Allocate what was planned."""
    torch.set_num_threads(config.learning.threads)
    exam = Reservoir(planned.exam_samples, task.shape, task.dtype, n_classes=task.n_outputs, seed=seed + 1)
    network = Network(blueprint, seed=seed, device=device_of(config))
    if config.model.kind in TEMPLATES:
        n_classes, n_features = blueprint.layers[-1].shapes["weight"]
        templates = TEMPLATES[config.model.kind](n_classes, n_features, device_of(config))
        return TemplateLearner(network, templates, exam, rule_of(config), seed=seed + 2)
    replay = Reservoir(
        planned.replay_samples,
        task.shape,
        task.dtype,
        n_classes=task.n_outputs,
        policy=config.replay.policy,
        seed=seed,
        bits=bits_of(config, blueprint),
        layout=blueprint.layout,
        n_logits=logits_of(config, blueprint),
        undecided=config.replay.bits == "auto" and len(blueprint.layout) > 1 and not blueprint.aim,
        most=config.replay.samples,
    )
    objective = Reconstruction(network, blueprint.aim, blueprint.variance) if blueprint.aim else None
    return Learner(network, replay, exam, rule_of(config), objective=objective, seed=seed + 2)


def bits_of(config: Config, blueprint: Blueprint) -> int | None:
    """Bits of a stored value at first; None, as the sensor made it, also for vectors: they have no span to share.

    `auto` begins with None, and without labels it stays there: what fewer bits cost is known in classes' loss only.
    """
    bits = config.replay.bits
    return None if bits == "auto" or len(blueprint.layout) == 1 else bits


def logits_of(config: Config, blueprint: Blueprint) -> int:
    """Logits stored with a replayed sample; a reconstruction's own would take more room than the sample."""
    return blueprint.n_outputs if config.distillation.logits > 0 and not blueprint.aim else 0


def device_of(config: Config) -> torch.device:
    """Where the arithmetic is done. Raises OperatorError if that is to be a GPU and torch can use none."""
    wanted, there = config.learning.device, torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise OperatorError(
            "learning.device: torch can use no NVIDIA GPU here (got cuda)",
            hint="set learning.device to auto or cpu, or install the torch made for this machine",
        )
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def rule_of(config: Config) -> Rule:
    """The numbers of a learning step."""
    return Rule(
        learning_rate=config.learning.learning_rate,
        batch_size=config.learning.batch_size,
        label_smoothing=config.learning.label_smoothing,
        replay_per_step=config.replay.per_step,
        asymmetric=config.replay.asymmetric,
        stored_logits=config.distillation.logits,
        logits_at_arrival=config.distillation.logits_from == "arrival",
        replay_labels=config.distillation.replay_labels,
        teacher=config.distillation.teacher,
        temperature=config.distillation.temperature,
        project=config.learning.projection == "a-gem",
        protect=config.learning.protect,
        importance=config.consolidation.importance,
        trigger=config.consolidation.trigger,
        every_steps=config.consolidation.every_steps,
        ewc_lambda=config.consolidation.ewc_lambda,
        gamma=config.consolidation.gamma,
        fisher=config.consolidation.fisher,
        fisher_samples=config.consolidation.fisher_samples,
        rehearsal_passes=config.consolidation.rehearsal_passes,
        rehearsal_steps=config.consolidation.rehearsal_steps,
        exam_share=config.exam.share,
    )


def fingerprint(task: Task, blueprint: Blueprint) -> str:
    """What a state directory belongs to: a network and its samples, in words that an error message can show.

    Not the number of classes: a head may grow (`check_classes`).
    """
    *body, head = [list(shape) for shape in blueprint.parameter_shapes.values() if len(shape) > 1]
    return f"{blueprint.kind} on {task.dtype} {list(task.shape)}, weights {json.dumps([*body, head[1:]])}"


def check_classes(task: Task, n_outputs: int, names: Sequence[str]) -> None:
    """Whether a learner of this task can go on from one with `n_outputs` classes, called `names` as far as known.

    Raises OperatorError if it has less room, or calls a class otherwise than it was learnt.
    """
    if n_outputs > task.n_outputs:
        raise OperatorError(
            f"model.max_classes: must be at least {n_outputs}, which the state has learnt with (got {task.n_outputs})",
            hint=f"set model.max_classes to {n_outputs} or more, or name another state directory",
        )
    if task.label_names and task.label_names[: len(names)] != tuple(names):
        raise OperatorError(
            f"labels: must begin with those the state was learnt with, {', '.join(names)} "
            f"(got {', '.join(task.label_names)})",
            hint="new names go behind the old ones; for other classes, name another state directory",
        )
