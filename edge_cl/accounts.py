"""Which counters of bridge and daemon count samples that did not reach the learner, and whose ids a source hands out.

Knows names alone: of counters, and of a source URL's options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from firmware_bridge.decoder import FAULTS

# Options of a source that say how it is read, not what it is.
HOW = {
    *("speed", "samples", "wait", "reconnect", "baud", "framing", "deadline", "clock"),
    *("key", "tls", "ca", "user", "password", "client", "session", "unacknowledged"),
}
# Counters of the bridge that count no loss: reboots, lines that came back, what was made while nobody listened, frames
# that came twice or too late (their loss is in wire_lost already), samples that only lost their label, those of another
# stream that were not wanted beside the first one's, and rows of a test split.
NOT_DROPPED = {
    *("restarts", "reconnects", "away", "duplicate", "late", "label", "mixed_label", "surplus", "nonfinite_held_out"),
}


def dropped(counters: Mapping[str, int]) -> dict[str, int]:
    """Samples that did not reach the learner, by reason; the identity of docs/WIRE.md counts each of them once."""
    # What a board's line garbled shows as a gap in its numbers, and is in wire_lost.
    garbled = set(FAULTS) if "wire_lost" in counters else set()
    return {reason: count for reason, count in counters.items() if reason not in NOT_DROPPED | garbled}


def dropped_of(parts: Iterable[Mapping[str, int]], whole: Mapping[str, int]) -> dict[str, int]:
    """The same of several sources: of each by itself, and what is counted of them together only."""
    total = Counter[str]()
    for part in parts:
        total.update(dropped(part))
    # The queue behind them all counts on, and a fault that is not in `total` by now is one of a line.
    together = {name: n for name, n in whole.items() if name == "queue_oldest" or name not in {*total, *FAULTS}}
    return {**total, **dropped(together)}


def line_faults(counters: Mapping[str, int]) -> dict[str, int]:
    """Frames and values that were no good, by reason."""
    return {name: counters[name] for name in FAULTS if name in counters}


def origin(urls: Iterable[str]) -> str:
    """What of the sources' URLs says whose sample ids these are: not how fast or how many.

    A recording's ids are checksums of what it plays and in which order, so it may lie anywhere.
    """
    return " + ".join(map(_origin, urls))


def _origin(url: str) -> str:
    target, _, query = url.partition("?")
    if target.startswith("recording:"):
        return "recording"
    options = sorted(o for o in query.split("&") if o and o.partition("=")[0] not in HOW)
    return "?".join([target, "&".join(options)]) if options else target
