"""What flip_campaign.py damages: checkpoints, a journal, snapshots that the real code wrote, and how it reads them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_cl.storage import journal
from edge_cl.storage.checkpoint import SLOTS, CheckpointStore
from edge_cl.storage.errors import StorageError
from edge_cl.storage.inspection import damage_of
from edge_cl.storage.published import MANIFEST_NAME, MODEL_NAME
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.signature import signer, verifier, write_key_pair

from .flips import Damage, Target, Verdict, collected

CHECKPOINT_BYTES = 33 << 10
ENTRIES, SEGMENTS = 9, 3
PATIENCE_S = 30.0
_JOURNAL_KINDS = {".db": "journal_db", ".db-wal": "journal_wal", "": "journal_mark"}


def checkpoint(folder: Path) -> Target:
    """Two slots of a little more than 32 KiB, of which the newer one is damaged: the older one must be told as such."""
    saves = [_arrays(generation) for generation in (1, 2)]
    store = CheckpointStore(folder)
    for arrays in saves:
        store.save({"weights": arrays}, {"journal": len(arrays)})

    def look(place: Path, damage: Damage) -> Verdict:
        store = CheckpointStore(place)
        try:
            found = store.load()
        except StorageError:
            return Verdict.UNDETECTED  # the other slot is sound
        if found is None or found.arrays["weights"].tobytes() != saves[found.generation - 1].tobytes():
            return Verdict.UNDETECTED
        if store.faults:
            return Verdict.SAID
        return Verdict.HARMLESS if found.generation == len(saves) else Verdict.UNDETECTED

    return Target(collected(folder), {SLOTS[1]: "checkpoint"}, look)


def _arrays(generation: int) -> np.ndarray:
    return np.random.default_rng(generation).normal(size=CHECKPOINT_BYTES // 8)


def journal_segments(folder: Path) -> Target:
    """Segments as a kill leaves them, each a database and its -wal."""
    bodies = [np.random.default_rng(number).bytes(40 + 60 * number) for number in range(1, ENTRIES + 1)]
    files = _killed_journal(folder, bodies)
    last = max(name for name in files if name.endswith(".db"))

    def look(place: Path, damage: Damage) -> Verdict:
        got: list[tuple[int, bytes]] = []
        doubts: list[str] = []
        try:
            for entry in journal.read(place, after=0, doubts=doubts):
                got.append(entry)
        except StorageError:
            return Verdict.SAID if _is_beginning(got, bodies) else Verdict.UNDETECTED
        if not _is_beginning(got, bodies):
            return Verdict.UNDETECTED
        if doubts:
            return Verdict.SAID
        if len(got) == len(bodies):
            return Verdict.HARMLESS
        return Verdict.CUT_TAIL if damage.bit is None and damage.file.startswith(last) else Verdict.UNDETECTED

    return Target(files, {name: _JOURNAL_KINDS[Path(name).suffix] for name in files}, look)


def _killed_journal(folder: Path, bodies: list[bytes]) -> dict[str, bytes]:
    """The files while the journal is open: a close might tidy up what a kill leaves."""
    writing = journal.Journal(folder, after=0, queue_bytes=1 << 20)
    try:
        for number, body in enumerate(bodies, start=1):
            assert writing.append(body) == number
            assert writing.wait(number, PATIENCE_S)
            if number % (ENTRIES // SEGMENTS) == 0 and number < ENTRIES:
                writing.rotate()
        return collected(folder)
    finally:
        writing.close()
        shutil.rmtree(folder)


def _is_beginning(got: list[tuple[int, bytes]], bodies: list[bytes]) -> bool:
    return got == list(enumerate(bodies, start=1))[: len(got)]


def snapshot(folder: Path, *, signed: bool) -> Target:
    """A published model of some kilobytes and its manifest; signed, or by their own checks alone."""
    key = folder / "key.pem"
    is_genuine: Callable[[bytes, bytes], bool] | None = None
    if signed:
        is_genuine = verifier(write_key_pair(key))
    state = folder / "state"
    state.mkdir()
    shelf = Shelf(state, sign=signer(key) if signed else None)
    model = np.random.default_rng(0).bytes(4 << 10)
    manifest = {"labels": ["ok", "worn"], "training": {"learned": 1200, "exam": {"0": {"samples": 9, "accuracy": 0.5}}}}
    published = shelf.publish(model, manifest)
    said = published.manifest
    files = collected(state)
    for file in state.rglob("*.sig"):
        assert signed, file

    def look(place: Path, damage: Damage) -> Verdict:
        there = Shelf(place)
        if damage_of(there, published.id, is_genuine):
            return Verdict.SAID
        found = there.get(published.id)
        is_same = found.read() == model and found.manifest == said
        return Verdict.HARMLESS if is_same else Verdict.UNDETECTED

    suffix = "_signed" if signed else ""
    kinds = {MODEL_NAME: f"model{suffix}", MANIFEST_NAME: f"manifest{suffix}"}
    chosen = {name: kinds[Path(name).name] for name in files if Path(name).name in kinds}
    return Target(files, chosen, look)
