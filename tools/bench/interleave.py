"""Sides take turns on one core, so that a machine's moods fall on all of them; ratios are taken within a round."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")
Centre = Callable[[list[float]], float]
Rounds = list[list[float]]  # for each round the times of its steps


STAT = Path("/proc/stat")
LOOK_S = 0.3  # thirty ticks of the kernel's clock


class Side(Protocol):
    """One way to do the work."""

    def run(self, steps: int) -> list[float]:
        """Do so many steps; microseconds of each."""


def pin() -> int | None:
    """Keep this process, and the children it will have, to the core that idles most; None where that cannot be."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    before = _idle()
    time.sleep(LOOK_S)
    idled = {core: ticks - before[core] for core, ticks in _idle().items()}
    core = max(sorted(os.sched_getaffinity(0), reverse=True), key=lambda core: idled.get(core, 0))
    os.sched_setaffinity(0, {core})
    return core


def _idle() -> dict[int, int]:
    """Ticks that each core has idled since boot, where Linux says so."""
    if not STAT.exists():
        return {}
    lines = [line.split() for line in STAT.read_text(encoding="ascii").splitlines()]
    return {int(words[0][3:]): int(words[4]) for words in lines if words[0][:3] == "cpu" and words[0] != "cpu"}


def settle() -> None:
    """Take what exists out of the collector's sight, so that it has nothing to walk while the clock runs."""
    gc.collect()
    gc.freeze()


def take_turns(
    sides: Mapping[str, Side], *, rounds: int, seconds: float, steps: Mapping[str, int], untimed: int, title: str
) -> dict[str, Rounds]:
    """Microseconds of each side's steps, round by round.

    In each round each side does its block: first `untimed` steps that bring its data back into the caches, then its
    timed `steps`. Who begins moves on by one from round to round, and every other round runs backwards. When `seconds`
    are over, no round is begun any more.
    """
    times: dict[str, Rounds] = {name: [] for name in sides}
    end = time.monotonic() + seconds
    for number in progress(range(rounds), title):
        if times[next(iter(sides))] and time.monotonic() > end:
            say(f"{title.strip()}: stopped after {number} of {rounds} rounds, {seconds:g} s are over")
            break
        names = list(sides)
        names = names[number % len(names) :] + names[: number % len(names)]
        for name in reversed(names) if number % 2 else names:
            times[name].append(sides[name].run(untimed + steps[name])[untimed:])
    return times


def ratios(over: Rounds, under: Rounds, of: Centre = statistics.fmean) -> list[float]:
    """One ratio a round; of the means of its blocks, so that what a side does only now and then is counted, too."""
    return [of(a) / of(b) for a, b in zip(over, under, strict=True)]


def median_ratio(over: Rounds | None, under: Rounds | None, of: Centre = statistics.fmean) -> float | None:
    """The median over rounds of one side's cost over another's; None if one of them is not there."""
    return None if over is None or under is None else round(statistics.median(ratios(over, under, of)), 4)


def spread(over: Rounds | None, under: Rounds | None) -> dict[str, float] | None:
    """How far the rounds lie apart: least and greatest ratio, and the quartiles, which one disturbed round leaves."""
    if over is None or under is None:
        return None
    found = sorted(ratios(over, under))
    lower, _, upper = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
    named = {"min": found[0], "lower": lower, "upper": upper, "max": found[-1]}
    return {name: round(value, 4) for name, value in named.items()}


def flat(rounds: Rounds) -> list[float]:
    """All times of a side."""
    return [time for block in rounds for time in block]


def percentile(times: Sequence[float], share: float) -> float:
    """The time that `share` percent of all times do not exceed."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]


def progress(sequence: Iterable[T], title: str) -> Iterator[T]:
    """The sequence, with a bar on a terminal and silence elsewhere."""
    console = Console(stderr=True)
    yield from track(sequence, title, console=console, transient=True, disable=not console.is_terminal)


def say(text: str) -> None:
    """Talk goes to stderr: stdout is the result."""
    print(f"bench: {text}", file=sys.stderr)
