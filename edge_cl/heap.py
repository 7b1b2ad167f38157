"""Free memory of this process, kept for the next step or given back. Knows the C library, nothing of what was there."""

from __future__ import annotations

import ctypes
from typing import Final

# glibc's numbers for mallopt, and the largest threshold that it takes: what it comes to by itself in the long run.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BYTES: Final = 32 * 1024 * 1024


def keep() -> bool:
    """Keep what a step frees for the next one, until `give_back`; whether the C library can do that.

    glibc returns large blocks at once, and each step then takes them from the system again page by page. It learns
    from the largest block ever freed, which may take a daemon minutes: a step of the CNN on windows of 256 rows takes
    twice as long until then (2,000 page faults a step; docs/BUDGETS.md). No more is held at the peak of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_BYTES))


def give_back() -> bool:
    """Return the heap's free pages to the system, in about a millisecond; whether the C library can do that.

    glibc keeps them, and what torch frees after a large pass is not always what it takes again: without this a daemon
    with a small CNN grew by 168 MB in a thousand snapshots (glibc 2.36; `tools/bench_snapshot.py` measures it). To be
    called where a millisecond does not matter.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and keeps no such heap
    return malloc_trim is not None and bool(malloc_trim(0))
