"""Observations as the daemon gets them: from the configured source, through the daemon's own inlet and window.

What the source does not hand out in time is made up, to look like what it did hand out. Knows no learner; must not
know how long anything takes but the wait for an observation.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_cl import assembly
from edge_cl.config import Config
from edge_cl.daemon import POLL_S
from edge_cl.intake import Urls, source_of
from firmware_bridge.errors import EndOfSource
from firmware_bridge.inlet import ITEM_BYTES, Inlet
from firmware_bridge.sample import Label, Sample, Schema
from firmware_bridge.source import Source, SourceBase
from firmware_bridge.windows import Windows

LONGEST_WAIT_S: Final = 0.01  # for an observation; caches are nearly as cold then as after a longer one
LOOK_S, LOOKED_AT = 0.5, 64  # how long, and at how many observations, a look at a source takes at most
MADE_UP: Final = 256  # samples, over and over
SPREAD: Final = 50.0  # of samples of which nothing is known


class MadeUp:
    """Samples that look like some real ones, channel by channel, and labels drawn at random."""

    def __init__(self, task: assembly.Task, n_classes: int, shown: NDArray[Any]) -> None:
        self.task, self.n_classes = task, n_classes
        self._rng = np.random.default_rng(0)
        real = shown.astype(np.float64)
        over = tuple(range(real.ndim - 1)) if real.ndim > 1 else None
        self._mean = real.mean(over) if len(real) else np.zeros(1)
        self._spread = real.std(over) if len(real) else np.full(1, SPREAD)

    def draw(self, n: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Samples (n, *shape) in the sensor's dtype, and labels (n,)."""
        dtype = self.task.dtype
        x = self._rng.normal(self._mean, self._spread, (n, *self.task.shape))
        if dtype.kind in "iu":
            limits = np.iinfo(dtype.name)
            x = x.clip(limits.min, limits.max)
        return x.astype(dtype), self._rng.integers(0, self.n_classes, n)

    def endless(self) -> Iterator[Sample]:
        """Some of them, over and over."""
        x, y = self.draw(MADE_UP)
        number = 0
        while True:
            at = number % MADE_UP
            yield Sample(0, 0, number, number, x[at], int(y[at]))
            number += 1


class Feed:
    """One observation after the other from the source that is named, each with a label to learn it under.

    `made_up` of them were not the source's. Raises BridgeError when the source cannot be opened, or is lost.
    """

    def __init__(self, urls: Urls, config: Config, alike: MadeUp) -> None:
        self.made_up = 0
        self._config, self._alike = config, alike
        self._source = _Again(source_of(config, urls))
        self._window: Windows | None = None
        self._ready: deque[Sample] = deque()
        self._spare = alike.endless()
        self._closing = ExitStack()

    def __enter__(self) -> Feed:
        with ExitStack() as stack:
            stack.enter_context(self._source)
            self._window = assembly.make_windows(self._alike.task, self._source)
            room = max(self._config.bridge.queue_bytes, self._source.schema.nbytes + ITEM_BYTES)
            self._inlet = Inlet(self._source, room)
            stack.callback(self._inlet.close)
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def next(self) -> tuple[NDArray[Any], int]:
        """Values (*shape) of the next observation, and its label; drawn at random where none came with it."""
        until = time.monotonic() + LONGEST_WAIT_S
        while not self._ready and (wait_s := until - time.monotonic()) > 0:
            with suppress(EndOfSource):
                self._ready += observations(self._window, self._inlet.get(wait_s))
        spare = next(self._spare)
        observation = self._ready.popleft() if self._ready else spare
        self.made_up += observation is spare
        known = observation.label is not None and 0 <= observation.label < self._alike.n_classes
        label = observation.label if known else spare.label
        assert label is not None
        return observation.values, label


def look(source: Source, task: assembly.Task) -> NDArray[Any]:
    """Some observations (n, *shape) of an open source, none if none come soon."""
    window, shown = assembly.make_windows(task, source), list[NDArray[Any]]()
    until = time.monotonic() + LOOK_S
    with suppress(EndOfSource):
        while len(shown) < LOOKED_AT and (wait_s := until - time.monotonic()) > 0:
            shown += [observation.values for observation in observations(window, source.read(wait_s))]
    return np.stack(shown[:LOOKED_AT]) if shown else np.empty((0, *task.shape), task.dtype)


def observations(window: Windows | None, item: Sample | Label | None) -> list[Sample]:
    """What a sample of a source completes."""
    if not isinstance(item, Sample):
        return []
    return [item] if window is None else window.push(item)


def batch_of(config: Config, task: assembly.Task, schema: Schema, *, can_wait: bool) -> int:
    """Observations that the daemon learns in a step, if all have labels.

    A source that can wait fills each batch, and one whose pace is not known might. A slower one is learnt when its
    oldest has waited for learning.max_wait_ms, at the first sample or the first poll after that.
    """
    most, rate_hz = config.learning.batch_size, schema.rate_hz
    if can_wait or not rate_hz:
        return most
    rows = schema.rows if task.window is None else task.window[1]
    rate_hz *= task.n_streams
    look_s = min(schema.rows / rate_hz, POLL_S)
    learnt_at_s = look_s * (config.learning.max_wait_ms / 1e3 // look_s + 1)
    return min(most, 1 + int(learnt_at_s * rate_hz / rows))


class _Again(SourceBase):
    """A source that can wait, and at its end begins again with the last samples it had; of others, just silence.

    Nothing is safe here, for a check keeps no sample: so nobody is told.
    """

    def __init__(self, source: Source) -> None:
        self._source, self.is_queued = source, source.is_queued
        self._last: deque[Sample] = deque(maxlen=MADE_UP)
        self._over = False

    @property
    def schema(self) -> Schema:
        return self._source.schema

    @property
    def can_wait(self) -> bool:
        return self._source.can_wait

    @property
    def counters(self) -> Mapping[str, int]:
        return self._source.counters

    @property
    def streams(self) -> Sequence[int]:
        return self._source.streams

    def schema_of(self, stream: int) -> Schema:
        return self._source.schema_of(stream)

    def open(self) -> None:
        self._source.open()

    def close(self) -> None:
        self._source.close()

    def read(self, timeout_s: float) -> Sample | Label | None:
        if not self._over:
            try:
                item = self._source.read(timeout_s)
            except EndOfSource:
                self._over = True
            else:
                if isinstance(item, Sample):
                    self._last.append(item)
                return item
        if not self._last or not self.can_wait:
            time.sleep(timeout_s)
            return None
        self._last.rotate(-1)
        return self._last[-1]
