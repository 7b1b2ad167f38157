"""What the heap keeps for itself after everything in it was freed, and gives back when it is asked to."""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import resource
from pathlib import Path
from edge_cl.heap import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

give_back()
blocks = [b"x" * 60_000 for _ in range(1_000)]  # small enough for the heap, which cannot shrink below the last one
blocks = blocks[-1:]
kept = resident()
print(give_back(), kept - resident())
"""


def test_free_memory_below_what_is_still_held_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    possible, given_back = done.stdout.split()
    assert possible == "True"
    assert int(given_back) > 50e6
