"""The folder that `edge-cl export --deploy` writes: a model, its manifest, and programs of a page that run it.

The programs are files of the package, in edge_cl/deployment. Must not know how a model was made.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from edge_cl.errors import OperatorError
from edge_cl.storage.atomic import write_atomic
from edge_cl.storage.errors import disk_faults
from edge_cl.storage.published import MANIFEST_NAME, MODEL_NAME, SIGNATURE_NAME

PROGRAMS = ("consumer.py", "consumer.cpp", "CMakeLists.txt", "README.md")
FILE_MODE = 0o666  # less the umask: they are for others
OLD_MODEL_STAYS = "what a folder held before it may hold still"


def deploy(folder: Path, model: bytes, manifest: bytes, signature: bytes | None) -> None:
    """Write the folder, new or empty or an earlier one of ours; each file is replaced as a whole, the manifest last.

    Raises OperatorError, before anything is written, if something else is in the folder; StorageFault.
    """
    check_folder(folder)
    with disk_faults("create", folder, rule=OLD_MODEL_STAYS):
        folder.mkdir(exist_ok=True)
        (folder / SIGNATURE_NAME).unlink(missing_ok=True)  # an earlier manifest's
    for name in PROGRAMS:
        write_atomic(folder / name, files("edge_cl").joinpath("deployment").joinpath(name).read_bytes(), mode=FILE_MODE)
    write_atomic(folder / MODEL_NAME, model, mode=FILE_MODE)
    write_atomic(folder / MANIFEST_NAME, manifest, mode=FILE_MODE)
    if signature is not None:
        write_atomic(folder / SIGNATURE_NAME, signature, mode=FILE_MODE)


def check_folder(folder: Path) -> None:
    """Raises OperatorError unless the folder is new, empty, or an earlier one of ours; StorageFault."""
    with disk_faults("look into", folder, rule=OLD_MODEL_STAYS):
        try:
            there = {entry.name for entry in folder.iterdir()}
        except FileNotFoundError:
            return
        except NotADirectoryError:
            there = {folder.name}
    if there and not there.issuperset({MODEL_NAME, *PROGRAMS}):
        raise OperatorError(
            f"--deploy: must be a new or an empty folder, or an earlier one of this command (got {folder})",
            hint="name another folder",
        )
