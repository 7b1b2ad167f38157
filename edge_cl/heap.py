"""Free memory of this process, back to the system. Knows the C library, nothing of what was kept there."""

from __future__ import annotations

import ctypes


def give_back() -> bool:
    """Return the heap's free pages to the system, in about a millisecond; whether the C library can do that.

    glibc keeps them, and what torch frees after a large pass is not always what it takes again: without this a daemon
    with a small CNN grew by 168 MB in a thousand snapshots (glibc 2.36; `tools/bench_snapshot.py` measures it). To be
    called where a millisecond does not matter.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and keeps no such heap
    return malloc_trim is not None and bool(malloc_trim(0))
