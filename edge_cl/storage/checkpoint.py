"""The learner's resumable state, in two slots: however a save ends, the one before it can still be loaded.

Must not know what the arrays mean. One file per slot, `checkpoint.a` and `checkpoint.b`, little-endian:

    off   size  field
      0      8  magic       89 'edgecl' 0A (as PNG's: a transfer that touches newlines or the 8th bit shows)
      8      4  version     1
     12      8  generation  +1 at each save; the slot with the larger one is the newer
     20      8  length      n
     28      n  record      the arrays, and {"model", "meta"}: record.py
     28+n   32  SHA-256     of everything before it, header included

safetensors notices almost no damage by itself (33,028 of 33,184 single-bit flips loaded without an error), hence the
trailer, which is checked before anything is parsed. A save replaces the older slot and is acknowledged by returning;
the newer slot is not touched. It has two halves, so that learning can go on: `begin` hands the bytes to the operating
system without a copy of ours, `finish` has them hashed and on the disk.

The model's fingerprint is kept here and not in the directory's own file: what it guards is the weights, so it is
written in the same instant and under the same SHA-256, and a directory that has learnt nothing binds no one.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_cl.storage import record
from edge_cl.storage.atomic import NOTHING_CHANGED, Part, Replacement, open_folder, read_whole
from edge_cl.storage.errors import DamagedFile, StateDirError, disk_faults

MAGIC = b"\x89edgecl\n"
VERSION = 1
DAMAGED = ".damaged"
SLOTS = ("checkpoint.a", "checkpoint.b")

_HEADER = struct.Struct("<8sIQQ")
_HASH_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one save held: writable arrays, the JSON-able meta, its generation, and the model's fingerprint."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    generation: int
    model: str | None


class CheckpointStore:
    """The two slots in `folder`, for one thread of the process that holds the state directory's lock.

    `model` is a fingerprint of what the arrays belong to; None asks no question (for tools that only read).
    `faults` has a sentence for each slot that the last look found damaged.
    """

    def __init__(self, folder: Path, *, model: str | None = None) -> None:
        self.folder = folder
        self.faults: list[str] = []
        self._model = model
        self._newest: tuple[int, str] | None = None  # generation and slot of the newest sound one
        self._looked = False
        self._found_model: str | None = None  # of the newest sound one

    def load(self) -> Checkpoint | None:
        """The newest sound checkpoint, None if nothing was ever saved; damaged slots are noted in `faults`.

        Raises DamagedFile if something was saved and no slot is sound; StateDirError if the newest one is another
        model's or of a newer edge_cl. Changes nothing on disk.
        """
        sound, faults = self.slots()
        self.faults = list(faults.values())
        newest = max(sound, key=lambda slot: sound[slot].generation, default=None)
        if newest is None:
            if faults:
                raise _nothing_sound(self.folder, faults)
            self._newest, self._looked = None, True
            return None
        found = sound[newest]
        self._found_model = found.model
        self._check_model()
        if faults:
            self.faults.append(f"went on from generation {found.generation} in {newest}")
        self._newest, self._looked = (found.generation, newest), True
        return found

    def save(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> int:
        """Write the slot that is not the newest; the generation, once it survives a power cut. As `begin` and `finish`.

        Raises StorageFault (the slots hold what they held, a later save may work), TypeError, and as `load`.
        """
        return self.begin(arrays, meta).finish()

    def begin(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Saving:
        """Take down what is to be saved; it may change afterwards, and the caller lets no second one begin meanwhile.

        arrays and meta: see record.py. Raises as `save`.
        """
        if not self._looked:
            self.load()
        generation, newest = self._newest or (0, SLOTS[1])
        slot = SLOTS[1 - SLOTS.index(newest)]
        parts = _unsealed(generation + 1, arrays, meta, model=self._model)
        return Saving(self, Replacement(self.folder / slot, *parts), generation + 1, slot)

    def claim(self, model: str) -> None:
        """Say, after `load`, whose fingerprint what is saved from now on bears.

        Raises StateDirError if what was loaded is another model's.
        """
        self._model = model
        self._check_model()

    def set_aside(self) -> None:
        """Give up what the slots hold: a damaged one stays for a person to look at, as SLOT.damaged.

        Raises StorageFault.
        """
        for slot in self.slots()[1]:
            with disk_faults("set aside", self.folder / slot, rule=NOTHING_CHANGED), open_folder(self.folder) as folder:
                os.rename(slot, slot + DAMAGED, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
        self._newest, self._looked = None, True

    def saved(self, generation: int, slot: str) -> None:
        """That generation is the newest from now on."""
        self._newest = (generation, slot)

    def slots(self) -> tuple[dict[str, Checkpoint], dict[str, str]]:
        """The sound slots, and a sentence for each damaged one; what does not exist is in neither.

        Raises StateDirError if one is of a newer edge_cl.
        """
        sound: dict[str, Checkpoint] = {}
        faults: dict[str, str] = {}
        for slot in SLOTS:
            try:
                sound[slot] = decode(read_whole(self.folder / slot))
            except FileNotFoundError:
                continue
            except OSError as exc:
                faults[slot] = f"{slot} cannot be read: {exc.strerror}"
            except DamagedFile as exc:
                faults[slot] = f"{slot} is damaged: {exc}"
        return sound, faults

    def _check_model(self) -> None:
        if self._model is not None and self._found_model is not None and self._found_model != self._model:
            raise StateDirError(
                f"{self.folder} holds what another model learnt: {self._found_model} (this one is {self._model})",
                hint="go back to the configuration and source it was made with, or name another state directory",
            )


class Saving:
    """A checkpoint that was taken down; `finish` makes it last, on whatever thread."""

    def __init__(self, store: CheckpointStore, file: Replacement, generation: int, slot: str) -> None:
        self._store, self._file, self._generation, self._slot = store, file, generation, slot

    def finish(self) -> int:
        """The generation, once it survives a power cut. Raises StorageFault: the slots hold what they held."""
        self._file.finish(_sha256)
        self._store.saved(self._generation, self._slot)
        return self._generation


def encode(generation: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, model: str | None) -> bytes:
    """A slot's content. Raises TypeError."""
    unsealed = _unsealed(generation, arrays, meta, model=model)
    return b"".join([*unsealed, _sha256(unsealed)])


def decode(content: bytes) -> Checkpoint:
    """The checkpoint in a slot's bytes.

    Raises DamagedFile if they are not exactly what `encode` made; StateDirError if a newer edge_cl made them.
    """
    view = memoryview(content)
    hint = "restore the file from a backup"
    if len(content) < _HEADER.size + _HASH_BYTES:
        raise DamagedFile(f"{len(content)} bytes are too short for a checkpoint", hint=hint)
    if hashlib.sha256(view[:-_HASH_BYTES]).digest() != view[-_HASH_BYTES:]:
        raise DamagedFile("its SHA-256 does not match", hint=hint)
    magic, version, generation, length = _HEADER.unpack_from(view)
    if magic == MAGIC and version > VERSION:
        raise StateDirError(
            f"the checkpoint has version {version}, this edge_cl knows up to {VERSION}",
            hint="use the newer edge_cl that wrote it, or name another directory",
        )
    if magic != MAGIC or version != VERSION or length != len(content) - _HEADER.size - _HASH_BYTES:
        raise DamagedFile("it is sound, but not a checkpoint of edge_cl", hint=hint)
    return _parse(bytes(view[_HEADER.size : -_HASH_BYTES]), generation)


def _parse(payload: bytes, generation: int) -> Checkpoint:
    arrays, noted = record.unpack(payload)
    return Checkpoint(arrays, noted["meta"], generation, noted["model"])


def _unsealed(
    generation: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, model: str | None
) -> list[Part]:
    """A slot's content but for the SHA-256 at its end, as views of the arrays."""
    payload = record.parts(arrays, {"model": model, "meta": dict(meta)})
    return [_HEADER.pack(MAGIC, VERSION, generation, sum(len(part) for part in payload)), *payload]


def _sha256(pieces: Iterable[Part]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _nothing_sound(folder: Path, faults: dict[str, str]) -> DamagedFile:
    missing = [f"{slot} does not exist" for slot in SLOTS if slot not in faults]
    return DamagedFile(
        f"{folder} holds no sound checkpoint: " + "; ".join([*faults.values(), *missing]),
        hint="restore one of the two files from a backup, or name a new directory to learn from the start",
    )
