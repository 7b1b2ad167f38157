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


STEP = """
import resource
from edge_cl.heap import give_back, keep

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        blocks = [bytearray(b"x") * 1_000_000 for _ in range(10)]
        del blocks
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 100

if KEPT:
    print(keep())
faults_of_a_step()
print(faults_of_a_step())
print(give_back())
"""


def faults_of_a_step(*, kept: bool) -> float:
    """Page faults of a process that takes ten blocks of 1 MB and frees them, again and again."""
    code = STEP.replace("KEPT", str(kept))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *said, faults, given_back = done.stdout.split()
    assert said == (["True"] if kept else [])
    assert given_back == "True"  # what is kept for the next step still goes back when asked for
    return float(faults)


def test_what_a_step_frees_is_kept_for_the_next_one() -> None:
    assert faults_of_a_step(kept=True) < 10
    assert faults_of_a_step(kept=False) > 1000  # else the C library has learnt better, and keep() can go
