#!/usr/bin/env python3
"""What the Fisher diagonal over 500 samples costs: ours, the plain loop, vmap, Avalanche, in the same run.

    python tools/bench_fisher.py [--json] [--rounds N] [--model mlp cnn2d cnn1d]

The yardstick is batched_backward: one forward and backward pass of all 500 samples in torch modules, which yields the
gradient and no Fisher. ours is kind `sampled` (one label a sample, drawn from the model), empirical the same with the
labels observed, exact every label weighted by its probability. loop and vmap are the empirical Fisher by one backward
pass a sample, and by torch.func in chunks of 50. Avalanche's estimate in batches of 10 (its training batch) squares the
gradient's mean over the batch, which is not a Fisher; in batches of 1 it is the empirical one.

max_relative_error: ours, empirical, against the loop in float64 on the same parameters and inputs; the largest error
over the largest entry. max_entry_error: each entry's error over itself, for entries of a millionth of the largest on.
One thread, one core; all take turns in every round; medians over rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import workloads
from bench.interleave import pin, progress, settle
from bench.sides import PEERS, Ours, PeerProcess, built_in_network, fisher_by_loop, start_peers
from bench.workloads import FISHER_SAMPLES, WORKLOADS
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from edge_cl.learning.fisher import fisher_diagonal

MODELS = {"mlp": "W1", "cnn2d": "W2", "cnn1d": "HAR"}
ROUNDS, OFTEN, SECONDS = 15, 5, 30
VMAP_CHUNK = 50
MS = (
    "ours_ms",
    "empirical_ms",
    "exact_ms",
    "batched_backward_ms",
    "loop_ms",
    "vmap_ms",
    "avalanche_batch_ms",
    "avalanche_single_ms",
)
QUICK = MS[:2] + MS[3:4]  # some milliseconds each: several times a round, in turns


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"times each has its turn ({ROUNDS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"most for one model's rounds ({SECONDS})")
    parser.add_argument("--samples", type=int, default=FISHER_SAMPLES, help=f"without peers ({FISHER_SAMPLES})")
    parser.add_argument("--data", type=Path, default=workloads.DEFAULT_DATA, help="folder of the .npz files")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the peers' virtual environment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    core = pin()
    peers = start_peers(options.peers) if options.samples == FISHER_SAMPLES else None
    result = {name: measure(name, options, peers, core) for name in options.model}
    if peers is not None:
        peers.close()
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(table(result))
    return 0


def measure(name: str, options: argparse.Namespace, peers: PeerProcess | None, core: int | None) -> dict[str, Any]:
    """One model's figures, on the parameters it has after phase A of its workload."""
    workload = WORKLOADS[MODELS[name]]
    data = workloads.load(workload, options.data)
    network = Ours(workload, data, built_in_network(workload)).learner.network
    raw, labels = torch.from_numpy(data.old.raw[: options.samples]), data.old.labels[: options.samples]
    x = network.standardise.forward(raw).clone()
    model = workload.modules()
    nn.utils.vector_to_parameters(network.arena.flat, model.parameters())
    generator = torch.Generator().manual_seed(0)
    actions: dict[str, Callable[[], object]] = {
        "ours_ms": lambda: fisher_diagonal(network, raw, kind="sampled", generator=generator),
        "empirical_ms": lambda: fisher_diagonal(network, raw, kind="empirical", labels=labels),
        "exact_ms": lambda: fisher_diagonal(network, raw, kind="exact"),
        "batched_backward_ms": lambda: batched_backward(model, x, labels),
        "loop_ms": lambda: fisher_by_loop(model, x, labels),
        "vmap_ms": lambda: fisher_by_vmap(model, x, labels),
    }
    clocks = {key: _clocked(action) for key, action in actions.items()}
    if peers is not None:
        peers.ask(do="open", workload=workload.name, data=str(options.data))
        clocks["avalanche_batch_ms"] = lambda: float(peers.ask(do="fisher", batch=10)["ms"])
        clocks["avalanche_single_ms"] = lambda: float(peers.ask(do="fisher", batch=1)["ms"])
    errors = _errors(fisher_diagonal(network, raw, kind="empirical", labels=labels), model, x, labels)
    settle()
    rounds = _take_turns(clocks, options.rounds, options.seconds, name)
    if peers is not None:
        peers.ask(do="close")
    yardstick = [one["batched_backward_ms"] for one in rounds]
    over = {key: [one[key] / base for one, base in zip(rounds, yardstick, strict=True)] for key in clocks}
    return {
        **{key: round(statistics.median(one[key] for one in rounds), 3) if key in clocks else None for key in MS},
        "ours_over_batched": round(statistics.median(over["ours_ms"]), 3),
        "empirical_over_batched": round(statistics.median(over["empirical_ms"]), 3),
        "exact_over_batched": round(statistics.median(over["exact_ms"]), 3),
        **errors,
        "spread": {key: [round(min(over[key]), 3), round(max(over[key]), 3)] for key in clocks},
        "samples": len(raw),
        "classes": workload.n_classes,
        "data": data.origin,
        "interleave": {"rounds": len(rounds), "quick_ones_a_round": OFTEN, "core": core},
    }


def batched_backward(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    """The mean gradient over all samples: one forward and one backward pass."""
    model.zero_grad()
    functional.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]


def fisher_by_vmap(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The empirical Fisher diagonal by torch.func: per-sample gradients of a chunk at a time, squared and summed."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, values, (sample[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for start in range(0, len(x), VMAP_CHUNK):
        chunk = slice(start, start + VMAP_CHUNK)
        for name, per_sample in gradients(parameters, x[chunk], labels[chunk]).items():
            total[name] += per_sample.square().sum(0)
    return {name: one / len(x) for name, one in total.items()}


def _errors(ours: Tensor, model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, float]:
    reference = torch.cat([one.flatten() for one in fisher_by_loop(copy.deepcopy(model).double(), x.double(), labels)])
    error = (ours.double() - reference).abs()
    counts = reference >= 1e-6 * reference.max()
    return {
        "max_relative_error": float(error.max() / reference.max()),
        "max_entry_error": float((error[counts] / reference[counts]).max()),
    }


def _take_turns(
    clocks: dict[str, Callable[[], float]], rounds: int, seconds: float, title: str
) -> list[dict[str, float]]:
    """Milliseconds by name, round by round; of the quick ones the median of several turns."""
    for clock in clocks.values():
        clock()
    slow = [key for key in clocks if key not in QUICK]
    end = time.monotonic() + seconds
    found: list[dict[str, float]] = []
    for number in progress(range(rounds), f"{title:6}"):
        if found and time.monotonic() > end:
            break
        times: dict[str, list[float]] = {key: [] for key in clocks}
        for turn in range(OFTEN):
            for key in QUICK if turn % 2 else QUICK[::-1]:
                times[key].append(clocks[key]())
            for key in slow[turn::OFTEN] if number % 2 else slow[::-1][turn::OFTEN]:
                times[key].append(clocks[key]())
        found.append({key: statistics.median(values) for key, values in times.items()})
    return found


def _clocked(action: Callable[[], object]) -> Callable[[], float]:
    def clock() -> float:
        started = time.perf_counter_ns()
        action()
        return (time.perf_counter_ns() - started) / 1e6

    return clock


def table(result: dict[str, Any]) -> Table:
    """The figures for a person."""
    drawn = Table("", *result, title="The Fisher diagonal: medians")
    for key in (*MS, "ours_over_batched", "empirical_over_batched", "exact_over_batched"):
        drawn.add_row(key, *["-" if one[key] is None else f"{one[key]:.2f}" for one in result.values()])
    drawn.add_row("samples", *[str(one["samples"]) for one in result.values()])
    for key in ("max_relative_error", "max_entry_error"):
        drawn.add_row(key, *[f"{one[key]:.1e}" for one in result.values()])
    return drawn


if __name__ == "__main__":
    sys.exit(main())
