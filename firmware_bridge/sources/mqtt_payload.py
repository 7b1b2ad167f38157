"""What is in an MQTT message: a frame's body with its CRC, as in a datagram, or JSON.

    {"values": [[…], …], "label"?: 3, "time_us"?: 12, "stream"?: 0, "boot"?: 7, "seq"?: 41}     a sample
    {"seq": 41, "label": 3, "stream"?: 0, "boot"?: 7, "source"?: 0, "confidence"?: 1.0}         a late label
    {"streams": {…}, …}                                                                         HELLO, see hello.py

Values become the announced dtype, float32 where none was announced. A sender that counts says seq, and boot if it may
start anew; for one that does not, the samples are counted as they come. With a key only frames that carry its tag are
taken; JSON carries none. Nothing that arrives can raise: each fault is counted by reason. Knows no broker.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from firmware_bridge.auth import Key, ReplayFloor
from firmware_bridge.decoder import BodyDecoder, FrameFaultError
from firmware_bridge.hello import Hello, parse_hello
from firmware_bridge.sample import Label, Sample, Values
from firmware_bridge.wire import HELLO, VERSION, Event

# A digit and its comma become an object of 8 bytes and more: 1 MiB of text is some 40 MB for a moment.
MAX_JSON_BYTES = 1 << 20


class PayloadDecoder(BodyDecoder):
    """Payloads in, events out; `counters` holds the faults by reason, "json" for text that is none.

    stream: of a sample or label that does not say it. key: that frames are signed with.
    """

    def __init__(self, stream: int = 0, key: Key | None = None) -> None:
        super().__init__(key)
        self._floor = _Floor(None if key is None else key.name)
        self.counters["json"] = 0
        self._stream = stream
        self._dtypes: dict[int, np.dtype[Any]] = {}  # as announced
        self._boot, self._next = secrets.randbelow(1 << 16), 0  # of samples that nobody counted before

    @property
    def buffered_bytes(self) -> int:
        """None: a message is whole."""
        return 0

    def feed(self, data: bytes) -> list[Event]:
        """Event of one message, if it is of use."""
        is_json = data[:1] in (b"{", b"[")
        if is_json and self._key is not None:
            self.counters["auth"] += 1
            return []
        event = self._from_json(data) if is_json else self.decode_datagram(data)
        if isinstance(event, Hello):
            self._dtypes = {stream: np.dtype(schema.dtype) for stream, schema in event.streams.items()}
        return [] if event is None else [event]

    def cut(self) -> None:
        """Nothing is half here."""

    def _from_json(self, payload: bytes) -> Event | None:
        try:
            return self._event(_parsed(payload), payload)
        except FrameFaultError as fault:
            self.counters[fault.reason] += 1
        except (ValueError, OverflowError):
            self.counters["schema"] += 1
        return None

    def _event(self, document: Any, payload: bytes) -> Event:
        if not isinstance(document, dict):
            raise ValueError("an object is expected")
        if "streams" in document:
            return parse_hello(payload)
        return self._sample(document) if "values" in document else self._label(document)

    def _sample(self, document: Mapping[str, Any]) -> Sample:
        stream = _whole(document, "stream", 0xFFFF, self._stream)
        time_us = _whole(document, "time_us", 2**64 - 1, time.monotonic_ns() // 1000)
        boot, seq = _whole(document, "boot", 0xFFFF, 0), _whole(document, "seq", 2**32 - 1, -1)
        values = _values(document["values"], self._dtypes.get(stream, np.dtype(np.float32)))
        if seq < 0:
            boot, seq, self._next = self._boot, self._next % 2**32, self._next + 1
        return Sample(stream, boot, seq, time_us, values, self._label_of_sample(document))

    def _label_of_sample(self, document: Mapping[str, Any]) -> int | None:
        """The values are good: only a bad label is refused."""
        label = document.get("label")
        if label is None or _is_label(label):
            return label
        self.counters["label"] += 1
        return None

    def _label(self, document: Mapping[str, Any]) -> Label:
        if "seq" not in document:
            raise ValueError("a late label must say whose it is")
        stream, boot = _whole(document, "stream", 0xFFFF, self._stream), _whole(document, "boot", 0xFFFF, 0)
        seq, source = _whole(document, "seq", 2**32 - 1, 0), _whole(document, "source", 0xFF, 0)
        label, confidence = document.get("label"), document.get("confidence", 1.0)
        if not _is_label(label) or type(confidence) not in (int, float) or not 0 <= confidence <= 1:
            raise FrameFaultError("label")
        return Label(stream, boot, seq, label, source, float(confidence))


class _Floor(ReplayFloor):
    """One that the same HELLO may reach again: the broker sends the one that it retains at each connection."""

    def rises(self, kind: int, stream: int, boot: int, count: int) -> bool:
        is_same = kind == HELLO and self.state().get(f"{kind}:{stream}") == [boot, count]
        return is_same or super().rises(kind, stream, boot, count)


def is_hello(payload: bytes) -> bool:
    """Whether the message looks like a HELLO, and so may be understood without one."""
    if payload[:1] == b"{":
        return b'"streams"' in payload
    return payload[:2] == bytes((VERSION, HELLO))


def _parsed(payload: bytes) -> Any:
    if len(payload) > MAX_JSON_BYTES:
        raise FrameFaultError("oversize")
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        raise FrameFaultError("json") from None


def _values(nested: Any, dtype: np.dtype[Any]) -> Values:
    """Raises ValueError if they are no numbers, or cannot be of that dtype."""
    values = np.asarray(nested)
    if values.dtype.kind not in "iuf" or not 0 < values.ndim <= 4 or not values.size:
        raise ValueError("values must be numbers in one to four dimensions")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(values).all() or not np.isfinite(cast).all():
        raise FrameFaultError("nonfinite")
    if dtype.kind != "f" and not np.array_equal(cast, values):
        raise ValueError("300 is no uint8, and 1.5 no count")
    cast.flags.writeable = False
    return cast


def _is_label(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= 0x7FFFFFFF


def _whole(document: Mapping[str, Any], key: str, most: int, default: int) -> int:
    value = document.get(key)
    if value is None:
        return default
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{key} must be a whole number from 0 to {most}")
    return value
