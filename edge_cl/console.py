"""What all commands have in common: options that mean the same everywhere, and the only functions that print.

stdout is data, stderr is talk.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console, RenderableType

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one setting, as in -s replay.per_step=40."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings; ./config.yaml if there is one, else the defaults."),
]
StateDir = Annotated[
    Path, typer.Option("--state", metavar="DIR", help="Where the learner's state and its snapshots are kept.")
]
SourceUrl = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="URL", help="Where samples come from, instead of the file's; may be repeated."),
]
DEFAULT_STATE: Final = Path("edge-cl-state")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable; the last line is one JSON object.")]


def data(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Print a JSON object, or a list of them, as a line of stdout. Raises ValueError if a number is not finite."""
    # Not typer.echo, which asks the terminal anew for each of the thousands of lines a second that `tail` prints.
    sys.stdout.write(json.dumps(value, allow_nan=False, default=_path_text) + "\n")
    sys.stdout.flush()


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
