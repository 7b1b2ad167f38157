#!/usr/bin/env python3
"""Every bit flipped and every length cut off, of everything that is kept on the disk: is it noticed?

    python tools/flip_campaign.py [--json] [--only checkpoint journal snapshot] [--sample N]

The files are written by the real edge_cl.storage and read by it, each time with one bit changed or cut off at one
length: a checkpoint of 33 KiB, three segments of a journal with their -wal, and a snapshot's model and manifest, signed
and not. `undetected` counts those that were read without a word though something was changed or missing. A flip that
changes nothing of what is read is harmless (there are bytes that mean nothing). cut_tail: of the newest segment an end
was cut off, and what is left is what was there an instant earlier; no file can tell that of itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.flip_targets import checkpoint, journal_segments, snapshot
from faults.flips import Tally, Target, Verdict, damages, emptied, harmed
from faults.scratch import scratch
from faults.show import shown
from rich.console import Console
from rich.table import Table

TARGETS: dict[str, tuple[Callable[[Path], Target], ...]] = {
    "checkpoint": (checkpoint,),
    "journal": (journal_segments,),
    "snapshot": (lambda folder: snapshot(folder, signed=False), lambda folder: snapshot(folder, signed=True)),
}


def main() -> int:
    """Parse, damage, print; 1 if something went unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--only", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--sample", type=int, metavar="N", help="only so many flips and lengths of each file")
    parser.add_argument("--seed", type=int, default=0, help="what they are drawn with (0)")
    options = parser.parse_args()
    result = campaign(options.only, options.sample, options.seed)
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(table(result))
    for kind, row in result["by_kind"].items():
        for example in row["examples"]:
            print(f"undetected in {kind}: {example}", file=sys.stderr)
    return 0 if result["undetected"] == 0 else 1


def campaign(only: list[str], sample: int | None, seed: int = 0) -> dict[str, Any]:
    """Totals, and the same by kind of file."""
    started = time.monotonic()
    tallies: dict[str, Tally] = {}
    with scratch(in_memory=True) as folder:
        for make in (make for name in only for make in TARGETS[name]):
            _harm_all(make(emptied(folder / "made")), emptied(folder / "harmed"), tallies, sample, seed)
    return {
        "flips": sum(tally.flips for tally in tallies.values()),
        "truncations": sum(tally.truncations for tally in tallies.values()),
        "undetected": sum(tally.verdicts[Verdict.UNDETECTED.value] for tally in tallies.values()),
        "by_kind": {kind: _row(tally) for kind, tally in tallies.items()},
        "seconds": round(time.monotonic() - started, 1),
    }


def _harm_all(target: Target, folder: Path, tallies: dict[str, Tally], sample: int | None, seed: int) -> None:
    for file, kind in target.kinds.items():
        tally = tallies.setdefault(kind, Tally())
        tally.nbytes += len(target.files[file])
        planned = damages(file, target.files[file], sample, seed)
        for damage, verdict in shown(harmed(target, folder, planned), kind, len(planned)):
            tally.note(damage, verdict)


def _row(tally: Tally) -> dict[str, Any]:
    counts = {verdict.value: tally.verdicts[verdict.value] for verdict in Verdict}
    return {
        "bytes": tally.nbytes,
        "flips": tally.flips,
        "truncations": tally.truncations,
        **counts,
        "examples": tally.examples,
    }


def table(result: dict[str, Any]) -> Table:
    """The figures for a person."""
    columns = ("bytes", "flips", "truncations", *(verdict.value for verdict in Verdict))
    drawn = Table("", *columns, title="Damaged files")
    for kind, row in result["by_kind"].items():
        drawn.add_row(kind, *[f"{row[column]:,}" for column in columns])
    return drawn


if __name__ == "__main__":
    sys.exit(main())
