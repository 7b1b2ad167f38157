"""What this process has in memory."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

PAGE = resource.getpagesize()


def resident() -> int:
    """Bytes of this process in memory, after a collection."""
    gc.collect()
    statm = Path("/proc/self/statm")
    if not statm.exists():  # the most there ever was, in bytes where there is no /proc
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(statm.read_text(encoding="ascii").split()[1]) * PAGE
