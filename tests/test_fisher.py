"""The Fisher diagonal against a loop over samples and classes, and the traps that others fell into."""

from __future__ import annotations

import pytest
import torch
from reference import autograd_gradient, exact_fisher_by_loop, fisher_by_loop
from torch import Tensor

from edge_cl.learning import fisher as module
from edge_cl.learning.fisher import fisher_diagonal, gaussian_fisher_diagonal
from edge_cl.learning.model import design
from edge_cl.learning.network import Network

KINDS = {"mlp": (12,), "cnn1d": (70, 3), "cnn2d": (20, 20)}


def made(kind: str, n: int) -> tuple[Network, Tensor, Tensor]:
    torch.manual_seed(0)
    network = Network(design(kind, KINDS[kind], 4, 8))
    x = torch.randint(0, 200, (n, *KINDS[kind]), dtype=torch.uint8)
    network.standardise.observe(x)
    return network, x, torch.randint(0, 4, (n,))


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_exact_fisher_equals_the_loop_over_samples_and_classes(kind: str) -> None:
    network, x, _ = made(kind, 9)
    assert relative_error(fisher_diagonal(network, x), exact_fisher_by_loop(network, x)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_empirical_fisher_equals_the_loop_over_samples(kind: str) -> None:
    network, x, y = made(kind, 9)
    value = fisher_diagonal(network, x, kind="empirical", labels=y)
    assert relative_error(value, fisher_by_loop(network, x, y)) < 1e-5


def test_sampled_fisher_is_the_exact_one_in_expectation() -> None:
    network, x, _ = made("mlp", 40)
    generator = torch.Generator().manual_seed(5)
    runs = [fisher_diagonal(network, x, kind="sampled", generator=generator) for _ in range(400)]
    exact = fisher_diagonal(network, x)
    # 400 · 40 labels: each sum is known to about one hundredth
    assert relative_error(torch.stack(runs).mean(0).sum(), exact.sum()) < 0.03


@pytest.mark.parametrize("chunk", [1, 7, 128])
def test_fisher_does_not_depend_on_the_batch_size(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traps T-05 and T-11: squaring a batch's mean gradient gives about 1/B of the diagonal."""
    network, x, _ = made("cnn1d", 20)
    whole = fisher_diagonal(network, x)
    monkeypatch.setattr(module, "CHUNK", chunk)  # 20 = 2 · 7 + 6: a short last batch, too
    assert relative_error(fisher_diagonal(network, x), whole) < 1e-5


def test_classes_not_seen_have_no_fisher() -> None:
    network, x, _ = made("mlp", 20)
    seen = torch.tensor([True, False, True, False])
    fisher = network.arena.lay_over(fisher_diagonal(network, x, classes=seen))
    head = fisher["5.linear.weight"]
    assert bool((head[~seen] == 0).all())
    assert bool((head[seen].sum(1) > 0).all())
    assert relative_error(fisher_diagonal(network, x, classes=seen), exact_fisher_by_loop(network, x, seen)) < 1e-5


def test_fisher_leaves_the_network_as_it_was() -> None:
    network, x, _ = made("cnn2d", 5)
    before, statistics = network.arena.flat.clone(), network.standardise.mean.clone()
    fisher_diagonal(network, x)
    assert torch.equal(network.arena.flat, before)
    assert torch.equal(network.standardise.mean, statistics)


def test_nothing_to_measure_and_unknown_kinds_are_refused() -> None:
    network, x, _ = made("mlp", 3)
    with pytest.raises(ValueError, match="at least one sample"):
        fisher_diagonal(network, x[:0])
    with pytest.raises(ValueError, match=r"kind: must be one of exact, sampled, empirical \(got kfac\)"):
        fisher_diagonal(network, x, kind="kfac")
    with pytest.raises(ValueError, match=r"labels: empirical needs one a sample \(got None\)"):
        fisher_diagonal(network, x, kind="empirical")
    with pytest.raises(ValueError, match=r"targets: empirical needs one a sample \(got 2\)"):
        gaussian_fisher_diagonal(network, x, kind="empirical", targets=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"deviation: must be above 0 \(got 0.0\)"):
        gaussian_fisher_diagonal(network, x, deviation=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_of_a_regression_equals_the_loop(kind: str) -> None:
    """N(f(x), σ² I): the squared gradient of each output, over σ²."""
    network, x, _ = made(kind, 5)
    targets, sigma = torch.randn(5, 4), 0.7
    exact, empirical = torch.zeros(2, network.arena.flat.numel())
    for n in range(5):
        one = x[n : n + 1]
        for d in range(4):
            exact += autograd_gradient(network, one, lambda f, d=d: f[0, d]) ** 2 / sigma**2 / 5
        log_likelihood = lambda f, n=n: -((f[0] - targets[n]) ** 2).sum() / (2 * sigma**2)  # noqa: E731
        empirical += autograd_gradient(network, one, log_likelihood) ** 2 / 5
    assert relative_error(gaussian_fisher_diagonal(network, x, deviation=sigma), exact) < 1e-5
    measured = gaussian_fisher_diagonal(network, x, kind="empirical", deviation=sigma, targets=targets)
    assert relative_error(measured, empirical) < 1e-5


def test_sampled_fisher_of_a_regression_is_the_exact_one_in_expectation() -> None:
    network, x, _ = made("mlp", 40)
    generator = torch.Generator().manual_seed(5)
    runs = [gaussian_fisher_diagonal(network, x, kind="sampled", generator=generator) for _ in range(400)]
    exact = gaussian_fisher_diagonal(network, x)
    assert relative_error(torch.stack(runs).mean(0).sum(), exact.sum()) < 0.03
