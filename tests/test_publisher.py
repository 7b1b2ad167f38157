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
import torch
from numpy.typing import NDArray
from recordings import LABELS, features, images, signals

from edge_cl import assembly
from edge_cl.config import resolve
from edge_cl.learning.learner import Learner
from edge_cl.publishing.publisher import Publisher
from edge_cl.storage.errors import TemplateError
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.signature import verifier, write_key_pair
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
        (features, "nearest_mean"),
        (signals, "slda"),
        (images, "slda_random"),
    ],
)
def test_a_snapshot_answers_as_the_learner_does(make: Any, kind: str, tmp_path: Path) -> None:
    with publishing(tmp_path / "s", make(80), f"model.kind={kind}") as (publisher, learner):
        path = publisher.publish(LABELS).path
        assert difference(path, learner, make(50, seed=7)[0], 3) < 1e-5
        manifest = json.loads(path.with_name("manifest.json").read_text(encoding="utf-8"))
        assert manifest["model"] == kind
        assert manifest["verification"]["samples"] == 32
        assert manifest["verification"]["max_abs_difference"] < 1e-5


def test_a_class_that_was_not_seen_has_probability_0(tmp_path: Path) -> None:
    x, y = signals(60)
    names = ("none", *LABELS, "nor this")
    with publishing(tmp_path / "s", (x, y + 1), names=names) as (publisher, learner):
        path = publisher.publish(names).path
        answers = session(path).run(None, {"input": x.astype(np.float32)})[0]
        assert (answers[:, [0, 4]] == 0).all()
        np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-6)
        assert json.loads(path.with_name("manifest.json").read_text("utf-8"))["classes_seen"] == list(LABELS)
        assert difference(path, learner, x, 5) < 1e-5


@pytest.mark.parametrize("n_classes", [1, 2, 3])
def test_the_head_has_as_many_outputs_as_there_are_names(n_classes: int, tmp_path: Path) -> None:
    x, y = features(60)
    with publishing(tmp_path / "s", (x, y % n_classes), names=()) as (publisher, learner):
        path = publisher.publish(tuple(map(str, range(n_classes)))).path
        assert difference(path, learner, x, n_classes) < 1e-5


def test_new_classes_make_a_new_template(tmp_path: Path) -> None:
    x, y = signals(60)
    with publishing(tmp_path / "s", (x, y), names=()) as (publisher, learner):
        publisher.prepare(2)  # given up for the next one
        publisher.prepare(3)
        assert difference(publisher.publish(("0", "1", "2")).path, learner, x, 3) < 1e-5
        four = publisher.publish(("0", "1", "2", "3")).path
        assert difference(four, learner, x, 4) < 1e-5
        assert publisher.current_path == four


def test_metadata_and_manifest_say_what_goes_in_and_what_comes_out(tmp_path: Path) -> None:
    with publishing(tmp_path / "s", signals(60)) as (publisher, learner):
        assert publisher.age_s is None
        path = publisher.publish(LABELS).path
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
        examined = {LABELS[c]: {"samples": n, "accuracy": share} for c, (n, share) in learner.examine().items()}
        assert manifest["training"]["exam"] == examined
        assert manifest["training"]["learned"] == learner.learnt
        assert manifest["bytes"] == path.stat().st_size
        assert manifest.keys() >= {"id", "created", "sha256", "versions", "config_sha256", "opset"}


def test_a_snapshot_fits_into_its_part_of_the_plan(tmp_path: Path) -> None:
    names = tuple(f"a class with quite a long name {index}" for index in range(16))
    x, y = images(60)
    with publishing(tmp_path / "s", (x, y), names=names) as (publisher, learner):
        size = publisher.publish(names).path.stat().st_size
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
            publisher.publish(LABELS)
        assert Shelf(tmp_path / "s").current() is None
        assert difference(publisher.publish(LABELS).path, learner, signals(9, seed=3)[0], 3) < 1e-5


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


# What keeps a snapshot from becoming current, and what takes it back


def test_the_first_is_good_and_the_next_on_trial(tmp_path: Path) -> None:
    with publishing(tmp_path / "s", signals(200)) as (publisher, _):
        first, second, third = (publisher.publish(LABELS) for _ in range(3))
        assert [entry.state for entry in (first, second, third)] == ["good", "trial", "trial"]
        states = {entry.id: entry.state for entry in publisher.shelf.entries()}
        assert states == {first.id: "good", second.id: "good", third.id: "trial"}
        assert publisher.current_path == third.path


@pytest.mark.parametrize(
    ("override", "why"),
    [("budget.snapshot_bytes=2000", "budget.snapshot_bytes is 2,000"), ("budget.predict_ms=0.0001", "predict_ms")],
)
def test_one_over_its_budget_is_kept_aside_even_as_the_first(override: str, why: str, tmp_path: Path) -> None:
    with publishing(tmp_path / "s", signals(60), override) as (publisher, _):
        aside = publisher.publish(LABELS)
        assert aside.state == "bad"
        assert why in aside.why
        assert publisher.current_path is publisher.shelf.current() is None


def test_one_that_does_worse_in_the_exam_is_kept_aside(tmp_path: Path) -> None:
    with publishing(tmp_path / "s", signals(400), "exam.share=0.2") as (publisher, learner):
        good = publisher.publish(LABELS)
        network = learner.network
        network.layers[-1].own["weight"].neg_()
        aside = publisher.publish(LABELS)
        assert aside.state == "bad"
        assert good.id in aside.why
        assert publisher.current_path == good.path
        network.layers[-1].own["weight"].neg_()
        assert publisher.publish(LABELS).state == "trial"  # as good as what it is compared with


def test_labels_at_odds_with_the_answers_hold_it_back(tmp_path: Path) -> None:
    with publishing(tmp_path / "s", signals(400), "exam.share=0.2") as (publisher, _):
        publisher.publish(LABELS)
        for predicted, label in np.random.default_rng(0).integers(0, 3, (60, 2)):
            publisher.agreement.add(int(predicted), int(label))
        assert "only by chance" in publisher.publish(LABELS).why


def test_a_new_class_that_the_exam_knows_better_is_published_whatever_the_labels(tmp_path: Path) -> None:
    x, y = signals(600)
    old = y < 2
    with publishing(tmp_path / "s", (x[old], y[old]), "exam.share=0.2", "model.width=16") as (publisher, learner):
        publisher.publish(LABELS)
        for start in range(0, 400, 10):
            learner.learn(x[start : start + 10], y[start : start + 10])
        learner.consolidate()
        for predicted, label in np.random.default_rng(0).integers(0, 3, (60, 2)):
            publisher.agreement.add(int(predicted), int(label))
        assert publisher.agreement.at_odds(0.95)
        assert publisher.publish(LABELS).state == "trial"


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_trial_ends_good_or_is_rolled_back(spoilt: bool, tmp_path: Path) -> None:
    x, y = signals(400, seed=3)
    with publishing(tmp_path / "s", signals(400), "exam.share=0", "snapshots.trial_samples=100") as (
        publisher,
        learner,
    ):
        before = publisher.publish(LABELS)
        if spoilt:
            learner.network.layers[-1].own["weight"].neg_()
        after = publisher.publish(LABELS)
        told = [publisher.judge(x[start : start + 10], y[start : start + 10]) for start in range(0, 200, 10)]
        (verdict,) = filter(None, told)
        assert f"snapshot {after.id} is {'bad' if spoilt else 'good'}" in verdict
        assert (told.index(verdict) < 9) is spoilt
        assert publisher.shelf.get(after.id).state == ("bad" if spoilt else "good")
        assert publisher.current_path == (before if spoilt else after).path


def test_a_trial_goes_on_after_a_restart(tmp_path: Path) -> None:
    x, y = signals(200, seed=3)
    with publishing(tmp_path / "s", signals(200), "snapshots.trial_samples=50") as (publisher, _):
        publisher.publish(LABELS)
        on_trial = publisher.publish(LABELS)
    with publishing(tmp_path / "s", signals(200), "snapshots.trial_samples=50") as (publisher, _):
        assert "is good" in publisher.judge(x[:60], y[:60])
        assert publisher.shelf.get(on_trial.id).state == "good"


@pytest.mark.parametrize("kind", ["nearest_mean", "slda"])
@pytest.mark.parametrize("make", [signals, images, features])
def test_templates_as_the_snapshots_last_layer(make: Any, kind: str, tmp_path: Path) -> None:
    x, _ = make(80, seed=5)
    names = (*LABELS, "never seen")
    with publishing(tmp_path / "s", make(400), f"snapshots.head={kind}", names=names) as (publisher, learner):
        before = learner.network.arena.flat.clone()
        path = publisher.publish(names).path
        assert bool((learner.network.arena.flat == before).all())  # the learner keeps its own
        answers = session(path).run(None, {"input": x.astype(np.float32)})[0]
        # The slow way: features from the layer before, their means and the shared covariance in float64.
        replay, network = learner.replay, learner.network
        seen, labels = replay.take(np.arange(replay.size)), replay.labels[: replay.size]
        expected = by_hand(kind, features_of(network, seen), labels, features_of(network, x))
        assert (answers[:, :3].argmax(1) == expected).mean() > 0.98
        assert (answers[:, 3] == 0).all()


def features_of(network: Any, x: NDArray[Any]) -> NDArray[np.float64]:
    network.forward(torch.tensor(x))
    features: NDArray[np.float64] = network.layers[-1].x.double().numpy()
    return features


def by_hand(kind: str, f: NDArray[Any], y: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    means = np.stack([f[y == c].mean(0) for c in range(3)])
    metric = np.eye(f.shape[1])
    if kind == "slda":
        within = (f - means[y]).T @ (f - means[y]) / len(f)
        D = len(within)
        metric = np.linalg.inv(0.99 * within + 0.01 * np.trace(within) / D * np.eye(D))
    apart = new[:, None] - means[None]
    nearest: NDArray[Any] = np.einsum("ncd,de,nce->nc", apart, metric, apart).argmin(1)
    return nearest


def test_a_signing_key_signs_every_manifest(tmp_path: Path) -> None:
    public = write_key_pair(tmp_path / "key.pem")
    with publishing(tmp_path / "s", signals(60), f"snapshots.signing_key={tmp_path / 'key.pem'}") as (publisher, _):
        folder = publisher.publish(LABELS).path.parent
    manifest, signature = (folder / "manifest.json").read_bytes(), (folder / "manifest.sig").read_bytes()
    assert verifier(public)(manifest, signature)
    assert not verifier(public)(manifest.replace(b"1", b"2"), signature)
