"""What stands behind the first n items, by marks a while apart: never more than is safe, and in the end all of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.receipts import MOST_MARKS, Receipts


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0, 3), st.floats(0, 1)), min_size=1, max_size=60))
def test_what_is_safe_is_never_more_than_was_told_and_in_the_end_all(told: list[tuple[int, float, float]]) -> None:
    receipts, n, safe, now_s = Receipts[int | None](1.0, None), 0, 0, 0.0
    for more, pause_s, share in told:
        n, now_s = n + more, now_s + pause_s
        receipts.note(n, n, now_s)
        safe = max(safe, int(share * n))
        found = receipts.safe(safe)
        assert found is None or found <= safe
    assert receipts.safe(n) == n


def test_marks_are_a_while_apart_whatever_comes_between() -> None:
    receipts = Receipts[str | None](1.0, None)
    for n in range(1000):
        receipts.note(n, f"item {n}", n * 0.01)
    assert receipts.safe(0) is None
    assert receipts.safe(500) == "item 499"  # the mark that began at 4 s went on to just before 5 s
    assert receipts.safe(998) == "item 899"
    assert receipts.safe(999) == "item 999"
    assert receipts.safe(10**9) == "item 999"


def test_one_that_is_never_told_anything_stays_small() -> None:
    receipts = Receipts[int | None](0.0, None)
    for n in range(10 * MOST_MARKS):
        receipts.note(n, n, float(n))
    found = [receipts.safe(n) for n in range(10 * MOST_MARKS)]
    assert len(set(found)) <= MOST_MARKS + 1
    assert all(at is None or at <= n for n, at in enumerate(found))
    assert found[-1] == 10 * MOST_MARKS - 1
