#!/usr/bin/env python3
"""Seconds in which learning steps kept a limit of twice their quiet median, on a loaded machine, governed and not.

    python tools/load_governor.py [--json] [--seconds 60] [--processes N] [--source URL]

The daemon itself runs three times on the simulated motor: on the machine as it is, for the median of its steps; then
with `budget.step_ms` twice that, while other processes keep the processor busy; then the same with the governor's hands
tied. share_kept is the share of seconds with steps in them of which the 99th percentile kept the limit (of up to 99
steps: all). said is whether the last status of the run, or any before it, said that the limit is not kept; a governed
run either keeps 99 % of its seconds or says so: kept_or_said. In bursts of --on and --off seconds the load comes and
goes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from bench.interleave import say
from rich.console import Console
from rich.table import Table

from edge_cl.config import parse
from edge_cl.daemon import Daemon
from edge_cl.service.status import Status
from edge_cl.signals import Signals

BUSY = "while True: pass"
SOURCE = "simulated:motor?speed=5"  # times real time: some steps in every second


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of the three runs (60)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that are the load (one for each core)")
    parser.add_argument("--on", type=float, default=inf, help="seconds of load at a time (all the time)")
    parser.add_argument("--off", type=float, default=0.0, help="seconds between them (none)")
    parser.add_argument("--source", default=SOURCE, help=f"what the daemon learns from ({SOURCE})")
    options = parser.parse_args()
    say("quiet")
    quiet = observe(options.source, options.seconds, ())["step_p50_ms"]
    limit = (f"budget.step_ms={2 * quiet}",)
    found: dict[str, Any] = {"quiet_p50_ms": quiet, "limit_ms": 2 * quiet, "processes": options.processes}
    with load(options.processes, options.on, options.off):
        for name in ("governed", "ungoverned"):
            say(name)
            found[name] = observe(options.source, options.seconds, limit, governed=name == "governed")
    governed = found["governed"]
    found["kept_or_said"] = governed["share_kept"] >= 0.99 or governed["said"]
    if options.json:
        print(json.dumps(found))
    else:
        Console().print(table(found))
    return 0


def observe(source: str, seconds: float, overrides: tuple[str, ...], *, governed: bool = True) -> dict[str, Any]:
    """Run the daemon for some seconds, and say how its steps kept the limit."""
    signals, seen = Signals(), []

    def look(status: Status) -> None:
        if not governed:
            daemon.governor.limit_s = inf  # out of reach: it never finds a step late
        seen.append(status)

    with tempfile.TemporaryDirectory() as folder:
        config = parse("", overrides=("budget.consolidation_ms=500", *overrides))
        daemon = Daemon(config, Path(folder) / "state", source_url=source, on_status=look, signals=signals)
        ended = threading.Timer(seconds, lambda: setattr(signals, "stop", True))
        ended.start()
        daemon.run()
        ended.join()
    last = seen[-1]
    limit, governor = last["step_limit"], last["governor"]
    return {
        "seconds": limit["seconds"],
        "late_seconds": limit["late"],
        "share_kept": round(1 - limit["late"] / max(1, limit["seconds"]), 4),
        "said": not all(status["step_limit"]["kept"] for status in seen),
        "steps": last["steps"],
        "step_p50_ms": round(last["step_p50_ms"] or 0.0, 3),
        "step_p99_ms": round(last["step_p99_ms"] or 0.0, 3),
        "least_replay": min(status["governor"]["replay_per_step"] for status in seen),
        **{name: governor[name] for name in ("replay_per_step", "lowered", "raised", "skipped_samples")},  # type: ignore[literal-required]
        "samples": last["samples"],
    }


@contextmanager
def load(processes: int, on_s: float, off_s: float) -> Iterator[None]:
    """Keep the machine busy, for `on_s` at a time with `off_s` between."""
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
            over.wait(None if on_s == inf else on_s)
            for process in busy:
                process.kill()
                process.wait()
            over.wait(off_s)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def table(found: dict[str, Any]) -> Table:
    """The figures for a person."""
    drawn = Table(
        "", "governed", "ungoverned", title=f"Steps within {found['limit_ms']:.2f} ms, twice their quiet median"
    )
    for name in found["governed"]:
        drawn.add_row(name, *(str(found[side][name]) for side in ("governed", "ungoverned")))
    return drawn


if __name__ == "__main__":
    sys.exit(main())
