"""What the choices behind the anchor are worth, on Permuted Fashion-MNIST: bytes, merging, and what a λ means.

    python tools/compare_ewc.py [--json] [--part storage|merging|lambda] [--seeds 3] [--tasks 10] [--samples 10000]

Ten tasks one after another, each with its own fixed shuffle of the pixels, one pass, no task given away; accuracy is
the mean over all tasks at the end. Everything is chosen on 200 images of each class held out of the training split;
`storage` alone, which chooses nothing, is scored on the test split.

storage   θ* and Fisher in three bytes a parameter and in float32, without replay
merging   γ from 0 (the new Fisher alone) to 1 (their sum, capped), without replay and with 500 samples of it
lambda    the same λ at other batch sizes, widths and replay memories: accuracy must peak at the same λ
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from edge_cl.learning.anchor import Anchor
from edge_cl.learning.layers import Flatten, Linear, ReLU
from edge_cl.learning.learner import Learner, Rule
from edge_cl.learning.model import Blueprint
from edge_cl.learning.network import Network
from edge_cl.learning.replay import Reservoir

SHAPE, CLASSES = (28, 28), 10
HELD_OUT = 200  # of each class
UINT8 = np.dtype(np.uint8)


@dataclass(frozen=True)
class Setting:
    """One run: how it learns, and what it is learnt with."""

    ewc_lambda: float = 10.0
    gamma: float = 1.0
    compact: bool = True
    replay: int = 0
    batch: int = 10
    width: int = 256
    learning_rate: float = 0.02
    seed: int = 0


class Data:
    """Training images in a seeded order, images to choose by, and images to report."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x_train"], file["y_train"].astype(np.int64)
            self.test = file["x_test"][:2000], file["y_test"][:2000].astype(np.int64)
        held = np.concatenate([np.flatnonzero(y == c)[:HELD_OUT] for c in range(CLASSES)])
        rest = np.setdiff1d(np.arange(len(y)), held)
        self.train, self.held_out = (x[rest], y[rest]), (x[held], y[held])


def accuracy(setting: Setting, data: Data, *, tasks: int, samples: int, test: bool) -> float:
    """Mean accuracy over all tasks after the last one."""
    rng = np.random.default_rng(setting.seed)
    orders = [rng.permutation(SHAPE[0] * SHAPE[1]) for _ in range(tasks)]
    learner = make_learner(setting)
    x, y = data.train
    for order in orders:
        if setting.replay == 0:  # only the task that ends tells its Fisher; nothing of it is learnt again
            learner.replay = Reservoir(500, SHAPE, UINT8, n_classes=CLASSES, policy="reservoir", seed=setting.seed)
        chosen = rng.permutation(len(y))[:samples]
        shuffled = permuted(x[chosen], order)
        for start in range(0, samples, setting.batch):
            learner.learn(shuffled[start : start + setting.batch], y[chosen[start : start + setting.batch]])
        learner.consolidate()
    x, y = data.test if test else data.held_out
    return float(np.mean([(learner.predict(permuted(x, order)).argmax(1) == y).mean() for order in orders]))


def make_learner(setting: Setting) -> Learner:
    """An MLP of two hidden layers with these numbers, and nothing else that could protect what was learnt."""
    w = setting.width
    layers = [Flatten(), Linear(784, w), ReLU(), Linear(w, w), ReLU(), Linear(w, CLASSES)]
    rule = Rule(
        learning_rate=setting.learning_rate * setting.batch / 10,  # the same way per sample, whatever the batch
        batch_size=setting.batch,
        replay_per_step=setting.batch if setting.replay else 0,
        label_smoothing=0.0,
        ewc_lambda=setting.ewc_lambda,
        gamma=setting.gamma,
        fisher_samples=500,
        rehearsal_passes=0,
        exam_share=0.0,
    )
    replay, exam = (
        Reservoir(n, SHAPE, UINT8, n_classes=CLASSES, policy="reservoir", seed=setting.seed)
        for n in (setting.replay, 0)
    )
    network = Network(Blueprint("mlp", SHAPE, (*SHAPE, 1), layers), seed=setting.seed)
    learner = Learner(network, replay, exam, rule, seed=setting.seed)
    learner.anchor = Anchor(network.arena.flat, compact=setting.compact)
    return learner


def permuted(x: NDArray[np.uint8], order: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images with their pixels in another order."""
    return x.reshape(len(x), -1)[:, order].reshape(x.shape)


def settings_of(part: str) -> Iterator[tuple[str, Setting]]:
    """The runs of one part, by name."""
    base = Setting()
    if part == "storage":
        for compact in (True, False):
            yield "3 bytes" if compact else "float32", replace(base, compact=compact)
    elif part == "merging":
        for memory in (0, 500):
            for gamma in (0.0, 0.7, 0.9, 1.0):
                yield f"replay {memory}, gamma {gamma}", replace(base, gamma=gamma, replay=memory)
    else:
        variants = {
            "batch 10, width 256, no replay": base,
            "batch 5": replace(base, batch=5),
            "batch 40": replace(base, batch=40),
            "width 64": replace(base, width=64),
            "replay 200": replace(base, replay=200),
            "replay 1000": replace(base, replay=1000),
        }
        for name, setting in variants.items():
            for ewc_lambda in (0.0, 1.0, 3.0, 10.0, 30.0, 100.0):
                yield f"{name}, lambda {ewc_lambda:g}", replace(setting, ewc_lambda=ewc_lambda)


def measure(part: str, data: Data, *, seeds: int, tasks: int, samples: int, quiet: bool) -> dict[str, Any]:
    """Accuracy of each run of a part in percent, seed by seed."""
    rows: dict[str, Any] = {}
    for name, setting in track(list(settings_of(part)), part, disable=quiet, console=Console(stderr=True)):
        runs = [
            100 * accuracy(replace(setting, seed=s), data, tasks=tasks, samples=samples, test=part == "storage")
            for s in range(seeds)
        ]
        rows[name] = {"mean": float(np.mean(runs)), "seeds": runs}
    if part == "storage":
        compact, exact = (np.array(rows[name]["seeds"]) for name in ("3 bytes", "float32"))
        rows["difference"] = {"mean": float((compact - exact).mean()), "seeds": (compact - exact).tolist()}
    return rows


def main() -> None:
    """Run the parts asked for and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--part", action="append", choices=("storage", "merging", "lambda"), help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--samples", type=int, default=10_000, help="of each task")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/fashion_mnist.npz")
    arguments = parser.parse_args()
    if not arguments.data.exists():
        sys.exit(
            f"{arguments.data}: no such file; --data names a Fashion-MNIST .npz with x_train, y_train, x_test, y_test"
        )
    torch.set_num_threads(1)
    data = Data(arguments.data)
    size = {"seeds": arguments.seeds, "tasks": arguments.tasks, "samples": arguments.samples}
    found: dict[str, Any] = dict(size)
    for part in arguments.part or ["storage", "merging", "lambda"]:
        found[part] = measure(part, data, **size, quiet=not sys.stderr.isatty())
        if not arguments.json:
            for name, row in found[part].items():
                print(f"{part:8} {name:40} {row['mean']:6.2f}   ({', '.join(f'{run:.2f}' for run in row['seeds'])})")
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
