"""Waiting for a kernel lock, but never for ever. Must not know what is locked.

A flock belongs to the open file: closing it is the release, and a kill releases it too.
"""

import fcntl
import time

_PAUSE_S = 0.01


def lock_in_time(file: int, patience_s: float) -> bool:
    """Take the exclusive flock of an open file; False if another has held it for all of `patience_s` seconds.

    Raises OSError.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE_S)
