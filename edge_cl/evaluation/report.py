"""One HTML page of an evaluation, and the PNGs of its figures beside it: to be looked at, sent and kept.

Knows results and figures. The page holds all it shows, needs no script, and loads nothing from anywhere.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Final

from edge_cl.errors import OperatorError
from edge_cl.evaluation import plots, theme
from edge_cl.evaluation.result import Result, scores_of
from edge_cl.storage.atomic import write_atomic
from edge_cl.storage.errors import StorageFault
from edge_cl.units import format_bytes

PAGE: Final = "report.html"
TEMPLATE: Final = Path(__file__).with_name("report.html")
SCENARIOS: Final = {
    "class": "class-incremental",
    "task": "task-incremental",
    "domain": "domain-incremental",
    "stream": "as one stream",
}
READABLE: Final = 0o644  # a report is there to be shown


def prepare(directory: Path) -> None:
    """Make the directory and see that a report can be written there: asked before hours of work, not after them.

    Raises OperatorError if it cannot, or if a library of the extra `evaluation` is missing.
    """
    plots.require()
    with _refusals(directory):
        import jinja2  # noqa: F401 - whether it can be imported is the question

        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()


def write_report(results: Sequence[Result], directory: Path, *, command: str) -> Path:
    """Write page and PNGs of results on one stream, and return the page's path; `command` is how they were made.

    Each file is replaced as a whole, the page last; what else is in the directory stays. Raises OperatorError if it
    cannot be written.
    """
    prepare(directory)
    drawings = plots.draw(results)
    files = {f"{drawing.name}.png": drawing.png for drawing in drawings}
    files[PAGE] = _page(results, drawings, command).encode()
    with _refusals(directory):
        for name, content in files.items():
            write_atomic(directory / name, content, mode=READABLE)
    return directory / PAGE


@contextmanager
def _refusals(directory: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as exc:
        raise OperatorError(f"a report needs {exc.name}", hint="pip install 'edge-cl[evaluation]'") from exc
    except (OSError, StorageFault) as exc:
        raise OperatorError(
            f"cannot write a report into {directory}: {exc}", hint="name a directory that can be written, by --report"
        ) from exc


def _page(results: Sequence[Result], drawings: Sequence[plots.Drawing], command: str) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["bytes"] = format_bytes
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=f"{results[0].data}, {SCENARIOS[results[0].scenario]}",
        lead=_lead(results),
        results=results,
        strategies=list({result.strategy: result for result in results}.values()),
        scores=scores_of(results),
        drawings=drawings,
        made=_made(results, command),
        generator=f"edge-cl {version('edge-cl')}",
        light=theme.variables(dark=False),
        dark=theme.variables(dark=True),
    )


def _lead(results: Sequence[Result]) -> str:
    """What came out, in two sentences."""
    score = scores_of(results)[0]
    best = max(results, key=lambda result: score.of(result).mean or 0.0)
    n_strategies, n_seeds = len({result.strategy for result in results}), len(best.runs)
    who = best.strategy if n_strategies == 1 else f"best of {n_strategies} strategies: {best.strategy}"
    return (
        f"One pass over {best.runs[0].samples:,} samples, {n_seeds} seed{'s' if n_seeds > 1 else ''}; "
        f"{who}, {score.name} accuracy {score.of(best).percent} %."
    )


def _made(results: Sequence[Result], command: str) -> list[tuple[str, str]]:
    """What somebody needs to make the same page."""
    first = results[0]
    libraries = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in ("torch", "numpy"))]
    return [
        ("command", command),
        ("data", first.data),
        ("scenario", f"{first.scenario}: {' · '.join(first.experiences)}"),
        ("model", first.model),
        ("seeds", ", ".join(str(run.seed) for run in first.runs)),
        ("versions", ", ".join([f"edge-cl {version('edge-cl')}", *libraries])),
        ("machine", f"{platform.system()} on {platform.machine()}"),
        ("written", f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"),
    ]
