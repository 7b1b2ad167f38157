"""`edge-cl export`: the newest good snapshot as one file, checked on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_cl.errors import OperatorError
from edge_cl.storage.atomic import write_atomic
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.state_dir import check_state_dir

OUT_MODE = 0o666  # less the umask: the file is for others


def export_snapshot(state: Path, out: Path) -> dict[str, Any]:
    """Copy the current snapshot's model to `out`, whole or not at all, and return what its manifest says.

    Raises OperatorError if nothing was published yet, StateDirError if `state` is no state directory, DamagedFile if
    the model's bytes are not those its manifest names, StorageFault if `out` cannot be written.
    """
    check_state_dir(state)
    current = Shelf(state).current()
    if current is None:
        raise OperatorError(
            f"{state}: no snapshot was published yet",
            hint=f"the first comes with the first consolidation; `edge-cl consolidate --state {state}` asks for one",
        )
    model = current.read()
    write_atomic(out, model, mode=OUT_MODE)
    manifest = current.manifest
    return {
        "out": str(out),
        "snapshot": current.id,
        **{key: manifest[key] for key in ("bytes", "sha256", "created", "labels", "input", "output", "training")},
    }
