"""The plan of bytes: what it counts, who gets the rest, and when it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.budget import Plan, plan
from edge_cl.errors import BudgetExceeded, Exit
from edge_cl.learning.model import design
from edge_cl.learning.replay import bytes_per_sample

BLUEPRINT = design("cnn1d", (40, 3), 3, 4)
INT16 = np.dtype(np.int16)
SAMPLE = bytes_per_sample((40, 3), INT16)


def planned(budget_bytes: int, *, replay_limit: int | None = None, exam: int = 10, queue: int = 4096) -> Plan:
    return plan(
        BLUEPRINT,
        INT16,
        budget_bytes=budget_bytes,
        queue_bytes=queue,
        replay_limit=replay_limit,
        exam_samples=exam,
        batch_rows=30,
    )


LEAST = planned(10**9, replay_limit=1).nbytes


@given(budget=st.integers(0, 10**7), limit=st.none() | st.integers(1, 10_000), exam=st.integers(0, 500))
def test_a_plan_is_within_its_budget_or_refused(budget: int, limit: int | None, exam: int) -> None:
    try:
        found = planned(budget, replay_limit=limit, exam=exam)
    except BudgetExceeded:
        assert budget < LEAST + (exam - 10) * SAMPLE
        return
    assert found.nbytes <= found.budget_bytes == budget
    assert found["replay"] == found.replay_samples * SAMPLE
    assert found["exam"] == exam * SAMPLE
    if limit is None:
        assert budget - found.nbytes < SAMPLE  # replay takes all that is left
    else:
        assert 1 <= found.replay_samples <= limit


def test_a_limit_leaves_the_rest_free() -> None:
    assert planned(10**6, replay_limit=7).replay_samples == 7
    assert planned(10**6, replay_limit=7).nbytes == LEAST + 6 * SAMPLE


def test_the_least_budget_that_is_named_is_the_least_that_holds() -> None:
    with pytest.raises(BudgetExceeded) as caught:
        planned(LEAST - 1)
    told = re.fullmatch(
        r"budget\.memory_bytes: must be at least ([\d,]+) to hold one sample of replay beside "
        r"[a-z ]+ [\d,]+, .* bytes \(got [\d,]+\)",
        str(caught.value),
    )
    assert told
    assert int(told[1].replace(",", "")) == LEAST == planned(LEAST).nbytes
    assert f"set budget.memory_bytes to {LEAST:,} or more, or lower model.width" in caught.value.hint
    assert caught.value.exit_code == Exit.CONFIG


def test_what_the_learner_does_not_hold_itself_is_promised() -> None:
    found = planned(10**6, queue=5000)
    own = sum(part.nbytes for part in found.parts if part.name not in ("queue", "window", "snapshot"))
    assert found.promised == found.nbytes - own == 5000 + found["snapshot"]
