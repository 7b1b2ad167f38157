#!/usr/bin/env python3
"""What fewer bits cost: accuracy on the test split, bytes and latency of each precision that `edge-cl export` offers.

    python tools/compare_precision.py [--data DIR] [--only NAME] [--limit N] [--json]

Learns each recording once, as `edge-cl run --once` does with the defaults, and exports the snapshot three times. `lost`
is what the export itself measures, on the samples that the device holds; the test split is only reported: nothing of
the export was chosen by it. Latency is that of one sample, one thread of onnxruntime, and depends on what else the
machine is doing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_cl.config import resolve
from edge_cl.daemon import Daemon
from edge_cl.export import export
from edge_cl.storage.snapshot import Deployed
from edge_cl.storage.variants import Precision
from firmware_bridge.registry import make_source

DATA = Path(__file__).parents[2] / "shared/data"
CWRU = "cwru_bearing.npz?order=load_hp&test=0.3&within=load_hp"
# Name, recording, settings beside the defaults.
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "MNIST, mlp 256": ("mnist.npz", ("model.kind=mlp", "model.width=256")),
    "MNIST, cnn2d": ("mnist.npz", ()),
    "UCI HAR, cnn1d": ("uci_har.npz", ()),
    "CWRU, cnn1d": (CWRU, ()),
}
# Whatever else the machine does, as much is learnt: neither the governor nor the clock takes replay away.
NO_HURRY = ("budget.step_ms=60000", "budget.consolidation_ms=600000", "budget.predict_ms=60000")
ANY_LOSS = 100.0  # points: what is lost is to be seen here, not refused


def main() -> int:
    """Compare and print; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where the recordings lie")
    parser.add_argument("--only", choices=RUNS, metavar="NAME", help=f"one of: {'; '.join(RUNS)}")
    parser.add_argument("--limit", type=int, metavar="N", help="samples of each recording to learn from")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    arguments = parser.parse_args()
    rows = []
    for name in [arguments.only] if arguments.only else RUNS:
        Console(stderr=True).print(f"learning {name}")
        rows += compare(name, arguments.data, arguments.limit)
    if arguments.json:
        print(json.dumps({"rows": rows}))
    else:
        Console(width=120).print(table(rows))
    return 0


def compare(name: str, folder: Path, limit: int | None) -> Iterator[dict[str, Any]]:
    """Learn one recording, and measure each precision of the snapshot."""
    file, settings = RUNS[name]
    url = f"recording:{folder / file}"
    if limit is not None:
        url += f"{'&' if '?' in url else '?'}limit={limit}"
    with TemporaryDirectory() as made:
        state = Path(made, "state")
        Daemon(resolve(None, (*NO_HURRY, *settings)).config, state, source_url=url, once=True).run()
        with make_source(url) as source:
            held_out = source.held_out
        assert held_out is not None
        for precision in get_args(Precision):
            out = Path(made, f"{precision}.onnx")
            facts = export(state, out=out, folder=None, precision=precision, max_loss=ANY_LOSS)
            right = Deployed(out.read_bytes())(held_out.x.astype(np.float32)).argmax(1) == held_out.y
            yield {
                "name": name,
                "precision": precision,
                "test_accuracy": float(right.mean()),
                "test_samples": len(right),
                "bytes": facts["bytes"],
                "ratio": facts.get("bytes_float32", facts["bytes"]) / facts["bytes"],
                **{key: facts.get(key) for key in ("loss_points", "changed", "compared", "exam_accuracy")},
                "latency_us": facts.get("latency_us"),
                "latency_us_float32": facts.get("latency_us_float32"),
            }


def table(rows: list[dict[str, Any]]) -> Table:
    """A row a precision."""
    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("learnt")
    drawn.add_column("precision")
    for heading in ("test accuracy", "bytes", "smaller", "lost", "µs p50", "p99", "float32 µs p50", "p99"):
        drawn.add_column(heading, justify="right")
    for row in rows:
        times = [row[key] and row[key][p] for key in ("latency_us", "latency_us_float32") for p in ("p50", "p99")]
        drawn.add_row(
            row["name"],
            row["precision"],
            f"{row['test_accuracy']:.4f}",
            f"{row['bytes']:,}",
            f"{row['ratio']:.2f}x",
            "" if row["loss_points"] is None else f"{row['loss_points']:.2f}",
            *("" if time is None else f"{time:.0f}" for time in times),
        )
    return drawn


if __name__ == "__main__":
    sys.exit(main())
