"""From a backup to a state directory that a daemon goes on from. What is in the file: backup.py.

Nobody vouches for a file that was carried about: only plain files of the names that a backup has are taken, each is
held against its SHA-256 before the directory is even created, and again while it is written. What was extracted lies in
a temporary folder until all of it is there, and `.format`, without which no daemon takes the directory, comes last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_cl.storage.atomic import link_atomic, open_folder, temporary_name, write_new
from edge_cl.storage.backup import NOTE_NAME, SUMS_NAME, VERSION
from edge_cl.storage.errors import DamagedFile, StateDirError, disk_faults
from edge_cl.storage.published import CURRENT_NAME, MANIFEST_NAME, PINNED_NAME
from edge_cl.storage.state_dir import FORMAT, JOURNAL_NAME, SHELF_NAME, empty_state_dir, write_format

NOT_RESTORED = "nothing was restored; the directory is as good as empty"

_MAY_BE_THERE = re.compile(
    r"checkpoint\.[ab]|journal/(\d{12}\.db(-wal)?|newest)|backup\.json|SHA256SUMS"
    r"|snapshots/\d{6,}/(model\.onnx|manifest\.(json|sha256|sig)|state\.json)"
)
_SUM = re.compile(r"([0-9a-f]{64})  (\S+)")
_TAKE_ANOTHER = "take another copy of the backup"


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored: the checkpoint's generation, how many entries of the journal are behind it, snapshots."""

    generation: int
    entries: int
    snapshots: list[str]
    current: str | None


def restore_backup(archive: Path, state: Path) -> Restored:
    """Make the state directory `state`, missing or empty before, of a backup.

    Raises DamagedFile, which names what is wrong with the file, StateDirError if the directory is not empty or the
    backup is of a newer edge_cl, StateBusy, StorageFault.
    """
    with disk_faults("read", archive, rule=NOT_RESTORED):
        sums = _checked(archive)
        note = _note(archive, sums.keys())
    with empty_state_dir(state), disk_faults("restore", state, rule=NOT_RESTORED):
        folder = state / temporary_name("restored")
        folder.mkdir(mode=0o700)
        with _removed_afterwards(folder):
            for name, content in _files(archive):
                if name in sums:
                    _hold_against(sums[name], name, content, archive)
                    _write(folder / name, content)
            _link(folder, note)
            _put_in_place(folder, state)
        write_format(state, note["format"])
    snapshots = sorted({name.split("/")[1] for name in sums if name.startswith(f"{SHELF_NAME}/")}, key=int)
    return Restored(note["generation"], note["entries"], snapshots, note["current"])


def _checked(archive: Path) -> dict[str, str]:
    """The SHA-256 of each file of a backup, by name, after each was held against it."""
    found: dict[str, str] = {}
    listed: dict[str, str] | None = None
    for name, content in _files(archive):
        if listed is not None:
            raise _damaged(archive, f"{name} stands behind {SUMS_NAME}")
        if name == SUMS_NAME:
            listed = _listed(archive, content)
        elif name in found:
            raise _damaged(archive, f"{name} is in it twice")
        else:
            found[name] = hashlib.sha256(content).hexdigest()
    if listed is None:
        raise _damaged(archive, f"it ends before {SUMS_NAME}")
    for name in sorted(found.keys() | listed.keys()):
        if found.get(name) != listed.get(name):
            what = (
                "is missing" if name not in found else "is not listed" if name not in listed else "is not what it was"
            )
            raise _damaged(archive, f"{name} {what}")
    return found


def _listed(archive: Path, content: bytes) -> dict[str, str]:
    lines = [_SUM.fullmatch(line) for line in content.decode("ascii", "replace").splitlines()]
    listed = {line[2]: line[1] for line in lines if line is not None}
    if len(listed) != len(lines):
        raise _damaged(archive, f"{SUMS_NAME} is no list of sums")
    return listed


def _note(archive: Path, names: Collection[str]) -> dict[str, Any]:
    content = next((content for name, content in _files(archive) if name == NOTE_NAME), b"")
    try:
        note = dict(json.loads(content))
        numbers = [note[key] for key in ("backup", "format", "generation", "entries")]
        links = [note[key] for key in ("current", "pinned")]
    except (ValueError, TypeError, KeyError):
        raise _damaged(archive, f"{NOTE_NAME} is missing or no note of a backup") from None
    if not all(type(number) is int for number in numbers) or not all(_is_there(link, names) for link in links):
        raise _damaged(archive, f"{NOTE_NAME} is no note of a backup")
    if note["backup"] > VERSION or note["format"] > FORMAT:
        raise StateDirError(
            f"{archive} is a backup of version {note['backup']} of format {note['format']}, "
            f"this edge_cl knows up to {VERSION} of {FORMAT}",
            hint="use the newer edge_cl that wrote it",
        )
    return note


def _is_there(snapshot: object, names: Collection[str]) -> bool:
    return snapshot is None or f"{SHELF_NAME}/{snapshot}/{MANIFEST_NAME}" in names


def _files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of the archive. Raises DamagedFile for whatever no backup of ours has in it."""
    try:
        with tarfile.open(archive, mode="r:") as tar:
            for entry in tar:
                plain = entry.type == tarfile.REGTYPE and not entry.pax_headers
                if not plain or not _MAY_BE_THERE.fullmatch(entry.name):
                    raise _damaged(archive, f"{entry.name!r} is no file that a backup has")
                stream = tar.extractfile(entry)
                assert stream is not None
                content = stream.read()
                if len(content) != entry.size:
                    raise _damaged(archive, f"{entry.name} is cut short")
                yield entry.name, content
    except tarfile.TarError as exc:
        raise _damaged(archive, f"it is no whole tar file ({exc})") from None


def _hold_against(wanted: str, name: str, content: bytes, archive: Path) -> None:
    if hashlib.sha256(content).hexdigest() != wanted:
        raise _damaged(archive, f"{name} has changed while it was read")


def _write(path: Path, content: bytes) -> None:
    for above in reversed(path.parents[:2]):  # mkdir's own `parents` would make them for everybody to read
        above.mkdir(mode=0o700, exist_ok=True)
    with open_folder(path.parent) as folder:
        write_new(folder, path.name, [content])


def _link(folder: Path, note: dict[str, Any]) -> None:
    for name, key in ((CURRENT_NAME, "current"), (PINNED_NAME, "pinned")):
        if note[key] is not None:
            link_atomic(folder / SHELF_NAME / name, note[key])


def _put_in_place(folder: Path, state: Path) -> None:
    """Move what was extracted to where it belongs, once it is all on the disk; of the backup's own files nothing."""
    (folder / NOTE_NAME).unlink()
    (folder / JOURNAL_NAME).mkdir(mode=0o700, exist_ok=True)
    for each in (*(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()), folder):
        with open_folder(each) as opened:
            os.fsync(opened)
    for entry in sorted(folder.iterdir()):
        entry.rename(state / entry.name)
    with open_folder(state) as opened:
        os.fsync(opened)


@contextmanager
def _removed_afterwards(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _damaged(archive: Path, what: str) -> DamagedFile:
    return DamagedFile(f"{archive} is damaged: {what}", hint=_TAKE_ANOTHER)
