"""Jobs side by side in processes, with news of how far each has come. Knows neither learners nor streams.

Processes are spawned and not forked: torch's threads do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Final, TypeAlias, TypeVar

from edge_cl.errors import EdgeError

POLL_S: Final = 0.1
NEWS_EVERY_S: Final = 0.1  # of one job

J = TypeVar("J")
R = TypeVar("R")
Work = Callable[[J, Callable[[float], None]], R]
News: TypeAlias = "SimpleQueue[tuple[int, int, float]]"  # number of the job, its process, share that is done

_news: News  # of a process that works; see _begin


def side_by_side(work: Work[J, R], jobs: Sequence[J], on_progress: Callable[[J, float], None]) -> list[R]:
    """work(job, report) of each job, in their order, on as many processes as there are processors for this one.

    `work` is a function of a module; it calls report(share) with what it has done, 0 to 1, as often as it likes.
    `on_progress` is told in this process. The first exception of a job is raised here; EdgeError, with the job's name,
    if its process died. However this ends, none of its processes is left.
    """
    context = multiprocessing.get_context("spawn")
    news: News = context.SimpleQueue()  # puts at once: what a process said before it died is there
    others = set(multiprocessing.active_children())
    children: set[BaseProcess] = set()
    at_work: dict[int, J] = {}
    pool = ProcessPoolExecutor(min(len(jobs), len(os.sched_getaffinity(0))), context, _begin, (news,))
    try:
        with _interrupts_kept_from_children():
            futures: dict[Future[R], J] = {pool.submit(_do, work, job, n): job for n, job in enumerate(jobs)}
            children = set(multiprocessing.active_children()) - others
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, POLL_S, FIRST_COMPLETED)
            _listen(news, jobs, at_work, on_progress)
            for future in done:
                future.result()
                on_progress(futures[future], 1.0)
            if waiting and any(child.exitcode is not None for child in children):
                raise BrokenProcessPool  # the pool itself sees it late: it watches those it had when it last looked up
        return [future.result() for future in futures]
    except BrokenProcessPool as exc:
        _end(children, pool)
        _listen(news, jobs, at_work, on_progress)
        raise _death(children, at_work) from exc
    except BaseException:
        _end(children, pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        news.close()


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Ctrl-C is the parent's affair: what is spawned here never gets one, not even while it still imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(news: News) -> None:
    """In a new process: where news go, and an end with the parent, should that be killed."""
    global _news
    _news = news
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(work: Work[J, R], job: J, number: int) -> R:
    due_s = 0.0

    def report(share: float) -> None:
        nonlocal due_s
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + NEWS_EVERY_S
            _news.put((number, os.getpid(), share))

    report(0.0)
    return work(job, report)


def _listen(news: News, jobs: Sequence[J], at_work: dict[int, J], on_progress: Callable[[J, float], None]) -> None:
    while not news.empty():
        number, pid, share = news.get()
        at_work[pid] = jobs[number]
        on_progress(jobs[number], share)


def _end(children: set[BaseProcess], pool: ProcessPoolExecutor) -> None:
    for child in children:
        child.terminate()
    pool.shutdown(cancel_futures=True)  # it, too, asks for their exit codes: from here on, whoever got one, it is known


def _death(children: set[BaseProcess], at_work: dict[int, J]) -> EdgeError:
    """Who died, the others having been ended by SIGTERM."""
    first = [child for child in children if child.exitcode not in (None, 0, -signal.SIGTERM)] or list(children)
    names = " or ".join(sorted(str(at_work.get(child.pid or 0, "a run that had not begun")) for child in first))
    codes = ", ".join(sorted({str(child.exitcode) for child in first}))
    return EdgeError(
        f"{names}: its process died (exit code {codes})",
        hint="-9 is often the kernel's answer to a lack of memory: fewer at once with `taskset -c 0`, or --limit",
    )
