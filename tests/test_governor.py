"""The governor against made-up machines: it keeps the limit, or leaves it plain that it cannot; it never dithers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.governor import MOST_SKIPPED, ROOM, STARTING, STEPS, Governor, LeastWork
from edge_cl.service.promise import SECONDS, Promise

MOST = 20
NEW = 10


@dataclass
class Machine:
    """Steps of `fixed_s` and `row_s` for each row, `slowed` by heat or neighbours, with a `share` of the processor."""

    fixed_s: float = 1e-3
    row_s: float = 1e-4
    slowed: Callable[[float], float] = lambda at: 1.0
    share: Callable[[float], float] = lambda at: 1.0
    stall: Callable[[random.Random, float], float] = lambda rng, worked: 0.0
    every_s: float = 0.1
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def quiet_s(self) -> float:
        return self.fixed_s + self.row_s * (NEW + MOST)

    def took(self, at: float, replay: int) -> tuple[float, float]:
        worked = (self.fixed_s + self.row_s * (NEW + replay)) * self.slowed(at) * self.rng.uniform(0.95, 1.05)
        return worked / self.share(at) + self.stall(self.rng, worked), worked


@dataclass
class Outcome:
    """What came of a stretch of time; `wrong` counts seconds that were late while the limit was said to be kept."""

    governor: Governor
    promise: Promise
    learnt: int = 0
    replayed: list[int] = field(default_factory=list)

    @property
    def share_kept(self) -> float:
        return 1 - self.promise.late_seconds / max(1, self.promise.seconds)


def play(machine: Machine, limit_s: float, seconds: float, *, governed: bool = True) -> Outcome:
    outcome = Outcome(Governor(limit_s, MOST), Promise(limit_s))
    at = 0.0
    while at < seconds:
        at += machine.every_s
        if governed and outcome.governor.skips(NEW):
            continue
        replay = outcome.governor.replay if governed else MOST
        took, worked = machine.took(at, replay)
        outcome.promise.add(at, took, worked)
        if governed:
            outcome.governor.took(at, took, worked)
        outcome.learnt += 1
        outcome.replayed.append(replay)
    return outcome


def loaded(on_s: float, off_s: float, value: float) -> Callable[[float], float]:
    """`value` for on_s seconds after each off_s seconds of quiet."""
    return lambda at: value if at % (on_s + off_s) > off_s else 1.0


# Loads

LOADS = {
    "slow for good": {"slowed": loaded(10**9, 5, 2.5)},
    "share of the processor": {"share": loaded(10**9, 5, 0.4)},
    "short bursts": {"slowed": loaded(5, 20, 3.0)},
    "long bursts": {"share": loaded(20, 100, 1 / 3)},
}


@pytest.mark.parametrize("every_s", [0.005, 0.02, 0.1, 0.4])
@pytest.mark.parametrize("load", LOADS)
def test_a_limit_of_twice_the_quiet_step_is_kept_in_99_of_100_seconds(load: str, every_s: float) -> None:
    machine = Machine(**LOADS[load], every_s=every_s)  # type: ignore[arg-type]
    limit = 2 * machine.quiet_s
    without = play(machine, limit, 1000, governed=False)
    governed = play(machine, limit, 1000)
    assert without.share_kept < 0.9
    assert governed.share_kept >= 0.99
    assert governed.governor.skipped_batches == 0  # less replay was enough, so everything was learnt
    assert governed.learnt == without.learnt


def test_a_quiet_machine_is_left_alone() -> None:
    machine = Machine()
    outcome = play(machine, 2 * machine.quiet_s, 1000)
    assert outcome.governor.at_rest
    assert set(outcome.replayed) == {MOST}
    assert outcome.governor.lowered == outcome.governor.raised == 0


def test_stalls_rarer_than_one_in_a_hundred_steps_change_nothing() -> None:
    machine = Machine(every_s=0.01, stall=lambda rng, worked: 0.2 if rng.random() < 0.001 else 0.0)
    outcome = play(machine, 2 * machine.quiet_s, 300)
    assert outcome.promise.late > 20
    assert outcome.governor.lowered == 0


def test_where_stalls_hit_long_steps_more_often_shorter_ones_are_taken() -> None:
    def stall(rng: random.Random, worked: float) -> float:
        return 0.004 if rng.random() < worked / 0.1 else 0.0  # at a tenth of a second of work each

    machine = Machine(every_s=0.01, stall=stall)
    limit = 2 * machine.quiet_s - 0.001
    governed, without = play(machine, limit, 300), play(machine, limit, 300, governed=False)
    assert governed.promise.late < without.promise.late / 2


def test_what_no_governor_can_mend_is_skipped_down_to_a_probe_and_plainly_not_kept() -> None:
    machine = Machine(slowed=lambda at: 10.0)
    outcome = play(machine, 2 * machine.quiet_s, 300)
    assert (outcome.governor.replay, outcome.governor.skip) == (0, MOST_SKIPPED)
    assert not outcome.promise.kept
    assert outcome.learnt > 300 / machine.every_s / (MOST_SKIPPED + 1)  # still trying
    assert "1 of 64 batches learnt" in outcome.governor.decision


def test_all_is_given_back_once_the_load_is_gone() -> None:
    machine = Machine(slowed=lambda at: 10.0 if at < 30 else 1.0)
    outcome = play(machine, 2 * machine.quiet_s, 1000)
    assert outcome.governor.at_rest
    assert outcome.governor.lowered > 0 < outcome.governor.raised
    assert outcome.promise.kept


@settings(max_examples=40, deadline=None)  # a shared machine's pauses are no failure
@given(
    limit=st.floats(1e-4, 1e-1),
    slowed=st.lists(st.floats(0.2, 20), min_size=1, max_size=6),
    share=st.floats(0.1, 1),
    stalls=st.floats(0, 0.2),
    every_s=st.sampled_from([0.01, 0.1, 0.5]),
    seed=st.integers(0, 99),
)
def test_whatever_the_machine_does_the_decisions_stay_in_bounds_and_every_batch_is_accounted_for(
    limit: float, slowed: list[float], share: float, stalls: float, every_s: float, seed: int
) -> None:
    rng = random.Random(seed)
    machine = Machine(
        slowed=lambda at: slowed[int(at / 7) % len(slowed)],
        share=lambda at: share,
        stall=lambda rng, worked: 0.05 * (rng.random() < stalls),
        every_s=every_s,
        rng=rng,
    )
    outcome = play(machine, limit, 60)
    governor, promise = outcome.governor, outcome.promise
    batches = round(60 / every_s)
    assert outcome.learnt + governor.skipped_batches == pytest.approx(batches, abs=1)
    assert governor.skipped_samples == NEW * governor.skipped_batches
    assert 0 <= governor.replay <= MOST
    assert 0 <= governor.skip <= MOST_SKIPPED
    assert all(0 <= replay <= MOST for replay in outcome.replayed)
    late, seconds = promise.recent
    assert promise.kept == (late * 100 <= seconds)  # held, or said so


# Single decisions


def stepped(governor: Governor, *steps: tuple[float, float], at: float = 100.0) -> list[bool]:
    """Whether each (took, worked) changed the decision, a tenth of a second apart, after a start that says nothing."""
    for _ in range(STARTING):
        governor.took(at, 10.0, 10.0)
    return [governor.took(at + number / 10, *step) for number, step in enumerate(steps)]


def test_a_step_whose_own_work_is_too_long_is_answered_at_once_and_in_proportion() -> None:
    governor = Governor(0.010, MOST)
    assert stepped(governor, (0.040, 0.040)) == [True]
    assert governor.replay == int(MOST * ROOM * 0.010 / 0.040)


def test_one_stall_is_not_and_a_second_in_a_row_is() -> None:
    governor = Governor(0.010, MOST)
    assert stepped(governor, (0.2, 0.001), (0.001, 0.001), (0.2, 0.001), (0.011, 0.001)) == [False, False, False, True]
    assert governor.replay == MOST // 2


def test_where_nothing_is_replayed_batches_are_skipped() -> None:
    governor = Governor(0.010, 0)
    stepped(governor, (0.040, 0.040))
    assert [governor.skips(NEW) for _ in range(4)] == [True, False, True, False]
    assert governor.skipped_samples == 2 * NEW


def test_the_first_steps_of_a_process_are_no_load() -> None:
    governor = Governor(0.010, MOST)
    stepped(governor)
    assert governor.at_rest


def test_a_governor_goes_on_where_another_stopped() -> None:
    machine = Machine(slowed=lambda at: 4.0)
    governor = play(machine, 2 * machine.quiet_s, 20).governor
    assert not governor.at_rest
    other = Governor(governor.limit_s, MOST)
    other.restore(json.loads(json.dumps(governor.state())))
    assert other.state() == governor.state()
    assert other.decision == governor.decision
    fewer = Governor(governor.limit_s, 1)
    fewer.restore(governor.state())
    assert fewer.replay <= 1


# The promise


@pytest.mark.parametrize(
    ("events", "late", "kept"),
    [(1, 0, True), (1, 1, False), (99, 1, False), (100, 1, True), (300, 3, True), (300, 4, False)],
)
def test_in_a_second_one_event_in_a_hundred_may_be_late(events: int, late: int, kept: bool) -> None:
    promise = started(Promise(0.010))
    for number in range(events):
        promise.add(1.0 + number / 1000, 0.020 if number < late else 0.001)
    assert promise.kept is kept
    promise.add(2.0, 0.001)
    assert (promise.seconds, promise.late_seconds) == (1, not kept)


def test_one_late_second_in_a_hundred_is_kept_and_long_past_ones_are_forgotten() -> None:
    promise = started(Promise(0.010))
    promise.add(0.0, 1.0)
    for second in range(1, SECONDS - 1):
        promise.add(float(second), 0.001)
        assert not promise.kept
    promise.add(float(SECONDS), 0.001)
    assert promise.kept
    promise.add(float(SECONDS + 1), 1.0, 1.0)
    assert not promise.kept
    assert (promise.late, promise.late_at_work) == (2, 1)
    for second in range(SECONDS + 2, 2 * SECONDS + 1):
        promise.add(float(second), 0.001)
    assert promise.kept


def test_seconds_without_events_do_not_count() -> None:
    promise = started(Promise(0.010))
    promise.add(1.0, 0.001)
    promise.add(1000.0, 0.001)
    assert promise.recent == (0, 2)


def started(promise: Promise) -> Promise:
    for _ in range(STARTING):
        promise.add(0.0, 100.0)
    assert promise.kept
    return promise


@settings(max_examples=25)
@given(st.lists(st.floats(0.001, 5.0), min_size=64, max_size=64), st.integers(0, STEPS - 1))
def test_of_a_recording_a_quick_step_in_eight_is_enough(took: list[float], quick: int) -> None:
    least = LeastWork()
    for at, seconds in enumerate(took):
        assert least.add(0.0005 if at % STEPS == quick else seconds) in (0.0, 0.0005)
    least.forget()
    assert least.add(0.005) == 0.0


def test_work_that_is_always_too_long_counts_from_the_eighth_step_on() -> None:
    least = LeastWork()
    assert [least.add(0.2) for _ in range(STEPS + 2)] == [0.0] * (STEPS - 1) + [0.2] * 3
