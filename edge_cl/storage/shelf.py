"""Published snapshots: immutable folders, and `current`, which points at the newest good one.

Must not know what is inside a model.

    DIR/snapshots/000012/model.onnx       never changes once the folder has its number
    DIR/snapshots/000012/manifest.json    what the publisher says, and id, created, bytes, sha256, state
    DIR/snapshots/current → 000012        switched by renaming another link over it
    DIR/snapshots/.000013.<hex>.tmp/      half-written, or half-removed: not published, swept at the next start

    write both files, fsync each → fsync their folder → rename it to its number → fsync snapshots/
    → rename the link → fsync snapshots/ → remove the oldest

The fsync between the two renames matters: a power cut may keep any subset of renames that were not synced, and
`current` must not arrive before what it points at.

**How to read `current`.** Not as current/model.onnx and then current/manifest.json: between the two opens the link may
be switched, and the manifest would be another model's. Resolve the link once, then read both files of that folder:
`Shelf.current()` does, a shell does with `cd -P`. A folder stays for `keep` − 1 further snapshots; a reader slower
than that finds the file gone (never half of it) and resolves again.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge_cl.storage.atomic import (
    is_temporary,
    link_atomic,
    open_folder,
    read_whole,
    temporary_name,
    write_new,
)
from edge_cl.storage.errors import DamagedFile, disk_faults

MODEL_NAME = "model.onnx"
MANIFEST_NAME = "manifest.json"
CURRENT_NAME = "current"

_ID = re.compile(r"\d{6,}")
_OWN_FIELDS = ("id", "created", "bytes", "sha256", "state")
_CURRENT_STAYS = "the current snapshot is what it was"


@dataclass(frozen=True, slots=True)
class Published:
    """One snapshot on the shelf: its id, its manifest, and where its model lies."""

    id: str
    path: Path
    manifest: dict[str, Any]

    def read(self) -> bytes:
        """The model's bytes. Raises DamagedFile if they are not those the manifest names, StorageFault."""
        with disk_faults("read", self.path, rule=_CURRENT_STAYS):
            model = read_whole(self.path)
        if hashlib.sha256(model).hexdigest() != self.manifest["sha256"]:
            raise DamagedFile(f"{self.path} is damaged: its SHA-256 does not match", hint="use another snapshot")
        return model


class Shelf:
    """The shelf in `folder`/snapshots, of which the `keep` newest snapshots and the current one stay.

    Any process may read; only the holder of the state directory's lock may call `publish` and `sweep`.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep: must be at least 1 (got {keep})")
        self.folder = folder / "snapshots"
        self.keep = keep
        self._swept = False

    def publish(self, model: bytes, manifest: Mapping[str, Any]) -> Path:
        """Put the model on the shelf, point `current` at it, drop the oldest; the path of its model.onnx.

        manifest: JSON-able, without the keys id, created, bytes, sha256 and state, which are added.
        Raises StorageFault (a snapshot that did not become current is no harm), TypeError, ValueError.
        """
        if not self._swept:
            self.sweep()
        number = f"{int(max(self._ids(), key=int, default='0')) + 1:06d}"
        content = _manifest(number, model, manifest)
        path = self.folder / number
        with disk_faults("publish", path, rule=_CURRENT_STAYS):
            self._write(number, model, content)
        link_atomic(self.folder / CURRENT_NAME, number)
        with disk_faults("remove old snapshots from", self.folder, rule=f"{number} is published and current"):
            self._prune()
        return path / MODEL_NAME

    def current(self) -> Published | None:
        """The snapshot that `current` points at, None if none was published yet. Raises DamagedFile, StorageFault."""
        while True:
            number = self._current_id()
            if number is None:
                return None
            found = self._published(number)
            if found is not None:
                return found
            # Pruned while we looked, if `current` has moved on; otherwise it is truly gone.
            if self._current_id() == number:
                raise DamagedFile(f"{self.folder / CURRENT_NAME} points at nothing", hint="publish another snapshot")

    def entries(self) -> list[Published]:
        """All snapshots on the shelf, oldest first. Raises DamagedFile, StorageFault."""
        found = (self._published(number) for number in self._ids())
        return [entry for entry in found if entry is not None]  # None: pruned while we looked

    def sweep(self) -> None:
        """Remove what a killed publisher left half-written or half-removed; `publish` does it once.

        Raises StorageFault.
        """
        with disk_faults("sweep", self.folder, rule=_CURRENT_STAYS):
            self.folder.mkdir(mode=0o700, exist_ok=True)
            with open_folder(self.folder.parent) as above:
                os.fsync(above)
            for entry in list(self.folder.iterdir()):
                if is_temporary(entry.name):
                    _remove(entry)
        self._swept = True

    def _write(self, number: str, model: bytes, manifest: bytes) -> None:
        temporary = self.folder / temporary_name(number)
        with open_folder(self.folder) as shelf:
            try:
                temporary.mkdir(mode=0o700)
                with open_folder(temporary) as folder:
                    write_new(folder, MODEL_NAME, [model])
                    write_new(folder, MANIFEST_NAME, [manifest])
                    os.fsync(folder)
                os.rename(temporary.name, number, src_dir_fd=shelf, dst_dir_fd=shelf)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            os.fsync(shelf)

    def _prune(self) -> None:
        current = self._current_id()
        for number in self._ids()[: -self.keep]:
            if number != current:
                # Out of sight in one step: a reader finds the whole folder or none.
                hidden = self.folder / temporary_name(number)
                (self.folder / number).rename(hidden)
                _remove(hidden)

    def _ids(self) -> list[str]:
        with disk_faults("look into", self.folder, rule=_CURRENT_STAYS):
            try:
                names = [entry.name for entry in self.folder.iterdir()]
            except FileNotFoundError:
                return []
        return sorted((name for name in names if _ID.fullmatch(name)), key=int)

    def _current_id(self) -> str | None:
        link = self.folder / CURRENT_NAME
        with disk_faults("follow", link, rule=_CURRENT_STAYS):
            try:
                target = str(link.readlink())
            except FileNotFoundError:
                return None
        if not _ID.fullmatch(target):  # a link out of the shelf is not followed
            raise DamagedFile(f"{link} points at {target!r}, no snapshot", hint="publish another snapshot")
        return target

    def _published(self, number: str) -> Published | None:
        path = self.folder / number / MANIFEST_NAME
        with disk_faults("read", path, rule=_CURRENT_STAYS):
            try:
                content = read_whole(path)
            except FileNotFoundError:
                return None
        try:
            manifest = json.loads(content)
            sound = manifest["id"] == number and all(field in manifest for field in _OWN_FIELDS)
        except (ValueError, TypeError, KeyError):
            sound = False
        if not sound:
            raise DamagedFile(f"{path} is damaged: not the manifest of {number}", hint="use another snapshot")
        return Published(number, self.folder / number / MODEL_NAME, manifest)


def _manifest(number: str, model: bytes, given: Mapping[str, Any]) -> bytes:
    own = {
        "id": number,
        "created": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "bytes": len(model),
        "sha256": hashlib.sha256(model).hexdigest(),
        "state": "good",
    }
    taken = sorted(given.keys() & own.keys())
    if taken:
        raise ValueError(f"manifest: {', '.join(taken)} cannot be given")
    # allow_nan=False: NaN is not JSON, and others' parsers read this file.
    return json.dumps({**own, **given}, indent=2, allow_nan=False).encode() + b"\n"


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
