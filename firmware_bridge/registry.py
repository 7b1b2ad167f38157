"""From a URL-like string to a source; a source's module is imported only when its scheme is asked for.

    serial:///dev/ttyUSB0?baud=115200     recording:PATH.npz?order=class&limit=1000     simulated:motor?speed=20&seed=3
    tcp://HOST:PORT     tcp-listen://ADDRESS:PORT     udp://:PORT     stdin:jsonl     stdin:csv?labels=on,off

Knows schemes and options by name, never what a source does with them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast
from urllib.parse import parse_qsl

from firmware_bridge.errors import BadSourceUrl
from firmware_bridge.sample import SampleId
from firmware_bridge.source import Source

SOURCES: Mapping[str, tuple[str, str]] = {
    "serial": ("firmware_bridge.sources.serial_port", "SerialPort"),
    "tcp": ("firmware_bridge.sources.tcp", "Tcp"),
    "tcp-listen": ("firmware_bridge.sources.tcp", "TcpListener"),
    "udp": ("firmware_bridge.sources.udp", "Udp"),
    "stdin": ("firmware_bridge.sources.stdin", "Stdin"),
    "mqtt": ("firmware_bridge.sources.mqtt", "Mqtt"),
    "camera": ("firmware_bridge.sources.camera", "Camera"),
    "recording": ("firmware_bridge.sources.recording", "Recording"),
    "simulated": ("firmware_bridge.sources.simulated", "Simulated"),
}

_FORM = (
    "sources look like serial:///dev/ttyUSB0?baud=115200, tcp://HOST:PORT, mqtt://HOST/TOPIC, camera:0, "
    "stdin:csv, recording:PATH.npz or simulated:motor"
)


def make_source(url: str, *, after: SampleId | None = None, seed: int = 0) -> Source:
    """The source that the URL names, not yet open.

    after: the last sample that was consumed; recording and simulated go on behind it, of boards the samples up
    to it are dropped as duplicates. seed: for simulated, unless its URL has one. Raises BadSourceUrl naming the nearest
    valid word.
    """
    scheme, separator, rest = url.partition(":")
    if not separator or not scheme:
        raise BadSourceUrl(f"source {url!r}: no scheme", hint=_FORM)
    if scheme not in SOURCES:
        raise BadSourceUrl(f"source {url!r}: unknown scheme {scheme!r}{_nearest(scheme, SOURCES)}", hint=_FORM)
    target, _, query = rest.removeprefix("//").partition("?")
    if not target:
        raise BadSourceUrl(f"source {url!r}: nothing behind {scheme}:", hint=_FORM)
    module, name = SOURCES[scheme]
    source_class: Any = getattr(importlib.import_module(module), name)
    options = {"seed": seed} if "seed" in source_class.OPTIONS else {}
    options.update(_parse_options(url, query, source_class.OPTIONS))
    return cast(Source, source_class(target, after=after, **options))


def _parse_options(url: str, query: str, parsers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in parsers:
            raise BadSourceUrl(f"source {url!r}: unknown option {key!r}{_nearest(key, parsers)}", hint=_FORM)
        if key in options:
            raise BadSourceUrl(f"source {url!r}: option {key} is given twice", hint="give it once")
        try:
            options[key] = parsers[key](text)
        except ValueError as exc:
            raise BadSourceUrl(f"source {url!r}: {key}: {exc} (got {text!r})", hint=_FORM) from exc
    return options


def _nearest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
