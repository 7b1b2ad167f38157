"""What snapshots leave behind in the daemon's process and beside it: no exporter, no growth, no trace in its home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from recordings import signals

EXPORTERS = {"onnx", "onnxscript", "torch.onnx"}
N, BATCH = 600, 10
WARM_UP = 20
MOST_GROWN = 1e6

# The daemon itself, in a process that was never anything else. What is resident is read after each consolidation.
CHILD = """
import gc, json, resource, sys
from pathlib import Path
from edge_cl import daemon
from edge_cl.config import resolve
from edge_cl.storage.published import ShelfReader

state, source, *overrides = sys.argv[1:]
give_back, pages = daemon.give_back, []

def give_back_and_look():
    gc.collect()
    give_back()
    pages.append(int(Path("/proc/self/statm").read_text().split()[1]))

daemon.give_back = give_back_and_look
daemon.Daemon(resolve(None, tuple(overrides)).config, Path(state), source_url=source, once=True).run()
newest = ShelfReader(Path(state)).entries()[-1]
print(json.dumps({
    "modules": sorted(sys.modules), "resident": [n * resource.getpagesize() for n in pages],
    "snapshots": int(newest.id), "bytes": newest.manifest["bytes"],
}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A daemon that makes a snapshot after every step of a recording, in an empty home, and what it said at the end."""
    folder = tmp_path_factory.mktemp("run")
    x, y = signals(N)
    np.savez(folder / "r.npz", x_train=x, y_train=y, x_test=x[:30], y_test=y[:30], fs_hz=1000.0)
    home = folder / "home"
    home.mkdir()
    # onnxruntime keeps quiet by itself where it believes to be tested: it must not believe so here.
    kept = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "GITHUB_ACTIONS")}
    kept = {key: value for key, value in kept.items() if not key.startswith(("ORT_", "XDG_"))}
    settings = ["model.kind=mlp", "model.width=256", "consolidation.every_steps=1", "consolidation.fisher_samples=10"]
    settings += ["consolidation.rehearsal_passes=0", f"learning.batch_size={BATCH}", "exam.share=0.05"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder / "state"), f"recording:{folder / 'r.npz'}", *settings],
        env={**kept, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    return {**found, "home": [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]}


def test_a_daemon_that_publishes_imports_no_exporter(run: dict[str, Any]) -> None:
    assert "onnxruntime" in run["modules"]
    exporters = [name for name in run["modules"] if any(name == e or name.startswith(f"{e}.") for e in EXPORTERS)]
    assert exporters == []


def test_snapshots_do_not_add_up_in_memory(run: dict[str, Any]) -> None:
    resident = run["resident"]
    assert run["snapshots"] == len(resident)
    grown = min(resident[-10:]) - min(resident[WARM_UP : WARM_UP + 10])
    # A megabyte in a thousand is for tools/bench_snapshot.py to measure; this many would show a tenth of a model each.
    assert run["bytes"] * (len(resident) - WARM_UP - 10) / 10 > MOST_GROWN
    assert grown < MOST_GROWN


def test_onnxruntime_tells_nobody_and_leaves_no_identifier(run: dict[str, Any]) -> None:
    assert run["home"] == []
