"""Changes to the shelf of published snapshots: publish, judge, go back, pin, forget. What lies there: published.py.

Must not know what is inside a model. Whoever changes something holds a flock on DIR/snapshots/.lock for that long, so
that a person may roll back while a daemon runs.

    write the files, fsync each → fsync their folder → rename it to its number → fsync snapshots/
    → rename the link → fsync snapshots/ → rename what is no longer kept → fsync snapshots/ → remove it

    DIR/snapshots/.000013.<hex>.tmp/      half-written, or half-removed: no snapshot, swept by the next change

The fsync between the two renames matters: a power cut may keep any subset of renames that were not synced, and
`current` must not arrive before what it points at. A verdict is durable before `current` follows it: whoever is killed
in between leaves a `current` that is whole and known to be bad, and the next change, whichever it is, moves it on. In
the other order a snapshot that was rolled back would still be good, and would come back.

What a person names is good from then on, for pins and for the way back; on the way back all that is newer becomes bad.

`keep` counts good snapshots. Besides them stay the current one, the pinned one, one on trial and the newest good one
before it, and the KEEP_BAD newest bad ones. Nothing is removed by going back or by a pin: only what is added pushes
something out, and a verdict.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from edge_cl.storage.atomic import (
    NOTHING_CHANGED,
    is_temporary,
    link_atomic,
    open_folder,
    temporary_name,
    unlink_durable,
    write_atomic,
    write_new,
)
from edge_cl.storage.errors import DamagedFile, ShelfError, StateBusy, disk_faults
from edge_cl.storage.lock import lock_in_time
from edge_cl.storage.published import (
    CURRENT_NAME,
    CURRENT_STAYS,
    MANIFEST_NAME,
    MODEL_NAME,
    OWN_FIELDS,
    PINNED_NAME,
    SIGNATURE_NAME,
    STATE_NAME,
    SUM_NAME,
    Published,
    ShelfReader,
    State,
    sum_line,
)

__all__ = ["Published", "Shelf", "State"]  # those who change the shelf read it, too

KEEP_BAD = 3  # enough to see what goes wrong, and a poisoned month does not fill the disk
LOCK_NAME = ".lock"
LOCK_PATIENCE_S = 5.0  # a change takes milliseconds, on a slow card tenths of a second

Sign = Callable[[bytes], bytes]


class Shelf(ShelfReader):
    """The shelf in `folder`/snapshots, of which the `keep` newest good snapshots stay.

    sign: from a manifest's bytes to their signature. Every change raises StorageFault, and StateBusy if another
    process holds the shelf for seconds; what was current then still is.
    """

    def __init__(self, folder: Path, keep: int = 3, sign: Sign | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep: must be at least 1 (got {keep})")
        super().__init__(folder)
        self.keep = keep
        self._sign = sign
        self._created = False

    def publish(
        self, model: bytes, manifest: Mapping[str, Any], *, state: Literal["trial", "good"] = "good"
    ) -> Published:
        """Put the model on the shelf and point `current` at it; while one is pinned, it only lies there as good.

        An earlier one that is still on trial becomes bad: it was not found good in time.
        manifest: JSON-able, without the keys id, created, bytes, sha256 and state.
        Raises StorageFault (a snapshot that did not become current is no harm), TypeError, ValueError.
        """
        with self._changing():
            pinned = self.pinned()
            number = self._add(model, manifest, "good" if pinned else state, "")
            if pinned is None:
                link_atomic(self.folder / CURRENT_NAME, number)
                for other, was in self._states().items():
                    if was == "trial" and other != number:
                        self._set_state(other, "bad", f"{number} came before its trial was over")
            self._prune()
            return self.get(number)

    def set_aside(self, model: bytes, manifest: Mapping[str, Any], *, why: str) -> Published:
        """Keep the model for a person to look at: bad, and never current.

        manifest, raises: as for `publish`.
        """
        with self._changing():
            number = self._add(model, manifest, "bad", why)
            self._prune()
            return self.get(number)

    def settle(self, number: str, state: Literal["good", "bad"], why: str = "") -> Published | None:
        """The verdict on a trial, and what is current then: after a bad one the newest good one, None without any.

        One that is no longer on trial keeps its state: somebody's word came first.
        Raises ShelfError if there is no such snapshot, DamagedFile, StorageFault.
        """
        with self._changing():
            states = self._states()
            if number not in states:
                raise ShelfError(f"no snapshot {number} in {self.folder}", hint=self._what_there_is())
            if states[number] == "trial":
                self._set_state(number, state, why)
                self._mend()
                self._prune()
            return self.current()

    def rollback(self, to: str | None = None) -> Published:
        """Make the newest good snapshot before the current one current again, or the named one, bad or not.

        All that is newer becomes bad. Raises ShelfError if one is pinned or there is none to go back to, DamagedFile if
        the named one's bytes are not those its manifest names, StorageFault.
        """
        with self._changing():
            pinned = self.pinned()
            if pinned is not None:
                raise ShelfError(f"{pinned} is pinned", hint="edge-cl snapshots pin --off comes first")
            target = self._newest_good(self._current_id()) if to is None else to
            if target is None:
                raise ShelfError(
                    f"no good snapshot before the current one in {self.folder}", hint=self._what_there_is()
                )
            self._vouch_for(target, "chosen by a rollback")
            # Oldest first: `current` is among the last to become bad, and until then nothing has been decided.
            for number, was in self._states().items():
                if int(number) > int(target) and was != "bad":
                    self._set_state(number, "bad", f"rolled back to {target}")
            self._point_current_at(target)
            return self.get(target)

    def pin(self, number: str | None) -> None:
        """Make a snapshot, bad or not, current until it is unpinned (None); what is published meanwhile waits.

        Raises ShelfError if there is no such snapshot, DamagedFile if its bytes are not those its manifest names,
        StorageFault.
        """
        with self._changing():
            if number is None:
                unlink_durable(self.folder / PINNED_NAME)
            else:
                self._vouch_for(number, "pinned")
                link_atomic(self.folder / PINNED_NAME, number)
                self._mend()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The shelf for this process alone, without what a killed predecessor left undone."""
        with disk_faults("lock", self.folder, rule=NOTHING_CHANGED):
            self._create()
            lock = os.open(self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with disk_faults("lock", self.folder, rule=NOTHING_CHANGED):
                if not lock_in_time(lock, LOCK_PATIENCE_S):
                    raise StateBusy(self.folder, 0, hint="look for a stopped edge-cl process, then try again")
            self._sweep()
            self._mend()
            yield
        finally:
            os.close(lock)

    def _create(self) -> None:
        if not self._created:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            with open_folder(self.folder.parent) as above:
                os.fsync(above)  # each time anew: whoever created it may have been killed before this
            self._created = True

    def _sweep(self) -> None:
        with disk_faults("sweep", self.folder, rule=CURRENT_STAYS):
            for folder in (self.folder, *(self.folder / number for number in self.ids())):
                for entry in list(folder.iterdir()):
                    if is_temporary(entry.name):
                        _remove(entry)

    def _mend(self) -> None:
        """Let `current` be the pinned one if one is pinned, and not a bad one."""
        current, pinned = self._current_id(), self.pinned()
        if pinned is not None:
            target: str | None = pinned
        elif current is not None and self._states().get(current) == "bad":
            target = self._newest_good(current)
        else:
            return
        if target != current:
            self._point_current_at(target)

    def _add(self, model: bytes, manifest: Mapping[str, Any], state: State, why: str) -> str:
        number = f"{int(max(self.ids(), key=int, default='0')) + 1:06d}"
        content = _manifest(number, model, manifest)
        files = {MODEL_NAME: model, MANIFEST_NAME: content, SUM_NAME: sum_line(content)}
        files[STATE_NAME] = _state_bytes(state, why)
        if self._sign is not None:
            files[SIGNATURE_NAME] = self._sign(content)
        with disk_faults("publish", self.folder / number, rule=CURRENT_STAYS), open_folder(self.folder) as shelf:
            temporary = self.folder / temporary_name(number)
            try:
                temporary.mkdir(mode=0o700)
                with open_folder(temporary) as folder:
                    for name, data in files.items():
                        write_new(folder, name, [data])
                    os.fsync(folder)
                os.rename(temporary.name, number, src_dir_fd=shelf, dst_dir_fd=shelf)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            os.fsync(shelf)
        return number

    def _prune(self) -> None:
        states = self._states()
        good = [number for number, state in states.items() if state == "good"]
        bad = [number for number, state in states.items() if state == "bad"]
        trials = [number for number, state in states.items() if state == "trial"]
        before = [self._newest_good(number) for number in trials]
        stay = {self._current_id(), self.pinned(), *trials, *before, *good[-self.keep :], *bad[-KEEP_BAD:]}
        gone = [number for number in states if number not in stay]
        with disk_faults("remove old snapshots from", self.folder, rule="what was asked for is done"):
            # Out of sight in one step, and durably so: a reader finds the whole folder or none, after a power cut, too.
            hidden = [(self.folder / number).rename(self.folder / temporary_name(number)) for number in gone]
            if hidden:
                with open_folder(self.folder) as folder:
                    os.fsync(folder)
            for entry in hidden:
                shutil.rmtree(entry)

    def _states(self) -> dict[str, State]:
        return {number: self._state(number) for number in self.ids()}

    def _set_state(self, number: str, state: State, why: str) -> None:
        write_atomic(self.folder / number / STATE_NAME, _state_bytes(state, why))

    def _vouch_for(self, number: str, why: str) -> None:
        found = self.get(number)
        found.read()
        if found.state != "good":
            self._set_state(number, "good", why)

    def _newest_good(self, before: str | None) -> str | None:
        """The newest good snapshot whose bytes are sound, older than `before` if that is given."""
        for number in reversed(self.ids()):
            if (before is None or int(number) < int(before)) and self._is_good_and_sound(number):
                return number
        return None

    def _is_good_and_sound(self, number: str) -> bool:
        try:
            found = self.get(number)
            if found.state != "good":
                return False
            found.read()
        except DamagedFile:
            return False
        return True

    def _current_id(self) -> str | None:
        try:
            return self._target(CURRENT_NAME)
        except DamagedFile:  # a link to nowhere is replaced like any other
            return None

    def _point_current_at(self, number: str | None) -> None:
        link = self.folder / CURRENT_NAME
        if number is None:
            unlink_durable(link)  # no answer is better than a bad one
        else:
            link_atomic(link, number)


def _manifest(number: str, model: bytes, given: Mapping[str, Any]) -> bytes:
    created = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    own = dict(zip(OWN_FIELDS, (number, created, len(model), hashlib.sha256(model).hexdigest()), strict=True))
    taken = sorted(given.keys() & {*own, "state"})
    if taken:
        raise ValueError(f"manifest: {', '.join(taken)} cannot be given")
    # allow_nan=False: NaN is not JSON, and others' parsers read this file.
    return json.dumps({**own, **given}, indent=2, allow_nan=False).encode() + b"\n"


def _state_bytes(state: State, why: str) -> bytes:
    return json.dumps({"state": state, "why": why}).encode() + b"\n"


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
