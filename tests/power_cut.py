"""What a power cut may leave: every crash point, with every subset of the changes that were not synced until then.

After Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014): a folder's entries are durable once the
folder was synced, in any subset before that; a file's content once the file was synced, and empty before.
"""

from __future__ import annotations

import copy
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Entries = dict[str, "Node"]


@dataclass(eq=False)
class Node:
    """A file (content), a link (target) or a folder (inode), whatever its name."""

    content: bytes = b""
    target: str = ""
    folder: int = 0


Disk = dict[int, Entries]  # by inode of a folder


@dataclass
class Change:
    """A change of one folder's entries, or the instant from which on what was done to `synced` is durable."""

    folder: int = 0
    apply: Callable[[Entries], object] = lambda entries: None
    synced: int | Node = 0
    content: bytes = b""


@dataclass
class Recording:
    """Everything that was done below a folder, in order, and what was there before."""

    root: int
    before: Disk
    changes: list[Change] = field(default_factory=list)

    def power_cuts(self) -> Iterator[tuple[Disk, dict[Node, bytes], bool]]:
        """Every disk that a power cut may leave, the files' contents on it, and whether the last change was done."""
        for done in range(len(self.changes) + 1):
            happened, is_over = self.changes[:done], done == len(self.changes)
            contents = {change.synced: change.content for change in happened if isinstance(change.synced, Node)}
            durable, unsynced = self._split(happened)
            for n in range(len(unsynced) + 1):
                for chosen in itertools.combinations(unsynced, n):
                    yield self._with(sorted([*durable, *chosen])), contents, is_over

    def _split(self, happened: list[Change]) -> tuple[list[int], list[int]]:
        last_sync = {change.synced: place for place, change in enumerate(happened) if isinstance(change.synced, int)}
        places = [place for place, change in enumerate(happened) if change.folder]
        durable = [place for place in places if place < last_sync.get(happened[place].folder, -1)]
        return durable, [place for place in places if place not in durable]

    def _with(self, places: list[int]) -> Disk:
        disk = {folder: copy.copy(entries) for folder, entries in self.before.items()}
        for place in places:
            change = self.changes[place]
            change.apply(disk.setdefault(change.folder, {}))
        return disk


@contextmanager
def recorded(root: Path, monkeypatch: pytest.MonkeyPatch, *, ignored_sync: int | None = None) -> Iterator[Recording]:
    """Record what the block does below `root`; sync number `ignored_sync` of a folder is left out, as a bug would."""
    recording = Recording(root.stat().st_ino, _scan(root))
    files: dict[int, Node] = {}
    folder_syncs = itertools.count()
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename", "symlink", "unlink", "mkdir", "rmdir")}

    def place(path: Any, folder: int | None) -> tuple[int, str]:
        above = os.fstat(folder) if folder is not None else Path(path).parent.stat()
        return above.st_ino, Path(path).name

    def note(folder: int, apply: Callable[[Entries], object]) -> None:
        recording.changes.append(Change(folder=folder, apply=apply))

    def opening(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        file: int = real["open"](path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_EXCL:
            files[file] = node = Node()
            folder, name = place(path, dir_fd)
            note(folder, lambda entries: entries.update({name: node}))
        return file

    def fsync(file: int) -> None:
        status = os.fstat(file)
        if stat.S_ISDIR(status.st_mode):
            if next(folder_syncs) != ignored_sync:
                recording.changes.append(Change(synced=status.st_ino))
        else:
            content = Path(f"/proc/self/fd/{file}").read_bytes()
            recording.changes.append(Change(synced=files[file], content=content))

    def rename(a: Any, b: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        (folder, old), (_, new) = place(a, src_dir_fd), place(b, dst_dir_fd)
        real["rename"](a, b, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        note(folder, lambda entries: entries.update({new: entries.pop(old)}) if old in entries else None)

    def symlink(target: str, path: Any, *, dir_fd: int | None = None) -> None:
        real["symlink"](target, path, dir_fd=dir_fd)
        folder, name = place(path, dir_fd)
        note(folder, lambda entries: entries.update({name: Node(target=target)}))

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        folder, name = place(path, dir_fd)
        real["unlink"](path, dir_fd=dir_fd)
        note(folder, lambda entries: entries.pop(name, None))

    def mkdir(path: Any, mode: int = 0o777) -> None:
        real["mkdir"](path, mode)
        (folder, name), inode = place(path, None), Path(path).stat().st_ino
        note(folder, lambda entries: entries.update({name: Node(folder=inode)}))

    def rmdir(path: Any, *, dir_fd: int | None = None) -> None:
        folder, name = place(path, dir_fd)
        real["rmdir"](path, dir_fd=dir_fd)
        note(folder, lambda entries: entries.pop(name, None))

    with monkeypatch.context() as patch:
        for name, fake in (("fsync", fsync), ("rename", rename), ("symlink", symlink), ("unlink", unlink)):
            patch.setattr(os, name, fake)
        for name, fake in (("open", opening), ("mkdir", mkdir), ("rmdir", rmdir)):
            patch.setattr(os, name, fake)
        yield recording


def write_out(disk: Disk, contents: dict[Node, bytes], folder: int, to: Path) -> None:
    """Make a real folder of it."""
    to.mkdir()
    for name, node in disk.get(folder, {}).items():
        if node.folder:
            write_out(disk, contents, node.folder, to / name)
        elif node.target:
            (to / name).symlink_to(node.target)
        else:
            (to / name).write_bytes(contents.get(node, node.content))


def fingerprint(disk: Disk, contents: dict[Node, bytes], folder: int) -> tuple[Any, ...]:
    """Equal for disks that look alike."""
    found = []
    for name, node in sorted(disk.get(folder, {}).items()):
        inner = fingerprint(disk, contents, node.folder) if node.folder else contents.get(node, node.content)
        found.append((name, node.target, inner))
    return tuple(found)


def _scan(root: Path) -> Disk:
    entries: Entries = {}
    disk = {root.stat().st_ino: entries}
    for path in root.iterdir():
        if path.is_symlink():
            entries[path.name] = Node(target=str(path.readlink()))
        elif path.is_dir():
            entries[path.name] = Node(folder=path.stat().st_ino)
            disk |= _scan(path)
        else:
            entries[path.name] = Node(content=path.read_bytes())
    return disk
