"""The work that every side does: which network, which samples, how many in a step.

Knows numpy and torch only, because the peers' process imports it, too, in an environment without edge_cl.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).parents[2]
DEFAULT_DATA = ROOT.parent / "shared" / "data"

LEARNING_RATE = 0.05
EWC_LAMBDA = 100.0  # of ½ λ Σ F (θ - θ*)²
GAMMA = 0.95
BUFFER = 500  # samples of replay
RESIDENT = 2500  # samples of each phase in memory, for every side
HELD_OUT = 500  # samples of each phase that no side learns from
FISHER_SAMPLES = 500
BETTER = 1.5  # than chance after phase A; not the loss, for after single samples it is overconfident where it errs

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """A network, a stream and a step.

    `layers` makes the network out of torch modules; ours has the same shapes. The classes below `old_classes` come
    first (phase A, then one Fisher), the others while the clock runs (phase B). A step learns `new` + `replayed`.
    """

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: str
    n_classes: int
    old_classes: int
    new: int
    replayed: int
    warm_up_steps: int
    layers: Callable[[], list[nn.Module]]

    @property
    def layout(self) -> tuple[int, ...]:
        """Shape of a sample with channels last."""
        return (*self.shape, 1) if self.shape == (28, 28) else self.shape

    def modules(self) -> nn.Sequential:
        """The network in torch modules, from standardised samples, channels first, to logits; the same each time."""
        torch.manual_seed(0)
        return nn.Sequential(*self.layers())


@dataclass(frozen=True)
class Part:
    """Samples of one phase: raw (N, *shape) in the sensor's dtype, float (N, C, *positions) standardised, labels."""

    raw: NDArray[Any]
    standardised: Tensor
    labels: Tensor

    def turns(self, n: int) -> list[slice]:
        """All whole batches of n."""
        return [slice(start, start + n) for start in range(0, len(self.raw) - n + 1, n)]


@dataclass(frozen=True)
class Data:
    """The two phases, each with samples held out; `origin` is the file's name, or "synthetic"."""

    old: Part
    new: Part
    old_held_out: Part
    new_held_out: Part
    origin: str


@dataclass(frozen=True)
class Verdict:
    """What a side has learnt of samples held out: a side that computes nonsense is not worth timing."""

    loss: float
    accuracy: float


class LogVariancePool(nn.Module):
    """edge_cl's pooling of a filter bank (edge_cl/learning/layers.py), in torch's own functions."""

    def forward(self, x: Tensor) -> Tensor:
        """Loudness of the first half of the channels, level of the others; (B, C, L) to (B, C)."""
        half = x.shape[1] // 2
        loudness = x[:, :half].var(2, unbiased=False).add(1e-4).log() * 0.3
        return torch.cat([loudness, x[:, half:].relu().mean(2)], 1)


def _mlp() -> list[nn.Module]:
    hidden = [nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return [*hidden, nn.Linear(256, 10)]


def _cnn2d() -> list[nn.Module]:
    convolutions = [nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()]
    convolutions += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    return [*convolutions, nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10)]


def _cnn1d() -> list[nn.Module]:
    bank = nn.Conv1d(9, 128, 9, stride=2, padding=4)
    return [bank, LogVariancePool(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 6)]


_FASHION = ("fashion_mnist.npz", (28, 28), "uint8", 10, 5)
_HAR = ("uci_har.npz", (128, 9), "int16", 6, 3)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("W1", *_FASHION, 10, 10, 100, _mlp),
        Workload("W2", *_FASHION, 10, 10, 100, _cnn2d),
        Workload("W1_batch1", *_FASHION, 1, 1, 500, _mlp),
        Workload("HAR", *_HAR, 10, 20, 100, _cnn1d),
    )
}


def load(workload: Workload, folder: Path) -> Data:
    """The samples of a workload, from the folder's file or, where it is missing, made up in the same shape and dtype.

    Reads the file, copies nothing. Standardised with the mean and deviation of each channel over phase A.
    """
    file = folder / workload.file
    origin = workload.file if file.is_file() else "synthetic"
    x, y, x_test, y_test = _read(file) if file.is_file() else _make_up(workload)
    rng = np.random.default_rng(0)
    old, old_test = (_choose(rng, labels < workload.old_classes) for labels in (y, y_test))
    new, new_test = (_choose(rng, labels >= workload.old_classes) for labels in (y, y_test))
    old, new, old_test, new_test = old[:RESIDENT], new[:RESIDENT], old_test[:HELD_OUT], new_test[:HELD_OUT]
    channels = x[old].reshape(-1, workload.layout[-1]).astype(np.float64)
    mean, deviation = channels.mean(0), channels.std(0) + 1e-6

    def part(images: NDArray[Any], labels: NDArray[Any], rows: NDArray[np.int64]) -> Part:
        raw = np.ascontiguousarray(images[rows])
        scaled = (raw.reshape(-1, *workload.layout) - mean) / deviation
        standardised = torch.from_numpy(scaled.astype(np.float32)).movedim(-1, 1).contiguous()
        return Part(raw, standardised, torch.from_numpy(labels[rows].astype(np.int64)))

    return Data(
        part(x, y, old), part(x, y, new), part(x_test, y_test, old_test), part(x_test, y_test, new_test), origin
    )


def judge(probabilities: Tensor, labels: Tensor) -> Verdict:
    """Mean cross-entropy and accuracy of probabilities (N, C) for labels (N,)."""
    loss = functional.nll_loss(probabilities.clamp_min(1e-12).log(), labels)
    return Verdict(float(loss), float((probabilities.argmax(1) == labels).float().mean()))


def assert_learnt(side: str, verdict: Verdict, n_classes: int) -> None:
    """Raise SystemExit unless the side answers clearly better than by chance among n classes, with a finite loss."""
    if not math.isfinite(verdict.loss) or verdict.accuracy < BETTER / n_classes:
        sys.exit(
            f"error: {side} did not learn: loss {verdict.loss:.3f}, accuracy {verdict.accuracy:.3f} (by chance "
            f"{1 / n_classes:.3f}); its times would mean nothing"
        )


def replay_batches(part: Part, old: Part, new: int, replayed: int) -> list[Batch]:
    """Ready float32 batches: `new` samples of a part, in order, beside `replayed` ones of the old part."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for turn in part.turns(new):
        places = torch.randint(0, len(old.labels), (replayed,), generator=generator)
        x = torch.cat([part.standardised[turn], old.standardised[places]])
        batches.append((x, torch.cat([part.labels[turn], old.labels[places]])))
    return batches


def _read(file: Path) -> tuple[NDArray[Any], ...]:
    with np.load(file, allow_pickle=False) as arrays:
        return tuple(arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))


def _make_up(workload: Workload) -> tuple[NDArray[Any], ...]:
    """A level and a pattern for each class, and noise: easy to learn, and no cheaper to compute with."""
    rng = np.random.default_rng(1)
    n, C = 2 * (RESIDENT + HELD_OUT), workload.n_classes
    y = np.arange(n) % C
    level = rng.normal(0, 40, (C, *[1] * (len(workload.layout) - 1), workload.layout[-1]))
    ideal = (level + rng.normal(0, 40, (C, *workload.layout))).reshape(C, *workload.shape)
    x = ideal[y] + rng.normal(0, 40, (n, *workload.shape)) + (128 if workload.dtype == "uint8" else 0)
    limits = np.iinfo(workload.dtype)
    x = x.clip(limits.min, limits.max).astype(workload.dtype)
    cut = 2 * RESIDENT
    return x[:cut], y[:cut], x[cut:], y[cut:]


def _choose(rng: np.random.Generator, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    return rng.permutation(np.flatnonzero(wanted))
