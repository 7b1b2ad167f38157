#!/usr/bin/env python3
"""What a learning step costs: ours against PyTorch's bare step, an explicit penalty and Avalanche, in the same run.

    python tools/bench_step.py [--json] [--rounds N] [--workload W1 W2 W1_batch1 HAR]

One thread, one core for all; blocks of each side take turns, and every figure is the median over rounds of the ratio
within a round, of the means of the blocks. ours and autograd_road learn raw samples with everything included (replay
draw and offer, EWC pull, prequential score); bare steps on ready float32 batches of as many samples (new and old
together: 20 for W1 and W2, 2 for W1_batch1, 30 for HAR). `make peers` installs Avalanche; without it its figures are
null. tools/bench/workloads.py has the networks, sides.py what each side does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from bench import workloads
from bench.interleave import Rounds, flat, median_ratio, percentile, pin, say, settle, spread, take_turns
from bench.sides import PEERS, Ours, PeerProcess, make_sides, start_peers
from bench.workloads import WORKLOADS, Workload
from rich.console import Console
from rich.table import Table

ROUNDS, BLOCK, UNTIMED = 150, 10, 2
SECONDS = 20  # four workloads, and what it takes to make the sides ready, within three minutes
ONLINE_BLOCK = 2  # steps of a side that takes ten times as long
# Each figure, and the two sides it compares.
FIGURES = {
    "ours_over_bare": ("ours", "bare"),
    "autograd_road_over_bare": ("autograd_road", "bare"),
    "explicit_over_bare": ("explicit", "bare"),
    "avalanche_over_ours": ("avalanche", "ours"),
    "avalanche_online_over_ours": ("avalanche_online", "ours"),
}


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"times each side has its turn ({ROUNDS})")
    parser.add_argument("--steps", type=int, default=BLOCK, help=f"timed steps of a turn ({BLOCK})")
    parser.add_argument("--untimed", type=int, default=UNTIMED, help=f"steps before them, for the caches ({UNTIMED})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"most for one workload's rounds ({SECONDS})")
    parser.add_argument("--data", type=Path, default=workloads.DEFAULT_DATA, help="folder of the .npz files")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the peers' virtual environment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    core = pin()
    peers = start_peers(options.peers)
    result = {name: measure(WORKLOADS[name], options, peers, core) for name in options.workload}
    if peers is not None:
        peers.close()
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(table(result))
    return 0


def measure(workload: Workload, options: argparse.Namespace, peers: PeerProcess | None, core: int | None) -> Any:
    """One workload's figures."""
    data = workloads.load(workload, options.data)
    if data.origin == "synthetic":
        say(f"{workload.name}: no {workload.file} in {options.data}: made-up samples of the same shape and dtype")
    sides = make_sides(workload, data, options.data, peers)
    ours = sides["ours"]
    assert isinstance(ours, Ours)
    steps = {name: min(options.steps, ONLINE_BLOCK) if name == "avalanche_online" else options.steps for name in sides}
    settle()
    for side in sides.values():
        side.run(options.steps)
    times = take_turns(
        sides,
        rounds=options.rounds,
        seconds=options.seconds,
        steps=steps,
        untimed=options.untimed,
        title=f"{workload.name:10}",
    )
    learnt = {name: side.verdict(data.new_held_out) for name, side in sides.items()}
    if peers is not None:
        peers.ask(do="close")
    ours_us = flat(times["ours"])
    anchor = ours.learner.anchor
    held = anchor.theta.numel() * anchor.theta.element_size() + anchor.codes.numel() * anchor.codes.element_size()
    return {
        **{figure: median_ratio(*_pair(times, names)) for figure, names in FIGURES.items()},
        "step_p50_us": round(percentile(ours_us, 50), 1),
        "step_p99_us": round(percentile(ours_us, 99), 1),
        "bare_p50_us": round(percentile(flat(times["bare"]), 50), 1),
        "learner_bytes": ours.learner.nbytes,
        "bytes_per_parameter_ewc": held / anchor.theta.numel(),
        "p50_us": {name: round(statistics.median(flat(blocks)), 1) for name, blocks in times.items()},
        "p99_us": {name: round(percentile(flat(blocks), 99), 1) for name, blocks in times.items()},
        "ratio_of_p50": {name: median_ratio(*_pair(times, pair), statistics.median) for name, pair in FIGURES.items()},
        "spread": {figure: spread(*_pair(times, names)) for figure, names in FIGURES.items()},
        "new_classes": {name: {"loss": v.loss, "accuracy": v.accuracy} for name, v in learnt.items()},
        "parameters": anchor.theta.numel(),
        "data": data.origin,
        "interleave": {
            "rounds": len(times["ours"]),
            "steps": steps,
            "untimed_before": options.untimed,
            "core": core,
            "threads": torch.get_num_threads(),
        },
    }


def _pair(times: dict[str, Rounds], names: tuple[str, str]) -> tuple[Rounds | None, Rounds | None]:
    return times.get(names[0]), times.get(names[1])


def table(result: dict[str, Any]) -> Table:
    """The figures for a person; below each ratio the quartiles of its rounds."""
    drawn = Table("", *result, title="A learning step: medians and quartiles of ratios")
    for figure in FIGURES:
        cells = []
        for one in result.values():
            around = one["spread"][figure]
            cells.append(f"{one[figure]:.2f}\n{around['lower']:.2f}-{around['upper']:.2f}" if around else "-")
        drawn.add_row(figure, *cells)
    for figure in ("step_p50_us", "step_p99_us", "bare_p50_us", "learner_bytes"):
        drawn.add_row(figure, *[f"{one[figure]:,.0f}" for one in result.values()])
    drawn.add_row("bytes_per_parameter_ewc", *[f"{one['bytes_per_parameter_ewc']:.2f}" for one in result.values()])
    drawn.add_row("data", *[one["data"].removesuffix(".npz") for one in result.values()])
    return drawn


if __name__ == "__main__":
    sys.exit(main())
