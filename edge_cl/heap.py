"""Free memory of this process, back to the system. Knows the C library, nothing of what was kept there."""

from __future__ import annotations

import ctypes


def give_back() -> bool:
    """Return the heap's free pages to the system, in about a millisecond; whether the C library can do that.

    glibc keeps them, and a block that is freed there does not take the next aligned one of its size, such as torch asks
    for (glibc bug 14581, mended in 2.38): the activations of exams alone add up to hundreds of megabytes in a thousand
    snapshots. To be called where a millisecond does not matter.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and keeps no such heap
    return malloc_trim is not None and bool(malloc_trim(0))
