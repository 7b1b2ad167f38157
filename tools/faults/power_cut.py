"""What a power cut may leave: every crash point, with every subset of the changes that were not synced until then.

After Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), and SQLite's test6.c: a folder's entries are
durable once the folder was synced, in any subset before that; of a file that was not synced since, each write is there,
or not, or garbage stands in its place. Must not know what is in the files, nor who wrote them: recorder.py does that.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Entries = dict[str, "Node"]

APPLIED, DROPPED, GARBAGE = range(3)


@dataclass(eq=False)
class Node:
    """A file (content), a link (target) or a folder (inode), whatever its name."""

    content: bytes = b""
    target: str = ""
    folder: int = 0


Disk = dict[int, Entries]  # by inode of a folder


@dataclass
class Change:
    """A change of a folder's entries or of a file's bytes, or the instant that made what was done to `synced` durable.

    A change of bytes puts `data` at `offset`; without data it cuts the file there.
    """

    folder: int = 0
    apply: Callable[[Entries], object] = lambda entries: None
    file: Node | None = None
    offset: int = 0
    data: bytes = b""
    synced: int | Node = 0


@dataclass(frozen=True)
class Cut:
    """One disk that a power cut may leave, the contents of the files on it, and how many changes came before it."""

    disk: Disk
    contents: dict[Node, bytes]
    done: int


@dataclass
class Recording:
    """Everything that was done below a folder, in order, and what was there before."""

    root: int
    before: Disk
    changes: list[Change] = field(default_factory=list)

    def power_cuts(self, *, torn: bool = False, most: int | None = None, seed: int = 0) -> Iterator[Cut]:
        """Every disk that a power cut may leave.

        torn: with every fate of every write that was not synced, else all of those are dropped. most: if a crash point
        leaves more than so many, so many are drawn from them with `seed`, else there is no chance in it.
        """
        rng = random.Random(seed)
        for done in range(len(self.changes) + 1):
            moment = _Moment(self, done, torn=torn)
            if most is None or moment.count() <= most:
                yield from moment.all()
            else:
                yield from (moment.drawn(rng) for _ in range(most))


class _Moment:
    """One crash point."""

    def __init__(self, recording: Recording, done: int, *, torn: bool) -> None:
        self._before, self._changes, self._done = recording.before, recording.changes[:done], done
        self._root, self._torn = recording.root, torn
        last_sync = {change.synced: place for place, change in enumerate(self._changes) if change.synced}
        self._durable: list[int] = []
        self._open: list[int] = []
        self._sure: dict[Node, list[int]] = {}
        self._unsure: dict[Node, list[int]] = {}
        for place, change in enumerate(self._changes):
            if change.folder:
                (self._durable if place < last_sync.get(change.folder, -1) else self._open).append(place)
            elif change.file is not None:
                is_durable = place < last_sync.get(change.file, -1)
                (self._sure if is_durable else self._unsure).setdefault(change.file, []).append(place)

    def count(self) -> int:
        return sum(math.prod(map(len, fates)) for _, _, fates in self._disks())

    def all(self) -> Iterator[Cut]:
        for disk, places, fates in self._disks():
            for chosen in itertools.product(*fates):
                yield self._cut(disk, dict(zip(places, chosen, strict=True)))

    def drawn(self, rng: random.Random) -> Cut:
        disk = self._disk([place for place in self._open if rng.random() < 0.5])
        places, fates = self._fates(disk)
        return self._cut(disk, {place: rng.choice(few) for place, few in zip(places, fates, strict=True)})

    def _disks(self) -> Iterator[tuple[Disk, list[int], list[Sequence[int]]]]:
        for n in range(len(self._open) + 1):
            for chosen in itertools.combinations(self._open, n):
                disk = self._disk(list(chosen))
                yield disk, *self._fates(disk)

    def _disk(self, chosen: list[int]) -> Disk:
        disk = {folder: copy.copy(entries) for folder, entries in self._before.items()}
        for place in sorted([*self._durable, *chosen]):
            change = self._changes[place]
            change.apply(disk.setdefault(change.folder, {}))
        return disk

    def _fates(self, disk: Disk) -> tuple[list[int], list[Sequence[int]]]:
        """The writes that may not have arrived, of files that still have a name, and what may have become of each."""
        places = [place for node in _files(disk, self._root) for place in self._unsure.get(node, [])]
        if not self._torn:
            return places, [(DROPPED,)] * len(places)
        return places, [(APPLIED, DROPPED, GARBAGE) if self._changes[p].data else (APPLIED, DROPPED) for p in places]

    def _cut(self, disk: Disk, fates: dict[int, int]) -> Cut:
        contents = {}
        for node in _files(disk, self._root):
            done = self._sure.get(node, []) + [p for p in self._unsure.get(node, []) if fates[p] != DROPPED]
            if done or node in self._unsure:
                contents[node] = self._content(node, done, fates)
        return Cut(disk, contents, self._done)

    def _content(self, node: Node, places: list[int], fates: dict[int, int]) -> bytes:
        content = bytearray(node.content)
        for place in places:
            change = self._changes[place]
            is_garbage = fates.get(place) == GARBAGE
            put(content, change, random.Random(place).randbytes(len(change.data)) if is_garbage else change.data)
        return bytes(content)


def put(content: bytearray, change: Change, data: bytes) -> None:
    """Make a change of bytes, with zeros where a write begins behind the end."""
    if data:
        content.extend(bytes(max(0, change.offset - len(content))))
        content[change.offset : change.offset + len(data)] = data
    else:
        del content[change.offset :]


def write_out(cut: Cut, folder: int, to: Path) -> None:
    """Make a real folder of it."""
    to.mkdir()
    for name, node in cut.disk.get(folder, {}).items():
        if node.folder:
            write_out(cut, node.folder, to / name)
        elif node.target:
            (to / name).symlink_to(node.target)
        else:
            (to / name).write_bytes(cut.contents.get(node, node.content))


def fingerprint(cut: Cut, folder: int) -> tuple[Any, ...]:
    """Equal for disks that look alike."""
    found = []
    for name, node in sorted(cut.disk.get(folder, {}).items()):
        inner = fingerprint(cut, node.folder) if node.folder else cut.contents.get(node, node.content)
        found.append((name, node.target, inner))
    return tuple(found)


def _files(disk: Disk, folder: int) -> Iterator[Node]:
    for _, node in sorted(disk.get(folder, {}).items()):
        if node.folder:
            yield from _files(disk, node.folder)
        elif not node.target:
            yield node
