"""What only a GPU can show; skipped where there is none. The other tests hold the arithmetic itself, on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edge_cl.learning.fisher import fisher_diagonal
from edge_cl.learning.learner import Learner, Rule
from edge_cl.learning.model import design
from edge_cl.learning.network import Network
from edge_cl.learning.replay import Reservoir
from edge_cl.learning.torch_network import TorchNetwork

pytestmark = pytest.mark.gpu

KINDS = {"mlp": (12,), "cnn1d": (70, 3), "cnn2d": (20, 20)}
RULE = Rule(exam_share=0.2, rehearsal_passes=2, fisher_samples=50)


def make_learner(kind: str, device: str, rule: Rule = RULE) -> Learner:
    shape = KINDS[kind]
    network = Network(design(kind, shape, 4, 8), device=device)
    replay, exam = (Reservoir(n, shape, np.dtype(np.int16), n_classes=4, seed=n) for n in (60, 20))
    return Learner(network, replay, exam, rule)


def stream(kind: str, steps: int) -> list[tuple[NDArray[np.int16], NDArray[np.int64]]]:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 100, (4, *KINDS[kind]))
    labels = rng.integers(0, 4, (steps, 10))
    return [((centres[y] + rng.normal(0, 60, (10, *KINDS[kind]))).astype(np.int16), y) for y in labels]


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_learns_what_the_cpu_learns(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding apart: recorded steps, steps that are not, consolidations and all."""
    monkeypatch.setattr("edge_cl.learning.anchor.SLICES", 1)  # as on a GPU, where slices save nothing
    here, there = make_learner(kind, "cpu"), make_learner(kind, "cuda")
    for number, (x, y) in enumerate(stream(kind, 40)):
        one, other = here.learn(x, y), there.learn(x, y)
        assert one.learnt == other.learnt
        assert other.loss == pytest.approx(one.loss, rel=1e-2, abs=1e-3)
        if number % 15 == 14:
            here.consolidate()
            there.consolidate()
    x, _ = stream(kind, 1)[0]
    np.testing.assert_allclose(there.predict(x), here.predict(x), atol=0.02)
    for name in ("replay", "exam"):
        np.testing.assert_array_equal(getattr(here, name).labels, getattr(there, name).labels)


def test_a_head_grows_there_too() -> None:
    one = make_learner("mlp", "cuda")
    for x, y in stream("mlp", 8):
        one.learn(x, y)
    one.consolidate()
    network = Network(design("mlp", KINDS["mlp"], 6, 8), device="cuda")
    replay, exam = (Reservoir(n, KINDS["mlp"], np.dtype(np.int16), n_classes=6, seed=n) for n in (60, 20))
    wider = Learner(network, replay, exam, RULE)
    wider.restore(*one.state())
    x, _ = stream("mlp", 1)[0]
    np.testing.assert_allclose(wider.predict(x)[:, :4], one.predict(x), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_is_the_step_itself(kind: str) -> None:
    recorded, plain = make_learner(kind, "cuda"), make_learner(kind, "cuda")
    plain._recorded = None
    for number, (x, y) in enumerate(stream(kind, 30)):
        recorded.learn(x, y)
        plain.learn(x, y)
        if number == 12:
            recorded.consolidate()
            plain.consolidate()
    assert recorded._recorded is not None
    assert recorded._recorded._recorded  # something was in fact replayed
    torch.testing.assert_close(recorded.network.arena.flat, plain.network.arena.flat, rtol=1e-4, atol=1e-5)


def test_a_step_never_waits_for_the_gpu() -> None:
    learner = make_learner("cnn1d", "cuda", replace(RULE, exam_share=0.0))
    steps = stream("cnn1d", 40)
    for x, y in steps[:30]:
        learner.learn(x, y)
    learner.steps = 1  # not a step that takes its samples into the input statistics
    learner.network.standardise.seen = 10_000
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, y in steps[30:36]:
            learner.learn(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_fisher_is_the_same_on_both() -> None:
    x = torch.randint(0, 200, (40, 20, 20), dtype=torch.uint8)
    here, there = (Network(design("cnn2d", (20, 20), 4, 8), device=device) for device in ("cpu", "cuda"))
    here.standardise.observe(x)
    there.standardise.observe(x.cuda())
    torch.testing.assert_close(fisher_diagonal(there, x.cuda()).cpu(), fisher_diagonal(here, x), rtol=1e-3, atol=1e-6)


def test_a_module_moves_with_its_arena() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 4))
    network = TorchNetwork(module, (16, 3))
    network.to("cuda")
    network.arena.flat.fill_(0.5)
    assert all(bool((p == 0.5).all()) for p in module.parameters())
    assert network.forward(torch.zeros(2, 16, 3, dtype=torch.int16, device="cuda")).shape == (2, 4)


def test_a_state_goes_from_one_device_to_the_other() -> None:
    here, there = make_learner("cnn2d", "cpu"), make_learner("cnn2d", "cuda")
    for x, y in stream("cnn2d", 12):
        there.learn(x, y)
    there.consolidate()
    here.restore(*there.state())
    there.restore(*here.state())
    x, _ = stream("cnn2d", 1)[0]
    np.testing.assert_allclose(here.predict(x), there.predict(x), atol=1e-4)
