"""What a pretend board measures: a six-axis motion sensor in four states, or the motor of the simulated source."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from operator import attrgetter

import numpy as np

from firmware_bridge import motor
from firmware_bridge.sample import Sample, Schema

NAMES = ("imu", "motor")
STATES = ("still", "walking", "turning", "shaking")
RATE_HZ = 1000.0
_BLOCK, _STRETCH = 1000, 200


def imu_schema(rate_hz: float | None) -> Schema:
    """Six float32 values a sample."""
    axes = ("ax", "ay", "az", "gx", "gy", "gz")
    return Schema("imu", "float32", (6,), channels=axes, rate_hz=rate_hz or RATE_HZ, label_names=STATES)


def imu(seed: int, rate_hz: float | None = None) -> Iterator[Sample]:
    """Labelled samples without end at that rate, by default 1 kHz; a state lasts 200 of them."""
    period_us = 1e6 / (rate_hz or RATE_HZ)
    means = np.random.default_rng([seed, 2]).normal(0, 2, (len(STATES), 6))
    for block in count():
        first = block * _BLOCK
        states = np.arange(first, first + _BLOCK) // _STRETCH % len(STATES)
        noise = np.random.default_rng([seed, 3, block]).normal(0, 0.3, (_BLOCK, 6))
        values = (means[states] + noise).astype(np.float32)
        values.flags.writeable = False
        for row in range(_BLOCK):
            at = first + row
            yield Sample(0, 0, at, round(at * period_us), values[row], int(states[row]))


def signal(name: str, seed: int, rate_hz: float | None) -> tuple[Schema, Iterator[Sample]]:
    """Schema and samples of imu or motor."""
    if name == "motor":
        return motor.schema(), motor.Motor(seed).samples()
    return imu_schema(rate_hz), imu(seed, rate_hz)


def signals(names: Sequence[str], seed: int, rate_hz: float | None) -> tuple[list[Schema], Iterator[Sample]]:
    """Schemas of several, stream by stream, and the samples of all in the order of their times.

    A name may have a rate of its own behind it, as imu@50; rate_hz is that of the others.
    """
    schemas, made = [], []
    for stream, name in enumerate(names):
        which, _, own = name.partition("@")
        schema, samples = signal(which, seed + stream, float(own) if own else rate_hz)
        schemas.append(schema)
        made.append(_numbered(samples, stream))
    return schemas, heapq.merge(*made, key=attrgetter("time_us"))


def _numbered(samples: Iterator[Sample], stream: int) -> Iterator[Sample]:
    return (replace(sample, stream=stream) for sample in samples)
