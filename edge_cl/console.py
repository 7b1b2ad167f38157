"""What all commands have in common: options that mean the same everywhere, and the only functions that print.

stdout is data, stderr is talk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one setting, as in -s replay.per_step=40."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable; the last line is one JSON object.")]


def data(value: Mapping[str, Any]) -> None:
    """Print one JSON object on a line of stdout. Raises ValueError if a number in it is not finite."""
    typer.echo(json.dumps(value, allow_nan=False, default=_path_text))


def say(text: str) -> None:
    """Print a line of talk on stderr."""
    typer.echo(text, err=True)


def draw(drawing: RenderableType, *, to_stderr: bool = False) -> None:
    """Print something that rich draws."""
    Console(stderr=to_stderr, highlight=False).print(drawing)


def _path_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"not JSON: {value!r}")
