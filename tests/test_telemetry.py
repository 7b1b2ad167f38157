"""What the daemon measures of itself: right, and bounded whatever it is fed."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.service.status import HISTORY
from edge_cl.service.telemetry import RECENT, WINDOW, Telemetry, Timings, rss_bytes, rss_peak_bytes


def test_nothing_measured_is_none_and_not_zero() -> None:
    telemetry = Telemetry()
    assert telemetry.step.percentile(50) is telemetry.prequential_accuracy is telemetry.windowed_accuracy is None
    assert telemetry.history == []
    assert telemetry.samples_per_s == 0


@settings(deadline=None)  # a shared machine's pauses are no failure
@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=50))
def test_percentiles_are_numpys_in_milliseconds(seconds: list[float]) -> None:
    timings = Timings()
    for one in seconds:
        timings.add(one)
    for q in (50, 99):
        assert timings.percentile(q) == pytest.approx(np.percentile(np.array(seconds) * 1e3, q))


def test_percentiles_forget_what_is_long_past() -> None:
    timings = Timings()
    timings.add(1000.0)
    for _ in range(RECENT):
        timings.add(0.001)
    assert timings.percentile(100) == pytest.approx(1.0)


@given(st.lists(st.booleans(), max_size=3 * WINDOW))
def test_accuracies_are_shares_of_hits(hits: list[bool]) -> None:
    telemetry = Telemetry()
    telemetry.scored(hits)
    assert (telemetry.labelled, telemetry.hits) == (len(hits), sum(hits))
    if hits:
        assert telemetry.prequential_accuracy == pytest.approx(np.mean(hits))
        assert telemetry.windowed_accuracy == pytest.approx(np.mean(hits[-WINDOW:]))


@pytest.mark.parametrize("n", [1, HISTORY, HISTORY + 1, 10 * HISTORY + 7])
def test_the_history_is_bounded_and_ends_now(n: int) -> None:
    telemetry = Telemetry()
    telemetry.scored([True] * n)
    assert min(n, HISTORY // 2) <= len(telemetry.history) <= HISTORY
    telemetry.scored([False] * (10 * WINDOW))
    assert telemetry.history[-1] == 0.0


def test_a_later_run_goes_on_counting() -> None:
    telemetry = Telemetry()
    telemetry.restore(100, 80, 60)
    telemetry.arrived(2)
    telemetry.scored([True, False])
    assert (telemetry.samples, telemetry.labelled, telemetry.hits) == (102, 82, 61)
    assert telemetry.prequential_accuracy == 61 / 82


def test_the_rate_counts_what_arrived() -> None:
    telemetry = Telemetry()
    for _ in range(10):
        telemetry.arrived(5)
    assert telemetry.samples_per_s > 50 / 60  # 50 of them, in less than a minute


def test_rss_is_this_process_and_its_peak_stays() -> None:
    before, size = rss_bytes(), 64 << 20
    with mmap.mmap(-1, size) as memory:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1
        assert rss_bytes() >= before + size * 0.9
    assert rss_peak_bytes() >= before + size * 0.9
    assert rss_peak_bytes() >= rss_bytes() * 0.9
