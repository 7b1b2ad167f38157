"""The simulated motor as a set of samples to evaluate on, made without its serial line.

Knows the motor's stretches. Must not know streams, learners or scores.
"""

from __future__ import annotations

import numpy as np

from edge_cl.evaluation.data import HELD_OUT, Dataset
from firmware_bridge.motor import FRAME_ROWS, RATE_HZ, STATES, STRETCH_FRAMES, Motor, schema

ROUNDS = 2  # all states at one speed and load, then all at another


def motor_dataset(seed: int = 0) -> Dataset:
    """Windows (N, 256, 3) of the motor of that seed, with its true states; of each stretch the last part is held out.

    The mark `round` tells which of the motor's conditions a window was taken under.
    """
    motor, (length, _) = Motor(seed), schema().window or (FRAME_ROWS, FRAME_ROWS)
    stretches = ROUNDS * len(STATES)
    seconds = STRETCH_FRAMES * FRAME_ROWS // RATE_HZ
    x = np.stack([_windows(motor, stretch, seconds, length) for stretch in range(stretches)])  # (stretches, n, L, C)
    states = np.array([motor.state(stretch * STRETCH_FRAMES) for stretch in range(stretches)], np.int64)
    kept = x.shape[1] - round(HELD_OUT * x.shape[1])
    parts = {"train": x[:, :kept], "test": x[:, kept:]}
    rows = {name: part.reshape(-1, *x.shape[2:]) for name, part in parts.items()}
    y = {name: states.repeat(part.shape[1]) for name, part in parts.items()}
    rounds = {name: (np.arange(stretches) // len(STATES)).repeat(part.shape[1]) for name, part in parts.items()}
    return Dataset(
        name="simulated motor",
        x=rows["train"],
        y=y["train"],
        test_x=rows["test"],
        test_y=y["test"],
        label_names=STATES,
        marks={"round": rounds["train"]},
        test_marks={"round": rounds["test"]},
    )


def _windows(motor: Motor, stretch: int, seconds: int, length: int) -> np.ndarray:
    counts = np.concatenate([motor.rows(stretch * seconds + second) for second in range(seconds)])
    return counts[: len(counts) // length * length].reshape(-1, length, counts.shape[1])
