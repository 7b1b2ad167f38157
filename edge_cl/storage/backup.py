"""A state directory as one tar file, whole and of one instant, whether a daemon runs on it or not.

Must not know what is in a checkpoint, an entry or a model. In the file, which holds nothing but plain files:

    checkpoint.a or .b     the newest sound slot, byte for byte
    journal/…              the entries behind it, in a journal of their own: each was checked on its way
    snapshots/000012/…     what lies on the shelf, but for what is damaged
    backup.json            {"backup": 1, "format", "generation", "journal", "entries", "current", "pinned"}
    SHA256SUMS             of every other file, as `sha256sum -c` reads it; the last one, so that a part is noticed

Beside a daemon the slot comes first and the entries behind it second: what it learns meanwhile are more entries. They
stay until both slots have gone on, and if that happened while they were read, all is read again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from edge_cl.storage import journal
from edge_cl.storage.atomic import discarded_on_failure, open_folder, read_whole, temporary_name
from edge_cl.storage.checkpoint import SLOTS, Checkpoint, CheckpointStore, decode
from edge_cl.storage.errors import (
    DamagedFile,
    ShelfError,
    StateBusy,
    StateDirError,
    StorageError,
    StorageFault,
    disk_faults,
)
from edge_cl.storage.published import MANIFEST_NAME, MODEL_NAME, SIGNATURE_NAME, STATE_NAME, SUM_NAME, ShelfReader
from edge_cl.storage.state_dir import FORMAT, JOURNAL_NAME, SHELF_NAME, check_state_dir, running_pid

VERSION = 1
SUMS_NAME = "SHA256SUMS"
NOTE_NAME = "backup.json"

NOT_WRITTEN = "no backup was written, and the state is what it was"

_MOST_TRIES = 10
_QUEUE_BYTES = 64 << 20
_PATIENCE_S = 60.0  # for one commit of the copy's journal
_POLL_S = 0.1


@dataclass
class BackedUp:
    """What a backup holds; `left_out`: a sentence for each damaged thing that is not in it."""

    path: Path
    nbytes: int = 0
    generation: int = 0
    entries: int = 0
    snapshots: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def write_backup(state: Path, out: Path) -> BackedUp:
    """Write the state directory into the tar file `out`, mode 0600, replaced as a whole; needs no lock.

    Raises StateDirError (nothing was saved yet, or `out` lies in it), DamagedFile, JournalDamaged, StorageFault.
    """
    if check_state_dir(state) is None:
        raise _nothing_saved(state)
    if out.absolute().parent.resolve().is_relative_to(state.resolve()):
        raise StateDirError(f"{out} lies in {state} itself", hint="name a file elsewhere, best on another disk")
    done = BackedUp(out)
    with disk_faults("write", out, rule=NOT_WRITTEN), open_folder(out.parent) as folder:
        temporary = temporary_name(out.name)
        with discarded_on_failure(folder, temporary):
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
            with os.fdopen(file, "wb") as stream, TemporaryDirectory(prefix="edge_cl-") as scratch:
                _write_archive(_Archive(stream), state, Path(scratch) / JOURNAL_NAME, done)
                stream.flush()
                done.nbytes = stream.tell()
                os.fsync(file)
            os.rename(temporary, out.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    return done


class _Archive:
    """A tar file that is being written, and the SHA-256 of all that is in it."""

    def __init__(self, stream: io.BufferedWriter) -> None:
        self._tar = tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._sums: list[str] = []

    def add(self, name: str, content: bytes) -> None:
        self._sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
        self._put(name, content)

    def close(self) -> None:
        self._put(SUMS_NAME, "".join(self._sums).encode())
        self._tar.close()

    def _put(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
        self._tar.addfile(entry, io.BytesIO(content))


def _write_archive(archive: _Archive, state: Path, scratch: Path, done: BackedUp) -> None:
    slot, content, newest = _slot_and_entries(state, scratch, done)
    archive.add(slot, content)
    for file in sorted(scratch.iterdir()) if scratch.exists() else []:
        archive.add(f"{JOURNAL_NAME}/{file.name}", read_whole(file))
    shelf = ShelfReader(state)
    for number in shelf.ids():
        _add_snapshot(archive, shelf, number, done)
    current = _current(archive, shelf, done)
    pinned = shelf.pinned()
    note = {
        "backup": VERSION,
        "format": FORMAT,
        "generation": newest.generation,
        "journal": newest.meta.get("journal", 0),
        "entries": done.entries,
        "current": current,
        "pinned": pinned if pinned in done.snapshots else None,
    }
    archive.add(NOTE_NAME, json.dumps(note).encode() + b"\n")
    archive.close()


def _slot_and_entries(state: Path, scratch: Path, done: BackedUp) -> tuple[str, bytes, Checkpoint]:
    """The newest slot, and in `scratch` a journal of all entries behind it: both of one instant."""
    for _ in range(_MOST_TRIES):
        slot, content, newest, done.left_out[:] = _newest_slot(state)
        try:
            done.entries = _copy_entries(state, scratch, int(newest.meta.get("journal", 0)))
        except StorageError:
            if _is_still_there(state, newest.generation):
                raise
        if _is_still_there(state, newest.generation):
            done.generation = newest.generation
            return slot, content, newest
        shutil.rmtree(scratch, ignore_errors=True)
    raise StateBusy(state, running_pid(state) or 0, hint="it saves faster than it can be read: stop it for a moment")


def _newest_slot(state: Path) -> tuple[str, bytes, Checkpoint, list[str]]:
    sound: list[tuple[int, str, bytes, Checkpoint]] = []
    faults = []
    for slot in SLOTS:
        try:
            content = read_whole(state / slot)
            found = decode(content)
        except FileNotFoundError:
            continue
        except (OSError, DamagedFile) as exc:
            faults.append(f"{slot} is damaged: {exc}")
            continue
        sound.append((found.generation, slot, content, found))
    if not sound:
        CheckpointStore(state).load()  # says what is wrong with each
        raise _nothing_saved(state)
    _, slot, content, found = max(sound, key=lambda one: one[0])
    return slot, content, found, faults


def _copy_entries(state: Path, scratch: Path, after: int) -> int:
    """Copy the entries behind `after` into a journal of their own in `scratch`, and say how many there were."""
    if not (state / JOURNAL_NAME).exists():
        return 0
    n, copy = 0, None
    try:
        for number, body in journal.read(state / JOURNAL_NAME, after=after, copied=True):
            if copy is None:
                scratch.mkdir(mode=0o700)
                copy = journal.Journal(scratch, after=after, queue_bytes=_QUEUE_BYTES + len(body))
            _append(copy, number, body)
            n += 1
        if copy is not None:
            _commit(copy, after + n)
    finally:
        if copy is not None:
            copy.close(timeout_s=0.0)  # all is committed, or nobody wants it any more
    return n


def _append(copy: journal.Journal, number: int, body: bytes) -> None:
    got = copy.append(body)
    if got is None:
        _commit(copy, number - 1)
        got = copy.append(body)
    assert got == number, "a queue that is empty takes any entry"


def _commit(copy: journal.Journal, number: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not copy.wait(number, _POLL_S):
        if copy.fault is not None:  # a daemon's journal would try again, for ever
            raise copy.fault
        if time.monotonic() > deadline:
            late = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            raise StorageFault("write", copy.folder, late, rule=NOT_WRITTEN)


def _is_still_there(state: Path, generation: int) -> bool:
    """Whether one of the slots still holds that generation: until then no entry behind it is let go."""
    sound, _ = CheckpointStore(state).slots()
    return any(found.generation == generation for found in sound.values())


def _add_snapshot(archive: _Archive, shelf: ShelfReader, number: str, done: BackedUp) -> None:
    folder = shelf.folder / number
    try:
        entry = shelf.get(number)
        files = {MODEL_NAME: entry.read(), MANIFEST_NAME: read_whole(folder / MANIFEST_NAME)}
    except (DamagedFile, ShelfError) as exc:
        if number in shelf.ids():  # else it was let go while we looked
            done.left_out.append(f"snapshot {number}: {exc}")
        return
    for name in (SUM_NAME, SIGNATURE_NAME, STATE_NAME):
        with suppress(FileNotFoundError):
            files[name] = read_whole(folder / name)
    for name, content in files.items():
        archive.add(f"{SHELF_NAME}/{number}/{name}", content)
    done.snapshots.append(number)


def _current(archive: _Archive, shelf: ShelfReader, done: BackedUp) -> str | None:
    """The snapshot that is current; if one has become so that is not in the archive yet, it is put there."""
    try:
        current = shelf.current()
        if current is not None and current.id not in done.snapshots:
            _add_snapshot(archive, shelf, current.id, done)
    except DamagedFile as exc:
        done.left_out.append(str(exc))
        return None
    return current.id if current is not None and current.id in done.snapshots else None


def _nothing_saved(state: Path) -> StateDirError:
    return StateDirError(
        f"{state}: nothing was saved there yet", hint="a daemon saves one every storage.checkpoint_every_s"
    )
