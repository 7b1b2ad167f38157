"""What an exception means to the shell: exit code, message, hint. Knows every error tree of the house, prints nothing.

The wings keep their own errors and know no exit codes; this is where they meet. An exception that is not in one of
the trees, nor the operating system's word on a full or broken disk, is a bug of ours and stays an exception.
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from edge_cl.errors import EdgeError, Exit

_ENVIRONMENT: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE}
)


class Ending(NamedTuple):
    """How a command that failed ends."""

    code: Exit
    message: str
    hint: str = ""


def explain(exc: BaseException) -> Ending | None:
    """The ending of a failure that a person can act on, or None for a bug of ours.

    Imports the wings' errors only here, after something went wrong, so that a command needs no more than it uses.
    """
    from edge_cl.storage import errors as storage
    from firmware_bridge import errors as bridge

    if isinstance(exc, EdgeError):
        return Ending(exc.exit_code, str(exc), exc.hint)
    if isinstance(exc, (bridge.BridgeError, storage.StorageError)):
        codes: dict[type[Exception], Exit] = {
            bridge.SourceLost: Exit.IO,
            bridge.BridgeError: Exit.CONFIG,
            storage.StateBusy: Exit.TRY_AGAIN,
            storage.StateDirError: Exit.CONFIG,
            storage.ShelfError: Exit.CONFIG,
            storage.KeyFileError: Exit.CONFIG,
            storage.SnapshotMismatch: Exit.VERIFY_FAILED,
            storage.StorageFault: Exit.IO,
            storage.DamagedFile: Exit.IO,
            storage.JournalDamaged: Exit.IO,
            storage.StorageError: Exit.FAILURE,
        }
        return Ending(next(code for kind, code in codes.items() if isinstance(exc, kind)), str(exc), exc.hint)
    if isinstance(exc, OSError) and exc.errno in _ENVIRONMENT:
        return Ending(Exit.IO, str(exc), "look after the disk or the rights, then start again")
    return None
