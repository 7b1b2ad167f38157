"""`edge-cl check`: its options, and how its answer looks to a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from edge_cl import config as configuration
from edge_cl.console import AsJson, ConfigFile, Overrides, SourceUrl, data, draw, say
from edge_cl.errors import Exit
from edge_cl.intake import urls_of
from edge_cl.units import format_bytes

if TYPE_CHECKING:
    from edge_cl.check.line import Checked, CheckLine

DIGITS: Final = 4
FRAMES_PER_S: Final = 4  # as `run` has it: drawing takes time from what is measured


def check(
    config: ConfigFile = None,
    state: Annotated[Path | None, typer.Option("--state", metavar="DIR", help="Check with this learner.")] = None,
    source: SourceUrl = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Only the bytes, planned: measures nothing.")] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure memory and latency on this machine with this configuration; exit 10 if a budget is exceeded.

    What fails comes with a change of one setting that would mend it.
    """
    if only_plan and state is not None:
        raise typer.BadParameter("a plan is made of settings, not of a learner", param_hint="--plan / --state")
    file = configuration.chosen(config)
    say(f"config: {file or 'built-in defaults'}")
    settings = configuration.resolve(file, overrides or ()).config
    urls = urls_of(source or settings.source)
    with _progress() as tell:
        tell("torch")
        from edge_cl.check.measure import measure, plan

        if only_plan:
            found = plan(settings, source_url=urls)
        else:
            found = measure(settings, state=state, source_url=urls, tell=tell)
    if as_json:
        data(_plain(found))
    else:
        draw(table_of(found))
        say(", ".join(f"{name.replace('_', ' ')} {amount:g}" for name, amount in found.conditions.items()))
        for name, why in found.left_out.items():
            say(f"left out: {name}: {why}")
        for line in found.lines:
            if not line.passed:
                say(f"hint: {line.name}: {line.advice}")
    raise typer.Exit(Exit.OK if found.passed else Exit.BUDGET_EXCEEDED)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """On a terminal, what is being measured, while it is."""
    with Console(stderr=True).status("", refresh_per_second=FRAMES_PER_S) as shown:
        yield lambda what: shown.update(f"measuring: {what}")


def _plain(found: Checked) -> dict[str, Any]:
    lines = [_row(line) for line in found.lines]
    return {"lines": lines, "pass": found.passed, "conditions": found.conditions, "left_out": found.left_out}


def _row(line: CheckLine) -> dict[str, Any]:
    names = ("name", "limit", "measured", "unit", "margin", "advice")
    return {**{name: getattr(line, name) for name in names}, "pass": line.passed}


def table_of(found: Checked) -> RenderableType:
    """The lines as a person reads them."""
    table = Table(box=None, pad_edge=False)
    table.add_column("budget")
    for name in ("limit", "measured", "margin"):
        table.add_column(name, justify="right")
    table.add_column("")
    for line in found.lines:
        amounts = (_amount(number, line.unit) for number in (line.limit, line.measured, line.margin))
        verdict = Text("") if line.limit is None else Text("PASS", "green") if line.passed else Text("FAIL", "bold red")
        table.add_row(line.name, *amounts, verdict)
    return table


def _amount(number: float | None, unit: str) -> str:
    if number is None:
        return ""
    return format_bytes(number) if unit == "bytes" else f"{number:.{DIGITS}g} {unit}"
