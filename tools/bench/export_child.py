"""torch.onnx.export of a workload's network, in a process of its own: the first call, later ones, and what they hold.

    python tools/bench/export_child.py --workload W1 --exporter dynamo --later 5

One JSON object on stdout: first_ms, later_ms (median), rss_mb (what the calls added to the process). The module is the
same function as the snapshot's graph, raw samples in and probabilities out, for any number of samples; the file is
neither synced nor checked by anybody.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
WIRE = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # whatever the exporter prints is talk

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from bench.deployable import Deployable  # noqa: E402
from bench.memory import resident  # noqa: E402
from bench.workloads import WORKLOADS  # noqa: E402

OPSET = 18  # the lowest that the newer exporter writes without converting back
EXPORTERS = ("dynamo", "torchscript")


def export(model: nn.Module, x: Tensor, exporter: str, into: Path) -> None:
    """Write the ONNX file, for any number of samples."""
    options: dict[str, Any] = {"input_names": ["input"], "output_names": ["probabilities"], "opset_version": OPSET}
    if exporter == "dynamo":
        shapes = {"x": {0: torch.export.Dim("batch")}}
        torch.onnx.export(
            model, (x,), into, dynamo=True, external_data=False, dynamic_shapes=shapes, verbose=False, **options
        )
    else:
        torch.onnx.export(model, (x,), into, dynamo=False, dynamic_axes={"input": {0: "batch"}}, **options)


def main() -> int:
    """Parse, export, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=list(WORKLOADS), required=True)
    parser.add_argument("--exporter", choices=EXPORTERS, required=True)
    parser.add_argument("--later", type=int, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of its own deprecations
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    workload = WORKLOADS[options.workload]
    model, x = Deployable(workload).eval(), torch.zeros(2, *workload.shape)
    before, times = resident(), []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 + options.later):
            started = time.perf_counter_ns()
            export(model, x, options.exporter, Path(folder) / "model.onnx")
            times.append((time.perf_counter_ns() - started) / 1e6)
    found = {"first_ms": times[0], "later_ms": statistics.median(times[1:]), "rss_mb": (resident() - before) / 1e6}
    print(json.dumps({key: round(value, 2) for key, value in found.items()}), file=WIRE, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
