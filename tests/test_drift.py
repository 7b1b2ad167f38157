"""Drift detectors against river's, step by step, and on losses with known changes; and the weights from before one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import river.drift
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_cl.learning.drift import APART, DETECTORS, Adwin, Lagged, PageHinkley

TOOL = Path(__file__).parent.parent / "tools" / "bench_drift.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """tools/bench_drift.py as a module."""
    spec = importlib.util.spec_from_file_location("bench_drift", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stream(seed: int, kind: str, levels: list[float], length: int = 400) -> NDArray[np.float64]:
    """Losses at one level after the other."""
    rng, mean = np.random.default_rng(seed), np.repeat(levels, length)
    if kind == "bernoulli":
        return (rng.random(len(mean)) < mean).astype(np.float64)
    return rng.normal(mean, 0.2) if kind == "gaussian" else rng.exponential(mean)


KIND = st.sampled_from(["gaussian", "bernoulli", "exponential"])
LEVELS = st.lists(st.sampled_from([0.1, 0.3, 0.6, 1.0]), min_size=1, max_size=5)
SEED = st.integers(0, 10_000)


@settings(deadline=None, max_examples=25)
@given(SEED, KIND, LEVELS, st.sampled_from([0.0, 0.01, 0.1]), st.sampled_from([2.0, 8.0, 50.0]))
def test_page_hinkley_is_rivers(seed: int, kind: str, levels: list[float], delta: float, threshold: float) -> None:
    """At every step the same verdict and the same sums; river's fading of the sum is not Page's test, so it is off."""
    ours = PageHinkley(delta=delta, threshold=threshold, min_steps=30)
    theirs = river.drift.PageHinkley(delta=delta, threshold=threshold, min_instances=30, alpha=1.0, mode="up")
    for loss in stream(seed, kind, levels).tolist():
        theirs.update(loss)
        assert ours.update(loss) == bool(theirs.drift_detected)
        if not theirs.drift_detected:
            assert ours.mean == pytest.approx(theirs._x_mean.get(), abs=1e-9)
            assert ours.sum - ours.lowest == pytest.approx(theirs._sum_increase - theirs._min_increase, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(SEED, KIND, LEVELS, st.sampled_from([0.002, 0.1]), st.sampled_from([1, 8, 32]), st.sampled_from([2, 5]))
def test_adwin_is_rivers(seed: int, kind: str, levels: list[float], delta: float, clock: int, buckets: int) -> None:
    """At every step the same window; river fires at falls, too, where ours starts anew without a word."""
    ours = Adwin(delta=delta, clock=clock, buckets=buckets)
    theirs = river.drift.ADWIN(delta=delta, clock=clock, max_buckets=buckets)
    for loss in stream(seed, kind, levels).tolist():
        before, total = ours.n, ours.total
        theirs.update(loss)
        fired = ours.update(loss)
        if theirs.drift_detected:
            assert ours.n == 0  # and what river dropped from its window was the older part: lower at a rise
            older = (total + loss - theirs.total) / (before + 1 - theirs.width)
            assert fired == (theirs.estimation > older)
        else:
            assert not fired
            assert (ours.n, ours.mean) == (theirs.width, pytest.approx(theirs.estimation, abs=1e-9))
            assert ours.squares / ours.n == pytest.approx(theirs.variance / theirs.width, abs=1e-9)


def test_adwins_buckets_are_the_window_cut_in_powers_of_two() -> None:
    losses = stream(0, "gaussian", [0.5], 1000)
    adwin = Adwin(delta=1e-9)
    for loss in losses.tolist():
        adwin.update(loss)
    start = 0
    for k in reversed(range(len(adwin._rows))):
        assert len(adwin._rows[k]) <= adwin.buckets
        for total, squares in adwin._rows[k]:
            part = losses[start : start + 2**k]
            assert total == pytest.approx(part.sum())
            assert squares == pytest.approx(((part - part.mean()) ** 2).sum(), abs=1e-9)
            start += 2**k
    assert start == adwin.n == 1000
    assert adwin.squares == pytest.approx(((losses - losses.mean()) ** 2).sum())


@pytest.mark.parametrize("kind", DETECTORS.values())
def test_only_a_rise_fires(kind: type[PageHinkley | Adwin]) -> None:
    """A loss that falls is what learning looks like."""
    detector = kind()
    falling = 2.3 * np.exp(-np.arange(3000) / 300) + np.random.default_rng(0).normal(0, 0.05, 3000)
    assert not any(detector.update(loss) for loss in falling.tolist())
    assert any(detector.update(loss) for loss in (falling[:100] + 1).tolist())


@pytest.mark.parametrize("kind", DETECTORS.values())
@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_loss_is_passed_over(kind: type[PageHinkley | Adwin], loss: float) -> None:
    """A step that learnt nothing has a loss of NaN, and one of them must not blind the detector for good."""
    detector, other = kind(), kind()
    for number in stream(0, "gaussian", [0.4, 2.0]).tolist():
        assert not other.update(loss)
        assert detector.update(number) == other.update(number)
    assert detector.state() == other.state()


@pytest.mark.parametrize("kind", DETECTORS.values())
def test_a_detector_restored_fires_at_the_same_step(kind: type[PageHinkley | Adwin]) -> None:
    """Through JSON, at every place of the stream: also before the first loss, and right after a firing."""
    losses = stream(0, "exponential", [0.3, 1.5, 0.2, 2.0], 150).tolist()
    whole, parts = kind(), kind()
    for loss in losses:
        other = kind()
        other.restore(json.loads(json.dumps(parts.state())))
        parts = other
        assert whole.update(loss) == parts.update(loss)
    assert whole.state() == parts.state()


@pytest.mark.parametrize("kind", DETECTORS.values())
def test_memory_does_not_grow_with_the_stream(kind: type[PageHinkley | Adwin]) -> None:
    detector = kind()
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(2):
        for loss in rng.uniform(0.4, 0.6, 20_000).tolist():
            detector.update(loss)
        sizes.append(len(json.dumps(detector.state())))
    assert sizes[1] < sizes[0] + 500  # twice the stream is one more row of buckets
    assert sizes[1] < 8000


def test_the_defaults_keep_what_the_benchmark_shows(bench: ModuleType) -> None:
    """The short form of tools/bench_drift.py: hardly a false alarm, clear changes noticed, and soon."""
    for name, kind in DETECTORS.items():
        false = sum(len(bench.firings(kind(), bench.still(of, seed))) for of in bench.MAGNITUDES for seed in range(2))
        assert false <= 2, name  # in 40,000 steps
        for of, magnitude, within in (("gaussian", 1.0, 50), ("bernoulli", 0.8, 60)):
            for ramp in (0, bench.RAMP):
                shown = bench.delays(kind, of, magnitude, ramp, seeds=2)
                assert shown["noticed"] == 1.0, name
                assert shown["delay"] <= within + ramp / 2, name


def test_the_benchmarks_streams_are_what_they_say(bench: ModuleType) -> None:
    """A mean over seeds is at its level before a change, at level and magnitude right after an abrupt one."""
    abrupt = [bench.changing("gaussian", 1.0, 0, seed) for seed in range(30)]
    (start, *_) = abrupt[0][1]
    losses = np.mean([losses for losses, _ in abrupt], axis=0)
    assert losses[start - 100 : start].mean() == pytest.approx(0.4, abs=0.02)
    assert losses[start : start + 5].mean() == pytest.approx(1.4, abs=0.1)
    assert losses[start + 600 : start + 700].mean() == pytest.approx(0.4, abs=0.02)
    gradual = np.mean([bench.changing("gaussian", 1.0, 300, seed)[0] for seed in range(30)], axis=0)
    assert gradual[start : start + 5].mean() == pytest.approx(0.4, abs=0.1)
    assert 0.5 < gradual[start + 80 : start + 150].mean() < 1.2
    assert set(bench.still("bernoulli", 0)) == {0.0, 1.0}


def test_the_benchmark_speaks_json(bench: ModuleType, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_drift.py", "--json", "--seeds", "1"])
    assert bench.main() == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told) == set(DETECTORS)
    assert all(0 <= one["noticed"] <= 1 for one in told.values())


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        (PageHinkley, {"delta": -0.1}, r"delta: must be at least 0 \(got -0.1\)"),
        (PageHinkley, {"threshold": 0.0}, "threshold: must be above 0"),
        (PageHinkley, {"min_steps": -1}, "min_steps: must be at least 0"),
        (PageHinkley, {"delta": float("nan")}, "delta: must be"),
        (Adwin, {"delta": 0.0}, r"delta: must be in \(0, 1\)"),
        (Adwin, {"clock": 0}, "clock: must be at least 1"),
        (Adwin, {"buckets": 0}, "buckets: must be at least 1"),
    ],
)
def test_parameters_that_are_none_are_refused(kind, arguments, told) -> None:
    with pytest.raises(ValueError, match=told):
        kind(**arguments)


# Lagged


def weights(step: int) -> torch.Tensor:
    """θ that tells at which step it was."""
    return torch.full((3,), float(step))


@pytest.mark.parametrize("lag", [1, 7, 50])
def test_what_was_before_is_a_mean_that_ended_one_to_three_lags_ago(lag: int) -> None:
    lagged = Lagged(weights(0), lag)
    for step in range(500):
        lagged.remember(weights(step), step)
        before = lagged.before()
        assert (before is None) == (step < 2 * lag)
        if before is not None:
            begun = 2 * lag * (step // (2 * lag) - 1)
            moments = np.arange(begun, begun + lag, APART)
            assert float(before[0]) == pytest.approx(moments.mean(), rel=2e-3)
            assert lag <= step - moments.max()
            assert step - moments.min() < 4 * lag


def test_a_change_noticed_within_the_lag_finds_weights_that_have_not_seen_it() -> None:
    lag = 20
    for change in range(100, 140):
        lagged = Lagged(weights(0), lag)
        for step in range(change + lag + 1):
            lagged.remember(weights(0 if step < change else 1), step)
            before = lagged.before()
            if step >= change:
                assert before is not None
                assert float(before[0]) == 0


def test_two_half_precision_copies_are_kept_and_no_more() -> None:
    theta = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    lagged = Lagged(theta, 5)
    assert lagged.nbytes == 2 * 2 * 1000
    held = {id(lagged._older), id(lagged._newer)}
    for step in range(50):
        lagged.remember(theta, step)
    before = lagged.before()
    assert before is not None
    assert {id(lagged._older), id(lagged._newer)} == held
    torch.testing.assert_close(before.float(), theta, rtol=1e-3, atol=1e-6)
    assert before.data_ptr() != theta.data_ptr()


def test_weights_beyond_half_precision_stay_finite() -> None:
    lagged = Lagged(weights(0), 1)
    for step in range(4):
        lagged.remember(torch.tensor([1e9, -1e9, 0.0]), step)
    before = lagged.before()
    assert before is not None
    assert bool(before.isfinite().all())


def test_after_a_consolidation_the_past_is_not_offered_again() -> None:
    lagged = Lagged(weights(0), 10)
    for step in range(100):
        lagged.remember(weights(step), step)
    lagged.forget()
    for step in range(100, 200):
        lagged.remember(weights(step), step)
        before = lagged.before()
        assert (before is None) == (step < 120)
        if before is not None:
            assert float(before[0]) >= 100


@pytest.mark.parametrize("at", [0, 5, 15, 25, 34])
def test_lagged_weights_restored_go_on_bit_for_bit(at: int) -> None:
    whole, parts = Lagged(weights(0), 10), Lagged(weights(0), 10)
    for step in range(60):
        if step == at:
            arrays, values = parts.state()
            parts = Lagged(weights(0), 10)
            parts.restore({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(values)))
        for lagged in (whole, parts):
            lagged.remember(weights(step), step)
        ours, theirs = parts.before(), whole.before()
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or torch.equal(ours, theirs)


def test_lagged_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"older: must have shape \(3,\) \(got \(4,\)\)"):
        Lagged(weights(0)).restore(*Lagged(torch.zeros(4)).state())
    with pytest.raises(ValueError, match="lag: must be at least 1"):
        Lagged(weights(0), 0)
