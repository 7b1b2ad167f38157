"""`edge-cl export`: a published snapshot as one file or as a folder ready for deployment, in the precision asked for.

Chooses the snapshot, has a smaller variant made and compared on the device's own samples, and refuses one that loses
too much. Everything is known before the first byte is written.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl import running
from edge_cl.deploy import check_folder, deploy
from edge_cl.errors import OperatorError, TryAgain, VerifyFailed
from edge_cl.keeping.recovery import recover
from edge_cl.keeping.saved import Saved, load_saved
from edge_cl.learning.model import SELF_SUPERVISED
from edge_cl.publishing.provenance import as_metadata
from edge_cl.publishing.publisher import Publisher
from edge_cl.storage.atomic import write_atomic
from edge_cl.storage.published import Published, ShelfReader
from edge_cl.storage.snapshot import Deployed
from edge_cl.storage.state_dir import StateDir, check_state_dir, running_pid
from edge_cl.storage.variants import Precision, compare, latency, make_variant

OUT_MODE = 0o666  # less the umask: the file is for others
NOW_S = 60.0  # a consolidation takes at most budget.consolidation_ms, 10 s if nobody changed it
SHELVED_S = 10.0  # from a consolidation to its snapshot: milliseconds, and the first template's seconds
ENOUGH = 1000  # samples in the exam of which one is a tenth of a point
SAID = ("created", "labels", "input", "output", "training")  # of a manifest, in the command's answer
KEPT = ("schema_version", "labels", "input", "output", "model")  # of a snapshot's metadata, in a variant's


@dataclass(frozen=True)
class Export:
    """What is to be handed out: model and manifest, and the manifest's bytes with their signature, if it has one."""

    model: bytes
    manifest: Mapping[str, Any]
    signed: tuple[bytes, bytes | None]


def export(
    state: Path,
    *,
    out: Path | None,
    folder: Path | None,
    snapshot: str = "current",
    precision: Precision = "float32",
    max_loss: float = 1.0,
) -> dict[str, Any]:
    """Write a snapshot's model to `out`, to a deployment folder, or both; what the command says of it.

    snapshot: an id, `current`, or `now` for one of what has been learnt up to now.
    Raises VerifyFailed if the variant loses more than `max_loss` points, or a new snapshot was found bad;
    OperatorError, NotRunning or TryAgain if there is no such snapshot, or nothing to compare a variant with;
    StorageError. Nothing is written then.
    """
    check_state_dir(state)
    if folder is not None:
        check_folder(folder)
    published = find(state, snapshot)
    ready = _as_published(published) if precision == "float32" else _variant(state, published, precision, max_loss)
    if out is not None:
        write_atomic(out, ready.model, mode=OUT_MODE)
    if folder is not None:
        deploy(folder, ready.model, *ready.signed)
    manifest = ready.manifest
    return {
        "out": None if out is None else str(out),
        "deploy": None if folder is None else str(folder),
        "snapshot": published.id,
        "state": published.state,
        "precision": precision,
        **{key: manifest[key] for key in ("bytes", "sha256", *SAID)},
        **manifest.get("variant", {}),
    }


def find(state: Path, name: str) -> Published:
    """The snapshot of that id, the current one, or one made now. Raises as `export`."""
    shelf = ShelfReader(state)
    if name == "now":
        return _now(state, shelf)
    if name != "current":
        return shelf.get(name.zfill(6))
    current = shelf.current()
    if current is None:
        raise OperatorError(
            f"{state}: no snapshot was published yet",
            hint=f"the first comes with the first consolidation; `edge-cl consolidate --state {state}` asks for one",
        )
    return current


def _now(state: Path, shelf: ShelfReader) -> Published:
    """A snapshot of what has been learnt up to now: by the daemon if one runs, else from what it kept."""
    if running_pid(state) is None:
        newest = _from_state(state, shelf)
    else:
        before = shelf.ids()
        message = running.consolidate(state, NOW_S)["message"]
        deadline = time.monotonic() + SHELVED_S
        while shelf.ids() == before:
            if time.monotonic() >= deadline:
                raise TryAgain(f"the daemon consolidated but published nothing: {message}", hint="edge-cl status")
            time.sleep(running.POLL_S)
        newest = shelf.get(shelf.ids()[-1])
    if newest.state == "bad":
        raise VerifyFailed(
            f"snapshot {newest.id} was kept aside: {newest.why}", hint="--snapshot current has the one before it"
        )
    return newest


def _from_state(state: Path, shelf: ShelfReader) -> Published:
    with StateDir(state):  # no daemon may start and learn on meanwhile
        recovered = recover(state)
        if recovered is None or recovered.learner.steps == 0:
            raise OperatorError(f"{state}: nothing was learnt yet", hint="it needs samples that carry a label")
        saved, learner = recovered.saved, recovered.learner
        newest = shelf.get(shelf.ids()[-1]) if shelf.ids() else None
        if newest is not None and newest.state != "bad" and _holds(newest, saved):
            return newest
        publisher = Publisher(learner, saved.task, saved.schema, saved.config, state)
        try:
            return publisher.publish(saved.label_names)
        finally:
            publisher.close()


def _holds(published: Published, saved: Saved) -> bool:
    """Whether the snapshot was made of exactly what was learnt."""
    training, learner = published.manifest["training"], saved.learner
    counts = ("learned", learner.learnt), ("steps", learner.steps), ("consolidations", learner.consolidations)
    return all(training[key] == count for key, count in counts)


def _as_published(published: Published) -> Export:
    return Export(published.read(), published.manifest, published.signed())


def _variant(state: Path, published: Published, precision: Precision, max_loss: float) -> Export:
    """The snapshot in fewer bits, compared with itself on real samples."""
    assert precision != "float32"
    model, manifest = published.read(), published.manifest
    saved = load_saved(state)
    exam, others, labels = _real_samples(saved)
    origin = {"snapshot": published.id, "sha256": manifest["sha256"]}
    facts = {key: manifest[key] for key in KEPT} | {"precision": precision, "variant_of": origin}
    variant = make_variant(model, precision, others if len(others) else exam, as_metadata(facts))
    before, after = Deployed(model), Deployed(variant)
    # A small exam is eked out by samples that were learnt from: easier ones, but enough to see an answer change.
    known = others if len(exam) < ENOUGH else others[:0]
    found = compare(before, after, exam, known, None if labels is None else labels[: len(exam) + len(known)])
    if not found.loss_points <= max_loss:
        raise VerifyFailed(
            f"{precision} loses {found.loss_points:.2f} points on {found.compared:,} samples of this device "
            f"(at most {max_loss:g} are allowed)",
            hint="export float16 or float32, or allow more with --max-loss",
        )
    one = (exam if len(exam) else others)[:1]
    measured = {"latency_us": asdict(latency(after, one)), "latency_us_float32": asdict(latency(before, one))}
    return _with_manifest(variant, manifest, facts, {**asdict(found), "bytes_float32": len(model), **measured})


def _real_samples(saved: Saved) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64] | None]:
    """Raw samples of the exam, those of the replay memory, and the labels of both; None where there are no classes.

    Behind a backbone the replay memory holds features, which no exported model takes.
    """
    learner = saved.learner
    held = [learner.exam] if learner.backbone is not None else [learner.exam, learner.replay]
    x = [one.held().astype(np.float32) for one in held]
    if not any(map(len, x)):
        raise OperatorError(
            "no real samples of this device are kept, which a smaller model is calibrated and compared with",
            hint="set exam.share above 0 and let it learn on, or export float32",
        )
    y = np.concatenate([one.labels[: one.size] for one in held]).astype(np.int64)
    return x[0], x[-1] if len(x) > 1 else x[0][:0], None if saved.config.model.kind in SELF_SUPERVISED else y


def _with_manifest(
    model: bytes, manifest: Mapping[str, Any], facts: Mapping[str, Any], measured: Mapping[str, Any]
) -> Export:
    """The variant with a manifest of its own, which nobody has signed."""
    own = {"bytes": len(model), "sha256": hashlib.sha256(model).hexdigest(), "variant": dict(measured)}
    rest = {key: fact for key, fact in manifest.items() if key != "verification"}  # that was of the float32 model
    whole = {**rest, **facts, **own}
    return Export(model, whole, (json.dumps(whole, indent=2, allow_nan=False).encode() + b"\n", None))
