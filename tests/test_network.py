"""Every built-in layer against PyTorch's autograd: gradient, update in the product, squared gradients."""

from __future__ import annotations

import pytest
import torch
from reference import autograd_gradient, fisher_by_loop
from torch import Tensor
from torch.nn.functional import cross_entropy

from edge_cl.learning import layers
from edge_cl.learning.layers import (
    Affine,
    Conv,
    Flatten,
    GroupNorm,
    Layer,
    LayerNorm,
    Linear,
    ReLU,
)
from edge_cl.learning.model import Blueprint, choose_kind, design
from edge_cl.learning.network import Network
from edge_cl.learning.pooling import GlobalAveragePool, LogVariancePool, MaxPool

CLASSES = 4


def signal_network(*layers: Layer, features: int) -> Network:
    return Network(Blueprint("signal", (24, 6), (24, 6), [*layers, Flatten(), Linear(features, CLASSES)]))


def image_network(*layers: Layer, features: int) -> Network:
    return Network(Blueprint("image", (9, 8, 6), (9, 8, 6), [*layers, Flatten(), Linear(features, CLASSES)]))


NETWORKS = {
    "mlp": lambda: Network(design("mlp", (10,), CLASSES, 16)),
    "mlp on images": lambda: Network(design("mlp", (12, 20), CLASSES, 16)),
    "cnn1d": lambda: Network(design("cnn1d", (40, 3), CLASSES, 8)),
    "cnn1d, one channel": lambda: Network(design("cnn1d", (70,), CLASSES, 8)),
    "cnn2d": lambda: Network(design("cnn2d", (13, 17, 3), CLASSES, 8)),
    "cnn2d, one channel": lambda: Network(design("cnn2d", (20, 18), CLASSES, 8)),
    "conv1d, dilated, in groups": lambda: signal_network(
        Conv(6, 4, [3], stride=2, padding=2, dilation=2, groups=2), ReLU(), features=4 * 12
    ),
    "conv2d, dilated, in groups": lambda: image_network(
        Conv(6, 9, [3, 2], stride=2, padding=1, dilation=2, groups=3), GroupNorm(9, 3), ReLU(), features=9 * 4 * 4
    ),
    "max pooling of a signal": lambda: signal_network(Conv(6, 5, [3]), ReLU(), MaxPool(2, 1), features=5 * 11),
    "max pooling of an image": lambda: image_network(Conv(6, 5, [2, 2]), MaxPool(2, 2), features=5 * 4 * 3),
    "log variance": lambda: signal_network(Conv(6, 8, [5]), LogVariancePool(), features=8),
    "layer norm": lambda: Network(
        Blueprint("mlp", (10,), (10,), [Linear(10, 12), LayerNorm(12), ReLU(), Linear(12, CLASSES)])
    ),
    "affine, of a signal": lambda: signal_network(Affine(6), Conv(6, 5, [3]), Affine(5), ReLU(), features=5 * 22),
    "affine, of features": lambda: Network(Blueprint("mlp", (10,), (10,), [Affine(10), Linear(10, CLASSES)])),
    "global average": lambda: signal_network(GroupNorm(6, 2), Conv(6, 8, [5]), GlobalAveragePool(), features=8),
}


@pytest.fixture(params=NETWORKS, name="network")
def _network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    network: Network = NETWORKS[request.param]()
    network.arena.flat.add_(0.05 * torch.randn(network.arena.flat.shape))  # no parameter at a special value
    return network


def batch(network: Network, n: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-100, 100, (n, *network.blueprint.shape), dtype=torch.int16, generator=generator)
    network.standardise.observe(x)
    return x, torch.randint(0, CLASSES, (n,), generator=generator)


def loss_gradient(network: Network, x: Tensor, y: Tensor) -> Tensor:
    logits = network.forward(x)
    return (logits.softmax(1) - torch.nn.functional.one_hot(y, CLASSES)) / len(x)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


def test_gradient_equals_autograds(network: Network) -> None:
    x, y = batch(network)
    gradient = torch.zeros_like(network.arena.flat)
    network.add_gradient(loss_gradient(network, x, y), gradient)
    expected = autograd_gradient(network, x, lambda logits: cross_entropy(logits, y))
    assert relative_error(gradient, expected) < 1e-6


def test_update_in_the_product_is_the_gradient_step(network: Network) -> None:
    x, y = batch(network)
    expected = network.arena.flat - 0.3 * autograd_gradient(network, x, lambda logits: cross_entropy(logits, y))
    network.descend(loss_gradient(network, x, y), 0.3)
    assert relative_error(network.arena.flat, expected) < 1e-6


def test_squares_are_taken_sample_by_sample(network: Network) -> None:
    x, y = batch(network)
    delta = loss_gradient(network, x, y) * len(x)
    squares = torch.zeros_like(network.arena.flat)
    network.add_squares(delta, squares)
    assert relative_error(squares / len(x), fisher_by_loop(network, x, y)) < 1e-5


def test_one_sample_alone_gets_the_answer_it_gets_among_others(network: Network) -> None:
    x, _ = batch(network)
    together = network.forward(x)
    alone = torch.cat([network.forward(x[n : n + 1]) for n in range(len(x))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("faster", [False, *([True] if torch._C._has_mkldnn else [])])
def test_large_layers_answer_the_same_whichever_product_is_faster_here(
    faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "ONEDNN_IS_FASTER", faster)
    layer = Linear(784, 256)
    layer.bind({"weight": torch.randn(256, 784), "bias": torch.randn(256)})
    x = torch.randn(20, 784)
    expected = torch.nn.functional.linear(x, layer.own["weight"], layer.own["bias"])
    torch.testing.assert_close(layer.forward(x), expected, atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(layer.forward(x), expected, atol=1e-4, rtol=1e-4)


def test_blueprint_counts_the_parameters_that_there_are(network: Network) -> None:
    blueprint = network.blueprint
    assert blueprint.n_parameters == network.arena.flat.numel()
    assert blueprint.n_outputs == CLASSES


def test_same_seed_gives_the_same_network() -> None:
    first, second, other = (Network(design("cnn1d", (40, 3), 5, 8), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.arena.flat, second.arena.flat)
    assert not torch.equal(first.arena.flat, other.arena.flat)


def test_arena_and_views_are_the_same_memory() -> None:
    network = Network(design("mlp", (4,), 3, 5))
    network.arena.flat.fill_(2.0)
    assert all(bool((view == 2.0).all()) for layer in network.layers for view in layer.own.values())
    with pytest.raises(ValueError, match=r"must have the arena's \d+ entries \(got \(3,\)\)"):
        network.arena.lay_over(torch.zeros(3))


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("cnn1d", (8, 8, 3), r"cnn1d takes samples of shape \(length,\) or \(length, channels\) \(got \(8, 8, 3\)\)"),
        ("cnn2d", (8,), r"cnn2d takes samples of shape \(height, width\[, channels\]\) \(got \(8,\)\)"),
        ("transformer", (8,), r"one of auto, mlp, cnn1d, cnn2d, autoencoder, predictor \(got transformer\)"),
    ],
)
def test_kind_that_does_not_take_the_samples_is_refused(kind: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        design(kind, shape, 3, 8)


def test_kind_follows_the_shape() -> None:
    assert [choose_kind(s) for s in [(8,), (128, 9), (28, 28), (32, 32, 3)]] == ["mlp", "cnn1d", "cnn2d", "cnn2d"]
