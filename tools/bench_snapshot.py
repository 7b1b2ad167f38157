#!/usr/bin/env python3
"""What a snapshot costs: written, verified and on the shelf, against torch.onnx.export of the same network.

    python tools/bench_snapshot.py [--json] [--rounds N] [--model mlp cnn2d cnn1d] [--snapshots 1000]

snapshot_ms is Publisher.publish as the daemon calls it, after a learning step each time: weights into the template,
onnxruntime's answers against the learner's, the exam against the snapshot before, the shelf's fsyncs; snapshot_cpu_ms
of it on the processor, the rest waiting for the disk and for other processes. Its parts are timed on the same learner
beside it: fill_ms until the model's bytes are there, verify_ms, shelf_ms.
Half of the rounds come before the exports and half behind them. first_export_ms and later_export_ms are
torch.onnx.export in a fresh process, a file that is neither verified nor synced; torchscript_* the same with the older
exporter, which is deprecated. rss_growth_mb is that of a process that only learns a step, publishes, and gives free
memory back. onnx_predict_us and torch_predict_us are one answer to one raw sample. One thread, one core; medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from bench import workloads
from bench.deployable import Deployable
from bench.interleave import pin, progress, say
from bench.snapshots import Publishing, publishing
from bench.workloads import WORKLOADS, Workload
from rich.console import Console
from rich.table import Table
from torch import nn

MODELS = {"mlp": "W1", "cnn2d": "W2", "cnn1d": "HAR"}
ROUNDS, WARM_UP, ANSWERS = 60, 5, 50
SNAPSHOTS, SNAPSHOTS_BEFORE = 1000, 100
LATER = 5  # exports after the first
MS = ("snapshot_ms", "snapshot_cpu_ms", "fill_ms", "verify_ms", "shelf_ms")
CHILDREN = Path(__file__).parent / "bench"


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"snapshots that are timed ({ROUNDS})")
    parser.add_argument("--snapshots", type=int, default=SNAPSHOTS, help=f"for the growth of memory ({SNAPSHOTS})")
    parser.add_argument("--warm-up", type=int, default=SNAPSHOTS_BEFORE, help=f"before them ({SNAPSHOTS_BEFORE})")
    parser.add_argument("--later", type=int, default=LATER, help=f"exports after the first ({LATER})")
    parser.add_argument("--data", type=Path, default=workloads.DEFAULT_DATA, help="folder of the .npz files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pin()
    if importlib.util.find_spec("onnxscript") is None:
        say("no onnxscript: only the older exporter is measured; `pip install onnxscript` brings the other")
    found = {name: measure(WORKLOADS[MODELS[name]], options) for name in options.model}
    result = {figure: {name: one[figure] for name, one in found.items()} for figure in next(iter(found.values()))}
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(table(result))
    return 0


def measure(workload: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """One model's figures."""
    with publishing(workload, options.data) as made:
        for _ in range(WARM_UP):
            _round(made)
        half = max(1, options.rounds // 2)
        rounds = [_round(made) for _ in progress(range(half), f"{workload.name}: before")]
        exports = {name: _export(workload, name, options.later) for name in _exporters()}
        rounds += [_round(made) for _ in progress(range(half), f"{workload.name}: after")]
        answers, size = _answers(made, workload), len(made.snapshot())
    arguments = ("--data", str(options.data), "--snapshots", str(options.snapshots), "--warm-up", str(options.warm_up))
    memory = _child("snapshots.py", workload, *arguments)
    times = {key: round(statistics.median(one[key] for one in rounds), 3) for key in MS}
    default = exports[_exporters()[0]]
    return {
        **times,
        "first_export_ms": default["first_ms"],
        "later_export_ms": default["later_ms"],
        "rss_growth_mb": memory["rss_growth_mb"],
        **answers,
        "first_export_over_snapshot": round(default["first_ms"] / times["snapshot_ms"], 1),
        "later_export_over_snapshot": round(default["later_ms"] / times["snapshot_ms"], 1),
        "later_export_over_fill": round(default["later_ms"] / times["fill_ms"], 1),
        "snapshot_quartiles_ms": _quartiles([one["snapshot_ms"] for one in rounds]),
        "torchscript_first_ms": exports["torchscript"]["first_ms"],
        "torchscript_later_ms": exports["torchscript"]["later_ms"],
        "export_rss_mb": default["rss_mb"],
        "exporter": _exporters()[0],
        "snapshots": options.snapshots,
        "bytes": size,
        "data": made.data.origin,
    }


def _round(made: Publishing) -> dict[str, float]:
    made.learn()
    started, at_work = time.perf_counter_ns(), time.thread_time_ns()
    made.publish()
    worked, took = time.thread_time_ns() - at_work, time.perf_counter_ns() - started
    return {"snapshot_ms": took / 1e6, "snapshot_cpu_ms": worked / 1e6, **made.parts()}


def _exporters() -> list[str]:
    """What can be measured here, torch's own choice first."""
    return ["torchscript"] if importlib.util.find_spec("onnxscript") is None else ["dynamo", "torchscript"]


def _export(workload: Workload, exporter: str, later: int) -> dict[str, float]:
    return _child("export_child.py", workload, "--exporter", exporter, "--later", str(later))


def _child(script: str, workload: Workload, *arguments: str) -> dict[str, float]:
    command = [sys.executable, str(CHILDREN / script), "--workload", workload.name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {script} ended with exit code {done.returncode}\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _answers(made: Publishing, workload: Workload) -> dict[str, float]:
    """Microseconds of one answer by onnxruntime and by torch, and how far the snapshot's lie from the learner's."""
    model = Deployable(workload).eval()
    nn.utils.vector_to_parameters(made.learner.network.arena.flat, model.network.parameters())
    model.mean.copy_(made.learner.network.standardise.mean)
    model.inverse_deviation.copy_(made.learner.network.standardise.inverse_deviation)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(made.snapshot(), options, providers=["CPUExecutionProvider"])
    x = made.data.new_held_out.raw.astype(np.float32)
    learner = made.learner.predict(made.data.new_held_out.raw)
    with torch.no_grad():
        assert float(np.abs(model(torch.from_numpy(x)).numpy() - learner).max()) < 1e-4, "not the same network"
        torch_us = _us(lambda row: model(torch.from_numpy(row)), x)
    onnx_us = _us(lambda row: session.run(None, {"input": row}), x)
    difference = np.abs(session.run(None, {"input": x})[0] - learner).max()
    return {"max_abs_difference": float(difference), "onnx_predict_us": onnx_us, "torch_predict_us": torch_us}


def _us(answer: Callable[[Any], object], x: Any) -> float:
    times = []
    for at in range(WARM_UP + ANSWERS):
        row = x[at % len(x) : at % len(x) + 1]
        started = time.perf_counter_ns()
        answer(row)
        times.append((time.perf_counter_ns() - started) / 1e3)
    return round(statistics.median(times[WARM_UP:]), 1)


def _quartiles(times: list[float]) -> list[float]:
    lower, _, upper = statistics.quantiles(times, n=4)
    return [round(lower, 2), round(upper, 2)]


def table(result: dict[str, dict[str, Any]]) -> Table:
    """The figures for a person."""
    models = list(result["snapshot_ms"])
    drawn = Table("", *models, title="A snapshot: medians")
    for figure, by_model in result.items():
        drawn.add_row(figure, *[_cell(figure, by_model[name]) for name in models])
    return drawn


def _cell(figure: str, value: Any) -> str:
    if figure == "max_abs_difference":
        return f"{value:.1e}"
    if isinstance(value, list):
        return " - ".join(f"{one:.2f}" for one in value)
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
