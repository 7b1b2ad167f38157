"""What storage raises. Knows neither exit codes nor the screen: the command line turns these into both.

StorageError
├── StorageFault       the operating system refused: disk full, read-only, broken, no right
├── StateDirError      the state directory is not one that this daemon may use
├── StateBusy          another process holds the state directory, or its shelf
├── ShelfError         the shelf cannot do what was asked of it
├── KeyFileError       a key cannot be used to sign or to verify
├── DamagedFile        a file is not what was once written
├── JournalDamaged     entries of the journal are lost
├── TemplateError      the ONNX template could not be built or filled
├── VariantError       no smaller variant of a model could be made
└── SnapshotMismatch   the ONNX model does not answer as the learner does
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(Exception):
    """Base of all; `hint` is what a person can do about it, one sentence.

    Raised only as one of its children.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class StorageFault(StorageError):  # noqa: N818 - it says what happened
    """The operating system refused to read or write; `errno` and `path` say what and where, `rule` what still holds.

    Raised for every OSError of a file of ours: ENOSPC, EDQUOT, EROFS, EIO, EACCES, EMFILE, EFBIG and the rest.
    """

    def __init__(self, action: str, path: Path, fault: OSError, *, rule: str) -> None:
        code = fault.errno or 0
        name = errno.errorcode.get(code, "no errno")
        hint = _HINTS.get(code, "mend what the operating system complains about, then start again")
        super().__init__(f"cannot {action} {path}: {fault.strerror or fault} ({name}); {rule}", hint=hint)
        self.errno = code
        self.path = path
        self.rule = rule


class StateDirError(StorageError):
    """The directory is a link, another's, writable by others, of a newer format, or belongs to another model.

    Raised before anything in it is touched.
    """


class StateBusy(StorageError):  # noqa: N818 - it says what happened
    """Another process holds the lock; `pid` is its number, 0 if it is not known.

    Raised when a state directory is opened twice, and when the shelf's short lock is not free in time.
    """

    def __init__(
        self, path: Path, pid: int, *, hint: str = "stop that daemon first, or name another directory"
    ) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(f"{path} is in use by {holder}", hint=hint)
        self.pid = pid


class ShelfError(StorageError):
    """There is no such snapshot, none to go back to, or `current` is pinned.

    Raised before anything on the shelf is changed.
    """


class KeyFileError(StorageError):
    """A key file is missing, open to others, encrypted or no Ed25519 key, or the extra that reads it is missing.

    Raised before anything is signed or verified.
    """


class DamagedFile(StorageError):  # noqa: N818 - it says what happened
    """Content that fails its own check: SHA-256, length or syntax.

    Raised when nothing sound is left to fall back to.
    """


class JournalDamaged(StorageError):  # noqa: N818 - it says what happened
    """The journal is sound up to entry `number`; at least `lost` entries were behind it, None if nothing tells.

    Raised when the entry after `number` is known to have been there, and cannot be read or is not what was written.
    """

    def __init__(self, folder: Path, number: int, lost: int | None, why: str) -> None:
        entries = "how many is not known" if lost is None else f"{lost} at least"
        super().__init__(
            f"{folder} is sound up to entry {number}, entries behind it are lost ({entries}): {why}",
            hint="restore the state directory from a backup, or go on from the last sound entry",
        )
        self.number = number
        self.lost = lost

    def cost(self, batch_size: int) -> tuple[int, str]:
        """So many samples are lost if each entry was a step of `batch_size`; the same in words."""
        samples = (self.lost or 1) * batch_size
        return samples, f"{'at most' if self.lost else 'at least'} {samples:,} samples are lost"


class TemplateError(StorageError):
    """The message is the child's own, or names the weight that does not fit.

    Raised when the graph is not valid ONNX, the child died or was late, or weights differ from the template's.
    """


class VariantError(StorageError):
    """The message is the child's own.

    Raised when a model cannot be brought into fewer bits, or the child that does it died or was late.
    """


class SnapshotMismatch(StorageError):  # noqa: N818 - it says what happened
    """onnxruntime refuses the model, or its answers differ from the learner's.

    Raised before a snapshot is published; `difference` is the largest absolute one, NaN if there was no answer.
    """

    def __init__(self, message: str, *, difference: float = float("nan")) -> None:
        super().__init__(message, hint="the model was not published; the one before it stays current")
        self.difference = difference


@contextmanager
def disk_faults(action: str, path: Path, *, rule: str) -> Iterator[None]:
    """Translate each OSError of the block into a StorageFault, cause kept."""
    try:
        yield
    except OSError as exc:
        raise StorageFault(action, path, exc, rule=rule) from exc


_NO_RIGHT = "give the user that runs edge_cl the right to this path"
_HINTS = {
    errno.ENOSPC: "free space on this disk",
    errno.EDQUOT: "free space in this user's quota",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EROFS: "mount the disk writable; after errors a kernel mounts it read-only, so look into its log",
    errno.EIO: "the disk reports a hardware error: look into the kernel's log and replace it",
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOENT: "create the folder first",
    errno.EISDIR: "a folder stands where the file belongs: move it away",
    errno.ELOOP: "a symbolic link stands where the file belongs: links are not followed here",
}
