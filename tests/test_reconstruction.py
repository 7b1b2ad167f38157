"""A learner without labels, from its layers to the daemon: gradients against autograd, ONNX against the learner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from recordings import save, signals
from reference import autograd_gradient
from torch import Tensor

from edge_cl import assembly
from edge_cl.config import Config, parse
from edge_cl.daemon import Daemon
from edge_cl.errors import ConfigError
from edge_cl.learning.layers import Flatten
from edge_cl.learning.learner import Learner
from edge_cl.learning.model import SELF_SUPERVISED, design
from edge_cl.learning.network import Network
from edge_cl.learning.objective import Reconstruction
from edge_cl.learning.spectrum import LogSpectrum, Rows
from edge_cl.publishing.publisher import Publisher
from edge_cl.service.status import read_status
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.snapshot import Deployed
from firmware_bridge.sample import Schema

KINDS = [
    ("autoencoder", (6,)),
    ("autoencoder", (100,)),
    ("autoencoder", (40, 3)),
    ("autoencoder", (12, 3)),  # shorter than a piece of the spectrum
    ("autoencoder", (20, 20)),
    ("autoencoder", (5, 6, 3)),
    ("predictor", (100,)),
    ("predictor", (40, 3)),
    ("predictor", (2, 3)),
]
EACH = pytest.mark.parametrize(("kind", "shape"), KINDS)


def made(kind: str, shape: tuple[int, ...], n: int = 9) -> tuple[Network, Reconstruction, Tensor]:
    """A network with its objective, and samples whose range it knows."""
    blueprint = design(kind, shape, 1, 8)
    network = Network(blueprint)
    x = torch.randint(-300, 300, (n, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    network.standardise.observe(x)
    return network, Reconstruction(network, blueprint.aim, blueprint.variance), x


def learner_of(shape: tuple[int, ...], dtype: str, *overrides: str) -> Learner:
    config = parse("", overrides=overrides)
    task = assembly.task_of(config, Schema("probe", dtype, shape))
    blueprint = assembly.blueprint_of(config, task)
    return assembly.make_learner(config, task, blueprint, assembly.plan_of(config, task, blueprint), seed=0)


def learn(learner: Learner, x: NDArray[Any]) -> None:
    for start in range(0, len(x), 10):
        part = x[start : start + 10]
        learner.learn(part, np.zeros(len(part), np.int64))


# Layers


def test_the_log_spectrum_is_that_of_welch() -> None:
    """Piece by piece with numpy's own transform."""
    layer, x = LogSpectrum(), torch.randn(3, 2, 70) * 3
    K, window = layer.PIECE, np.hanning(layer.PIECE + 1)[:-1]
    pieces = np.stack([x.numpy()[:, :, start : start + K] * window for start in (0, 16, 32)])
    power = (np.abs(np.fft.rfft(pieces, axis=-1)) ** 2).mean(0) / (window**2).sum()
    expected = layer.SCALE * np.log(power + layer.EPSILON)
    np.testing.assert_allclose(layer.forward(x).numpy(), expected, atol=1e-5)
    assert layer.output_shape((2, 70)) == (2, 17)


def test_the_log_spectrum_hears_how_loud_and_not_when() -> None:
    time = torch.arange(400) / 32
    moved = [torch.sin(2 * torch.pi * (5 * time + phase)).view(1, 1, -1) for phase in (0.0, 0.3)]
    layer = LogSpectrum()
    one, other = (layer.forward(x) for x in moved)
    torch.testing.assert_close(one, other, atol=0.01, rtol=0)
    assert int(one.argmax()) == 5
    louder = layer.forward(10 * moved[0])[0, 0, 5] - one[0, 0, 5]
    assert float(louder) == pytest.approx(layer.SCALE * np.log(100), rel=1e-2)


def test_a_predictor_sees_only_what_was_before() -> None:
    """A changed row changes only what is foretold of later ones, and all rows that are foretold have been hidden."""
    network, task, x = made("predictor", (60,), 1)
    foretold = design("predictor", (60,), 1, 8).aim[0]
    assert isinstance(foretold, Rows)
    before = network.forward(x)
    targets = task.targets(x)
    for row in range(60):
        other = x.clone()
        other[0, row] += 100
        changed = (network.forward(other) != before)[0].nonzero().flatten().tolist()
        assert all(foretold.rows[place] > row for place in changed)
        assert bool((task.targets(other) != targets).any()) == (row in foretold.rows)


# Objective


@EACH
def test_targets_have_the_shape_of_the_outputs(kind: str, shape: tuple[int, ...]) -> None:
    network, task, x = made(kind, shape)
    assert task.targets(x).shape == network.forward(x).shape == (len(x), network.n_outputs)


def test_an_autoencoder_of_readings_is_to_give_them_back_standardised() -> None:
    network, task, x = made("autoencoder", (6,))
    torch.testing.assert_close(task.targets(x), network.standardise.forward(x))
    assert isinstance(network.layers[0], Flatten)


@EACH
def test_the_gradient_is_that_of_a_gaussian_with_straight_tails(kind: str, shape: tuple[int, ...]) -> None:
    network, task, x = made(kind, shape)
    variance = design(kind, shape, 1, 8).variance
    targets = task.targets(x)

    def loss(z: Tensor) -> Tensor:
        far = ((z - targets).square().sum(1) / variance).sqrt()
        return torch.where(far <= 1, 0.5 * far.square(), far - 0.5).sum()

    expected = autograd_gradient(network, x, loss)
    delta = task.delta(network.forward(x), x, torch.zeros(len(x), dtype=torch.int64), len(x))
    gradient = torch.zeros_like(network.arena.flat)
    network.add_gradient(delta, gradient)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    assert float((delta.norm(dim=1) * variance**0.5).max()) <= 1.0001  # none pulls harder than a label would


@pytest.mark.parametrize("kind", SELF_SUPERVISED)
def test_the_fisher_is_the_mean_of_squared_gradients_of_the_gaussian(kind: str) -> None:
    network, task, x = made(kind, (40, 3), 2)
    variance, targets = design(kind, (40, 3), 1, 8).variance, task.targets(x)
    labels, generator = torch.zeros(len(x), dtype=torch.int64), torch.Generator().manual_seed(0)

    def squared(n: int) -> Tensor:
        gaussian = lambda z: 0.5 * (z - targets[n : n + 1]).square().sum() / variance  # noqa: E731
        return autograd_gradient(network, x[n : n + 1], gaussian).square()

    expected = torch.stack([squared(n) for n in range(len(x))]).mean(0)
    fisher = task.fisher(network, x, labels, "empirical", generator)
    torch.testing.assert_close(fisher, expected, rtol=1e-3, atol=1e-7)
    drawn = torch.stack([task.fisher(network, x, labels, "exact", generator) for _ in range(100)]).mean(0)
    exact = torch.zeros_like(drawn)
    for output in range(network.n_outputs):
        for n in range(len(x)):
            one: Callable[[Tensor], Tensor] = lambda z, output=output: z[0, output]  # noqa: E731
            exact += autograd_gradient(network, x[n : n + 1], one).square() / variance / len(x)
    assert float(drawn.sum()) == pytest.approx(float(exact.sum()), rel=0.15)


def test_what_was_not_learnt_is_reconstructed_worse() -> None:
    learner = learner_of((12,), "float32", "model.kind=autoencoder", "replay.samples=50")
    rng = np.random.default_rng(0)
    basis = rng.normal(0, 1, (2, 12))
    learn(learner, (rng.normal(0, 1, (1000, 2)) @ basis).astype(np.float32))
    learner.consolidate()
    normal = learner.losses((rng.normal(0, 1, (100, 2)) @ basis).astype(np.float32))
    odd = learner.losses(rng.normal(0, 1, (100, 12)).astype(np.float32))
    assert np.median(odd) > 5 * np.median(normal)


def test_ewc_keeps_an_old_condition_without_any_sample_of_it() -> None:
    """Two subspaces one after the other: how well the first is still reconstructed, with and without the pull."""
    rng = np.random.default_rng(0)
    old, new = ((rng.normal(0, 1, (1500, 2)) @ rng.normal(0, 1, (2, 12))).astype(np.float32) for _ in range(2))
    left = {}
    for ewc in (0.0, 30.0):
        private = ("replay.samples=0", "replay.per_step=0", "exam.share=0.0", "learning.learning_rate=0.03")
        learner = learner_of((12,), "float32", "model.kind=autoencoder", *private, f"consolidation.ewc_lambda={ewc}")
        for part in (old, new):
            learn(learner, part)
            learner.consolidate()
        left[ewc] = float(learner.losses(old[:300]).mean())
    assert left[30.0] < 0.7 * left[0.0]


@pytest.mark.parametrize("kind", SELF_SUPERVISED)
def test_it_comes_back_bit_for_bit(kind: str) -> None:
    x, _ = signals(60)
    one, other = (learner_of((40, 3), "int16", f"model.kind={kind}", "replay.samples=30") for _ in range(2))
    learn(one, x[:30])
    one.consolidate()
    arrays, values = one.state()
    other.restore({name: array.copy() for name, array in arrays.items()}, values)
    for learner in (one, other):
        learn(learner, x[30:])
        learner.consolidate()
    np.testing.assert_array_equal(one.losses(x), other.losses(x))


def test_the_plan_counts_every_byte_of_it() -> None:
    config = parse("", overrides=["model.kind=autoencoder"])
    task = assembly.task_of(config, Schema("probe", "int16", (200, 3)))
    blueprint = assembly.blueprint_of(config, task)
    planned = assembly.plan_of(config, task, blueprint)
    learner = assembly.make_learner(config, task, blueprint, planned, seed=0)
    assert learner.nbytes + planned.promised == planned.nbytes


# Settings


@pytest.mark.parametrize("kind", SELF_SUPERVISED)
@pytest.mark.parametrize("override", ["labels=[a, b]", "distillation.teacher=1.0"])
def test_what_only_classes_have_is_refused(kind: str, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("", overrides=[f"model.kind={kind}", override])
    assert kind in str(caught.value.problems[0])


@pytest.mark.parametrize("shape", [(1, 3), (8, 8, 3)])
def test_a_predictor_wants_a_window(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"predictor takes windows of 2 rows or more"):
        design("predictor", shape, 1, 8)


# Snapshots


@contextmanager
def publishing(folder: Path, kind: str, x: NDArray[Any]) -> Iterator[tuple[Publisher, Learner]]:
    """A learner that learnt these samples, and its publisher."""
    config = parse("", overrides=[f"model.kind={kind}", "model.width=8", "exam.share=0.2"])
    schema = Schema("probe", x.dtype.name, x.shape[1:])
    task = assembly.task_of(config, schema)
    blueprint = assembly.blueprint_of(config, task)
    learner = assembly.make_learner(config, task, blueprint, assembly.plan_of(config, task, blueprint), seed=0)
    learn(learner, x)
    learner.consolidate()
    publisher = Publisher(learner, task, schema, config, folder)
    try:
        yield publisher, learner
    finally:
        publisher.close()


@EACH
def test_a_snapshot_gives_reconstruction_and_score(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 300, (60, *shape)).astype(np.int16)
    with publishing(tmp_path, kind, x) as (publisher, learner):
        path = publisher.publish(()).path
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    reconstruction, score = session.run(["reconstruction", "score"], {"input": x.astype(np.float32)})
    np.testing.assert_allclose(reconstruction, learner.predict(x), atol=1e-5)
    np.testing.assert_allclose(score[:, 0], learner.losses(x), rtol=1e-4)


def test_a_snapshot_that_knows_the_exam_better_is_not_replaced(tmp_path: Path) -> None:
    x, _ = signals(200)
    with publishing(tmp_path, "autoencoder", x) as (publisher, learner):
        first = publisher.publish(())
        again = publisher.publish(())
        assert (first.state, again.state) == ("good", "trial")
        learner.network.arena.flat.mul_(0.3)
        worse = publisher.publish(())
        assert worse.state == "bad"
        assert worse.why.startswith("in the exam")
        assert publisher.current_path == again.path


# Daemon


def settings(*overrides: str) -> Config:
    return parse("", overrides=["model.width=8", "consolidation.every_steps=10", *overrides])


@pytest.mark.parametrize("kind", SELF_SUPERVISED)
def test_the_daemon_learns_what_nobody_labelled(kind: str, tmp_path: Path) -> None:
    x, _ = signals(200)
    source = f"recording:{save(tmp_path / 'unlabelled.npz', x=x)}?speed=max"
    config, state = settings(f"model.kind={kind}"), tmp_path / "state"
    summary = Daemon(config, state, source_url=source, once=True).run()
    assert summary["samples"] == 200
    assert 170 < summary["learned"] < 200  # the others are the exam's
    assert summary["prequential_accuracy"] is summary["test_accuracy"] is None
    assert sum(summary["dropped"].values()) == 0
    status = read_status(state)
    assert status is not None
    assert (status["anomaly_score"], status["anomaly_p50"]) == (summary["anomaly_score"], summary["anomaly_p50"])
    current = Shelf(state).current()
    assert current is not None
    assert current.manifest["output"]["beside"] == {"name": "score", "shape": ["batch", 1]}
    noise = np.random.default_rng(0).normal(0, 1000, (50, 40, 3)).astype(np.float32)
    score = Deployed(current.read())(np.concatenate([x[:50].astype(np.float32), noise]))[:, -1]
    assert np.median(score[50:]) > 2 * np.median(score[:50])


def test_the_daemon_learns_the_motor_without_its_labels_and_goes_on(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for frames in (800, 1200):  # the second run goes on where the first stopped
        source = f"simulated:motor?speed=max&samples={frames}"
        summary = Daemon(settings("model.kind=autoencoder"), state, source_url=source, once=True).run()
        assert summary["samples"] == frames // 8
    status = read_status(state)
    assert status is not None
    assert status["labelled"] == 0
    assert status["anomaly_p50"] is not None
    assert status["snapshot"] is not None
