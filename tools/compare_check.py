#!/usr/bin/env python3
"""What `edge-cl check` says, beside what the running daemon then holds and takes.

    python tools/compare_check.py [--json] [--rounds 3] [--samples 3000] [--source URL] [-s key=value …]

Both are run as a person runs them, in turns, on the same configuration and source; each ratio is check over daemon, of
the medians over the rounds. The daemon's times are those of its last status. Bytes must agree to within 1 %, the
medians of answers and steps to within 25 %: within says whether they do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.interleave import progress
from rich.console import Console
from rich.table import Table

SOURCE = "simulated:motor?speed=max"
# Name, check's line, the daemon's key, how far they may be apart.
PAIRS = (
    ("bytes", "memory", "learner_bytes", 0.01),
    ("predict p50", "predict p50", "predict_p50_ms", 0.25),
    ("step p50", "step p50", "step_p50_ms", 0.25),
    ("predict p99", "predict p99", "predict_p99_ms", None),
    ("step p99", "step p99", "step_p99_ms", None),
    ("process", "process", "rss_bytes", None),
)


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--rounds", type=int, default=3, help="of check and daemon in turns (3)")
    parser.add_argument("--samples", type=int, default=3000, help="that the daemon takes in each (3000)")
    parser.add_argument("--source", default=SOURCE, help=f"of both ({SOURCE})")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of both")
    options = parser.parse_args()
    settings = [word for one in options.set for word in ("-s", one)]
    checks, daemons = [], []
    for _ in progress(range(options.rounds), "rounds"):
        checks.append(check(options.source, settings))
        daemons.append(daemon(options.source, settings, options.samples))
    result = {name: compare(checks, daemons, line, key, allowed) for name, line, key, allowed in PAIRS}
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(table(result))
    return 0


def check(source: str, settings: list[str]) -> dict[str, float]:
    """The lines of one check."""
    found = _edge_cl("check", "--source", source, *settings, may_end_with=(0, 10))[-1]
    return {line["name"]: line["measured"] for line in found["lines"]}


def daemon(source: str, settings: list[str], samples: int) -> dict[str, float]:
    """The last status of a daemon on a new state directory."""
    with tempfile.TemporaryDirectory() as folder:
        state = str(Path(folder) / "state")
        lines = _edge_cl("run", "--source", source, "--state", state, "--samples", str(samples), "--once", *settings)
    return next(line for line in reversed(lines) if "pid" in line)


def compare(
    checks: list[dict[str, float]], daemons: list[dict[str, float]], line: str, key: str, allowed: float | None
) -> dict[str, Any]:
    """One quantity by both, and whether they agree."""
    ours, theirs = (statistics.median(one[name] for one in found) for found, name in ((checks, line), (daemons, key)))
    ratio = ours / theirs
    return {
        "check": ours,
        "daemon": theirs,
        "ratio": round(ratio, 4),
        "within": None if allowed is None else abs(ratio - 1) <= allowed,
    }


def _edge_cl(*words: str, may_end_with: tuple[int, ...] = (0,)) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "edge_cl", words[0], "--json", *words[1:]], capture_output=True, text=True, check=False
    )
    if done.returncode not in may_end_with:
        raise SystemExit(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def table(result: dict[str, dict[str, Any]]) -> Table:
    """The figures for a person."""
    drawn = Table("", "check", "daemon", "check / daemon", "agree", title="What check says and what the daemon takes")
    for name, found in result.items():
        numbers = (f"{found['check']:,.4g}", f"{found['daemon']:,.4g}", f"{found['ratio']:.3f}")
        drawn.add_row(name, *numbers, {True: "yes", False: "NO", None: ""}[found["within"]])
    return drawn


if __name__ == "__main__":
    sys.exit(main())
