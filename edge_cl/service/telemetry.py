"""What the running daemon measures of itself: hits, times, rates, memory. Bounded, whatever it is fed.

Numbers only: it knows neither learner nor bridge, and asks nobody but the kernel (for RSS).
"""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Sequence
from math import inf
from pathlib import Path

import numpy as np

from edge_cl.service.promise import Promise
from edge_cl.service.status import HISTORY

RECENT = 2048  # times kept for percentiles
WINDOW = 500  # scored predictions in the windowed accuracy, anomaly scores in their median
RATE_WINDOW_S = 5.0


class Timings:
    """The latest durations in milliseconds, their percentiles, and whether their limit is kept."""

    def __init__(self, limit_ms: float = inf) -> None:
        self._ms: deque[float] = deque(maxlen=RECENT)
        self.promise = Promise(limit_ms / 1e3)

    def add(self, seconds: float, worked_s: float = 0.0) -> None:
        """Note one duration that is over now, and for how much of it the processor was at work on it."""
        self._ms.append(seconds * 1e3)
        self.promise.add(time.monotonic(), seconds, worked_s)

    def percentile(self, q: float) -> float | None:
        """The q-th percentile in ms of the latest durations, None before the first."""
        return float(np.percentile(self._ms, q)) if self._ms else None


class Telemetry:
    """Counters and curves of one run."""

    def __init__(self, step_ms: float = inf, predict_ms: float = inf) -> None:
        self.step, self.predict = Timings(step_ms), Timings(predict_ms)
        self.started = time.monotonic()
        self.samples = self.labelled = self.hits = 0
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._anomaly: deque[float] = deque(maxlen=WINDOW)
        self._history: list[float] = []
        self._every = 1  # scored predictions between two points of the history
        self._since = 0
        self._arrivals: deque[tuple[float, int]] = deque()

    def restore(self, samples: int, labelled: int, hits: int) -> None:
        """Go on counting where an earlier run on the same state stopped."""
        self.samples, self.labelled, self.hits = samples, labelled, hits

    def scored(self, hits: Sequence[bool]) -> None:
        """Predictions whose label came, in order."""
        for hit in hits:
            self.labelled += 1
            self.hits += hit
            self._recent.append(hit)
            self._since += 1
            if self._since >= self._every:
                self._note_point()

    def judged(self, anomaly_score: float) -> None:
        """One observation without a label, by how unlike those before it is."""
        self._anomaly.append(anomaly_score)

    def arrived(self, n: int) -> None:
        """n observations came and were predicted."""
        self.samples += n
        now = time.monotonic()
        self._arrivals.append((now, n))
        while self._arrivals and now - self._arrivals[0][0] > RATE_WINDOW_S:
            self._arrivals.popleft()

    @property
    def samples_per_s(self) -> float:
        """Observations a second over the last seconds."""
        now = time.monotonic()
        span = min(now - self.started, RATE_WINDOW_S)
        count = sum(n for when, n in self._arrivals if now - when <= RATE_WINDOW_S)
        return count / span if span > 0 else 0.0

    @property
    def prequential_accuracy(self) -> float | None:
        """Share of hits over the whole run: each prediction scored before its sample was learnt (Gama et al. 2013)."""
        return self.hits / self.labelled if self.labelled else None

    @property
    def windowed_accuracy(self) -> float | None:
        """The same over the last WINDOW scored predictions."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    @property
    def anomaly_score(self) -> float | None:
        """The latest, None before the first."""
        return self._anomaly[-1] if self._anomaly else None

    @property
    def anomaly_p50(self) -> float | None:
        """Median of the last WINDOW."""
        return float(np.median(self._anomaly)) if self._anomaly else None

    @property
    def history(self) -> list[float]:
        """The windowed accuracy at even intervals since the start, at most HISTORY points."""
        return list(self._history)

    def _note_point(self) -> None:
        self._since = 0
        self._history.append(sum(self._recent) / len(self._recent))
        if len(self._history) > HISTORY:  # half the points at twice the distance: bounded for ever, still even
            self._history = self._history[1::2]
            self._every *= 2


def rss_bytes() -> int:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def rss_peak_bytes() -> int:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
