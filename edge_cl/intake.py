"""From the configured sources to the one that is read: where several are named, all of them as one.

Knows settings and the bridge, no learner; so that `run`, `check` and `bridge` open the same source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_cl.settings import Config
from firmware_bridge.auth import NO_FLOOR
from firmware_bridge.registry import make_sources
from firmware_bridge.sample import SampleId
from firmware_bridge.source import Source

Urls = str | Sequence[str]  # one URL, or several


def urls_of(source: Urls) -> tuple[str, ...]:
    """Each by itself.

    >>> urls_of("stdin:csv"), urls_of(["udp://:1", "udp://:2"])
    (('stdin:csv',), ('udp://:1', 'udp://:2'))
    """
    return (source,) if isinstance(source, str) else tuple(source)


def named(source: Urls) -> str:
    """All of them in a line."""
    return " + ".join(urls_of(source))


def source_of(
    config: Config,
    source: Urls,
    *,
    after: Sequence[SampleId] = (),
    floor: Mapping[str, Any] = NO_FLOOR,
    seed: int = 0,
) -> Source:
    """The source that these URLs name, not yet open, aligned as configured. Raises BadSourceUrl; see make_sources."""
    align_ms = config.bridge.align_ms
    return make_sources(
        urls_of(source),
        after=after,
        floor=floor,
        seed=seed,
        align_us=None if align_ms is None else round(1e3 * align_ms),
        queue_bytes=config.bridge.queue_bytes,
    )
