"""A board's clock in host time: against a simulated pair of clocks and a line that delays, loses and lies."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from firmware_bridge.timesync import ANSWER_WITHIN_US, QUESTIONS, ROUND_EVERY_US, ClockSync

START_US = 1_800_000_000_000_000


@dataclass
class Pair:
    """A host, a board whose clock is fast by drift_ppm and began at a place of its own, and the line between them."""

    drift_ppm: float = 40.0
    delay_us: int = 300
    jitter_us: float = 3000.0
    loss: float = 0.0
    boot: int = 1
    began_us: int = START_US - 5_000_000
    sync: ClockSync = field(default_factory=ClockSync)
    now_us: int = START_US
    asked: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(1)

    def board_us(self, host_us: int) -> int:
        return round((host_us - self.began_us) * (1 + self.drift_ppm * 1e-6))

    def run(self, seconds: float) -> None:
        end_us = self.now_us + int(seconds * 1e6)
        while self.now_us < end_us:
            if self.sync.due(self.now_us):
                self.asked += 1
                there, back = (self.delay_us + int(self._rng.exponential(self.jitter_us)) for _ in range(2))
                if self._rng.random() >= self.loss:
                    heard_us = self.now_us + there + back
                    self.sync.heard(self.boot, self.now_us, self.board_us(self.now_us + there), heard_us)
            self.now_us += 20_000

    def error_us(self) -> float:
        told = self.sync.host_us(self.board_us(self.now_us))
        assert told is not None
        return abs(told - self.now_us)


def test_nothing_is_told_before_the_first_answer_and_something_after_it() -> None:
    pair = Pair(loss=1.0)
    pair.run(30)
    assert not pair.sync.synced
    assert pair.sync.host_us(5) is pair.sync.uncertainty_us is None
    assert pair.sync.drift_ppm == 0
    pair.loss = 0.0
    pair.run(40)
    assert pair.sync.synced
    assert pair.error_us() < 5000


def test_eight_questions_a_minute_are_asked() -> None:
    pair = Pair()
    pair.run(10 * ROUND_EVERY_US / 1e6 - 1)
    assert pair.asked == 10 * QUESTIONS


@pytest.mark.parametrize("drift_ppm", [-200.0, 0.0, 40.0, 900.0])
def test_offset_and_drift_are_found_through_jitter_and_loss(drift_ppm: float) -> None:
    pair = Pair(drift_ppm=drift_ppm, loss=0.3)
    pair.run(600)
    assert abs(pair.sync.drift_ppm - drift_ppm) < 10
    assert pair.sync.uncertainty_us is not None
    assert pair.error_us() < 2000


def test_the_lowest_round_trip_counts_and_not_the_mean() -> None:
    """Seven answers waited 50 ms on the way back; the mean would be wrong by some 20 ms."""
    sync = ClockSync()
    for number in range(QUESTIONS):
        asked_us = number * 100_000
        assert sync.due(asked_us)
        back_us = 1000 if number == 5 else 50_000
        sync.heard(1, asked_us, asked_us + 1000 + 7_000_000, asked_us + 1000 + back_us)
    assert not sync.due(10**6 + ANSWER_WITHIN_US)
    assert sync.uncertainty_us == 1000
    assert sync.host_us(7_500_000) == 500_000


def test_without_the_fit_the_drift_would_be_seen() -> None:
    """500 ppm are 30 ms a minute: a line of slope 1 is that wrong just before the next round."""
    pair = Pair(drift_ppm=500.0, jitter_us=50.0)
    pair.run(59)
    assert pair.error_us() > 20_000
    pair.run(540)
    assert pair.error_us() < 1000


def test_a_board_that_restarted_is_unsynced_until_it_answers_again() -> None:
    pair = Pair()
    pair.run(200)
    pair.boot, pair.began_us = 2, pair.now_us
    pair.sync.forget()
    assert not pair.sync.synced
    pair.run(2)
    assert pair.error_us() < 5000


def test_another_boot_in_an_answer_is_a_restart_too() -> None:
    pair = Pair(jitter_us=100.0)
    pair.run(125)
    pair.boot, pair.began_us = 2, pair.now_us
    pair.run(60)
    assert pair.error_us() < 1000


def test_a_clock_that_was_set_is_followed_from_the_next_round_on() -> None:
    pair = Pair(jitter_us=100.0)
    pair.run(300)
    pair.began_us -= 10_000_000
    pair.run(65)
    assert pair.error_us() < 1000


def test_answers_that_nobody_asked_for_or_that_come_too_late_are_passed_over() -> None:
    pair = Pair(jitter_us=0.0)
    pair.run(5)
    before = pair.sync.host_us(10**7)
    asked_us = START_US + ROUND_EVERY_US
    assert pair.sync.due(asked_us)
    for asked, heard in ((asked_us + 1, asked_us + 2), (asked_us, asked_us - 1), (asked_us, asked_us + 1_000_001)):
        pair.sync.heard(1, asked, 99, heard)
        pair.sync.heard(7, asked, 99, heard)
    for late_us in range(asked_us + 100_000, asked_us + 5_000_000, 100_000):
        pair.sync.due(late_us)
    assert pair.sync.host_us(10**7) == before
