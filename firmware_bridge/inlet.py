"""The bounded queue between a source and the learner: one reader thread, counted in bytes, every drop by reason.

A source that can wait, or has queues of its own, is left unread while the queue is full. A live source is read on, and
the oldest sample gives way (counted "queue_oldest", the next sample is flagged gap): the newest says more about now.
Labels are never dropped; a queue full of nothing else stops reading, so the bound holds even against a flood of them.
Knows no bytes of a wire.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from firmware_bridge.errors import BridgeError
from firmware_bridge.pressure import Pressure
from firmware_bridge.sample import Label, Sample
from firmware_bridge.source import Source

# What CPython spends on a queued item beside its values: Sample, ndarray, buffer header, integers, queue slot.
ITEM_BYTES = 512
_READ_S = 0.1  # the longest that close() waits for the reader


class Inlet:
    """Reads an open source in its own thread from the moment it is made; the source stays the caller's to close.

    received counts the samples that came from the source: received = handed out + counters["queue_oldest"] + still
    queued. taken: how many items the source had handed out, with the last one that was got here and with those that
    gave way before it.
    changed: told of each arrival, shared by inlets that one thread waits for. host_us: says, as soon as a sample came,
    when it was taken in UNIX time. Raises BridgeError if not even one sample fits into capacity_bytes.
    """

    def __init__(
        self,
        source: Source,
        capacity_bytes: int,
        *,
        changed: threading.Condition | None = None,
        host_us: Callable[[Sample], int | None] | None = None,
    ) -> None:
        if source.is_queued:
            capacity_bytes //= 4  # its own queues have the rest
        needed = max(source.schema_of(stream).nbytes for stream in source.streams) + ITEM_BYTES
        if capacity_bytes < needed:
            raise BridgeError(
                f"a queue of {capacity_bytes} bytes cannot hold one sample of {source.schema.name} ({needed} bytes)",
                hint="raise bridge.queue_bytes",
            )
        self.received = 0
        self.taken = 0
        self.queued_bytes = 0
        self._source, self._capacity_bytes = source, capacity_bytes
        self._dropped_oldest = 0
        self._pressure = Pressure(capacity_bytes)
        # Numbered by arrival: two queues keep that order, and dropping the oldest sample is never a search.
        self._samples: deque[tuple[int, Sample]] = deque()
        self._labels: deque[tuple[int, Label]] = deque()
        self._arrivals = 0
        self._gaps: set[int] = set()  # streams that lost a sample here since the last that was got
        self._ended: BaseException | None = None
        self._closing = False
        self._changed = changed or threading.Condition()
        self._host_us = host_us
        self._thread = threading.Thread(target=self._run, name="inlet", daemon=True)
        self._thread.start()

    @property
    def counters(self) -> Mapping[str, int]:
        """The source's counters and this queue's."""
        theirs = self._source.counters
        return {**theirs, "queue_oldest": theirs.get("queue_oldest", 0) + self._dropped_oldest}

    @property
    def said(self) -> str:
        """That the queue is full, or has room again, with numbers; "" if it never was for long."""
        with self._changed:
            return self._pressure.said(time.monotonic())

    @property
    def has_news(self) -> bool:
        """Whether get would return or raise at once."""
        return bool(self._samples or self._labels) or self._ended is not None

    def get(self, timeout_s: float) -> Sample | Label | None:
        """Next sample or label in order of arrival, None if none came in time.

        Behind the last one raises what ended the source: EndOfSource, SourceLost, or whatever went wrong in its thread.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._samples and not self._labels:
                if self._ended is not None:
                    raise self._ended
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    return None
            return self._pop()

    def close(self) -> None:
        """Stop reading and end the thread; what is queued can still be got. A second call does nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing:
                item = self._source.read(_READ_S)
                if self._host_us is not None and isinstance(item, Sample):
                    item = replace(item, host_us=self._host_us(item))
                if item is not None:
                    self._put(item)
        except BaseException as exc:  # handed on to the caller of get(), who decides
            self._end(exc)

    def _end(self, reason: BaseException) -> None:
        with self._changed:
            self._ended = reason
            self._changed.notify_all()

    def _put(self, item: Sample | Label) -> None:
        size = _size(item)
        with self._changed:
            if not self._make_room(size):
                return  # closing: not received, so that a resumed source hands it out again
            self._arrivals += 1
            if isinstance(item, Sample):
                self.received += 1
                self._samples.append((self._arrivals, item))
            else:
                self._labels.append((self._arrivals, item))
            self.queued_bytes += size
            self._changed.notify_all()

    def _make_room(self, size: int) -> bool:
        while self.queued_bytes + size > self._capacity_bytes:
            if self._closing:
                return False
            if self._source.can_wait or self._source.is_queued or not self._samples:
                self._pressure.wait(time.monotonic(), self.queued_bytes)
                self._changed.wait()
                self._pressure.go_on(time.monotonic())
            else:
                self._pressure.drop(time.monotonic(), self.queued_bytes)
                _, gone = self._samples.popleft()
                self.queued_bytes -= _size(gone)
                self._dropped_oldest += 1
                self._gaps.add(gone.stream)
        return True

    def _pop(self) -> Sample | Label:
        labels_first = self._labels and (not self._samples or self._labels[0][0] < self._samples[0][0])
        item: Sample | Label
        self.taken, item = (self._labels if labels_first else self._samples).popleft()
        self.queued_bytes -= _size(item)
        self._changed.notify_all()
        if isinstance(item, Sample) and item.stream in self._gaps:
            self._gaps.discard(item.stream)
            return replace(item, gap=True)
        return item


def _size(item: Sample | Label) -> int:
    return ITEM_BYTES + (item.values.nbytes if isinstance(item, Sample) else 0)
