"""From a URL-like string to a source; a source's module is imported only when its scheme is asked for.

    serial:///dev/ttyUSB0?baud=115200     recording:PATH.npz?order=class&limit=1000     simulated:motor?speed=20&seed=3
    tcp://HOST:PORT     tcp-listen://ADDRESS:PORT     udp://:PORT     stdin:jsonl     stdin:csv?labels=on,off

Knows schemes and options by name, never what a source does with them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast
from urllib.parse import parse_qsl

from firmware_bridge.auth import NO_FLOOR
from firmware_bridge.errors import BadSourceUrl
from firmware_bridge.options import one_of, streams
from firmware_bridge.sample import SampleId
from firmware_bridge.several import CLOCKS, Several
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

_CLOCK = "clock"
_FORM = (
    "sources look like serial:///dev/ttyUSB0?baud=115200, tcp://HOST:PORT, mqtt://HOST/TOPIC, camera:0, "
    "stdin:csv, recording:PATH.npz or simulated:motor"
)


def make_sources(
    urls: Sequence[str],
    *,
    after: Sequence[SampleId] = (),
    floor: Mapping[str, Any] = NO_FLOOR,
    seed: int = 0,
    align_us: int | None = None,
    queue_bytes: int = 1 << 20,
) -> Source:
    """The source that one URL names, or all that several do as one (several.py), not yet open.

    Streams are numbered from 0 in the order named, also if one URL names several (?stream=0,2). after, floor, seed: see
    make_source. align_us, queue_bytes: see Several. Raises BadSourceUrl.
    """
    if len(urls) == 1 and len(_streams(urls[0])) < 2:
        return make_source(urls[0], after=after, floor=floor, seed=seed)
    if len(set(urls)) < len(urls):
        twice = next(url for place, url in enumerate(urls) if url in urls[:place])
        raise BadSourceUrl(f"source {twice!r}: is named twice", hint="name each source once")
    sources, first = [], 0
    for place, url in enumerate(urls):
        own = _streams(url) or (0,)
        behind = [one._replace(stream=own[one.stream - first]) for one in after if 0 <= one.stream - first < len(own)]
        sources.append(make_source(url, after=behind, floor=floor.get(str(place), {}), seed=seed + place))
        first += len(own)
    clocks = [_clock(url) for url in urls]
    if align_us is not None:
        _check_clocks(urls, sources, clocks)
    return Several(sources, clocks, align_us=align_us, queue_bytes=queue_bytes)


def make_source(
    url: str, *, after: Sequence[SampleId] = (), floor: Mapping[str, Any] = NO_FLOOR, seed: int = 0
) -> Source:
    """The source that the URL names, not yet open.

    after: the last samples that were consumed, of each stream and of the latest boots, newest last; recording and
    simulated go on behind them, of boards the samples up to there are dropped as duplicates. floor: of before, for a
    source with a key. seed: for simulated, unless its URL has one. Raises BadSourceUrl naming the nearest valid word.
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
    options: dict[str, Any] = {"seed": seed} if "seed" in source_class.OPTIONS else {}
    options.update(_parse_options(url, query, source_class.OPTIONS))
    if options.get("key") is not None:
        options["floor"] = floor
    return cast(Source, source_class(target, after=after, **options))


def _parse_options(url: str, query: str, parsers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    known = {**parsers, _CLOCK: one_of(*CLOCKS)}  # which is for all of them, and several.py's
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise BadSourceUrl(f"source {url!r}: unknown option {key!r}{_nearest(key, known)}", hint=_FORM)
        if key in options:
            raise BadSourceUrl(f"source {url!r}: option {key} is given twice", hint="give it once")
        try:
            options[key] = known[key](text)
        except ValueError as exc:
            raise BadSourceUrl(f"source {url!r}: {key}: {exc} (got {text!r})", hint=_FORM) from exc
    options.pop(_CLOCK, None)
    return options


def _clock(url: str) -> str | None:
    """What the URL says of the clock of its samples."""
    return _said(url).get(_CLOCK)


def _check_clocks(urls: Sequence[str], sources: Sequence[Source], clocks: Sequence[str | None]) -> None:
    """Whether the samples of all can be compared in time. Raises BadSourceUrl."""
    played = [url for url in urls if url.startswith("recording:")]
    if 0 < len(played) < len(urls):
        rule = f"source {played[0]!r}: a recording has no time in common with a device"
        raise BadSourceUrl(rule, hint="align recordings with recordings, or set bridge.align_ms to null")
    for url, source, clock in zip(urls, sources, clocks, strict=True):
        if clock == "board" and not source.has_clock:
            raise BadSourceUrl(f"source {url!r}: clock: it cannot tell its time (got 'board')", hint="clock=arrival")
        if source.needs_acknowledgement and clock != "unix" and len(urls) > 1:
            rule = f"source {url!r}: what the broker kept for a while would be taken for what is measured now"
            raise BadSourceUrl(rule, hint="clock=unix, if its time_us is UNIX time; session=0, if not")


def _streams(url: str) -> tuple[int, ...]:
    """Which streams the URL names, none if it names none; a wrong one is for make_source to refuse."""
    try:
        return streams(_said(url)["stream"])
    except (KeyError, ValueError):
        return ()


def _said(url: str) -> dict[str, str]:
    """Options of the URL as they stand there, checked by nobody yet."""
    return dict(parse_qsl(url.partition("?")[2]))


def _nearest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
