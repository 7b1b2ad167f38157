"""Where campaigns play: a folder that goes away with its block."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")


@contextmanager
def scratch(*, in_memory: bool) -> Iterator[Path]:
    """A new folder, on a disk or, where the machine has one, on a file system in memory: no flash wears out there."""
    above = _MEMORY if in_memory and _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="edge-cl-", dir=above) as folder:
        yield Path(folder)
