"""Whole files, durably: a reader, or the next start after a power cut, finds the old content or the new, never a part.

The only writer of durable files. Must not know what is in them.

    open a new temporary in the same folder → write → fsync → rename over the target → fsync the folder → return

Only the return is the acknowledgement. Without the first fsync a power cut may leave the new name on empty content,
without the second the old name may come back. After a failed fsync Linux marks the pages clean, so a second fsync of
the same file would succeed without having written them (fsyncgate; Rebello et al., ATC 2020): nothing is retried
here, the temporary is thrown away and a later call starts with a fresh one.

Everything is done relative to one open folder, and links are not followed: neither a folder that is renamed half-way
nor a link laid in place of a file can send the bytes elsewhere.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from edge_cl.storage.errors import disk_faults

Part = bytes | bytearray | memoryview

OLD_OR_NEW = "the file is whole, as it was before or as it is new; nothing was acknowledged"
OLD_OR_NONE = "it is there as it was, or gone; nothing was acknowledged"
NOTHING_CHANGED = "nothing was changed"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20  # bytes read back at a time
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


def write_atomic(path: Path, *parts: Part, mode: int = 0o600) -> None:
    """Replace the file `path` by `parts`, one after the other, and return once that survives a power cut.

    The parts are written as they are, without a copy. `mode` is subject to the umask.
    Raises StorageFault.
    """
    Replacement(path, *parts, mode=mode).finish()


class Replacement:
    """A file's next content, written but neither synced nor in its place: `finish` does that, on whatever thread.

    What it was made of may change once the constructor has returned: the copy is the operating system's page cache.
    `mode` is subject to the umask. Raises StorageFault.
    """

    def __init__(self, path: Path, *parts: Part, mode: int = 0o600) -> None:
        self.path = path
        self._temporary, self._file, self._folder = temporary_name(path.name), -1, -1
        with disk_faults("write", path, rule=OLD_OR_NEW):
            try:
                self._folder = os.open(path.parent, _FOLDER)
                self._file = os.open(self._temporary, _NEW_FILE, mode, dir_fd=self._folder)
                _write_all(self._file, parts)
            except BaseException:
                self.discard()
                raise

    def finish(self, trailer: Callable[[Iterator[bytes]], bytes] | None = None) -> None:
        """Append the trailer that is made of all content so far, sync, and put the file in its place durably.

        If that fails nothing is left of it. Raises StorageFault.
        """
        with disk_faults("write", self.path, rule=OLD_OR_NEW):
            try:
                if trailer is not None:
                    _write_all(self._file, [trailer(self._pieces())])
                os.fsync(self._file)
                self._close_file()  # some network file systems report a full disk only here
                os.rename(self._temporary, self.path.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                self._temporary = ""
                os.fsync(self._folder)
            finally:
                self.discard()

    def discard(self) -> None:
        """Leave no trace, so that a full disk is not kept full by our own rubbish; nothing happens once finished."""
        if self._temporary and self._folder >= 0:
            with contextlib.suppress(OSError):  # a fault that led here is the one to report
                os.unlink(self._temporary, dir_fd=self._folder)
        self._temporary = ""
        self._close_file()
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def _pieces(self) -> Iterator[bytes]:
        offset = 0
        while piece := os.pread(self._file, _PIECE, offset):
            offset += len(piece)
            yield piece

    def _close_file(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def link_atomic(path: Path, target: str) -> None:
    """Let the symbolic link `path` point at `target`, for every reader from one instant on, and durably.

    Raises StorageFault.
    """
    with disk_faults("switch", path, rule=OLD_OR_NEW), open_folder(path.parent) as folder:
        temporary = temporary_name(path.name)
        with discarded_on_failure(folder, temporary):
            os.symlink(target, temporary, dir_fd=folder)
            os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


def unlink_durable(path: Path) -> None:
    """Remove a file or a link for good; nothing happens if there is none.

    Raises StorageFault.
    """
    with disk_faults("remove", path, rule=OLD_OR_NONE), open_folder(path.parent) as folder:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        os.fsync(folder)


def read_whole(path: Path) -> bytes:
    """All bytes of a regular file, a link in its place refused (ELOOP).

    Raises OSError as it comes: whether a file that cannot be read is a fault, only the caller knows.
    """
    # O_NONBLOCK: without it a named pipe in the file's place would hold the daemon for ever.
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(file, "rb") as stream:
        return stream.read()


def write_new(folder: int, name: str, parts: Iterable[Part], mode: int = 0o600) -> None:
    """Create the file `name` in the open folder and fsync it; the name itself is durable once the folder is synced.

    Raises OSError, FileExistsError among them.
    """
    file = os.open(name, _NEW_FILE, mode, dir_fd=folder)
    try:
        _write_all(file, parts)
        os.fsync(file)
    finally:
        os.close(file)  # may raise, too


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """A descriptor of the folder, for names relative to it and for its fsync. Raises OSError."""
    folder = os.open(path, _FOLDER)
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def discarded_on_failure(folder: int, temporary: str) -> Iterator[None]:
    """Remove the temporary if the block fails, so that a full disk is not kept full by our own rubbish."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the block's own fault is the one to report
            os.unlink(temporary, dir_fd=folder)
        raise


def temporary_name(name: str) -> str:
    """A name beside `name` that no one else uses and that `is_temporary` knows again after a crash."""
    return f".{name}.{secrets.token_hex(8)}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file of this name was ours and never finished.

    >>> is_temporary(temporary_name("status.json")), is_temporary("status.json")
    (True, False)
    """
    return _TEMPORARY.fullmatch(name) is not None


def _write_all(file: int, parts: Iterable[Part]) -> None:
    for part in parts:
        rest = memoryview(part).cast("B")
        while rest:
            rest = rest[os.write(file, rest) :]
