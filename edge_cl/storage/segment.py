"""One file of the journal: an SQLite database to which entries are only ever added, each chained to the one before.

Must not know what an entry means, nor of other segments.

    NNNNNNNNNNNN.db      named by its first entry; the empty table, never changed once it has this name
    NNNNNNNNNNNN.db-wal  the entries, one transaction after the other

    entry: number, batch (which transaction of this segment), digest (SHA-256 of the digest before, number and body,
    its first 16 bytes; before the first: zeros), body

SQLite would copy the log into the database when it closes it, which writes each entry to the flash a second time, and
trusts a log whose sync may just have failed. It leaves both alone if the database no longer has the name it was opened
by (SQLITE_FCNTL_HAS_MOVED); so a segment is made under a temporary name and renamed while it is open, which also lets
nobody see a half-made one. Small pages, since each transaction writes whole ones. No -shm: there is one writer.

Nothing is tried twice: after a fault the segment is given up (fsyncgate, see atomic.py), and so is its connection.
"""

import contextlib
import errno
import hashlib
import os
import re
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_cl.storage.atomic import discarded_on_failure, open_folder, read_whole, temporary_name, write_new
from edge_cl.storage.errors import DamagedFile, StorageFault, disk_faults
from edge_cl.storage.wal import Walked, walk

PAGE_BYTES = 1024
WAL = "-wal"
NOT_ACKNOWLEDGED = "the entries wait in memory; nothing was acknowledged"

_NAME = re.compile(r"(\d{12})\.db")
_DIGEST_BYTES = 16
_CHAIN_START = bytes(_DIGEST_BYTES)
_SETTINGS = (
    f"page_size={PAGE_BYTES}",
    "locking_mode=EXCLUSIVE",
    "journal_mode=OFF",  # while the table is made: a fault then throws the file away, there is nothing to go back to
    "synchronous=FULL",
    "wal_autocheckpoint=0",
    "cache_size=-256",
    "cache_spill=OFF",  # else a large transaction would write a page more than once
    "temp_store=MEMORY",
)
_TABLE = (
    "CREATE TABLE entry(number INTEGER PRIMARY KEY, batch INTEGER NOT NULL, digest BLOB NOT NULL, body BLOB NOT NULL)"
)
_HINT = "restore the state directory from a backup"
_FULL = "database or disk is full"
# What SQLite says when the operating system refuses, whatever the file holds.
_REFUSED = ("unable to open database file", "disk I/O error", "out of memory", "database is locked")


class Segment:
    """A new segment in `folder` whose first entry is `first`; for one thread.

    Raises StorageFault; then nothing of it is left, or nothing that a later segment of that name would mind.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self.path = folder / f"{first:012d}.db"
        self.first = first
        self._digest = _CHAIN_START
        self._batches = 0
        self._connection: sqlite3.Connection | None = None
        with disk_faults("create", self.path, rule=NOT_ACKNOWLEDGED), open_folder(folder) as opened:
            _remove_stale(opened, self.path.name)
            temporary = temporary_name(self.path.name)
            try:
                self._connection = _created(folder / temporary)
                for end in (WAL, ""):
                    os.rename(temporary + end, self.path.name + end, src_dir_fd=opened, dst_dir_fd=opened)
                os.fsync(opened)
            except BaseException:
                _unlink(opened, temporary, self.path.name)
                self.close()
                raise

    def write(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Add the entries in one transaction, and return once that survives a power cut.

        Raises StorageFault; then the segment is of no more use, and `abandon` is due.
        """
        digest = self._digest
        rows = []
        for number, body in entries:
            digest = chained(digest, number, body)
            rows.append((number, self._batches + 1, digest, body))
        if self._connection is None:
            raise ValueError(f"{self.path} is closed")
        with sqlite_faults("write", self.path):
            self._connection.execute("BEGIN")
            self._connection.executemany("INSERT INTO entry VALUES(?, ?, ?, ?)", rows)
            self._connection.execute("COMMIT")
        self._digest = digest
        self._batches += 1

    def abandon(self) -> None:
        """Close it after a fault, and remove it if it holds nothing that was acknowledged."""
        if self._batches == 0:
            with contextlib.suppress(OSError), open_folder(self.path.parent) as folder:
                _unlink(folder, self.path.name)
        self.close()

    def close(self) -> None:
        """Let go of the files; a second call does nothing."""
        if self._connection is not None:
            _close(self._connection)
            self._connection = None


def firsts(folder: Path) -> list[int]:
    """The first entries of the segments in `folder`, in order; a log without its database counts, too.

    Raises OSError.
    """
    found = (_NAME.fullmatch(entry.name.removesuffix(WAL)) for entry in folder.iterdir())
    return sorted({int(match[1]) for match in found if match})


def segment_path(folder: Path, first: int) -> Path:
    """Where the segment that begins with entry `first` lies."""
    return folder / f"{first:012d}.db"


def wal_path(segment: Path) -> Path:
    """Where the segment's log lies."""
    return segment.with_name(segment.name + WAL)


def entries(path: Path, *, after: int, doubts: list[str]) -> Iterator[tuple[int, bytes]]:
    """The sound entries behind `after`, in order, of a segment that nobody has open; what is in doubt joins `doubts`.

    Raises DamagedFile after the last sound one if more was there, StorageFault. Changes nothing on disk.
    """
    with disk_faults("read", path, rule="nothing was changed"):
        walked = walk(wal_path(path), PAGE_BYTES)
        is_merged = not wal_path(path).exists()
        there = _check_there(path, empty=walked == Walked())
    if walked.doubt:
        doubts.append(f"{wal_path(path).name}: {walked.doubt}")
    if there and (walked.commits or is_merged):  # SQLite would remove a log without one sound transaction
        yield from _rows(path, after, walked.commits)
    if walked.damage:
        raise DamagedFile(f"{wal_path(path).name}: {walked.damage}", hint=_HINT)


def chained(previous: bytes, number: int, body: bytes) -> bytes:
    """The digest of an entry behind the one with the digest `previous`."""
    digest = hashlib.sha256(previous)
    digest.update(number.to_bytes(8, "little"))
    digest.update(body)
    return digest.digest()[:_DIGEST_BYTES]


@contextlib.contextmanager
def sqlite_faults(action: str, path: Path) -> Iterator[None]:
    """Translate SQLite's errors into a StorageFault, cause kept."""
    try:
        yield
    except MemoryError as exc:
        fault = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        raise StorageFault(action, path, fault, rule=NOT_ACKNOWLEDGED) from exc
    except sqlite3.Error as exc:
        code = errno.ENOSPC if str(exc) == _FULL else _refusal(path.parent)
        raise StorageFault(action, path, OSError(code, str(exc)), rule=NOT_ACKNOWLEDGED) from exc


def _refusal(folder: Path) -> int:
    """What the operating system holds against a small file in the folder, EIO if nothing: SQLite does not tell."""
    try:
        with open_folder(folder) as opened:
            name = temporary_name("probe")
            with discarded_on_failure(opened, name):
                write_new(opened, name, [bytes(PAGE_BYTES)])
            os.unlink(name, dir_fd=opened)
    except OSError as exc:
        return exc.errno or errno.EIO
    return errno.EIO


def _created(path: Path) -> sqlite3.Connection:
    """A database with the empty table, its log open; what is left by a fault is the caller's to remove."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    with sqlite_faults("create", path):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            for setting in _SETTINGS:
                connection.execute(f"PRAGMA {setting}")
            connection.execute(_TABLE)
            if connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
                raise sqlite3.OperationalError("this SQLite keeps no write-ahead log")
            connection.execute("SELECT number FROM entry").fetchall()  # opens the log
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()  # before it is closed, see above
            _close(connection)
            raise
    return connection


def _rows(path: Path, after: int, commits: int) -> Iterator[tuple[int, bytes]]:
    """Behind `after`, each checked against the one before it."""
    first = int(path.name[:12])
    expected, digest = max(first, after), _CHAIN_START
    with _reading(path) as connection:
        newest = connection.execute("SELECT number, batch FROM entry ORDER BY number DESC LIMIT 1").fetchone()
        rows = connection.execute(
            "SELECT number, digest, body FROM entry WHERE number >= ? ORDER BY number", (expected,)
        )
        last = None
        for number, noted, body in rows:
            is_link = number == after >= first  # only its digest is wanted
            if number != expected or (not is_link and noted != chained(digest, number, body)):
                raise DamagedFile(f"{path.name}: entry {expected} is not what was written", hint=_HINT)
            if not is_link:
                yield number, body
            last, digest, expected = number, noted, number + 1
    # Without a log somebody's tool has merged it: then there is nothing to compare with.
    unseen = commits > 0 and (newest is None or newest[1] != commits)
    if unseen or (last is not None and last != newest[0]):
        raise DamagedFile(f"{path.name}: of {commits} transactions in its log some cannot be read", hint=_HINT)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    # Read-only, so that it is not changed by being closed; unix-none, so that it needs no -shm and no lock: who reads
    # holds the state directory's lock, or reads a copy.
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro&vfs=unix-none"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            yield connection
        finally:
            _close(connection)
    except (sqlite3.Error, TypeError, OverflowError) as exc:
        if str(exc) in _REFUSED:
            raise StorageFault("read", path, OSError(errno.EIO, str(exc)), rule="nothing was changed") from exc
        raise DamagedFile(f"{path.name}: {exc}", hint=_HINT) from exc


def _check_there(path: Path, *, empty: bool) -> bool:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if empty:
            return False  # killed between two renames, or while it was removed
        raise DamagedFile(f"{path.name} is missing, its log is there", hint=_HINT) from None
    if not stat.S_ISREG(mode):
        raise DamagedFile(f"{path.name} is not a file", hint=_HINT)
    content = read_whole(path)
    # Of an empty database SQLite would remove the log without a look.
    if not content.startswith(b"SQLite format 3\0") or len(content) < 2 * PAGE_BYTES or len(content) % PAGE_BYTES:
        raise DamagedFile(f"{path.name} is not the database that was made", hint=_HINT)
    return True


def _remove_stale(folder: int, name: str) -> None:
    # What a fault left of a segment that had this name: a database must never meet another one's log.
    stale = [entry for entry in (name + WAL, name) if _exists(folder, entry)]
    for entry in stale:
        os.unlink(entry, dir_fd=folder)
    if stale:
        os.fsync(folder)


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _unlink(folder: int, *names: str) -> None:
    for name in names:
        for end in (WAL, ""):
            with contextlib.suppress(OSError):
                os.unlink(name + end, dir_fd=folder)


def _close(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        connection.close()
