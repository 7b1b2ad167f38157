"""One directory, one daemon: creates it private, refuses an unsafe one, and holds its lock.

Must not know what the others keep in it.

    DIR/.format   {"format": 2}: how DIR is laid out. A newer one is refused and nothing is touched; an older one is
                  read as it is, and brought up to date by migration.py before anything is written.
    DIR/lock      flock'ed while a daemon runs; holds its pid. Never deleted: two daemons could each lock "the" file.

The kernel drops a flock with the last descriptor, so no kill leaves a stale lock. (It belongs to the open file, not to
the process: children started with subprocess do not inherit it, a bare os.fork would.) The model that a
directory belongs to is not noted here but inside each checkpoint, see checkpoint.py.
"""

import contextlib
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from edge_cl.storage.atomic import NOTHING_CHANGED, is_temporary, open_folder, read_whole, write_atomic
from edge_cl.storage.errors import StateBusy, StateDirError, disk_faults
from edge_cl.storage.lock import lock_in_time

FORMAT = 2  # 1: no journal
FORMAT_NAME = ".format"
LOCK_NAME = "lock"
JOURNAL_NAME = "journal"
SHELF_NAME = "snapshots"

# What may lie in a directory that becomes ours: what a start that was killed leaves behind, and a fresh file system's.
_HARMLESS = {LOCK_NAME, "lost+found"}
# running_pid() takes the lock for some microseconds to see whether it is free: a start must outlast that.
_LOCK_PATIENCE_S = 0.2


class StateDir:
    """The state directory at `path`, created 0700 if missing and locked for this process until `close`.

    Unfinished temporaries of a killed predecessor are removed. `format` is how it is laid out: FORMAT if it was empty.
    Raises StateDirError, StateBusy, StorageFault; in each case nothing in the directory was changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_faults("create", path, rule=NOTHING_CHANGED):
            _create(path)
        found = check_state_dir(path)
        with disk_faults("lock", path / LOCK_NAME, rule=NOTHING_CHANGED):
            self._lock = _take_lock(path)
        try:
            if found is None:
                write_format(path)
            self.format = FORMAT if found is None else found
            with disk_faults("clean", path, rule="unfinished temporary files may remain, nothing else was touched"):
                _remove_temporaries(path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "StateDir":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_state_dir(path: Path) -> int | None:
    """The format of the state directory, None if it is empty and has none yet; for readers, too: takes no lock.

    Raises StateDirError if it is missing, a link, another user's, group- or world-writable, something else's or newer,
    or if its journal or its shelf is one of the first four.
    """
    with disk_faults("look into", path, rule=NOTHING_CHANGED):
        _check_safe(path)
        layout = _read_format(path)
        if layout is None:
            _check_empty(path)
        for name in (JOURNAL_NAME, SHELF_NAME):
            if os.path.lexists(path / name):
                _check_safe(path / name)
    return layout


def write_format(path: Path, layout: int = FORMAT) -> None:
    """Note how the directory is laid out. Raises StorageFault."""
    write_atomic(path / FORMAT_NAME, json.dumps({"format": layout}).encode() + b"\n")


@contextlib.contextmanager
def empty_state_dir(path: Path) -> Iterator[None]:
    """An empty directory, created 0700 if missing and locked meanwhile, for whoever fills it and notes its format last.

    Raises StateDirError if it is not empty, StateBusy, StorageFault.
    """
    with disk_faults("create", path, rule=NOTHING_CHANGED):
        _create(path)
    _check_nothing_there(path)
    with disk_faults("lock", path / LOCK_NAME, rule=NOTHING_CHANGED):
        lock = _take_lock(path)
    try:
        _check_nothing_there(path)  # a daemon may have begun one before we had the lock
        with disk_faults("clean", path, rule="unfinished temporary files may remain, nothing else was touched"):
            _remove_temporaries(path)
        yield
    finally:
        os.close(lock)


def running_pid(path: Path) -> int | None:
    """The pid of the daemon that runs on the state directory, None if none does, 0 if it has not noted its pid yet.

    Asks the kernel's lock, not the pid: a pid that was reused after a crash cannot fool it.
    Raises StorageFault.
    """
    with disk_faults("look into", path / LOCK_NAME, rule=NOTHING_CHANGED):
        try:
            lock = os.open(path / LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _noted_pid(lock)
        finally:
            os.close(lock)
        return None


def _check_nothing_there(path: Path) -> None:
    if check_state_dir(path) is not None:
        raise StateDirError(f"{path} holds a state already", hint="name a new or an empty directory")


def _create(path: Path) -> None:
    if os.path.lexists(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    with open_folder(path.parent) as folder:
        os.fsync(folder)


def _check_safe(path: Path) -> None:
    try:
        # O_PATH needs no right to the directory, so that another's private one is named as that.
        folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StateDirError(f"{path} does not exist", hint="name a directory that `edge-cl run` has used") from None
    except NotADirectoryError:
        what = "is a symbolic link" if path.is_symlink() else "is not a directory"
        raise StateDirError(f"{path} {what}", hint="name the directory itself: links are not followed here") from None
    try:
        status = os.fstat(folder)
    finally:
        os.close(folder)
    if status.st_uid != os.geteuid():
        raise StateDirError(
            f"{path} belongs to user {status.st_uid} (this is user {os.geteuid()})",
            hint="run as that user, or chown the directory",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StateDirError(
            f"{path} may be written by others (mode {stat.S_IMODE(status.st_mode):04o})",
            hint=f"chmod 700 {path}: whoever can write there can replace what was learnt",
        )


def _read_format(path: Path) -> int | None:
    try:
        text = read_whole(path / FORMAT_NAME)
    except FileNotFoundError:
        return None
    try:
        layout = json.loads(text)["format"]
    except (ValueError, TypeError, KeyError):
        layout = None
    if type(layout) is not int or layout < 1:
        raise StateDirError(
            f"{path / FORMAT_NAME}: not a format number (got {text[:40]!r})",
            hint=f'if the directory is edge_cl\'s, write {{"format": {FORMAT}}} into that file',
        )
    if layout > FORMAT:
        raise StateDirError(
            f"{path} has format {layout}, this edge_cl knows up to {FORMAT}",
            hint="use the newer edge_cl that wrote it, or name another directory",
        )
    return layout


def _check_empty(path: Path) -> None:
    # A state directory is swept at each start: never somebody's home by a slip of the keyboard.
    foreign = sorted(e.name for e in path.iterdir() if e.name not in _HARMLESS and not is_temporary(e.name))
    if foreign:
        raise StateDirError(
            f"{path} is no state directory, and not empty (it holds {foreign[0]})",
            hint="name a new or an empty directory",
        )


def _take_lock(path: Path) -> int:
    lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not lock_in_time(lock, _LOCK_PATIENCE_S):
            raise StateBusy(path, _noted_pid(lock))
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)  # not synced: it means nothing after a power cut
    except BaseException:
        os.close(lock)
        raise
    return lock


def _noted_pid(lock: int) -> int:
    text = os.pread(lock, 20, 0).strip()
    return int(text) if text.isdigit() else 0


def _remove_temporaries(path: Path) -> None:
    for entry in path.iterdir():
        if is_temporary(entry.name):
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
