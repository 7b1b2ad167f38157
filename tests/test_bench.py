"""The benchmarks keep their contract: short forms of the commands, as a person types them; never how fast they are."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NO_PEERS = ROOT / ".venv-peers" / "not-here"

RATIOS = ("ours_over_bare", "autograd_road_over_bare", "explicit_over_bare")
PEER_RATIOS = ("avalanche_over_ours", "avalanche_online_over_ours")
FISHER_MS = ("ours_ms", "exact_ms", "loop_ms", "vmap_ms", "batched_backward_ms")


def run(tool: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / tool), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def figures(tool: str, *options: str) -> dict[str, Any]:
    done = run(tool, "--json", *options)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def assert_positive(value: object) -> None:
    assert isinstance(value, (int, float))
    assert math.isfinite(value)
    assert value > 0


def test_bench_step_gives_its_figures_for_every_workload(tmp_path: Path) -> None:
    """On made-up samples, as on a machine without the recordings, and without peers."""
    options = ["--rounds", "2", "--steps", "3", "--data", str(tmp_path), "--peers", str(NO_PEERS)]
    found = figures("bench_step.py", *options)
    assert set(found) == {"W1", "W2", "W1_batch1", "HAR"}
    for one in found.values():
        for key in (*RATIOS, "step_p50_us", "step_p99_us", "bare_p50_us"):
            assert_positive(one[key])
        assert [one[key] for key in PEER_RATIOS] == [None, None]
        assert one["step_p50_us"] <= one["step_p99_us"]
        assert isinstance(one["learner_bytes"], int)
        assert one["learner_bytes"] > 4 * one["parameters"]
        assert 0 < one["bytes_per_parameter_ewc"] <= 3
        assert one["data"] == "synthetic"
        assert one["interleave"]["rounds"] == 2
        assert one["interleave"]["threads"] == 1
    assert [found[name]["parameters"] for name in ("W1", "W2")] == [269_322, 105_866]


def test_bench_step_compares_with_avalanche_where_it_is_installed() -> None:
    one = figures("bench_step.py", "--rounds", "2", "--steps", "3", "--workload", "HAR")["HAR"]
    for key in PEER_RATIOS:
        if (ROOT / ".venv-peers" / ".installed").exists():
            assert_positive(one[key])
        else:
            assert one[key] is None


def test_bench_fisher_gives_its_figures_and_ours_is_exact(tmp_path: Path) -> None:
    found = figures("bench_fisher.py", "--rounds", "1", "--samples", "60", "--data", str(tmp_path))
    assert set(found) == {"mlp", "cnn2d", "cnn1d"}
    for one in found.values():
        for key in (*FISHER_MS, "empirical_ms", "ours_over_batched", "exact_over_batched"):
            assert_positive(one[key])
        assert one["avalanche_batch_ms"] is None
        assert one["max_relative_error"] < 1e-5


def test_bench_memory_counts_what_was_planned_and_steps_do_not_grow() -> None:
    found = figures("bench_memory.py", "--steps", "400", "--warm-up", "200")
    assert found["steps"] == 400
    # A plan that is kept: equal to within 1 %, and nothing of it is counted twice.
    assert abs(found["allocated_bytes"] - found["planned_bytes"]) < 0.01 * found["planned_bytes"]
    assert isinstance(found["rss_growth_mb"], float)
    # 400 steps that each kept 10 kB would show here; the heap's own moves are below it.
    assert found["rss_growth_mb"] < 4
    assert sum(found["largest_holdings"].values()) <= found["allocated_bytes"]
    assert all(set(one) == {"where", "bytes", "blocks"} for one in found["largest_growth"])


def test_bench_snapshot_gives_its_figures_by_model(tmp_path: Path) -> None:
    few = ["--rounds", "2", "--later", "1", "--snapshots", "30", "--warm-up", "2", "--data", str(tmp_path)]
    found = figures("bench_snapshot.py", "--model", "cnn1d", *few)
    contract = ["snapshot_ms", "first_export_ms", "later_export_ms", "onnx_predict_us", "torch_predict_us"]
    for key in (*contract, "fill_ms", "verify_ms", "shelf_ms", "later_export_over_snapshot", "later_export_over_fill"):
        assert set(found[key]) == {"cnn1d"}
        assert_positive(found[key]["cnn1d"])
    assert 0 < found["max_abs_difference"]["cnn1d"] < 1e-5
    assert isinstance(found["rss_growth_mb"]["cnn1d"], float)
