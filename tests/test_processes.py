"""Jobs in processes of their own: results in order, news on the way, and nothing left behind however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_cl.errors import EdgeError, OperatorError
from edge_cl.evaluation.processes import side_by_side

TREE = Path(__file__).parent

Report = Callable[[float], None]


def squared(job: int, report: Report) -> int:
    report(0.5)
    return job * job


def its_process(job: int, report: Report) -> int:
    return os.getpid()


def refused(job: int, report: Report) -> int:
    raise OperatorError("replay-bytes: too few", hint="take more")


def killed(job: str, report: Report) -> None:
    """The second job dies as one does that the kernel takes for want of memory; the others never end."""
    if "1" in job:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def endless(job: int, report: Report) -> None:
    signal.pause()


def test_results_come_in_the_order_of_the_jobs() -> None:
    heard: list[tuple[int, float]] = []
    assert side_by_side(squared, [3, 1, 2], lambda job, share: heard.append((job, share))) == [9, 1, 4]
    for job in (1, 2, 3):
        shares = [share for one, share in heard if one == job]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
    assert multiprocessing.active_children() == []


def test_a_job_is_done_in_another_process() -> None:
    assert os.getpid() not in side_by_side(its_process, [0], lambda job, share: None)


def test_what_a_job_raises_is_raised_here_with_its_hint() -> None:
    with pytest.raises(OperatorError, match="too few") as caught:
        side_by_side(refused, [0], lambda job, share: None)
    assert caught.value.hint == "take more"
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_is_named_by_its_job() -> None:
    with pytest.raises(EdgeError, match=r"er, seed 1: its process died \(exit code -9\)"):
        side_by_side(killed, ["er, seed 0", "er, seed 1"], lambda job, share: None)
    assert multiprocessing.active_children() == []


INTERRUPTED = """
import multiprocessing, os, sys
from edge_cl.evaluation.processes import side_by_side
from test_processes import endless

def told(job, share):
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)

if __name__ == "__main__":
    side_by_side(endless, [0], told)
"""


def ended_by(folder: Path, ending: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str, list[int]]:
    """A parent with an endless job, once it has begun, ended like that: its exit code, its last words, its children."""
    script = folder / "interrupted.py"
    script.write_text(INTERRUPTED, encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TREE), str(TREE.parent)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert children
    ending(parent)
    _, errors = parent.communicate()  # until the last of them has closed its end
    return parent.returncode, errors, children


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for its code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_an_interrupt_ends_the_processes_and_only_the_parent_speaks(tmp_path: Path) -> None:
    """As a terminal sends it: to parent and children alike."""
    code, errors, children = ended_by(tmp_path, lambda parent: os.killpg(parent.pid, signal.SIGINT))
    assert code == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert [pid for pid in children if is_there(pid)] == []


def test_no_process_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    code, _, children = ended_by(tmp_path, lambda parent: parent.kill())
    assert code == -signal.SIGKILL
    assert [pid for pid in children if is_there(pid)] == []
