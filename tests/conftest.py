"""What holds for every test: no GPU is no failure, on CI nothing else may be skipped, and no clock fails a test."""

from __future__ import annotations

import os

import hypothesis
import pytest

import edge_cl  # noqa: F401  (before any test imports onnxruntime: it switches its reports off)

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one is slow, not wrong
hypothesis.settings.load_profile("any machine")

NO_GPU = "no NVIDIA GPU here"
_skipped: dict[str, str] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is none; torch is asked only if there is such a test."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was skipped, and why."""
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """The same for whole modules."""
    _note(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """On CI a skipped test is a failed one: a test that never runs proves nothing."""
    if _offenders() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name them."""
    for name, reason in sorted(_offenders().items()):
        terminalreporter.write_line(f"SKIPPED, which fails on CI: {name}: {reason}", red=True)


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped[report.nodeid] = reason.removeprefix("Skipped: ")


def _offenders() -> dict[str, str]:
    on_ci = os.environ.get("CI") == "true"
    return {name: reason for name, reason in _skipped.items() if reason != NO_GPU} if on_ci else {}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
