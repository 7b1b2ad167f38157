"""From settings and a stream's schema to a plan and a learner: the one place that knows which number goes where.

Daemon, `check` and `export` all build their learner here, so that they mean the same one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from edge_cl.backbone_file import load_backbone
from edge_cl.budget import Plan, plan
from edge_cl.config import Config
from edge_cl.errors import OperatorError
from edge_cl.learning.graph import graph, module_graph
from edge_cl.learning.learner import Learner
from edge_cl.learning.model import SELF_SUPERVISED, Blueprint, design, layout_of
from edge_cl.learning.network import Learnable, Network
from edge_cl.learning.objective import Reconstruction
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.learning.outline import ModuleOutline, Outline
from edge_cl.learning.prototypes import NearestMean, StreamingLDA
from edge_cl.learning.replay import Reservoir
from edge_cl.learning.rule import Rule, method_bytes, rows_of_a_step
from edge_cl.learning.template_learner import TemplateLearner, template_blueprint
from edge_cl.learning.torch_network import TorchNetwork
from edge_cl.modules import load_network
from edge_cl.units import parse_time
from firmware_bridge.sample import Schema
from firmware_bridge.source import Source
from firmware_bridge.windows import Windows

TEMPLATES: dict[str, type[NearestMean]] = {
    "nearest_mean": NearestMean,
    "slda": StreamingLDA,
    "slda_random": StreamingLDA,
}
DEFAULT_CLASSES = 16  # outputs of a learner whose stream does not name its classes
ON_FEATURES = ("auto", "mlp", "nearest_mean", "slda")  # kinds that take a vector without neighbours in it
STEPS_QUEUED = 2  # at least, for the journal: one on its way to the disk, one that is made meanwhile
ENTRY_BYTES = 4096  # names, counters and ids beside an entry's samples
LEAST_PACKED = 4  # features from which one span and a byte each are fewer bytes than the features
MODULE_BUILDER = "edge_cl.module_export"  # makes the template of a module; only a child imports it


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
    n_streams: int = 1

    @property
    def window_bytes(self) -> int:
        """Bytes of the rows that wait for their window to fill, stream by stream, and of the window handed on.

        Beside each row that waits its label and its sample's number are held, 8 bytes each.
        """
        if self.window is None:
            return 0
        window_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        return window_bytes + self.n_streams * (window_bytes + 16 * self.window[0])


def task_of(config: Config, schema: Schema, n_streams: int = 1) -> Task:
    """The task that a source of so many streams sets under this configuration.

    Raises OperatorError if there are more classes than model.max_classes, or samples of which no window can be made.
    """
    window = _window_of(config, schema)
    shape = schema.shape if window is None else (window[0], *(schema.shape[-1:] or (1,)))
    if config.model.kind in SELF_SUPERVISED:
        return Task(shape, np.dtype(schema.dtype), (), 1, window, n_streams)
    names = config.labels or schema.label_names
    most = config.model.max_classes
    n_outputs = max(DEFAULT_CLASSES, len(names)) if most == "auto" else most
    if len(schema.label_names) > n_outputs or len(names) > n_outputs:
        raise OperatorError(
            f"model.max_classes: must hold the {max(len(names), len(schema.label_names))} classes of source "
            f"{schema.name} (got {n_outputs})",
            hint=f"set model.max_classes to {max(len(names), len(schema.label_names))} or more, or to auto",
        )
    return Task(shape, np.dtype(schema.dtype), tuple(names), n_outputs, window, n_streams)


def _window_of(config: Config, schema: Schema) -> tuple[int, int] | None:
    length, stride = config.window.length, config.window.stride
    if length == "auto" and schema.window is None:
        return None
    if length is None:
        return None
    suggested = schema.window or (0, 0)
    length = suggested[0] if length == "auto" else _rows_in("length", length, schema)
    stride = (suggested[1] or length) if stride in ("auto", None) else _rows_in("stride", stride, schema)
    if len(schema.shape) > 2:
        raise OperatorError(
            f"window.length: samples of shape {schema.shape} have no rows to make windows of (got {length})",
            hint="set window.length and window.stride to null or auto",
        )
    return length, stride


def _rows_in(name: str, told: int | str | None, schema: Schema) -> int:
    """Rows that a setting of the window asks for, which may be told as a time."""
    if isinstance(told, int):
        return told
    assert isinstance(told, str)
    if not schema.rate_hz:
        raise OperatorError(
            f"window.{name}: a time needs a source that says its rows per second (got {told}, {schema.name} says none)",
            hint="give a number of rows, or have the source say rate_hz",
        )
    rows = round(parse_time(told) * schema.rate_hz)
    if rows < 1:
        raise OperatorError(
            f"window.{name}: must be one row at least, {1e3 / schema.rate_hz:g} ms at {schema.rate_hz:g} rows a second "
            f"(got {told})",
            hint="make it longer",
        )
    return rows


def make_windows(task: Task, source: Source) -> Windows | None:
    """The windows that make observations of an open source's samples, None where samples are observations."""
    return None if task.window is None else Windows(*task.window, lambda stream: source.schema_of(stream).rate_hz)


def blueprint_of(config: Config, task: Task) -> Outline:
    """The network for a task, a user's own module or a backbone tried out where the configuration names one.

    Raises OperatorError if the kind chosen does not take such samples, or what was brought does not fit.
    """
    _check_kind(config)
    backbone = None
    if config.model.backbone is not None:
        threads = config.learning.threads
        backbone = load_backbone(config.model.backbone, task.shape, task.dtype, threads=threads)
    shape = task.shape if backbone is None else (backbone.n_features,)
    if config.model.module is not None:
        layout = layout_of(shape) if backbone is None else shape
        network = load_network(config.model.module, shape, layout, task.n_outputs)
        extra_bytes = sum(tensor.nbytes for tensor in network.extras.values())
        shapes = network.arena.shapes
        return ModuleOutline(config.model.module, shape, layout, task.n_outputs, shapes, extra_bytes, backbone)
    kind = "mlp" if backbone is not None and config.model.kind == "auto" else config.model.kind
    try:
        if kind in TEMPLATES:
            n_features = config.model.width if kind == "slda_random" else 0
            found = template_blueprint(shape, task.n_outputs, n_features)
        else:
            found = design(kind, shape, task.n_outputs, config.model.width, config.model.depth)
    except ValueError as exc:
        raise OperatorError(str(exc), hint="set model.kind to auto") from exc
    return replace(found, backbone=backbone)


def _check_kind(config: Config) -> None:
    """Refuses a kind beside what takes its place. Raises OperatorError."""
    kind = config.model.kind
    if config.model.module is not None and kind != "auto":
        raise OperatorError(
            f"model.kind: must be auto where model.module names the network (got {kind})",
            hint="leave one of them out",
        )
    if config.model.module is not None and config.snapshots.head != "learnt":
        raise OperatorError(
            f"snapshots.head: must be learnt where model.module names the network, whose last layer only its author "
            f"knows (got {config.snapshots.head})",
            hint="leave one of them out",
        )
    if config.model.backbone is not None and kind not in ON_FEATURES:
        raise OperatorError(
            f"model.kind: must be one of {', '.join(ON_FEATURES)} on a model.backbone, whose features are a vector "
            f"(got {kind})",
            hint="set model.kind to auto",
        )


def plan_of(config: Config, task: Task, blueprint: Outline) -> Plan:
    """The bytes of the learner. Raises BudgetExceeded if they do not fit into budget.memory_bytes."""
    templates, rule = TEMPLATES.get(config.model.kind), rule_of(config)
    if templates is None:
        held = method_bytes(rule, blueprint.n_parameters, keeps_none=config.replay.samples == 0)
    else:
        held = templates(*_head_shape(blueprint), "meta").nbytes
    return plan(
        blueprint,
        task.dtype,
        budget_bytes=config.budget.memory_bytes,
        queue_bytes=config.bridge.queue_bytes,
        window_bytes=task.window_bytes,
        journal_bytes=journal_queue_of(config, task),
        label_bytes=config.bridge.label_wait_bytes,
        replay_limit=config.replay.samples if templates is None else 0,
        replay_bytes=config.replay.memory_bytes,
        replay_bits=bits_of(config, blueprint),
        replay_layout=span_of(blueprint),
        replay_logits=logits_of(config, blueprint),
        method_bytes=held,
        descends=templates is None,
        exam_samples=config.exam.samples if config.exam.share > 0 else 0,
        batch_rows=rows_of_a_step(rule),
        on_gpu=device_of(config).type == "cuda",
    )


def journal_queue_of(config: Config, task: Task) -> int:
    """Bytes that may wait for the journal's disk: as configured, and at least STEPS_QUEUED steps; 0 without one."""
    if config.storage.durability == "checkpoint":
        return 0
    sample = math.prod(task.shape) * task.dtype.itemsize
    step = config.learning.batch_size * sample + task.window_bytes + ENTRY_BYTES
    return max(config.storage.queue_bytes, STEPS_QUEUED * step)


def make_learner(config: Config, task: Task, blueprint: Outline, planned: Plan, *, seed: int) -> OnlineLearner:
    """Allocate what was planned."""
    torch.set_num_threads(config.learning.threads)
    exam = Reservoir(planned.exam_samples, task.shape, task.dtype, n_classes=task.n_outputs, seed=seed + 1)
    network, rule, backbone = _network_of(config, blueprint, seed), rule_of(config), blueprint.backbone
    if config.model.kind in TEMPLATES:
        assert isinstance(network, Network)
        templates = TEMPLATES[config.model.kind](*_head_shape(blueprint), device_of(config))
        return TemplateLearner(network, templates, exam, rule, backbone=backbone, seed=seed + 2)
    replay = Reservoir(
        planned.replay_samples,
        blueprint.shape,
        task.dtype if backbone is None else np.dtype(np.float32),
        n_classes=task.n_outputs,
        policy=config.replay.policy,
        seed=seed,
        bits=bits_of(config, blueprint),
        layout=span_of(blueprint),
        n_logits=logits_of(config, blueprint),
        undecided=config.replay.bits == "auto" and len(blueprint.layout) > 1 and not blueprint.aim and backbone is None,
        most=config.replay.samples,
    )
    objective = None
    if isinstance(blueprint, Blueprint) and blueprint.aim:
        objective = Reconstruction(network, blueprint.aim, blueprint.variance)
    return Learner(network, replay, exam, rule, objective=objective, backbone=backbone, seed=seed + 2)


def _network_of(config: Config, blueprint: Outline, seed: int) -> Learnable:
    if isinstance(blueprint, Blueprint):
        return Network(blueprint, seed=seed, device=device_of(config))
    network = load_network(blueprint.kind, blueprint.shape, blueprint.layout, blueprint.n_outputs, seed=seed)
    return network.to(device_of(config))


def _head_shape(blueprint: Outline) -> tuple[int, int]:
    """Shape (C, D) of a built-in network's last layer."""
    assert isinstance(blueprint, Blueprint)
    n_classes, n_features = blueprint.layers[-1].shapes["weight"]
    return n_classes, n_features


def template_request(config: Config, learner: OnlineLearner, n_classes: int) -> tuple[dict[str, Any], str | None]:
    """What `start_build` is to be given for a snapshot of the learner's first `n_classes` classes."""
    network = learner.network
    builder = None if isinstance(network, Network) else MODULE_BUILDER
    if isinstance(network, Network):
        described = graph(network.blueprint, n_classes)
    else:
        assert config.model.module is not None
        assert isinstance(network, TorchNetwork)
        described = module_graph(network, config.model.module, n_classes)
    if learner.backbone is not None:
        described["backbone"] = {"path": config.model.backbone, **learner.backbone.description}
    return described, builder


def span_of(blueprint: Outline) -> tuple[int, ...]:
    """The layout over which replayed values share a span, channel by channel: for features, one over all of them."""
    D = blueprint.shape[0]
    return blueprint.layout if blueprint.backbone is None or D < LEAST_PACKED else (D, 1)


def bits_of(config: Config, blueprint: Outline) -> int | None:
    """Bits of a stored value at first; None, as the sensor made it, also for vectors: they have no span to share.

    `auto` begins with None, and without labels it stays there: what fewer bits cost is known in classes' loss only. Of
    a backbone's features `auto` keeps 8 bits.
    """
    bits = config.replay.bits
    if len(span_of(blueprint)) == 1:
        return None
    if bits == "auto":
        return None if blueprint.backbone is None else 8
    return bits


def logits_of(config: Config, blueprint: Outline) -> int:
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


def fingerprint(task: Task, blueprint: Outline) -> str:
    """What a state directory belongs to: a network and its samples, in words that an error message can show.

    Not the number of classes: a head may grow (`check_classes`). A user's own module has no head that could.
    """
    shapes = [list(shape) for shape in blueprint.parameter_shapes.values() if len(shape) > 1]
    if isinstance(blueprint, Blueprint):
        shapes[-1] = shapes[-1][1:]
    behind = f" behind backbone {blueprint.backbone.sha256}" if blueprint.backbone else ""
    return f"{blueprint.kind} on {task.dtype} {list(task.shape)}{behind}, weights {json.dumps(shapes)}"


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
