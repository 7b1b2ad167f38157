"""From settings and a schema to a task, a plan and a learner that takes the bytes that were planned."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from edge_cl import assembly
from edge_cl.config import Config, resolve
from edge_cl.errors import OperatorError
from firmware_bridge.sample import Schema
from firmware_bridge.source import SourceBase

SIGNAL = Schema("probe", "int16", (40, 3), label_names=("a", "b", "c"))


def settings(*overrides: str) -> Config:
    return resolve(None, overrides).config


class OfSchema(SourceBase):
    """A source of which only this is known."""

    counters: ClassVar[dict[str, int]] = {}
    can_wait = True

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def read(self, timeout_s: float) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("schema", "overrides", "shape", "window"),
    [
        (SIGNAL, (), (40, 3), None),
        (Schema("x", "int16", (32, 3), window=(256, 64)), (), (256, 3), (256, 64)),
        (Schema("x", "int16", (32, 3), window=(256, 64)), ("window.length=100",), (100, 3), (100, 64)),
        (Schema("x", "int16", (32, 3)), ("window.length=100",), (100, 3), (100, 100)),
        (Schema("x", "int16", (32, 3), window=(256, 64)), ("window.length=null", "window.stride=null"), (32, 3), None),
        (Schema("x", "int16", (4,)), ("window.length=8", "window.stride=2"), (8, 4), (8, 2)),
        (Schema("x", "int16", ()), ("window.length=8",), (8, 1), (8, 8)),
        (Schema("x", "int16", (4,), rate_hz=50.0), ("window.length=2 s",), (100, 4), (100, 100)),
        (Schema("x", "int16", (4,), rate_hz=50.0), ("window.length=500 ms", "window.stride=60ms"), (25, 4), (25, 3)),
        (Schema("x", "int16", (9, 4), rate_hz=1.0), ("window.length=8", "window.stride=1s"), (8, 4), (8, 1)),
        (Schema("x", "uint8", (28, 28, 3)), (), (28, 28, 3), None),
    ],
)
def test_the_shape_of_an_observation(
    schema: Schema, overrides: tuple[str, ...], shape: tuple[int, ...], window: tuple[int, int] | None
) -> None:
    task = assembly.task_of(settings(*overrides), schema)
    assert (task.shape, task.window, task.dtype) == (shape, window, np.dtype(schema.dtype))
    made = assembly.make_windows(task, OfSchema(schema))
    assert (None if made is None else (made.length, made.stride)) == window


@pytest.mark.parametrize(
    ("names", "overrides", "n_outputs"),
    [
        ((), (), 16),
        (("a", "b"), (), 16),
        (tuple(map(str, range(40))), (), 40),
        (("a", "b"), ("model.max_classes=3",), 3),
        (("a", "b"), ("labels=[x, y, z]",), 16),
    ],
)
def test_room_for_classes(names: tuple[str, ...], overrides: tuple[str, ...], n_outputs: int) -> None:
    task = assembly.task_of(settings(*overrides), Schema("x", "int16", (40, 3), label_names=names))
    assert task.n_outputs == n_outputs
    assert task.label_names == (("x", "y", "z") if overrides == ("labels=[x, y, z]",) else names)


@pytest.mark.parametrize(
    ("rate_hz", "told", "message"),
    [
        (None, "2 s", "window.length: a time needs a source that says its rows per second (got 2 s, x says none)"),
        (10.0, "9 ms", "window.length: must be one row at least, 100 ms at 10 rows a second (got 9 ms)"),
    ],
)
def test_a_time_is_a_window_only_where_it_is_rows(rate_hz: float | None, told: str, message: str) -> None:
    with pytest.raises(OperatorError) as caught:
        assembly.task_of(settings(f"window.length={told}"), Schema("x", "int16", (4,), rate_hz=rate_hz))
    assert str(caught.value) == message


def test_images_have_no_rows_to_make_windows_of() -> None:
    with pytest.raises(OperatorError, match=r"window\.length: samples of shape \(28, 28, 3\) have no rows") as caught:
        assembly.task_of(settings("window.length=4"), Schema("camera", "uint8", (28, 28, 3)))
    assert caught.value.hint == "set window.length and window.stride to null or auto"


@pytest.mark.parametrize("shape", [(12,), (1024,), (128, 9), (28, 28), (32, 32, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_learner_takes_the_bytes_that_were_planned(shape: tuple[int, ...], dtype: str) -> None:
    config = settings("budget.memory_bytes=16 MiB", "replay.memory_bytes=null", "replay.samples=300", "exam.samples=33")
    task = assembly.task_of(config, Schema("x", dtype, shape))
    blueprint = assembly.blueprint_of(config, task)
    plan = assembly.plan_of(config, task, blueprint)
    learner = assembly.make_learner(config, task, blueprint, plan, seed=0)
    assert learner.nbytes + plan.promised == pytest.approx(plan.nbytes, rel=0.01)
    assert learner.nbytes + plan.promised <= plan.budget_bytes
    assert (learner.replay.nbytes, learner.exam.nbytes) == (plan["replay"], plan["exam"])
    assert (learner.replay.capacity, learner.exam.capacity) == (300, 33)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fewer_bits_hold_more_samples_in_the_same_plan(bits: int) -> None:
    signal = Schema("x", "int16", (128, 9))
    kept = {}
    for name, overrides in (("own", ("replay.bits=null",)), ("fewer", (f"replay.bits={bits}",))):
        config = settings(
            "replay.memory_bytes=null",
            "replay.bits=null",
            "distillation.logits=0",
            "budget.memory_bytes=4 MiB",
            *overrides,
        )
        task = assembly.task_of(config, signal)
        blueprint = assembly.blueprint_of(config, task)
        plan = assembly.plan_of(config, task, blueprint)
        learner = assembly.make_learner(config, task, blueprint, plan, seed=0)
        assert learner.replay.nbytes == plan["replay"]
        assert learner.nbytes + plan.promised <= 4 * 2**20
        kept[name] = learner.replay.capacity
    # 128 rows of 9 int16 values are 2,304 bytes; packed, each channel's span takes 4 bytes beside them
    assert kept["fewer"] / kept["own"] == pytest.approx((2304 + 2) / (128 * 9 * bits / 8 + 36 + 2), rel=0.01)


def test_vectors_are_kept_as_they_are() -> None:
    config = settings("replay.bits=4")
    task = assembly.task_of(config, Schema("x", "int16", (12,)))
    blueprint = assembly.blueprint_of(config, task)
    learner = assembly.make_learner(config, task, blueprint, assembly.plan_of(config, task, blueprint), seed=0)
    assert learner.replay.items.dtype == np.int16


def test_a_gpu_that_is_not_there_is_the_operators_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {assembly.device_of(settings(f"learning.device={name}")).type for name in ("auto", "cpu")} == {"cpu"}
    with pytest.raises(OperatorError, match=r"learning\.device: .* no NVIDIA GPU here \(got cuda\)") as caught:
        assembly.device_of(settings("learning.device=cuda"))
    assert caught.value.hint.startswith("set learning.device to auto or cpu")


def test_a_window_counts_in_the_plan() -> None:
    task = assembly.task_of(settings(), Schema("x", "int16", (32, 3), window=(256, 64)))
    plan = assembly.plan_of(settings(), task, assembly.blueprint_of(settings(), task))
    assert plan["window"] == 2 * 256 * 3 * 2 + 256 * (8 + 8)


def test_no_exam_takes_no_bytes() -> None:
    task = assembly.task_of(settings(), SIGNAL)
    config = settings("exam.share=0")
    plan = assembly.plan_of(config, task, assembly.blueprint_of(config, task))
    assert plan["exam"] == plan.exam_samples == 0


def test_every_number_of_a_step_comes_from_its_setting() -> None:
    rule = assembly.rule_of(
        settings(
            *("learning.learning_rate=0.125", "learning.label_smoothing=0.25", "replay.per_step=7", "exam.share=0.5"),
            *("consolidation.ewc_lambda=9.0", "consolidation.gamma=0.75", "consolidation.fisher_samples=11"),
            "consolidation.rehearsal_passes=2",
        )
    )
    assert (rule.learning_rate, rule.label_smoothing, rule.replay_per_step) == (0.125, 0.25, 7)
    assert (rule.ewc_lambda, rule.gamma, rule.fisher_samples, rule.rehearsal_passes) == (9.0, 0.75, 11, 2)
    assert rule.exam_share == 0.5


def fingerprint(schema: Schema, *overrides: str) -> str:
    task = assembly.task_of(settings(*overrides), schema)
    return assembly.fingerprint(task, assembly.blueprint_of(settings(*overrides), task))


def test_a_fingerprint_tells_models_apart_and_nothing_else() -> None:
    own = fingerprint(SIGNAL)
    assert own.startswith("cnn1d on int16 [40, 3], weights [[")
    others = [
        fingerprint(Schema("probe", "int32", (40, 3), label_names=("a", "b", "c"))),
        fingerprint(Schema("probe", "int16", (41, 3), label_names=("a", "b", "c"))),
        *(fingerprint(SIGNAL, setting) for setting in ("model.kind=mlp", "model.width=8")),
    ]
    assert len({own, *others}) == 5
    same = (
        "model.max_classes=4",
        "labels=[a, b, d]",
        "learning.learning_rate=0.1",
        "replay.samples=9",
        "consolidation.every_steps=3",
        "exam.share=0",
    )
    assert {fingerprint(SIGNAL, setting) for setting in same} == {own}
