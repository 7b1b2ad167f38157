#!/usr/bin/env python3
"""A bad line for minutes: is every sample that the board made handed out or counted as lost, and is each one right?

    python tools/link_soak.py --link pty|tcp|udp --minutes 10 [--rate 1000] [--bit-error-rate 0.001] [--json]

tools/fake_board.py as a process, read through the bridge's own queue. unexplained must be 0: generated less handed_out,
wire_lost, restart_lost, away, queue_oldest and in_flight (what the board never sent). wrong must be 0: samples whose
values, label or time are not what the board measured under that number. Exit 1 if one of them is not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from firmware_bridge.errors import EndOfSource
from firmware_bridge.frame import FAULTS
from firmware_bridge.inlet import Inlet
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Sample
from tools.fakes.process import board_process
from tools.fakes.signals import imu

QUEUE_BYTES = 4 << 20
QUIET_S = 30.0  # then the line is dead
COUNTED = ("wire_lost", "restart_lost", "away", "queue_oldest")


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", choices=("pty", "tcp", "udp"), default="pty", help="the line (pty)")
    parser.add_argument("--port", type=int, default=47_471, help="of UDP (47471)")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--rate", type=float, default=1000.0, help="samples a second (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of samples and faults (0)")
    parser.add_argument("--bit-error-rate", type=float, default=0.001, help="chance that a byte is damaged (0.001)")
    parser.add_argument("--drop-rate", type=float, default=0.0, help="chance that a byte is dropped (0)")
    parser.add_argument("--reboot-every", type=int, default=5003, help="samples between two restarts (5003)")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    options = parser.parse_args()
    result = soak(options)
    print(json.dumps(result) if options.json else "\n".join(f"{key:14} {value}" for key, value in result.items()))
    return 1 if result["unexplained"] or result["wrong"] else 0


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Run the board and read it to its end."""
    samples = max(1, round(60 * options.minutes * options.rate))
    command = ["--link", options.link, "--samples", str(samples), "--seed", str(options.seed)]
    command += ["--rate", str(options.rate), "--reboot-every", str(options.reboot_every)]
    for name in ("bit_error_rate", "drop_rate"):
        if getattr(options, name):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    if options.link == "udp":
        command += ["--port", str(options.port)]
    started = time.monotonic()
    with board_process(*command) as board:
        with make_source(board.url) as source:
            inlet = Inlet(source, QUEUE_BYTES)
            handed_out, wrong = _read(inlet, options)
            inlet.close()
            counters = inlet.counters
        told = board.told()
    return _reckoned(told, counters, handed_out, wrong, time.monotonic() - started)


def _read(inlet: Inlet, options: argparse.Namespace) -> tuple[int, int]:
    """How many samples came, and how many of them are not what the board measured."""
    handed_out = wrong = 0
    truth, place = imu(options.seed, options.rate), -1
    true: Sample | None = None
    with suppress(EndOfSource):
        while (item := inlet.get(QUIET_S)) is not None:
            if not isinstance(item, Sample):
                continue
            handed_out += 1
            wanted = (item.boot - 1) * options.reboot_every + item.seq
            if wanted <= place:
                wrong += 1
                continue
            while place < wanted:
                true, place = next(truth), place + 1
            assert true is not None
            same = np.array_equal(item.values, true.values)
            wrong += not (same and (item.label, item.time_us) == (true.label, true.time_us))
    return handed_out, wrong


def _reckoned(
    told: Mapping[str, int], counters: Mapping[str, int], handed_out: int, wrong: int, seconds: float
) -> dict[str, Any]:
    counted = {name: counters[name] for name in COUNTED}
    return {
        "generated": told["generated"],
        "handed_out": handed_out,
        **counted,
        "in_flight": told["in_flight"],
        "unexplained": told["generated"] - handed_out - sum(counted.values()) - told["in_flight"],
        "wrong": wrong,
        "duplicate": counters["duplicate"],
        "restarts": counters["restarts"],
        "reconnects": counters["reconnects"],
        "bits_flipped": told["bits_flipped"],
        "frame_faults": sum(counters[name] for name in FAULTS),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
