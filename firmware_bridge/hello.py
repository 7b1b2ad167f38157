"""HELLO's payload: a board says who it is and what its streams look like, as canonical JSON.

    {"boot": 7, "device": "…", "firmware": "…", "protocol": 1, "streams": {"0": {"dtype": "int16", "name": "…",
     "shape": [32, 3], "channels": ["x", "y", "z"], "label_names": ["normal", …], "rate_hz": 3200.0, "scale": 0.0039,
     "unit": "g", "window": [256, 256]}}}

name, dtype and shape are required in a stream, the rest is optional; unknown keys are ignored, so that newer boards can
say more. Beside these a board may say "max_frame" (bytes of the longest frame it takes), "clock_us" (resolution of its
clock) and "key_id" (which key it has, never the key). The agreed schema is the bytes of the value of "streams" as they
stood on the wire; the boot id, which changes at every start, is no part of it. Knows no frame.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from firmware_bridge.sample import SENSOR_DTYPES, Schema

PROTOCOL = 1
_MAX_TEXT = 128  # characters of a name; it ends up in tables and metadata
_MAX_NAMES = 256
_STREAMS = b'"streams":'  # inside a JSON text its second quote would stand behind a backslash
_CANONICAL: dict[str, Any] = {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}


@dataclass(frozen=True, slots=True)
class Hello:
    """A board's introduction; streams maps a stream number to its schema and cannot be changed.

    said is the text of the streams as they stood on the wire, None for one that was not read from it.
    """

    device: str
    firmware: str
    boot: int
    streams: Mapping[int, Schema]
    protocol: int = PROTOCOL
    max_frame: int | None = None
    clock_us: float | None = None
    key_id: str = ""
    said: bytes | None = field(default=None, compare=False, repr=False)


def hello_json(hello: Hello) -> bytes:
    """Canonical JSON of a HELLO: sorted keys, no blanks, defaults left out, UTF-8."""
    document = {
        "boot": hello.boot,
        "device": hello.device,
        "firmware": hello.firmware,
        "protocol": hello.protocol,
        "streams": _streams(hello),
    }
    optional = {"max_frame": hello.max_frame, "clock_us": hello.clock_us, "key_id": hello.key_id or None}
    document |= {key: value for key, value in optional.items() if value is not None}
    return json.dumps(document, **_CANONICAL).encode()


def schema_seed(hello: Hello) -> int:
    """CRC seed of the board's SAMPLE and LABEL frames once both ends agree on this HELLO's schemas."""
    return zlib.crc32(json.dumps(_streams(hello), **_CANONICAL).encode() if hello.said is None else hello.said)


def parse_hello(payload: bytes) -> Hello:
    """HELLO of its JSON. Raises ValueError, and nothing else, when it is not one."""
    try:
        return _hello(json.loads(payload), _said(payload))
    except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as exc:
        raise ValueError(f"not a HELLO: {exc}") from exc


def _said(payload: bytes) -> bytes | None:
    """Bytes of the value behind the first "streams":, None where a blank stands in between."""
    _, found, behind = payload.partition(_STREAMS)
    if not found or not behind.startswith(b"{"):
        return None
    text = behind.decode()
    return text[: json.JSONDecoder().raw_decode(text)[1]].encode()


def _streams(hello: Hello) -> dict[str, dict[str, Any]]:
    return {str(stream): _filled(schema) for stream, schema in hello.streams.items()}


def _hello(document: Mapping[str, Any], said: bytes | None) -> Hello:
    streams = {_whole(int(key), 0, 0xFFFF): _schema(value) for key, value in document["streams"].items()}
    if not streams:
        raise ValueError("a HELLO must announce a stream")
    return Hello(
        device=_text(document.get("device", "")),
        firmware=_text(document.get("firmware", "")),
        boot=_whole(document.get("boot", 0), 0, 0xFFFF),
        streams=MappingProxyType(streams),
        protocol=_whole(document["protocol"], 1, 0xFFFF),
        max_frame=None if document.get("max_frame") is None else _whole(document["max_frame"], 1, 1 << 32),
        clock_us=_optional(document.get("clock_us"), _positive),
        key_id=_text(document.get("key_id", "")),
        said=said,
    )


def _schema(fields: Mapping[str, Any]) -> Schema:
    if fields["dtype"] not in SENSOR_DTYPES:
        raise ValueError("dtype is none of the wire's")
    shape = tuple(_whole(size, 1, 0xFFFF) for size in fields["shape"])
    if len(shape) > 4:
        raise ValueError("more than 4 dimensions")
    window = fields.get("window")
    return Schema(
        name=_text(fields["name"]),
        dtype=fields["dtype"],
        shape=shape,
        channels=_texts(fields.get("channels", ())),
        unit=_text(fields.get("unit", "")),
        rate_hz=_optional(fields.get("rate_hz"), _positive),
        scale=_optional(fields.get("scale"), _positive),
        label_names=_texts(fields.get("label_names", ())),
        window=None if window is None else _window(window),
    )


def _filled(schema: Schema) -> dict[str, Any]:
    return {key: value for key, value in asdict(schema).items() if value not in ((), "", None) or key == "shape"}


def _window(pair: list[Any]) -> tuple[int, int]:
    length, stride = pair
    return _whole(length, 1, 1 << 20), _whole(stride, 1, 1 << 20)


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"must be a whole number from {low} to {high}")
    return value


def _positive(value: Any) -> float:
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise ValueError("must be a number above 0")
    return float(value)


def _optional(value: Any, parse: Callable[[Any], float]) -> float | None:
    return None if value is None else parse(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ValueError(f"must be printable text of at most {_MAX_TEXT} characters")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)) or len(values) > _MAX_NAMES:
        raise ValueError(f"must be a list of at most {_MAX_NAMES} texts")
    return tuple(_text(value) for value in values)
