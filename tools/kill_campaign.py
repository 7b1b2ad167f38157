#!/usr/bin/env python3
"""Killed at random instants, thousands of times: is anything lost that was acknowledged, corrupt, or learnt twice?

    python tools/kill_campaign.py [--kills 10000] [--seed 0] [--level store|daemon] [--json] [--folder DIR]

store: a process with a learner in small does to the real journal and the real checkpoints what the daemon does, and is
killed after some milliseconds. What it leaves is recovered and compared, bit for bit, with a learner that nothing
interrupted; the next one goes on from there, so that the same files are recovered again and again. Every now and then
the newest slot is damaged in a copy: the other one and the journal must come to the same.

daemon: the real one plays a recording, with a consolidation and a snapshot every ten steps, and is killed and started
again until it comes to the end. Each recovery is compared with a daemon that nobody killed, at the same entry.

acknowledged_lost counts what had been acknowledged and is not there, entries of the store, samples of the daemon;
learnt_twice what was applied more than once; corrupt recoveries that failed, or spoke of damage. recovery_p99_s is the
loading and the replay, without the start of a process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from faults.kills import BROKEN
from faults.store_kills import StoreCampaign
from rich.console import Console
from rich.table import Table

KILLS = {"store": 10_000, "daemon": 500}
SAMPLES = 1200


def main() -> int:
    """Parse, kill, print; 1 if anything was lost, corrupt or learnt twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--kills", type=int, help="10000 of the store, 500 of the daemon")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and of what is learnt (0)")
    parser.add_argument("--level", choices=list(KILLS), default="store")
    parser.add_argument("--folder", type=Path, help="where the state directories are made (the system's temporary one)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"of the recording of a daemon ({SAMPLES})")
    # To see that the campaign notices:
    parser.add_argument("--broken", nargs="+", choices=BROKEN, default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    kills = KILLS[options.level] if options.kills is None else options.kills
    with tempfile.TemporaryDirectory(prefix="edge-cl-kills-", dir=options.folder) as folder:
        result = campaign(options, Path(folder), kills)
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(table(result))
    well = result["bit_identical"] and not (result["acknowledged_lost"] or result["learnt_twice"])
    return 0 if well else 1


def campaign(options: argparse.Namespace, folder: Path, kills: int) -> dict[str, Any]:
    """The level's result."""
    if options.level == "daemon":
        from faults.daemon_kills import DaemonCampaign  # torch takes seconds to load

        found = DaemonCampaign(folder, options.seed, options.broken, samples=options.samples).run(kills)
    else:
        found = StoreCampaign(folder, options.seed, options.broken).run(kills)
    return {"level": options.level, "seed": options.seed, **found}


def table(result: dict[str, Any]) -> Table:
    """The figures for a person."""
    drawn = Table("", "", title=f"Kills of the {result['level']}")
    for key, value in result.items():
        if key != "examples":
            drawn.add_row(key, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    for example in result["examples"]:
        drawn.add_row("example", example)
    return drawn


if __name__ == "__main__":
    sys.exit(main())
