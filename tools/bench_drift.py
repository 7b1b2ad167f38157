#!/usr/bin/env python3
"""How often each drift detector cries wolf, and how late it notices a real change, on losses with known change points.

    python tools/bench_drift.py [--json] [--seeds N] [--grid]

A loss of a step is what an online learner would have: it falls from 2.3 to its level within some hundred steps, rises
by a magnitude at a change, and falls again as the change is learnt. gaussian: mean cross-entropy of a batch, level 0.4,
deviation 0.2. bernoulli: error of single samples, level 0.1, so its magnitudes are shares. abrupt: all at once;
gradual: over 300 steps ever more samples are new. False alarms are counted on 10,000 steps in which nothing changes. A
change every 1,500 steps has been noticed if a detector fires within the next 500; the delay counts from its beginning.

--grid shows the same for other parameters; the defaults in edge_cl/learning/drift.py were chosen from it: of those with
at most one false alarm in 40,000 steps of either kind, the one that notices soonest, a change missed counting 500.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge_cl.learning.drift import DETECTORS, Adwin, PageHinkley

SEEDS = 10
STILL, BETWEEN, LATEST, CHANGES = 10_000, 1500, 500, 4
LEARNING, RAMP = 100.0, 300  # steps in which a loss falls to 1/e; steps of a gradual change
MAGNITUDES = {"gaussian": (0.25, 0.5, 1.0, 2.0), "bernoulli": (0.2, 0.4, 0.8)}
LEVEL, DEVIATION = {"gaussian": 0.4, "bernoulli": 0.1}, 0.2
FIRST = {"gaussian": 1.9, "bernoulli": 0.8}  # above the level, before anything is learnt

GRID: dict[str, dict[str, tuple[float, ...]]] = {
    "page_hinkley": {"delta": (0.02, 0.05, 0.1, 0.15, 0.2), "threshold": (4, 6, 8, 10, 12, 16, 20)},
    "adwin": {"delta": (0.002, 0.02, 0.1, 0.2, 0.4), "clock": (8, 16, 32)},
}

Detector = PageHinkley | Adwin


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"streams of each kind ({SEEDS})")
    parser.add_argument("--grid", action="store_true", help="other parameters, too")
    options = parser.parse_args()
    result = {name: measure(kind, options.seeds) for name, kind in DETECTORS.items()}
    grid = {label: measure(make, options.seeds) for label, make in others().items()} if options.grid else {}
    if options.json:
        print(json.dumps({**result, **grid}))
    else:
        Console().print(overview({**result, **grid}) if grid else details(result))
    return 0


def others() -> dict[str, Callable[[], Detector]]:
    """Detectors with every choice of parameters in the grid."""
    made: dict[str, Callable[[], Detector]] = {}
    for name, kind in DETECTORS.items():
        for values in itertools.product(*GRID[name].values()):
            named = dict(zip(GRID[name], values, strict=True))
            made[f"{name} {' '.join(f'{key}={value:g}' for key, value in named.items())}"] = partial(kind, **named)
    return made


def measure(make: Callable[[], Detector], seeds: int) -> dict[str, Any]:
    """False alarms per 10,000 steps by kind of loss, and what became of each kind of change."""
    false = {
        kind: 10_000 * statistics.fmean(len(firings(make(), still(kind, seed))) / STILL for seed in range(seeds))
        for kind in MAGNITUDES
    }
    changes = {
        f"{kind} {'gradual' if ramp else 'abrupt'} +{magnitude:g}": delays(make, kind, magnitude, ramp, seeds)
        for kind, magnitudes in MAGNITUDES.items()
        for ramp in (0, RAMP)
        for magnitude in magnitudes
    }
    return {
        "false_alarms_per_10000_steps": false,
        "noticed": statistics.fmean(one["noticed"] for one in changes.values()),
        "delay_or_500": statistics.fmean(one["delay_or_500"] for one in changes.values()),
        "changes": changes,
    }


def delays(make: Callable[[], Detector], kind: str, magnitude: float, ramp: int, seeds: int) -> dict[str, Any]:
    """Share of the changes noticed, their median delay in steps, and the mean delay with 500 for those missed."""
    late: list[int] = []
    for seed in range(seeds):
        losses, at = changing(kind, magnitude, ramp, seed)
        fired = firings(make(), losses)
        late += [next((step - start for step in fired if 0 <= step - start < LATEST), LATEST) for start in at]
    found = [delay for delay in late if delay < LATEST]
    return {
        "noticed": len(found) / len(late),
        "delay": statistics.median(found) if found else None,
        "delay_or_500": statistics.fmean(late),
    }


def firings(detector: Detector, losses: NDArray[np.float64]) -> list[int]:
    """Steps at which the detector fires."""
    return [step for step, loss in enumerate(losses.tolist()) if detector.update(loss)]


def still(kind: str, seed: int) -> NDArray[np.float64]:
    """Losses (STILL,) of a learner to which nothing happens after its beginning."""
    return drawn(kind, FIRST[kind] * np.exp(-np.arange(STILL) / LEARNING), seed)


def changing(kind: str, magnitude: float, ramp: int, seed: int) -> tuple[NDArray[np.float64], list[int]]:
    """Losses with changes, and the steps at which these begin."""
    at = [BETWEEN * (number + 1) for number in range(CHANGES)]
    rise = FIRST[kind] * np.exp(-np.arange(BETWEEN * (CHANGES + 1)) / LEARNING)
    for start in at:
        since = np.arange(len(rise) - start)
        # What is new and not learnt yet: it comes with its share of the stream and goes as it is learnt.
        share = np.minimum(1.0, (since + 1) / max(ramp, 1))
        learnt = np.exp(-np.cumsum(share) / LEARNING)
        rise[start:] += magnitude * share * learnt
    return drawn(kind, rise, seed), at


def drawn(kind: str, above: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Losses whose mean is the level of their kind plus `above` (N,)."""
    rng, mean = np.random.default_rng(seed), LEVEL[kind] + above
    if kind == "bernoulli":
        return (rng.random(len(mean)) < mean).astype(np.float64)
    return np.maximum(0.0, rng.normal(mean, DEVIATION))


def details(result: dict[str, Any]) -> Table:
    """A column a detector: false alarms, then noticed share and delay of every kind of change."""
    drawn_table = Table("", *result, title="Noticed within 500 steps, median delay")
    for kind in MAGNITUDES:
        rates = [f"{one['false_alarms_per_10000_steps'][kind]:.2f}" for one in result.values()]
        drawn_table.add_row(f"{kind}: false alarms per 10,000", *rates)
    for change in next(iter(result.values()))["changes"]:
        cells = [one["changes"][change] for one in result.values()]
        told = [f"{100 * one['noticed']:.0f} % {'-' if one['delay'] is None else round(one['delay'])}" for one in cells]
        drawn_table.add_row(change, *told)
    return drawn_table


def overview(result: dict[str, Any]) -> Table:
    """A row for each choice of parameters, the one that notices soonest first."""
    columns = ("false alarms, gaussian", "bernoulli", "noticed", "delay, 500 if missed")
    drawn_table = Table("", *columns, title="All kinds of change together")
    for name, one in sorted(result.items(), key=lambda item: item[1]["delay_or_500"]):
        rates = [f"{rate:.2f}" for rate in one["false_alarms_per_10000_steps"].values()]
        drawn_table.add_row(name, *rates, f"{100 * one['noticed']:.1f} %", f"{one['delay_or_500']:.0f}")
    return drawn_table


if __name__ == "__main__":
    sys.exit(main())
