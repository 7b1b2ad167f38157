"""Tiny recordings that a small model can learn, the same bytes each time: signals, images, feature vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LABELS = ("slow", "medium", "fast")
ROWS, CHANNELS = 40, 3
RATE_HZ = 1000.0  # of the rows, so 25 samples a second


def signals(n: int, *, seed: int = 0) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """x (n, 40, 3) int16, y (n,): class c is a sine of frequency 2c + 1 with random phase, in noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(LABELS), n)
    turns = (2 * y + 1)[:, None, None] * np.arange(ROWS)[None, :, None] / ROWS
    phase = rng.uniform(0, 1, (n, 1, CHANNELS))
    x = 300 * np.sin(2 * np.pi * (turns + phase)) + rng.normal(0, 40, (n, ROWS, CHANNELS))
    return x.astype(np.int16), y


def images(n: int, *, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """x (n, 20, 20) uint8, y (n,): class c has a bright bar in row 6c + 3, on noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(LABELS), n)
    x = rng.integers(0, 60, (n, 20, 20))
    x[np.arange(n), 6 * y + 3] += 190
    return x.astype(np.uint8), y


def features(n: int, *, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """x (n, 5) float32, y (n,): readings in very different units; class c shifts each of them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(LABELS), n)
    level, spread = np.array([101_325.0, 20.0, 0.02, -5.0, 3000.0]), np.array([100.0, 1.0, 0.001, 0.1, 10.0])
    return (level + spread * (2 * y[:, None] + rng.normal(0, 0.3, (n, 5)))).astype(np.float32), y


def record(path: Path, n: int = 240, *, n_test: int = 60, seed: int = 0, **other: Any) -> Path:
    """The signals with names and a test split as a recording; `other` adds or replaces arrays, None leaves one out."""
    x, y = signals(n + n_test, seed=seed)
    arrays: dict[str, Any] = {
        "x_train": x[:n],
        "y_train": y[:n],
        "x_test": x[n:],
        "y_test": y[n:],
        "label_names": np.array(LABELS),
        "fs_hz": RATE_HZ,
    }
    return save(path, **(arrays | other))


def save(path: Path, **arrays: Any) -> Path:
    """These arrays as a recording; those that are None are left out."""
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path
