#!/usr/bin/env python3
"""Learning on a frozen backbone against learning the whole network, on traffic signs: bytes, steps/s, accuracy.

    python tools/compare_backbone.py [--json] [--seeds 3] [--epochs 40] [--data DIR]

A small CNN is trained on 21 of GTSRB's 43 kinds of sign, the even ones but the last, on their training tracks alone and
by Adam over shuffled images; then it is exported without its last layer. What is compared learns the other 22 kinds in
one pass in the order of their tracks (`edge-cl evaluate --scenario domain --experiences 10 --order track`), and is
scored on their test tracks, which nobody has seen and by which nothing here was chosen. `whole` is the default network
for images, `wide` the same with the backbone's own channels, `features` the default head on the backbone, `slda`
streaming LDA on it. Replay has the bytes of REPLAY_BYTES each.

learner_bytes is what the learner holds at the end, a backbone's file with it; rss_mb what the resident memory of a
process that only loads the backbone grows by. samples_per_s is all time within the learner, the backbone's runs with
it, at one thread; runs stand side by side, so compare them within one table only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.onnx import utils

from edge_cl.config import parse
from edge_cl.errors import EdgeError
from edge_cl.evaluation.data import Dataset, load_dataset
from edge_cl.evaluation.evaluate import Contender, Request, evaluate
from edge_cl.evaluation.result import Result
from edge_cl.evaluation.streams import Scenario

DATA = Path(__file__).parents[2] / "shared/data"
FILE = "gtsrb_tracks.npz"
KNOWN = range(0, 42, 2)  # kinds of sign that the backbone is trained on
REPLAY_BYTES = 256 * 1024
BATCH, RATE = 32, 0.002
SETTINGS: dict[str, tuple[str, ...]] = {
    "whole": (),
    "wide": ("model.width=48",),
    "features": ("model.backbone={}",),
    "slda": ("model.backbone={}", "model.kind=slda"),
}
GROWTH = """
import sys
import numpy as np
import onnxruntime
from edge_cl.learning.backbone import Backbone
def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
before = resident()
backbone = Backbone(open(sys.argv[1], "rb").read(), (32, 32, 3), np.dtype(np.uint8))
backbone.features(np.zeros((1, 32, 32, 3), np.uint8))
print(resident() - before)
"""


class Backbone(nn.Module):
    """Raw images (B, 3, 32, 32) of 0 to 255 to 192 features: three strided convolutions, BatchNorm, a mean over 2x2."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 24), (24, 48), (48, 48)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 192)."""
        features: Tensor = self.body(x / 127.5 - 1)
        return features


def main() -> int:
    """Parse, train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--epochs", type=int, default=40, metavar="N", help="passes of the backbone's own training")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where the recordings are")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        data = load_dataset(str(options.data / FILE))
        with TemporaryDirectory() as folder:
            backbone, rest = Path(folder) / "backbone.onnx", Path(folder) / "signs.npz"
            export(trained(data, options.epochs), backbone)
            write_rest(data, rest)
            results = compared(rest, backbone, options.seeds)
            found = {
                "backbone": {"bytes": backbone.stat().st_size, "rss_mb": growth(backbone), "epochs": options.epochs},
                "replay_bytes": REPLAY_BYTES,
                "learners": {result.strategy: figures(result) for result in results},
            }
    except EdgeError as exc:
        sys.exit(f"{exc}; {exc.hint}" if exc.hint else str(exc))
    if options.json:
        print(json.dumps(found))
    else:
        Console().print(table(found))
    return 0


def trained(data: Dataset, epochs: int) -> Backbone:
    """The backbone, trained with a last layer of its own on the kinds KNOWN of the training split."""
    torch.manual_seed(0)
    chosen = np.isin(data.y, KNOWN)
    x = torch.from_numpy(data.x[chosen]).float().movedim(-1, 1).contiguous()
    y = torch.from_numpy(np.searchsorted(KNOWN, data.y[chosen]))
    backbone, head = Backbone(), nn.Linear(192, len(KNOWN))
    optimiser = torch.optim.Adam([*backbone.parameters(), *head.parameters()], RATE)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(head(backbone(x[rows])), y[rows]).backward()
            optimiser.step()
    return backbone.eval()


def export(backbone: Backbone, path: Path) -> None:
    """Write it as ONNX, any number of images at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils.export(
            backbone,
            (torch.zeros(1, 3, 32, 32),),
            str(path),
            opset_version=17,
            input_names=["image"],
            output_names=["features"],
            dynamic_axes={"image": {0: "batch"}, "features": {0: "batch"}},
        )


def write_rest(data: Dataset, path: Path) -> None:
    """The kinds of sign that the backbone has not seen, as a recording with the tracks' numbers."""
    arrays: dict[str, NDArray[Any]] = {}
    kinds = np.setdiff1d(np.unique(data.y), KNOWN)
    parts = {"train": (data.x, data.y, data.marks), "test": (data.test_x, data.test_y, data.test_marks)}
    for part, (x, y, marks) in parts.items():
        rows = np.isin(y, kinds)
        arrays[f"x_{part}"], arrays[f"y_{part}"] = x[rows], np.searchsorted(kinds, y[rows]).astype(np.uint8)
        arrays[f"track_{part}"] = marks["track"][rows]
    np.savez(path, label_names=np.array([data.label_names[kind] for kind in kinds]), **arrays)


def compared(rest: Path, backbone: Path, seeds: int) -> list[Result]:
    """Each way to learn, on the same streams with the same bytes of replay."""
    contenders = tuple(
        Contender(name, parse("", overrides=[setting.format(backbone) for setting in settings]), name != "slda")
        for name, settings in SETTINGS.items()
    )
    scenario = Scenario("domain", experiences=10, order="track")
    return evaluate(Request(str(rest), scenario, contenders, replay_bytes=(REPLAY_BYTES,), seeds=seeds))


def growth(backbone: Path) -> float:
    """Megabytes that a process's resident memory grows by when it loads the backbone and runs it once."""
    done = subprocess.run([sys.executable, "-c", GROWTH, str(backbone)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def figures(result: Result) -> dict[str, Any]:
    """What stands in the table of one way to learn."""
    runs = result.runs
    return {
        "model": result.model,
        "learner_bytes": max(run.learner_bytes for run in runs),
        "replay_samples": max(run.replay_samples for run in runs),
        "samples_per_s": sum(run.samples for run in runs) / sum(run.compute_s for run in runs),
        "accuracy": result.average_accuracy.mean,
        "accuracy_std": result.average_accuracy.std,
        "prequential": result.prequential_accuracy.mean,
    }


def table(found: dict[str, Any]) -> Table:
    """The figures, a row each."""
    size, grown = found["backbone"]["bytes"], found["backbone"]["rss_mb"]
    shown = Table(title=f"A backbone of {size:,} bytes, {grown:.1f} MB resident")
    for heading in ("learner", "model", "bytes", "old samples", "samples/s", "accuracy %", "while learning %"):
        shown.add_column(heading, justify="left" if heading in ("learner", "model") else "right")
    for name, row in found["learners"].items():
        accuracy = f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_std']:.1f}"
        held = (f"{row['learner_bytes']:,}", f"{row['replay_samples']:,}", f"{row['samples_per_s']:.0f}")
        shown.add_row(name, row["model"], *held, accuracy, f"{100 * row['prequential']:.1f}")
    return shown


if __name__ == "__main__":
    sys.exit(main())
