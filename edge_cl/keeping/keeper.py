"""Keeps what was learnt: each step in the journal, now and then all of it in a checkpoint, and says what is durable.

The learning thread only takes things down here; a thread of the journal and one of the checkpoint bring them to the
disk. Knows journal and checkpoints, and what of the stream they cover. Must not know what an entry means.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_cl.settings import StorageSettings
from edge_cl.storage.checkpoint import CheckpointStore, Saving
from edge_cl.storage.errors import StorageFault
from edge_cl.storage.journal import Journal
from edge_cl.storage.journal_folder import remove
from edge_cl.storage.state_dir import JOURNAL_NAME

COMMIT_S = 10.0  # that a checkpoint or a snapshot waits for the journal to hold all that is in it
WAIT_S = 0.1  # between two looks whether the disk refuses
RETRY_S = 5.0  # from a checkpoint that failed to the next


def slow_disk(folder: Path) -> StorageFault:
    """The fault of a disk that does not refuse, but takes too long."""
    fault = OSError(errno.ETIMEDOUT, "the disk takes too long")
    return StorageFault("commit to", folder / JOURNAL_NAME, fault, rule="nothing was lost, and nothing acknowledged")


class Keeper:
    """Journal and checkpoints of one run, which begins behind journal entry `entry`, with `bases` checkpoints.

    acknowledged: of how many items of the source all that was made of them survives a power cut. samples: how many
    labelled samples of this run do. Without a journal (durability "checkpoint") both follow the checkpoints.
    """

    def __init__(
        self, store: CheckpointStore, settings: StorageSettings, *, queue_bytes: int, entry: int, bases: int
    ) -> None:
        self.has_journal = settings.durability == "sample"
        self.journal: Journal | None = None  # until there are the checkpoints that it is behind
        self.entry = entry
        self.acknowledged = 0
        self.samples = 0
        self.fault: StorageFault | None = None  # of the last checkpoint
        self.impatient = False  # whether a source holds back what is not acknowledged
        self._store, self._settings, self._queue_bytes, self._bases = store, settings, queue_bytes, bases
        self._noted: deque[tuple[int, int, int]] = deque()
        self._saving: threading.Thread | None = None
        self._crash: BaseException | None = None
        self._saved = entry  # the last entry that a checkpoint of this run holds
        self._previous = 0  # the one that the other slot holds, as far as this run knows
        self._worked_s, self._written = 0.0, 0
        self._saved_at = time.monotonic()
        if not bases:
            self._open_journal()

    def has_room(self, nbytes: int) -> bool:
        """Whether the journal takes another entry of that size now; it does not when the disk is slow or refuses."""
        return not self.has_journal or (self.journal is not None and self.journal.has_room(nbytes))

    def note(self, body: bytes, taken: int, samples: int, took_s: float) -> None:
        """Take down an entry, for which there must be room, made when so many items of the source were taken.

        It is about so many samples, and took so long to do.
        """
        self._worked_s += took_s
        if self.journal is None:
            self.entry += 1
        else:
            number = self.journal.append(body)
            assert number is not None, "has_room comes first"
            self.entry = number
        self._written += len(body)
        self._noted.append((self.entry, taken, samples))

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint is: by time, or because a replay of the journal behind the last one would take long."""
        if self._saving is not None:
            return False
        settings, since_s = self._settings, time.monotonic() - self._saved_at
        soon_s = min(RETRY_S, settings.checkpoint_every_s)
        if self.fault is not None:
            return since_s > soon_s
        waited_for = self.impatient and not self.has_journal and bool(self._noted)
        return (
            self._bases > 0
            or since_s > (soon_s if waited_for else settings.checkpoint_every_s)
            or self._worked_s > settings.recovery_s
            or self._written > settings.journal_bytes
        )

    def checkpoint(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, wait: bool) -> None:
        """Take the state down, and have it brought to the disk; what goes wrong on the way there is in `fault`.

        With `wait`, return once it is there, or raise StorageFault.
        """
        self._begin(arrays, meta)
        if wait:
            self.finish_saving()
            if self.fault is not None:
                raise self.fault

    def _begin(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        self.finish_saving()
        self._saved_at, self._worked_s, self._written = time.monotonic(), 0.0, 0
        entry = self.entry
        if self._bases:
            self._save_bases(arrays, {**meta, "journal": entry})
            return
        try:
            saving = self._store.begin(arrays, {**meta, "journal": entry})
        except StorageFault as exc:
            self.fault = exc
            return
        if self.journal is not None:
            self.journal.rotate()
        self._saving = threading.Thread(target=self._save, args=(saving, entry), name="checkpoint", daemon=True)
        self._saving.start()

    def poll(self) -> bool:
        """Take note of what has become durable since the last call; whether anything has."""
        if self._saving is not None and not self._saving.is_alive():
            self.finish_saving()
        durable, before = self.durable, len(self._noted)
        while self._noted and self._noted[0][0] <= durable:
            _, self.acknowledged, samples = self._noted.popleft()
            self.samples += samples
        return len(self._noted) < before

    @property
    def durable(self) -> int:
        """The newest entry that survives a power cut."""
        return self._saved if self.journal is None else max(self._saved, self.journal.committed)

    @property
    def behind(self) -> int:
        """Entries that are not durable yet."""
        return len(self._noted)

    @property
    def refused(self) -> StorageFault | None:
        """Why the disk takes nothing at present, None while it does."""
        return (self.journal.fault if self.journal is not None else None) or self.fault

    def wait_for(self, entry: int, timeout_s: float) -> bool:
        """Whether the journal holds the entry, or does so in time; not if the disk refuses."""
        if not self.has_journal:
            return True
        deadline = time.monotonic() + timeout_s
        while self.journal is not None and self.journal.fault is None:
            if self.journal.wait(entry, WAIT_S):
                return True
            if time.monotonic() >= deadline:
                break
        return False

    def finish_saving(self) -> None:
        """Wait for a checkpoint that is on its way."""
        if self._saving is not None:
            self._saving.join()
            self._saving = None
        if self._crash is not None:
            raise self._crash

    def close(self) -> None:
        """Bring all that was noted to the disk, as far as it takes it, and end the threads."""
        self.finish_saving()
        if self.journal is not None:
            self.journal.close()

    def _save_bases(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """What a journal is to be behind, and then the journal; noted in `fault` if that cannot be had now."""
        try:
            while self._bases:
                self._store.save(arrays, meta)
                self._bases -= 1
            self._saved = self.entry
            self._open_journal()
            if not self.has_journal and (folder := self._store.folder / JOURNAL_NAME).exists():
                remove(folder, self.entry, self.entry)  # of a run that had one; both slots hold what is in it
        except StorageFault as exc:
            self.fault = exc
            return
        self.fault = None

    def _open_journal(self) -> None:
        if self.has_journal and self.journal is None:
            self.journal = Journal(
                self._store.folder / JOURNAL_NAME,
                after=self.entry,
                queue_bytes=self._queue_bytes,
                commit_ms=self._settings.commit_ms,
            )

    def _save(self, saving: Saving, entry: int) -> None:
        """On its own thread: the state that was taken down, brought to the disk."""
        try:
            # The other slot must be able to get here, too: so the journal first, unless the disk refuses that.
            self.wait_for(entry, COMMIT_S)
            saving.finish()
        except StorageFault as exc:
            self.fault = exc
            return
        except BaseException as exc:  # a bug of ours is not to end with this thread
            self._crash = exc
            return
        self.fault = None
        if self.journal is not None:
            self.journal.forget(self._previous)  # the other slot may be needed, with all that came behind it
        self._previous = self._saved = entry
