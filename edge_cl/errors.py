"""Every error a person can cause or must act on, and the exit code each ends in. Must not know how it is printed.

EdgeError               1   a failure with a name; `hint` says what to do about it
├── OperatorError      78   what was asked cannot be done as asked: a missing source, a state of another model
│   ├── ConfigError    78   the configuration is wrong; holds every problem found, with its line
│   └── BudgetExceeded 78   the plan does not fit into the memory budget
├── NotRunning          3   a command needs a running daemon and there is none (the LSB and systemctl code)
├── VerifyFailed       11   a snapshot answers differently from the learner it was made of
├── NoSample           20   no sample came before the time limit
├── IOFault            74   the disk or a device failed: full, read-only, broken
└── TryAgain           75   busy or too slow just now; the same command may succeed later

Anything else that is raised is a bug of ours: it crashes with its traceback and exit code 1.
"""

# ruff: noqa: N818 - an error is named for what happened, as ConfigError's readers would say it: NotRunning, TryAgain

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `edge-cl`: 64 and above after sysexits.h, 2 as Click uses it, 3 as systemctl does."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_RUNNING = 3
    BUDGET_EXCEEDED = 10
    VERIFY_FAILED = 11
    NO_SAMPLE = 20
    IO = 74
    TRY_AGAIN = 75
    CONFIG = 78


class EdgeError(Exception):
    """A failure with a name, a one-line message, and a hint that says what to do about it."""

    exit_code: Exit = Exit.FAILURE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class OperatorError(EdgeError):
    """Raised when a setting, a path or a device named by the operator cannot be used as asked."""

    exit_code = Exit.CONFIG


class BudgetExceeded(OperatorError):
    """Raised before the first allocation when the plan does not fit into `budget.memory_bytes`."""


class NotRunning(EdgeError):
    """Raised by a command that talks to a daemon when none runs on the state directory."""

    exit_code = Exit.NOT_RUNNING


class VerifyFailed(EdgeError):
    """Raised when an exported model's answers differ from the learner's."""

    exit_code = Exit.VERIFY_FAILED


class NoSample(EdgeError):
    """Raised when no sample came before the time limit."""

    exit_code = Exit.NO_SAMPLE


class IOFault(EdgeError):
    """Raised when the disk or a device fails: full, read-only, broken."""

    exit_code = Exit.IO


class TryAgain(EdgeError):
    """Raised when something is busy or slow now and the same command may succeed later."""

    exit_code = Exit.TRY_AGAIN


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where it is, which key, what is wrong, what was found there.

    line counts from 1 and is None where there are no lines (an override on the command line).
    """

    name: str
    line: int | None
    key: str
    what: str
    got: str = ""

    def __str__(self) -> str:
        place = self.name if self.line is None else f"{self.name}:{self.line}"
        found = f" (got {self.got})" if self.got else ""
        return ": ".join(part for part in (place, self.key, self.what) if part) + found


class ConfigError(OperatorError):
    """Raised when a configuration is wrong; `problems` holds all of them, by line."""

    def __init__(self, problems: Sequence[Problem], *, hint: str = "") -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0))
        super().__init__("\n".join(map(str, self.problems)), hint=hint)
