"""What is said of a full queue: not every time, but with numbers when it lasts, and when it is over."""

from __future__ import annotations

import time

import numpy as np
import pytest
from test_inlet import ROOM, ListSource, sample

from firmware_bridge.inlet import Inlet
from firmware_bridge.pressure import SAID_S, Pressure


def test_a_queue_that_is_full_now_and_then_says_nothing() -> None:
    pressure = Pressure(1000)
    for second in range(20):
        pressure.wait(3.0 * second, 990)
        pressure.go_on(3.0 * second + 0.1)
        pressure.drop(3.0 * second + 0.2, 990)
        assert pressure.said(3.0 * second + 0.3) == ""
        assert pressure.said(3.0 * second + 2.9) == ""


def test_a_pause_is_said_while_it_lasts_and_when_it_is_over() -> None:
    pressure = Pressure(1000)
    pressure.wait(10.0, 990)
    assert pressure.said(10.0 + SAID_S) == ""
    full = "the queue is full (990 of 1,000 bytes): reading is paused"
    assert [pressure.said(now_s) for now_s in (12.0, 100.0)] == [full, full]
    pressure.go_on(100.0)
    pressure.wait(100.5, 991)
    pressure.go_on(100.6)
    assert pressure.said(101.0) == full
    assert pressure.said(102.0) == "the queue has room again after 90.6 s: nothing was lost"
    assert pressure.said(200.0) == "the queue has room again after 90.6 s: nothing was lost"


def test_who_gave_way_is_counted_and_the_next_time_begins_at_none() -> None:
    pressure = Pressure(1000)
    for began_s in (0.0, 50.0):
        for n in np.arange(began_s, began_s + 2, 0.1):
            pressure.drop(float(n), 1000)
        assert pressure.said(began_s + 2) == "the queue is full (1,000 of 1,000 bytes): the oldest samples give way"
        assert pressure.said(began_s + 9) == "the queue has room again after 1.9 s: 20 samples gave way"


@pytest.mark.parametrize("can_wait", [True, False])
def test_an_inlet_says_what_its_queue_does(can_wait: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firmware_bridge.pressure.SAID_S", 0.05)
    source = ListSource([sample(seq) for seq in range(10)], can_wait=can_wait)
    inlet = Inlet(source, 5 * ROOM)
    until = time.monotonic() + 10.0
    if can_wait:
        while not inlet.said:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert inlet.said == f"the queue is full ({5 * ROOM:,} of {5 * ROOM:,} bytes): reading is paused"
        for _ in range(10):
            inlet.get(10.0)
        while "room again" not in inlet.said:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert inlet.said.endswith("nothing was lost")
    else:
        assert source.drained.wait(10.0)
        time.sleep(0.1)
        assert inlet.said == ""  # all at once is no state
    inlet.close()
