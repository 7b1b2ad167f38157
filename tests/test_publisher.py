"""Snapshots: they answer as the learner does, from raw values alone, and say what they are."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from recordings import LABELS, features, images, signals

from edge_cl import assembly
from edge_cl.config import resolve
from edge_cl.learning.learner import Learner
from edge_cl.publisher import Publisher
from edge_cl.storage.errors import TemplateError
from edge_cl.storage.shelf import Shelf
from firmware_bridge.sample import Schema

Data = tuple[NDArray[Any], NDArray[np.int64]]


def vectors(n: int, *, seed: int = 0) -> Data:
    x, y = signals(n, seed=seed)
    return x.reshape(n, -1), y  # (n, 120): a signal of one channel


def colour(n: int, *, seed: int = 0) -> Data:
    x, y = images(n, seed=seed)
    return x[..., None].repeat(3, axis=3), y


def half(n: int, *, seed: int = 0) -> Data:
    x, y = signals(n, seed=seed)
    return (x / 16).astype(np.float16), y


@contextmanager
def publishing(folder: Path, data: Data, *overrides: str, names: tuple[str, ...] = LABELS) -> Iterator[Any]:
    """A learner that learnt these samples, and its publisher."""
    x, y = data
    config = resolve(None, ("model.width=4", "consolidation.rehearsal_passes=1", *overrides)).config
    schema = Schema("probe", x.dtype.name, x.shape[1:], unit="counts", rate_hz=100.0, scale=0.5, label_names=names)
    task = assembly.task_of(config, schema)
    blueprint = assembly.blueprint_of(config, task)
    learner = assembly.make_learner(config, task, blueprint, assembly.plan_of(config, task, blueprint), seed=0)
    for start in range(0, len(x), 10):
        learner.learn(x[start : start + 10], y[start : start + 10])
    learner.consolidate()
    folder.mkdir(exist_ok=True)
    publisher = Publisher(learner, task, schema, config, folder)
    try:
        yield publisher, learner
    finally:
        publisher.close()


def session(model: Path) -> Any:
    return onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])


def difference(model: Path, learner: Learner, x: NDArray[Any], n_classes: int) -> float:
    """The largest difference between onnxruntime on raw values and the learner."""
    answers = session(model).run(None, {"input": x.astype(np.float32)})[0]
    assert answers.shape == (len(x), n_classes)
    return float(np.abs(answers - learner.predict(x)[:, :n_classes]).max())


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (features, "mlp"),
        (vectors, "cnn1d"),
        (signals, "cnn1d"),
        (half, "cnn1d"),
        (images, "cnn2d"),
        (colour, "cnn2d"),
        (signals, "mlp"),
        (images, "mlp"),
        (colour, "mlp"),
    ],
)
def test_a_snapshot_answers_as_the_learner_does(make: Any, kind: str, tmp_path: Path) -> None:
    with publishing(tmp_path / "s", make(80), f"model.kind={kind}") as (publisher, learner):
        path = publisher.publish(LABELS, learner.examine())
        assert difference(path, learner, make(50, seed=7)[0], 3) < 1e-5
        manifest = json.loads(path.with_name("manifest.json").read_text(encoding="utf-8"))
        assert manifest["model"] == kind
        assert manifest["verification"]["samples"] == 32
        assert manifest["verification"]["max_abs_difference"] < 1e-5


def test_a_class_that_was_not_seen_has_probability_0(tmp_path: Path) -> None:
    x, y = signals(60)
    names = ("none", *LABELS, "nor this")
    with publishing(tmp_path / "s", (x, y + 1), names=names) as (publisher, learner):
        path = publisher.publish(names, {})
        answers = session(path).run(None, {"input": x.astype(np.float32)})[0]
        assert (answers[:, [0, 4]] == 0).all()
        np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-6)
        assert json.loads(path.with_name("manifest.json").read_text("utf-8"))["classes_seen"] == list(LABELS)
        assert difference(path, learner, x, 5) < 1e-5


@pytest.mark.parametrize("n_classes", [1, 2, 3])
def test_the_head_has_as_many_outputs_as_there_are_names(n_classes: int, tmp_path: Path) -> None:
    x, y = features(60)
    with publishing(tmp_path / "s", (x, y % n_classes), names=()) as (publisher, learner):
        path = publisher.publish(tuple(map(str, range(n_classes))), {})
        assert difference(path, learner, x, n_classes) < 1e-5


def test_new_classes_make_a_new_template(tmp_path: Path) -> None:
    x, y = signals(60)
    with publishing(tmp_path / "s", (x, y), names=()) as (publisher, learner):
        publisher.prepare(2)  # given up for the next one
        publisher.prepare(3)
        assert difference(publisher.publish(("0", "1", "2"), {}), learner, x, 3) < 1e-5
        four = publisher.publish(("0", "1", "2", "3"), {})
        assert difference(four, learner, x, 4) < 1e-5
        assert publisher.current_path == four


def test_metadata_and_manifest_say_what_goes_in_and_what_comes_out(tmp_path: Path) -> None:
    with publishing(tmp_path / "s", signals(60)) as (publisher, learner):
        assert publisher.age_s is None
        path = publisher.publish(LABELS, {0: (4, 0.75)})
        assert publisher.age_s is not None
        current = Shelf(tmp_path / "s").current()
        assert current is not None
        assert current.path == path == publisher.current_path
        metadata = session(path).get_modelmeta().custom_metadata_map
        assert json.loads(metadata["labels"]) == list(LABELS)
        manifest = current.manifest
        for key, text in metadata.items():
            assert manifest[key] == (text if isinstance(manifest[key], str) else json.loads(text))
        assert manifest["input"] == {
            "name": "input",
            "shape": ["batch", 40, 3],
            "values": "raw sensor values of dtype int16, given as float32",
            "channels": [],
            "unit": "counts",
            "scale": 0.5,
            "rate_hz": 100.0,
        }
        assert manifest["output"] == {"name": "probabilities", "shape": ["batch", 3]}
        assert manifest["training"]["exam"] == {LABELS[0]: {"samples": 4, "accuracy": 0.75}}
        assert manifest["training"]["learned"] == learner.learnt
        assert manifest["bytes"] == path.stat().st_size
        assert manifest.keys() >= {"id", "created", "sha256", "state", "versions", "config_sha256", "opset"}


def test_a_snapshot_fits_into_its_part_of_the_plan(tmp_path: Path) -> None:
    names = tuple(f"a class with quite a long name {index}" for index in range(16))
    x, y = images(60)
    with publishing(tmp_path / "s", (x, y), names=names) as (publisher, learner):
        size = publisher.publish(names, dict.fromkeys(range(16), (8, 0.123456789))).stat().st_size
        config = resolve(None, ("model.width=4",)).config
        task = assembly.task_of(config, Schema("probe", "uint8", x.shape[1:], label_names=names))
        assert 2 * size <= assembly.plan_of(config, task, learner.network.blueprint)["snapshot"]


def test_a_template_child_that_was_killed_costs_one_snapshot_and_not_all(tmp_path: Path) -> None:
    with publishing(tmp_path / "s", signals(60)) as (publisher, learner):
        before = children()
        publisher.prepare(3)
        (child,) = children() - before
        os.kill(child, signal.SIGKILL)
        with pytest.raises(TemplateError, match="SIGKILL"):
            publisher.publish(LABELS, {})
        assert Shelf(tmp_path / "s").current() is None
        assert difference(publisher.publish(LABELS, {}), learner, signals(9, seed=3)[0], 3) < 1e-5


def children() -> set[int]:
    threads = Path(f"/proc/{os.getpid()}/task").iterdir()
    return {int(pid) for thread in threads for pid in (thread / "children").read_text(encoding="ascii").split()}


def test_random_probes_stay_in_the_range_of_their_own_channel(tmp_path: Path) -> None:
    x, _ = data = features(80)
    with publishing(tmp_path / "s", data) as (publisher, _):
        probes = publisher._probes()
    assert probes.dtype == x.dtype
    assert (probes >= x.min(axis=0)).all()
    assert (probes <= x.max(axis=0)).all()
    assert len({row.tobytes() for row in probes}) == len(probes)
    assert math.isfinite(float(probes.sum()))
