"""`edge-cl label`: a person says what a sample was, after it came. Needs no running daemon, and no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_cl import running
from edge_cl.console import DEFAULT_STATE, AsJson, StateDir, data
from edge_cl.errors import OperatorError
from edge_cl.storage.spool import leave
from edge_cl.storage.state_dir import check_state_dir


def label(
    sample: Annotated[
        str | None, typer.Argument(metavar="STREAM:BOOT:SEQ", help="The sample, as `--list` or `bridge tail` name it.")
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="CLASS", help="Its class: a name, or a number from 0.")] = None,
    state: StateDir = DEFAULT_STATE,
    listed: Annotated[
        bool, typer.Option("--list", help="List the last samples that wait, with their answers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a sample was, after it came: the daemon learns it if it still waits (bridge.label_wait_bytes).

    The label is left in the state directory: a daemon that does not run takes it when it does.
    """
    _, last = running.look(state)
    late = last["late_labels"]
    if listed:
        if as_json:
            data({"waiting": late["waiting"], "newest": late["newest"]})
        for stream, boot, seq, answer in () if as_json else late["newest"]:
            typer.echo(f"{stream}:{boot}:{seq}  {answer or 'no answer'}")
        return
    if sample is None or name is None:
        raise typer.BadParameter("STREAM:BOOT:SEQ and CLASS, or --list")
    parts = sample.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise typer.BadParameter(f"must be STREAM:BOOT:SEQ, three whole numbers (got {sample!r})")
    if last["updated_s"] is not None and not late["most_bytes"]:
        raise OperatorError(
            f"no sample waits for a label on {state}: bridge.label_wait_bytes is 0",
            hint="edge-cl run -s bridge.label_wait_bytes='256 KiB'",
        )
    known = last["label_names"]
    if known and name not in known and not (name.isdigit() and len(name) < 10):
        raise OperatorError(f"CLASS: must be one of {', '.join(known)} (got {name!r})")
    stream, boot, seq = (int(part) for part in parts)
    check_state_dir(state)
    leave(state, stream, boot, seq, name)
    if as_json:
        data({"stream": stream, "boot": boot, "seq": seq, "label": name})
