"""A child that is killed at a random instant, what it had acknowledged by then, and the tally over thousands of them.

Must not know what the child does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

_NUMBER = struct.Struct("<Q")
_EXAMPLES = 5

BROKEN = ("ack-early", "replay-twice")  # what a level can be made to do wrong, to see that it is noticed

Tell = Callable[[int], None]  # a number that is acknowledged, and all before it


class ChildFailed(Exception):  # noqa: N818 - it says what happened
    """A child ended by itself with a fault: the campaign proves nothing. Raised by `killed`."""


@dataclass
class Tally:
    """What the kills came to."""

    kills: int = 0
    corrupt: int = 0
    acknowledged_lost: int = 0
    learnt_twice: int = 0
    differing: int = 0
    recovery_s: list[float] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def judge(self, *, lost: int, twice: int, is_identical: bool, told: str) -> bool:
        """Count what a recovery came to, `told` for a person; whether all is well."""
        self.acknowledged_lost += lost
        self.learnt_twice += twice
        self.differing += not is_identical
        is_well = not lost and not twice and is_identical
        if not is_well:
            self.example(f"{told}; lost {lost}, twice {twice}, identical: {is_identical}")
        return is_well

    def damaged(self, why: str) -> None:
        """Count a recovery that failed."""
        self.corrupt += 1
        self.example(why)

    def example(self, text: str) -> None:
        """Keep the first few for a person."""
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"kill {self.kills}: {text}")

    def result(self) -> dict[str, Any]:
        """The keys of the command's contract."""
        ordered = sorted(self.recovery_s) or [0.0]
        return {
            "kills": self.kills,
            "corrupt": self.corrupt,
            "acknowledged_lost": self.acknowledged_lost,
            "learnt_twice": self.learnt_twice,
            "bit_identical": self.differing == 0 and self.corrupt == 0,
            "recovery_p99_s": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 4),
            "recovery_p50_s": round(ordered[len(ordered) // 2], 4),
            "examples": self.examples,
        }


def killed(work: Callable[[Tell], None], wait: Callable[[int], None]) -> tuple[list[int], bool]:
    """Fork a child that does `work`, SIGKILL it once `wait` returns; what it told, and whether it had ended before.

    wait: is given the pipe that the child tells through, not to be read. Raises ChildFailed if it ended with a fault of
    its own.
    """

    def telling(writing: int) -> None:
        parent = os.getppid()

        def tell(number: int) -> None:
            if os.getppid() != parent:  # the campaign is gone: nobody will kill this one
                os._exit(0)
            os.write(writing, _NUMBER.pack(number))

        work(tell)

    child, reading = _forked(telling)
    try:
        wait(reading)
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as stream:
            told = stream.read()
    _check(status)
    # A number that the kill cut in two was never acknowledged.
    whole = len(told) // _NUMBER.size * _NUMBER.size
    return [number for (number,) in _NUMBER.iter_unpack(told[:whole])], os.WIFEXITED(status)


def answered(work: Callable[[], Any]) -> Any:
    """What `work` returns, JSON-able, done in a forked child, so that no thread of it stays. Raises ChildFailed."""

    def answering(writing: int) -> None:
        with os.fdopen(writing, "w", encoding="utf-8") as stream:
            json.dump(work(), stream)

    child, reading = _forked(answering)
    with os.fdopen(reading, encoding="utf-8") as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    _check(status)
    return json.loads(text)


def _forked(work: Callable[[int], None]) -> tuple[int, int]:
    """The child's pid, and the end to read of a pipe whose other end it writes to."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_the_child(work, writing)
    os.close(writing)
    return child, reading


def _check(status: int) -> None:
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise ChildFailed(f"a child ended with {os.WEXITSTATUS(status)}; its last words are on stderr")


def _be_the_child(work: Callable[[int], None], writing: int) -> NoReturn:
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then kills its child
        work(writing)
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)


def slept(seconds: float, *, after_word_s: float = 0.0) -> Callable[[int], None]:
    """A wait that only chooses the instant: so long, counted from the child's first word if that comes in time."""

    def wait(reading: int) -> None:
        if after_word_s:
            select.select([reading], [], [], after_word_s)
        time.sleep(seconds)

    return wait
