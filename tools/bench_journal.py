#!/usr/bin/env python3
"""What durability costs: the step beside the journal, the bytes written to the disk, and the time of a recovery.

    python tools/bench_journal.py [--json] [--rounds 3] [--samples 3000] [--folder DIR] [-s key=value …]

The daemon on a made-up recording (windows of 128 × 6 in int16), with the journal and without, in turns, each in a
process of its own. step_p99_ratio is with over without, of the medians over the rounds. The bytes are those that the
process had written to the disk (/proc/PID/io), snapshots and checkpoints included; journal_bytes_per_sample is the
journal's own files over what was learnt. recovery_s is that of a journal as long as the configuration lets it grow,
taken while the daemon was learning: killed, then recovered. mb_per_day is the journal of a stream of 10 such samples a
second.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench.interleave import progress
from rich.console import Console
from rich.table import Table

RUN = """
import json, sys
from pathlib import Path
from edge_cl.config import resolve
from edge_cl.daemon import Daemon
state, url, *overrides = sys.argv[1:]
seen = []
summary = Daemon(
    resolve(None, tuple(overrides)).config, Path(state), source_url=url, once=True, on_status=seen.append
).run()
print(json.dumps({**summary, "io": Path("/proc/self/io").read_text()}))
"""
RECOVER = """
import json, sys
from pathlib import Path
from edge_cl.keeping.recovery import recover
found = recover(Path(sys.argv[1]))
print(json.dumps({"seconds": found.seconds, "replayed": found.replayed, "faults": found.faults}))
"""
SHAPE, CLASSES = (128, 6), 5
STREAM_HZ = 10
PATIENCE_S = 60.0


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is to be measured")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="key=value", dest="overrides")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(Path(folder), options)
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(table(result))
    return 0


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    url = f"recording:{_recording(folder, options.samples)}"
    runs: dict[str, list[dict[str, Any]]] = {"sample": [], "checkpoint": []}
    for number in progress(range(options.rounds), "rounds"):
        for durability, found in runs.items():
            state = folder / f"{durability}-{number}"
            found.append(_run(state, url, f"storage.durability={durability}", *options.overrides))
    recoveries = [
        _killed(folder / f"killed-{number}", url, 1 + 0.3 * number, *options.overrides)
        for number in progress(range(options.kills), "kills")
    ]
    raw = int(np.prod(SHAPE)) * 2
    p99 = {durability: _median(found, "step_p99_ms") for durability, found in runs.items()}
    p50 = {durability: _median(found, "step_p50_ms") for durability, found in runs.items()}
    written = {durability: _median(found, "written_per_sample") for durability, found in runs.items()}
    journaled = _journal_bytes(folder / "whole", url, *options.overrides)
    return {
        "step_p50_ms": p50,
        "step_p99_ms": p99,
        "step_p99_ratio": round(p99["sample"] / p99["checkpoint"], 3),
        "raw_bytes_per_sample": raw,
        "journal_bytes_per_sample": round(journaled),
        "journal_over_raw": round(journaled / raw, 3),
        "written_bytes_per_sample": {durability: round(value) for durability, value in written.items()},
        "mb_per_day": round(journaled * STREAM_HZ * 86_400 / 1e6),
        "recovery_s": {
            "p50": round(float(np.percentile([one["seconds"] for one in recoveries], 50)), 3),
            "p99": round(float(np.percentile([one["seconds"] for one in recoveries], 99)), 3),
            "most_entries": max(one["replayed"] for one in recoveries),
        },
    }


def _median(found: list[dict[str, Any]], key: str) -> float:
    return round(statistics.median(one[key] for one in found), 3)


def _recording(folder: Path, n: int) -> Path:
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, n)
    turns = (2 * y + 1)[:, None, None] * np.arange(SHAPE[0])[None, :, None] / SHAPE[0]
    x = 300 * np.sin(2 * np.pi * (turns + rng.uniform(0, 1, (n, 1, SHAPE[1])))) + rng.normal(0, 40, (n, *SHAPE))
    path = folder / "recording.npz"
    np.savez(path, x=x.astype(np.int16), y=y)
    return path


def _run(state: Path, url: str, *overrides: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_child(RUN, str(state), url, *overrides).splitlines()[-1])
    written = re.search(r"write_bytes: (\d+)", found.pop("io"))
    assert written is not None
    return {**found, "written_per_sample": int(written[1]) / found["learned"]}


def _journal_bytes(state: Path, url: str, *overrides: str) -> float:
    """Bytes of the journal for each sample learnt, of one that was never cut short."""
    never = ("storage.recovery_s=3600", "storage.checkpoint_every_s=86400", "storage.journal_bytes=1000 GiB")
    found = _run(state, url, *overrides, *never)
    return sum(file.stat().st_size for file in (state / "journal").iterdir()) / float(found["learned"])


def _killed(state: Path, url: str, after_s: float, *overrides: str) -> dict[str, Any]:
    """How long the recovery takes of a daemon that was killed so long after its first step."""
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, str(state), url, *overrides], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + PATIENCE_S
    while not list((state / "journal").glob("*.db")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(after_s)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    found: dict[str, Any] = json.loads(_child(RECOVER, str(state)))
    return found


def _child(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def table(result: dict[str, Any]) -> Table:
    """The figures for a person."""
    drawn = Table("", "with the journal", "without", title="What durability costs")
    for name in ("step_p50_ms", "step_p99_ms", "written_bytes_per_sample"):
        drawn.add_row(name, *(f"{result[name][key]:,}" for key in ("sample", "checkpoint")))
    for name in (
        "step_p99_ratio",
        "raw_bytes_per_sample",
        "journal_bytes_per_sample",
        "journal_over_raw",
        "mb_per_day",
    ):
        drawn.add_row(name, f"{result[name]:,}", "")
    for name, value in result["recovery_s"].items():
        drawn.add_row(f"recovery {name}", f"{value:,}", "")
    return drawn


if __name__ == "__main__":
    sys.exit(main())
