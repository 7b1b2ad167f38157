#!/usr/bin/env python3
"""The daemon at full speed for minutes or hours: do memory, descriptors and threads stay what they are?

    python tools/soak.py [--minutes 120] [--json] [--source simulated:motor?speed=max] [-s key=value]...

`python -m edge_cl run` on a temporary state directory, looked at from outside, in /proc. rss_slope_mb_per_h is the
median of the slopes between all pairs of readings (Theil and Sen: a consolidation now and then moves it little) after a
warm-up, a quarter of the time and at most ten minutes. fd_delta and thread_delta are medians of the last quarter of
those readings less those of the first. samples is what the daemon took; stopped, it must end well.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench.memory import PAGE
from faults.scratch import scratch
from faults.show import shown
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge_cl.service.status import read_status

MINUTES, MOST_WARM_UP_S = 120.0, 600.0
EVERY_S, MOST_READINGS = 2.0, 2000
SOURCE = "simulated:motor?speed=max"
PATIENCE_S = 120.0  # to start, and to stop: torch takes its time on a busy machine
MB = 1e6
CONTRACT = ("rss_slope_mb_per_h", "rss_peak_mb", "fd_delta", "thread_delta", "samples")


@dataclass(frozen=True)
class Reading:
    """A look at a process: seconds since the first one, resident bytes, open descriptors, threads."""

    at_s: float
    rss: int
    descriptors: int
    threads: int


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"how long ({MINUTES:g})")
    parser.add_argument("--source", default=SOURCE, help=f"what it learns from ({SOURCE})")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="as for edge-cl run")
    options = parser.parse_args()
    result = soak(options.minutes, options.source, options.set)
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(table(result))
    return 0 if result["exit"] == 0 else 1


def soak(minutes: float, source: str = SOURCE, overrides: list[str] | None = None) -> dict[str, Any]:
    """Run, watch, stop, reckon."""
    seconds = 60 * minutes
    with scratch(in_memory=False) as folder:
        state, log = folder / "state", folder / "log"
        command = [sys.executable, "-m", "edge_cl", "run", "--json", "--state", str(state), "--source", source]
        command += [word for override in overrides or [] for word in ("-s", override)]
        with log.open("wb") as stderr:
            daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            _wait_until_it_learns(daemon, state)
            readings = list(_watch(daemon, seconds))
            peak = _field(daemon.pid, "VmHWM") * 1024
            daemon.send_signal(signal.SIGTERM)
            code = daemon.wait(PATIENCE_S)
        finally:
            daemon.kill()
            daemon.wait()
            sys.stderr.write(log.read_text(encoding="utf-8", errors="replace"))
        last = read_status(state)
    return {**reckon(readings, peak), "samples": last["samples"] if last else 0, "minutes": minutes, "exit": code}


def reckon(readings: list[Reading], peak: int) -> dict[str, Any]:
    """The figures of the readings after the warm-up."""
    warm_up_s = min(MOST_WARM_UP_S, readings[-1].at_s / 4)
    warm = [reading for reading in readings if reading.at_s >= warm_up_s]
    quarter = max(1, len(warm) // 4)
    slope = theil_sen(np.array([one.at_s for one in warm]), np.array([one.rss for one in warm], float))
    return {
        "rss_slope_mb_per_h": round(slope * 3600 / MB, 3),
        "rss_peak_mb": round(peak / MB, 1),
        "fd_delta": _change([one.descriptors for one in warm], quarter),
        "thread_delta": _change([one.threads for one in warm], quarter),
        "rss_first_mb": round(warm[0].rss / MB, 1),
        "rss_last_mb": round(warm[-1].rss / MB, 1),
        "descriptors": [min(one.descriptors for one in warm), max(one.descriptors for one in warm)],
        "threads": [min(one.threads for one in warm), max(one.threads for one in warm)],
        "readings": len(warm),
    }


def theil_sen(t: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The median of the slopes of all pairs, 0 for less than two points."""
    first, second = np.triu_indices(len(t), 1)
    if len(first) == 0:
        return 0.0
    return float(np.median((y[second] - y[first]) / (t[second] - t[first])))


def _change(counts: list[int], quarter: int) -> int:
    return round(statistics.median(counts[-quarter:]) - statistics.median(counts[:quarter]))


def _wait_until_it_learns(daemon: subprocess.Popen[bytes], state: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        last = read_status(state) if state.is_dir() else None
        if last is not None and last["steps"] > 0:
            return
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the daemon did not come to learn; its own words are above")
        time.sleep(0.1)


def _watch(daemon: subprocess.Popen[bytes], seconds: float) -> Iterator[Reading]:
    every_s = max(EVERY_S, seconds / MOST_READINGS)
    started = time.monotonic()
    for reading in shown(range(max(2, round(seconds / every_s)) + 1), "readings"):
        time.sleep(max(0.0, started + reading * every_s - time.monotonic()))
        if daemon.poll() is not None:
            raise SystemExit(f"the daemon ended with {daemon.returncode}; its own words are above")
        yield _look(daemon.pid, time.monotonic() - started)


def _look(pid: int, at_s: float) -> Reading:
    process = Path(f"/proc/{pid}")
    resident = int((process / "statm").read_text(encoding="ascii").split()[1]) * PAGE
    return Reading(at_s, resident, len(list((process / "fd").iterdir())), _field(pid, "Threads"))


def _field(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return int(lines[name].split()[0])


def table(result: dict[str, Any]) -> Table:
    """The figures for a person."""
    drawn = Table("", "", title="A soak")
    for key in (*CONTRACT, *(key for key in result if key not in CONTRACT)):
        value = result[key]
        drawn.add_row(key, f"{value:,}" if isinstance(value, int | float) else " - ".join(map(str, value)))
    return drawn


if __name__ == "__main__":
    sys.exit(main())
