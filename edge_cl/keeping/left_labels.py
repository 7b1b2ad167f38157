"""The labels that a person left for the daemon, from the folder they lie in to the entry that keeps them.

Knows files and entries' numbers; what a label is for, the daemon says. A file goes when what it says survives a power
cut, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edge_cl.keeping.keeper import Keeper
from edge_cl.storage import spool
from firmware_bridge.sample import Label

LOOK_EVERY_S: Final = 0.5
PERSON: Final = 1  # source of a label
MOST_DIGITS: Final = 9  # of a class that is named by its number


class LeftLabels:
    """What is left in the state directory `folder`, for a daemon with that keeper."""

    def __init__(self, folder: Path, keeper: Keeper) -> None:
        self._folder, self._keeper = folder, keeper
        self._taken: dict[Path, int] = {}  # and the entry that keeps what it says
        self._looked_at = 0.0

    def look(self, now: float, names: Sequence[str], take: Callable[[Label], None]) -> int:
        """Hand on what has been left since the last look; how many named no class. Raises StorageFault."""
        if now - self._looked_at < LOOK_EVERY_S:
            return 0
        self._looked_at, unknown = now, 0
        for left in spool.waiting(self._folder):
            if left.file in self._taken:
                continue
            number, before = class_of(left.label, names), self._keeper.entry
            if number is None:
                unknown += 1
            else:
                take(Label(left.stream, left.boot, left.seq, number, source=PERSON))
            self._taken[left.file] = max(self._keeper.entry, before + 1)  # it may have been learnt at once
        self.clear()
        return unknown

    def clear(self) -> None:
        """Remove those that have been kept with their sample. Raises StorageFault."""
        for file in [file for file, kept in self._taken.items() if self._keeper.durable >= kept]:
            spool.remove(file)
            del self._taken[file]


def class_of(name: str, names: Sequence[str]) -> int | None:
    """The class of a name, or of a number written out; None if it is neither.

    >>> class_of("worn", ["ok", "worn"]), class_of("7", []), class_of("none", [])
    (1, 7, None)
    """
    if name in names:
        return names.index(name)
    return int(name) if name.isascii() and name.isdigit() and len(name) <= MOST_DIGITS else None
