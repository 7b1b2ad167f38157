"""The shelf of published snapshots as a reader sees it. Changes nothing; must not know what is inside a model.

    DIR/snapshots/000012/model.onnx       never changes once the folder has its number
    DIR/snapshots/000012/manifest.json    what the publisher says, and id, created, bytes, sha256; never changes
    DIR/snapshots/000012/manifest.sig     its Ed25519 signature, 64 bytes, if there is a key; never changes
    DIR/snapshots/000012/state.json       {"state": "trial" | "good" | "bad", "why": "..."}: replaced as a whole
    DIR/snapshots/current → 000012        switched by renaming another link over it
    DIR/snapshots/pinned → 000009         only while one is pinned; `current` then points there, too

A number is a generation: it rises by one and is never used again.

**How to read `current`.** Not as current/model.onnx and then current/manifest.json: between the two opens the link may
be switched, and the manifest would be another model's. Resolve the link once, then read both files of that folder:
`ShelfReader.current` does, a shell does with `cd -P`. A snapshot that is no longer current may go; a reader that is
too slow finds the file gone (never half of it) and resolves again.

Manifests of format 1 from before state.json hold "state" themselves, and only good ones were published.
"""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edge_cl.storage.atomic import read_whole
from edge_cl.storage.errors import DamagedFile, ShelfError, disk_faults

State = Literal["trial", "good", "bad"]
STATES: tuple[State, ...] = get_args(State)

MODEL_NAME = "model.onnx"
MANIFEST_NAME = "manifest.json"
SUM_NAME = "manifest.sha256"  # as sha256sum writes it; the manifest in turn has that of the model
SIGNATURE_NAME = "manifest.sig"
STATE_NAME = "state.json"
CURRENT_NAME = "current"
PINNED_NAME = "pinned"

OWN_FIELDS = ("id", "created", "bytes", "sha256")
CURRENT_STAYS = "the current snapshot is what it was"

_ID = re.compile(r"\d{6,}")
_USE_ANOTHER = "use another snapshot"
_MEND_CURRENT = "publish another snapshot, or roll back"
_LOOK_AT_ALL = "edge-cl snapshots verify looks at all of them"


@dataclass(frozen=True, slots=True)
class Published:
    """One snapshot on the shelf: its id, where its model lies, its manifest, its state and the reason for it."""

    id: str
    path: Path
    manifest: dict[str, Any]
    state: State
    why: str

    def read(self) -> bytes:
        """The model's bytes. Raises DamagedFile if they are not those the manifest names, or gone, StorageFault."""
        model = _read(self.path)
        if model is None:
            raise DamagedFile(f"{self.path} is gone", hint="look at `current` again, or use another snapshot")
        if hashlib.sha256(model).hexdigest() != self.manifest["sha256"]:
            raise DamagedFile(f"{self.path} is damaged: its SHA-256 does not match", hint=_USE_ANOTHER)
        return model

    def signed(self) -> tuple[bytes, bytes | None]:
        """The manifest's bytes and their signature, None if there is none. Raises StorageFault."""
        with disk_faults("read", self.path.parent, rule=CURRENT_STAYS):
            manifest = read_whole(self.path.with_name(MANIFEST_NAME))
            try:
                return manifest, read_whole(self.path.with_name(SIGNATURE_NAME))
            except FileNotFoundError:
                return manifest, None


class ShelfReader:
    """The shelf in `folder`/snapshots, for any process at any time: takes no lock and creates nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "snapshots"

    def current(self) -> Published | None:
        """The snapshot that `current` points at, None if there is none. Raises DamagedFile, StorageFault."""
        while True:
            number = self._target(CURRENT_NAME)
            if number is None:
                return None
            found = self._published(number)
            if found is not None:
                return found
            # Removed while we looked, if `current` has moved on; otherwise it is truly gone.
            if self._target(CURRENT_NAME) == number:
                raise DamagedFile(f"{self.folder / CURRENT_NAME} points at nothing", hint=_MEND_CURRENT)

    def pinned(self) -> str | None:
        """The id of the pinned snapshot, None if none is; a pin on what is gone holds nothing.

        Raises DamagedFile, StorageFault.
        """
        number = self._target(PINNED_NAME)
        return number if number is not None and number in self.ids() else None

    def ids(self) -> list[str]:
        """The ids of all snapshots on the shelf, damaged ones included, oldest first. Raises StorageFault."""
        with disk_faults("look into", self.folder, rule=CURRENT_STAYS):
            try:
                names = [entry.name for entry in self.folder.iterdir()]
            except FileNotFoundError:
                return []
        return sorted((name for name in names if _ID.fullmatch(name)), key=int)

    def entries(self) -> list[Published]:
        """All snapshots whose manifest and state can be read, oldest first. Raises StorageFault."""
        found = []
        for number in self.ids():
            with suppress(DamagedFile, ShelfError):  # ShelfError: removed while we looked
                found.append(self.get(number))
        return found

    def get(self, number: str) -> Published:
        """The snapshot of that id. Raises ShelfError, which names those there are, DamagedFile, StorageFault."""
        found = self._published(number) if _ID.fullmatch(number) else None
        if found is None:
            raise ShelfError(f"no snapshot {number} in {self.folder}", hint=self._what_there_is())
        return found

    def _what_there_is(self) -> str:
        return f"there are {', '.join(self.ids())}" if self.ids() else "none was published yet"

    def _target(self, name: str) -> str | None:
        link = self.folder / name
        with disk_faults("follow", link, rule=CURRENT_STAYS):
            try:
                target = str(link.readlink())
            except FileNotFoundError:
                return None
        if not _ID.fullmatch(target):  # a link out of the shelf is not followed
            raise DamagedFile(
                f"{link} points at {target!r}, no snapshot", hint="publish another snapshot, or roll back"
            )
        return target

    def _published(self, number: str) -> Published | None:
        # The state first: a folder that goes away between the two reads then has no manifest either.
        state = _state_of(self.folder / number / STATE_NAME)
        path = self.folder / number / MANIFEST_NAME
        content = _read(path)
        if content is None:
            return None
        manifest = _json_object(content)
        if not _is_as_written(content, path.with_name(SUM_NAME)):
            raise DamagedFile(f"{path} is damaged: its SHA-256 is not the one in {SUM_NAME}", hint=_USE_ANOTHER)
        if manifest.get("id") != number or any(field not in manifest for field in OWN_FIELDS):
            raise DamagedFile(f"{path} is damaged: not the manifest of {number}", hint=_USE_ANOTHER)
        if state is None:
            state = _state_in(manifest, path)
        return Published(number, path.with_name(MODEL_NAME), manifest, *state)

    def _state(self, number: str) -> State:
        """The state alone. What cannot be read counts as bad: nobody knows that it was found good."""
        try:
            found = _state_of(self.folder / number / STATE_NAME)
            if found is not None:
                return found[0]
            entry = self._published(number)
        except DamagedFile:
            return "bad"
        return "bad" if entry is None else entry.state


def _state_of(path: Path) -> tuple[State, str] | None:
    content = _read(path)
    if content is None:
        return None
    found = _json_object(content)
    state, why = found.get("state"), found.get("why")
    for known in STATES:
        if state == known and isinstance(why, str):
            return known, why
    raise DamagedFile(f"{path} is damaged: not the state of a snapshot", hint=_LOOK_AT_ALL)


def _state_in(manifest: dict[str, Any], path: Path) -> tuple[State, str]:
    if manifest.get("state") != "good":
        raise DamagedFile(f"{path.with_name(STATE_NAME)} is missing", hint=_LOOK_AT_ALL)
    return "good", ""


def _read(path: Path) -> bytes | None:
    with disk_faults("read", path, rule=CURRENT_STAYS):
        try:
            return read_whole(path)
        except FileNotFoundError:
            return None


def sum_line(manifest: bytes) -> bytes:
    """What SUM_NAME says of a manifest."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST_NAME}\n".encode()


def _is_as_written(manifest: bytes, path: Path) -> bool:
    noted = _read(path)
    return noted is None or noted == sum_line(manifest)  # snapshots of edge_cl 0.1.0 have none


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
