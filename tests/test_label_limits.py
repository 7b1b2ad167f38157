"""Limits on labels: against a count of what came in each stretch of time, and in the daemon against a real flood."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import LABELS, signals

from edge_cl.config import resolve
from edge_cl.daemon import Daemon
from edge_cl.keeping.label_limits import FLOOD, HOUR_S, QUOTA, LabelLimits
from edge_cl.service.status import Summary


@given(st.lists(st.floats(0, 2), max_size=200), st.floats(0.2, 20))
def test_in_no_stretch_of_time_come_more_than_its_worth_and_one_bucket(pauses: list[float], per_s: float) -> None:
    limits, now_s, taken = LabelLimits(per_s, None), 0.0, []
    for pause_s in pauses:
        now_s += pause_s
        if limits.refuse("board", 0, now_s) is None:
            taken.append(now_s)
    most = max(1.0, per_s)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= most + (taken[last] - taken[first]) * per_s + 1e-6
    assert bool(taken) == bool(pauses)


def test_who_keeps_to_the_limit_is_never_refused() -> None:
    limits = LabelLimits(10.0, 36)
    assert not any(limits.refuse("board", n % 2, n * HOUR_S / 72) for n in range(1000))


def test_each_giver_and_each_class_has_its_own() -> None:
    limits = LabelLimits(None, 3)
    assert [limits.refuse("a", 0, 0.0) for _ in range(5)] == [None, None, None, QUOTA, QUOTA]
    assert limits.refuse("a", 1, 0.0) is None
    assert limits.refuse("b", 0, 0.0) is None
    assert limits.refuse("a", 0, HOUR_S / 3 - 1) == QUOTA
    assert limits.refuse("a", 0, HOUR_S / 3 + 1) is None


def test_a_clock_that_is_set_back_gives_and_takes_nothing() -> None:
    limits = LabelLimits(1.0, None)
    assert limits.refuse("a", 0, 100.0) is None
    assert limits.refuse("a", 0, 50.0) == FLOOD
    assert limits.refuse("a", 0, 51.5) is None


def played(folder: Path, *overrides: str) -> Summary:
    x, y = signals(240)
    np.savez(folder / "r.npz", x=x, y=y, label_names=np.array(LABELS))
    config = resolve(None, ("model.width=8", "exam.share=0", *overrides)).config
    return Daemon(config, folder / "state", source_url=f"recording:{folder / 'r.npz'}", once=True).run()


@pytest.mark.parametrize(
    ("override", "reason", "learned"),
    [("bridge.labels_per_class_hour=20", QUOTA, 20 * len(LABELS)), ("bridge.labels_per_s=0.01", FLOOD, 1)],
)
def test_what_is_above_the_limit_is_answered_but_not_learnt_and_counted(
    tmp_path: Path, override: str, reason: str, learned: int
) -> None:
    summary = played(tmp_path, override)
    assert summary["samples"] == 240
    assert learned <= summary["learned"] <= learned + 2  # it fills a little while it runs
    assert summary["dropped"][reason] == 240 - summary["learned"]


def test_labels_that_no_class_has_cost_nobody_an_allowance(tmp_path: Path) -> None:
    x, y = signals(120)
    y = np.where(np.arange(120) % 2, y, 50 + np.arange(120))
    np.savez(tmp_path / "r.npz", x=x, y=y)
    config = resolve(None, ("model.width=8", "exam.share=0", "bridge.labels_per_class_hour=1000")).config
    limited = Daemon(config, tmp_path / "state", source_url=f"recording:{tmp_path / 'r.npz'}", once=True).run()
    assert limited["dropped"]["label_out_of_range"] == 60
    assert limited["learned"] == 60
