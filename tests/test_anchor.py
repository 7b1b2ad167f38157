"""The anchor against the formula of online EWC in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.learning.anchor import MOST_EVIDENCE, SLICES, Anchor


def anchored(n: int = 1000, *, compact: bool = True) -> tuple[Anchor, torch.Tensor, torch.Tensor]:
    """An anchor, the live parameters it holds, which are where they were when it was set, and their Fisher."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(n, generator=generator)
    anchor = Anchor(theta, compact=compact)
    fisher = torch.rand(n, generator=generator) ** 8  # a few large entries, many small, as a Fisher has
    anchor.consolidate(fisher, 1.0)
    return anchor, theta, fisher


def pull_all(anchor: Anchor, strength: float) -> None:
    for _ in range(SLICES):
        anchor.pull(strength)


def test_codes_keep_the_fisher_to_half_a_step_of_its_root() -> None:
    anchor, _, fisher = anchored()
    step = float(fisher.sqrt().max()) / 255
    assert float((anchor.fisher().sqrt() - fisher.sqrt()).abs().max()) <= 0.5001 * step


def test_three_bytes_a_parameter_are_kept() -> None:
    anchor, _, _ = anchored()
    kept = sum(t.numel() * t.element_size() for t in (anchor.theta, anchor.codes))
    assert kept == 3 * 1000


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("strength", [0.01, 1.0, 500.0])
def test_pull_is_the_proximal_step(strength: float, compact: bool) -> None:
    """θ' minimises ½‖θ' - θ‖² + ½ · SLICES · strength · F (θ' - θ*)²: all turns' worth at each parameter's own."""
    anchor, theta, _ = anchored(compact=compact)
    theta.copy_(torch.randn(1000, generator=torch.Generator().manual_seed(1)))
    before, target, F = theta.double(), anchor.theta.double(), anchor.fisher().double()
    pull_all(anchor, strength)
    k = SLICES * strength * F
    torch.testing.assert_close(theta.double(), (before + k * target) / (1 + k), atol=1e-6, rtol=1e-5)


def test_float32_keeps_everything_there_is() -> None:
    anchor, theta, fisher = anchored(compact=False)
    torch.testing.assert_close(anchor.fisher(), fisher, rtol=1e-6, atol=0.0)
    assert torch.equal(anchor.theta, theta)


def test_pull_leaves_theta_at_its_anchor_and_unimportant_parameters_alone() -> None:
    anchor, theta, _ = anchored()
    theta.copy_(anchor.theta)
    pull_all(anchor, 100.0)
    assert torch.equal(theta, anchor.theta.float())
    theta += 1.0
    before = theta.clone()
    pull_all(anchor, 100.0)
    free = anchor.fisher() == 0
    assert bool(free.any())
    assert torch.equal(theta[free], before[free])


@given(st.floats(0.0, 1e12), st.floats(1e-6, 10.0), st.floats(1e-12, 1e6), st.booleans())
def test_any_lambda_stays_finite_and_never_overshoots(
    ewc_lambda: float, rate: float, size: float, compact: bool
) -> None:
    """The explicit penalty is NaN within steps once ηλF > 2 (PEERS.md §2); the proximal step lands between θ and θ*."""
    anchor, theta, fisher = anchored(64, compact=compact)
    anchor.consolidate(fisher * size, 0.0)
    theta += 3.0
    low, high = torch.minimum(anchor.theta.float(), theta), torch.maximum(anchor.theta.float(), theta)
    for _ in range(20):
        pull_all(anchor, rate * ewc_lambda)
    assert bool(torch.isfinite(theta).all())
    assert bool(((theta >= low - 1e-4) & (theta <= high + 1e-4)).all())


def test_an_entry_without_fisher_is_free_under_any_lambda() -> None:
    """What the rows of classes not seen yet count on: a = 0 exactly, however strong the pull."""
    theta = torch.zeros(32)
    anchor = Anchor(theta)
    anchor.consolidate(torch.cat([torch.ones(16), torch.zeros(16)]), 1.0)
    theta += 1.0
    pull_all(anchor, 1e12)
    assert torch.equal(theta, torch.cat([torch.zeros(16), torch.ones(16)]))


def test_merging_sums_with_gamma_and_keeps_the_latest_anchor() -> None:
    """Trap T-05 g: a second consolidation must not throw the first one's Fisher away."""
    anchor, theta, first = anchored()
    second = torch.rand(1000) ** 8
    theta.copy_(torch.randn(1000))
    anchor.consolidate(second, 0.5)
    expected = 0.5 * first + second
    torch.testing.assert_close(anchor.fisher(), expected, atol=2e-2, rtol=0.0)  # two roundings to 8 bits
    torch.testing.assert_close(anchor.theta.float(), theta, atol=2e-3, rtol=1e-3)
    assert anchor.evidence == 1.5


def test_months_of_consolidations_do_not_freeze_the_net() -> None:
    anchor, _, fisher = anchored()
    for _ in range(1000):
        anchor.consolidate(fisher, 1.0)
    assert anchor.evidence == pytest.approx(MOST_EVIDENCE)
    assert float(anchor.fisher().max()) <= 1.1 * MOST_EVIDENCE * float(fisher.max())


def test_nothing_is_pulled_before_the_first_consolidation() -> None:
    theta = torch.ones(10)
    pull_all(Anchor(theta), 1e6)
    assert torch.equal(theta, torch.ones(10))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_fisher_that_is_none_is_refused(bad: float) -> None:
    anchor, _, fisher = anchored()
    fisher[3] = bad
    with pytest.raises(ValueError, match="finite and at least 0"):
        anchor.consolidate(fisher, 1.0)
