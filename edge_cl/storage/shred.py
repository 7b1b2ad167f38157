"""Bytes that shall not be found again: overwritten in place before their last name goes.

Must not know what they mean. A file that has another name elsewhere, as a copy made of hard links has, is unlinked and
not overwritten: it is somebody's backup. On flash, and on file systems that never write in place, old blocks live on
until the device erases them; nothing that a program can do changes that.

Journals are overwritten like any file, with their write-ahead logs. DELETE under secure_delete and a VACUUM would do
less: they cut the log off, and what was in it stays in free blocks.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_cl.storage.atomic import open_folder, temporary_name, unlink_durable
from edge_cl.storage.errors import disk_faults

_ZEROS = bytes(1 << 16)
_RULE = "run it again: some of what was to be removed may still be there"


@contextmanager
def replaced_content_overwritten(path: Path) -> Iterator[None]:
    """Overwrite what `path` held before, if the block puts another file in its place. Raises StorageFault."""
    with disk_faults("overwrite", path, rule=_RULE):
        try:
            file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            file = -1
    try:
        yield
        if file >= 0:
            with disk_faults("overwrite", path, rule=_RULE):
                _overwrite(file, names=0)
    finally:
        if file >= 0:
            os.close(file)


def remove_file(path: Path) -> None:
    """Overwrite a file and remove it; nothing happens if there is none. Raises StorageFault."""
    with disk_faults("remove", path, rule=_RULE), suppress(FileNotFoundError):
        _overwrite_file(path)
    unlink_durable(path)


def remove_folder(path: Path) -> int:
    """Overwrite and remove the files of a folder and the folder, which is out of its place first; bytes overwritten.

    Nothing happens if there is none. Raises StorageFault.
    """
    with disk_faults("remove", path, rule=_RULE):
        if not os.path.lexists(path):
            return 0
        aside = path.with_name(temporary_name(path.name))  # swept by the next start, should this one be killed
        path.rename(aside)
        with open_folder(path.parent) as above:
            os.fsync(above)
        nbytes = 0
        for entry in aside.iterdir():
            with suppress(IsADirectoryError):
                nbytes += _overwrite_file(entry)
        shutil.rmtree(aside)
        with open_folder(path.parent) as above:
            os.fsync(above)
        return nbytes


def _overwrite_file(path: Path) -> int:
    file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _overwrite(file, names=1)
    finally:
        os.close(file)


def _overwrite(file: int, *, names: int) -> int:
    """Write zeros over a regular file that has no more than so many names."""
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > names:
        return 0
    offset = 0
    while offset < status.st_size:
        offset += os.pwrite(file, _ZEROS[: status.st_size - offset], offset)
    os.fsync(file)
    return offset
