"""The learner's resumable state, in two slots: however a save ends, the one before it can still be loaded.

Must not know what the arrays mean. One file per slot, `checkpoint.a` and `checkpoint.b`, little-endian:

    off   size  field
      0      8  magic       89 'edgecl' 0A (as PNG's: a transfer that touches newlines or the 8th bit shows)
      8      4  version     1
     12      8  generation  +1 at each save; the slot with the larger one is the newer
     20      8  length      n
     28      n  safetensors the arrays; metadata "edge_cl" = JSON {"model", "meta"}
     28+n   32  SHA-256     of everything before it, header included

safetensors notices almost no damage by itself (33,028 of 33,184 single-bit flips loaded without an error), hence the
trailer, which is checked before anything is parsed. A save replaces the older slot through write_atomic and is
acknowledged by returning; the newer slot is not touched.

The model's fingerprint is kept here and not in the directory's own file: what it guards is the weights, so it is
written in the same instant and under the same SHA-256, and a directory that has learnt nothing binds no one.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from edge_cl.storage.atomic import read_whole, write_atomic
from edge_cl.storage.errors import DamagedFile, StateDirError

MAGIC = b"\x89edgecl\n"
VERSION = 1
SLOTS = ("checkpoint.a", "checkpoint.b")

_HEADER = struct.Struct("<8sIQQ")
_HASH_BYTES = hashlib.sha256().digest_size
_METADATA_KEY = "edge_cl"
_DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64"),
}


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

    def load(self) -> Checkpoint | None:
        """The newest sound checkpoint, None if nothing was ever saved; damaged slots are noted in `faults`.

        Raises DamagedFile if something was saved and no slot is sound; StateDirError if the newest one is another
        model's or of a newer edge_cl. Changes nothing on disk.
        """
        sound, faults = self._look()
        self.faults = list(faults.values())
        newest = max(sound, key=lambda slot: sound[slot].generation, default=None)
        if newest is None:
            if faults:
                raise _nothing_sound(self.folder, faults)
            self._newest, self._looked = None, True
            return None
        found = sound[newest]
        self._check_model(found)
        if faults:
            self.faults.append(f"went on from generation {found.generation} in {newest}")
        self._newest, self._looked = (found.generation, newest), True
        return found

    def save(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> int:
        """Write the slot that is not the newest; the generation, once it survives a power cut.

        arrays: any shape and order, dtypes bool, (u)int8–64, float16–64, complex64. meta: dicts with str keys, lists,
        str, int, float, bool, None, which come back equal, each float to the bit.
        Raises StorageFault (the slots hold what they held, a later save may work), TypeError, and as `load`.
        """
        if not self._looked:
            self.load()
        generation, newest = self._newest or (0, SLOTS[1])
        slot = SLOTS[1 - SLOTS.index(newest)]
        write_atomic(self.folder / slot, *encode(generation + 1, arrays, meta, model=self._model))
        self._newest = (generation + 1, slot)
        return generation + 1

    def _look(self) -> tuple[dict[str, Checkpoint], dict[str, str]]:
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

    def _check_model(self, found: Checkpoint) -> None:
        if self._model is not None and found.model is not None and found.model != self._model:
            raise StateDirError(
                f"{self.folder} holds what another model learnt: {found.model} (this one is {self._model})",
                hint="go back to the configuration and source it was made with, or name another state directory",
            )


def encode(
    generation: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, model: str | None
) -> tuple[bytes, bytes, bytes]:
    """A slot's content in three parts: header, safetensors, SHA-256. Raises TypeError."""
    _check_jsonable(dict(meta), "meta")
    text = json.dumps({"model": model, "meta": dict(meta)})
    plain = {name: _plain(name, array) for name, array in arrays.items()}
    payload = safetensors.numpy.save(plain, metadata={_METADATA_KEY: text})
    header = _HEADER.pack(MAGIC, VERSION, generation, len(payload))
    digest = hashlib.sha256(header)
    digest.update(payload)
    return header, payload, digest.digest()


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
    header_bytes = int.from_bytes(payload[:8], "little")
    noted = json.loads(json.loads(payload[8 : 8 + header_bytes])["__metadata__"][_METADATA_KEY])
    # safetensors hands out read-only views of the file's bytes; copies are the caller's own, and free those bytes.
    arrays = {name: array.copy() for name, array in safetensors.numpy.load(payload).items()}
    return Checkpoint(arrays, noted["meta"], generation, noted["model"])


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"arrays[{name!r}]: no dtype that a checkpoint can hold (got {array.dtype})")
    # safetensors reads on from the array's address, blind to strides: a transposed view would be saved out of order.
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _check_jsonable(value: object, where: str) -> None:
    # json.dumps alone would turn a tuple into a list and the key 1 into "1": a resumed learner would differ silently.
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: keys must be str (got {key!r})")
            _check_jsonable(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_jsonable(item, f"{where}[{index}]")
    elif not (value is None or isinstance(value, str | int | float)):
        raise TypeError(f"{where}: not a JSON value (got {type(value).__name__})")


def _nothing_sound(folder: Path, faults: dict[str, str]) -> DamagedFile:
    missing = [f"{slot} does not exist" for slot in SLOTS if slot not in faults]
    return DamagedFile(
        f"{folder} holds no sound checkpoint: " + "; ".join([*faults.values(), *missing]),
        hint="restore one of the two files from a backup, or name a new directory to learn from the start",
    )
