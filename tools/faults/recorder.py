"""Records what a block of Python does to the files below a folder, by its calls of `os`, for power_cut.py.

Files that were not opened with os.open, or are written by a library's own calls, are not seen; a file that does not
hold what was recorded when it is synced fails the recording, so that the model never tells of another program.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_cl.storage.atomic import is_temporary

from .power_cut import Change, Disk, Entries, Node, Recording, put

BLOCK = 4096  # bytes of a write that arrive, or do not, together
_WATCHED = (
    *("open", "write", "pwrite", "writev", "ftruncate", "fsync", "fdatasync"),
    *("rename", "replace", "symlink", "unlink", "remove", "mkdir", "rmdir"),
)
_SUFFIX = len(".0123456789abcdef.tmp")

Omit = Callable[[str, int], bool]  # of "file" or "folder" and the number of its sync: whether that is left out


def nothing(kind: str, number: int) -> bool:
    """No sync is left out."""
    return False


@contextmanager
def recorded(root: Path, *, omit: Omit = nothing, in_place: bool = False) -> Iterator[Recording]:
    """Record what the block does below `root`.

    omit: syncs that are left out, as a bug would. in_place: whatever is written to a temporary and renamed is written
    straight to its place instead, as a worse bug would.
    """
    watch = _Watch(root, omit, in_place=in_place)
    fakes = {name: getattr(watch, name) for name in _WATCHED}
    for name, fake in fakes.items():
        setattr(os, name, fake)
    try:
        yield watch.recording
    finally:
        for name in fakes:
            setattr(os, name, watch.real[name])


class _Watch:
    """The calls, each done and then noted."""

    def __init__(self, root: Path, omit: Omit, *, in_place: bool) -> None:
        self.real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in _WATCHED}
        self._nodes: dict[tuple[int, int], Node] = {}
        self._folders: set[int] = set()
        self.recording = Recording(root.stat().st_ino, self._scan(root))
        self._omit, self._in_place = omit, in_place
        self._syncs = {"file": itertools.count(), "folder": itertools.count()}

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if self._in_place and flags & os.O_CREAT and is_temporary(Path(path).name):
            path, flags = _target(Path(path)), flags & ~os.O_EXCL | os.O_TRUNC
        is_new = bool(flags & os.O_CREAT) and not _exists(path, dir_fd)
        file: int = self.real["open"](path, flags, mode, dir_fd=dir_fd)
        if is_new:
            self._created(file, *self._place(path, dir_fd))
        elif flags & os.O_TRUNC and (node := self._node(file)) is not None:
            self.recording.changes.append(Change(file=node))
        return file

    def write(self, file: int, data: Any) -> int:
        node = self._node(file)
        offset = 0 if node is None else os.lseek(file, 0, os.SEEK_CUR)
        return self._written(node, offset, data, self.real["write"](file, data))

    def pwrite(self, file: int, data: Any, offset: int) -> int:
        return self._written(self._node(file), offset, data, self.real["pwrite"](file, data, offset))

    def writev(self, file: int, buffers: Any) -> int:
        return self.write(file, b"".join(buffers))

    def ftruncate(self, file: int, length: int) -> None:
        self.real["ftruncate"](file, length)
        if (node := self._node(file)) is not None:
            self.recording.changes.append(Change(file=node, offset=length))

    def fsync(self, file: int) -> None:
        status = os.fstat(file)
        is_folder = stat.S_ISDIR(status.st_mode)
        kind = "folder" if is_folder else "file"
        node = self._node(file)
        if node is not None:
            self._check(file, node)
        if not self._omit(kind, next(self._syncs[kind])):
            self.recording.changes.append(Change(synced=status.st_ino if is_folder else node or 0))

    fdatasync = fsync

    def rename(self, a: Any, b: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        if self._in_place and is_temporary(Path(a).name) and _target(Path(a)).name == Path(b).name:
            return
        (folder, old), (there, new) = self._place(a, src_dir_fd), self._place(b, dst_dir_fd)
        assert folder == there or not {folder, there} & self._folders, f"{a} moved to another folder: not modelled"
        self.real["rename"](a, b, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self._note(folder, lambda entries: entries.update({new: entries.pop(old)}) if old in entries else None)

    replace = rename

    def symlink(self, target: str, path: Any, *, dir_fd: int | None = None) -> None:
        self.real["symlink"](target, path, dir_fd=dir_fd)
        folder, name = self._place(path, dir_fd)
        self._note(folder, lambda entries: entries.update({name: Node(target=target)}))

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        folder, name = self._place(path, dir_fd)
        self.real["unlink"](path, dir_fd=dir_fd)
        self._note(folder, lambda entries: entries.pop(name, None))

    remove = unlink

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self.real["mkdir"](path, mode, dir_fd=dir_fd)
        (folder, name), inode = self._place(path, dir_fd), os.stat(path, dir_fd=dir_fd).st_ino
        self._note(folder, lambda entries: entries.update({name: Node(folder=inode)}))
        if folder in self._folders:
            self._folders.add(inode)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        folder, name = self._place(path, dir_fd)
        self.real["rmdir"](path, dir_fd=dir_fd)
        self._note(folder, lambda entries: entries.pop(name, None))

    def _created(self, file: int, folder: int, name: str) -> None:
        if folder in self._folders:
            self._nodes[_identity(file)] = node = Node()
            self._note(folder, lambda entries: entries.update({name: node}))

    def _written(self, node: Node | None, offset: int, data: Any, n: int) -> int:
        if node is not None:
            written = bytes(memoryview(data).cast("B")[:n])
            for start in range(0, n, BLOCK):
                piece = written[start : start + BLOCK]
                self.recording.changes.append(Change(file=node, offset=offset + start, data=piece))
        return n

    def _check(self, file: int, node: Node) -> None:
        content = bytearray(node.content)
        for change in self.recording.changes:
            if change.file is node:
                put(content, change, change.data)
        assert Path(f"/proc/self/fd/{file}").read_bytes() == content, "a file was written by calls that were not seen"

    def _note(self, folder: int, apply: Callable[[Entries], object]) -> None:
        if folder in self._folders:
            self.recording.changes.append(Change(folder=folder, apply=apply))

    def _place(self, path: Any, folder: int | None) -> tuple[int, str]:
        above = os.fstat(folder) if folder is not None else Path(path).parent.stat()
        return above.st_ino, Path(path).name

    def _node(self, file: int) -> Node | None:
        return self._nodes.get(_identity(file))

    def _scan(self, root: Path) -> Disk:
        entries: Entries = {}
        disk = {root.stat().st_ino: entries}
        self._folders.add(root.stat().st_ino)
        for path in root.iterdir():
            if path.is_symlink():
                entries[path.name] = Node(target=str(path.readlink()))
            elif path.is_dir():
                entries[path.name] = Node(folder=path.stat().st_ino)
                disk |= self._scan(path)
            else:
                entries[path.name] = node = Node(content=path.read_bytes())
                status = path.stat()
                self._nodes[status.st_dev, status.st_ino] = node
        return disk


def _identity(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_dev, status.st_ino


def _exists(path: Any, folder: int | None) -> bool:
    try:
        os.stat(path, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _target(temporary: Path) -> Path:
    """What a temporary would be renamed to, see edge_cl.storage.atomic.temporary_name."""
    return temporary.with_name(temporary.name[1:-_SUFFIX])
