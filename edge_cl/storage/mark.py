"""How far the journal had come: a number that is written over in place, without a sync.

Must not know what the entries are. A log that was cut off at the end of a transaction looks as if it had never been
longer; this number tells. It is written after a commit and before that is acknowledged, so it is never too large; a
kill leaves it exact, and a power cut leaves what the kernel had written by itself, at most some thirty seconds old. So
it costs a block about twice a minute and no sync.

    off   size  field
      0      8  magic    89 'edgejn' 0A
      8      8  number   little-endian
     16     16  SHA-256  of what is before, its first half
"""

import contextlib
import hashlib
import os
import struct
from pathlib import Path

from edge_cl.storage.atomic import read_whole, write_atomic
from edge_cl.storage.errors import DamagedFile, disk_faults

MARK_NAME = "newest"

_MAGIC = b"\x89edgejn\n"
_CONTENT = struct.Struct("<8sQ")
_HASH_BYTES = 16


class Mark:
    """The number in `folder`, durably set to `number` from the start. Raises StorageFault."""

    def __init__(self, folder: Path, number: int) -> None:
        path = folder / MARK_NAME
        write_atomic(path, _encode(number))
        with disk_faults("open", path, rule="nothing was acknowledged"):
            self._file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def set(self, number: int) -> None:
        """Raise the number. A disk that refuses is no fault: a number that is too small is still true."""
        with contextlib.suppress(OSError):
            os.pwrite(self._file, _encode(number), 0)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def read_mark(folder: Path) -> int | None:
    """The number, None if there never was one.

    Raises DamagedFile, and OSError as it comes.
    """
    try:
        content = read_whole(folder / MARK_NAME)
    except FileNotFoundError:
        return None
    if len(content) == _CONTENT.size + _HASH_BYTES:
        magic, number = _CONTENT.unpack_from(content)
        if content == _encode(number) and magic == _MAGIC:
            return int(number)
    raise DamagedFile(f"{folder / MARK_NAME} is damaged", hint="it is written anew at the next start")


def _encode(number: int) -> bytes:
    content = _CONTENT.pack(_MAGIC, number)
    return content + hashlib.sha256(content).digest()[:_HASH_BYTES]
