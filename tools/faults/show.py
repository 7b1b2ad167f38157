"""How far a campaign is: a bar on a terminal, silence elsewhere. Without a thread, because campaigns fork."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")

_EVERY_S = 0.2


def shown(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """The items, one after the other."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal) as progress:
        task, refreshed = progress.add_task(title, total=total), 0.0
        for item in items:
            yield item
            now = time.monotonic()
            progress.update(task, advance=1)
            if now - refreshed > _EVERY_S:
                progress.refresh()
                refreshed = now
