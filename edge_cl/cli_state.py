"""`edge-cl state` and `edge-cl purge`: what lies in a state directory, whether it is sound, a copy of it, and its end.

All but `restore` and `purge` work beside a running daemon and change nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from edge_cl.console import DEFAULT_STATE, AsJson, StateDir, data, draw, say
from edge_cl.errors import Exit
from edge_cl.service.dashboard import plain
from edge_cl.storage.survey import survey
from edge_cl.units import format_bytes

state_app = typer.Typer(help="Look into a state directory, verify it, back it up and restore it.", no_args_is_help=True)

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; without a terminal there is nobody to ask.")]


@state_app.command()
def show(state: StateDir = DEFAULT_STATE, as_json: AsJson = False) -> None:
    """Show what lies in a state directory: both checkpoints, the journal, the snapshots, and whose they are."""
    found = survey(state, thorough=False)
    if as_json:
        data(found.shown())
    else:
        draw(_facts(found.shown()))
        for fault in found.faults:
            say(f"warning: {fault}")


@state_app.command()
def verify(state: StateDir = DEFAULT_STATE, as_json: AsJson = False) -> None:
    """Check every byte against its SHA-256: exit 0, or 11 with what is damaged and what a start would do about it."""
    found = survey(state, thorough=True)
    if as_json:
        data(found.verified())
    else:
        for fault in found.faults:
            say(f"error: {fault}")
        say(f"{'sound' if found.is_sound else 'recovery'}: {found.recovery}")
    raise typer.Exit(Exit.OK if found.is_sound else Exit.VERIFY_FAILED)


@state_app.command()
def backup(
    out: Annotated[Path, typer.Argument(metavar="OUT.tar", help="The file to write; one that is there is replaced.")],
    state: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
) -> None:
    """Copy a state directory, raw samples and all, into one tar file (mode 0600) with the SHA-256 of what is in it."""
    from edge_cl.storage.backup import write_backup

    done = write_backup(state, out)
    for what in done.left_out:
        say(f"warning: left out: {what}")
    if as_json:
        data(asdict(done))
    else:
        say(
            f"{done.path}: {format_bytes(done.nbytes)}, generation {done.generation}, "
            f"{_count(done.entries, 'journal entry', 'journal entries')} behind it, "
            f"{_count(len(done.snapshots), 'snapshot')}"
        )


@state_app.command()
def restore(
    archive: Annotated[Path, typer.Argument(metavar="BACKUP.tar", help="A file that `state backup` wrote.")],
    state: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
) -> None:
    """Make a new state directory of a backup, all of it or nothing; `edge-cl run` goes on from there."""
    from edge_cl.storage.restore import restore_backup

    done = restore_backup(archive, state)
    if as_json:
        data({"state": state, **asdict(done)})
    else:
        entries = _count(done.entries, "journal entry", "journal entries")
        say(f"{state}: generation {done.generation}, {entries} behind it, {_count(len(done.snapshots), 'snapshot')}")


def purge(state: StateDir = DEFAULT_STATE, yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove every raw sample that a stopped daemon has kept; what was learnt from them stays."""
    from edge_cl.keeping.purge import purge as forget

    _make_sure(yes, f"Remove all raw samples from {state}, for good? Backups keep theirs.")
    done = forget(state)
    if done.lost_samples:
        say(f"warning: at least {done.lost_samples:,} samples that were learnt could not be read any more")
    if as_json:
        data(asdict(done))
    else:
        say(
            f"{state}: removed {done.replay_samples:,} samples of replay, {done.exam_samples:,} of the exam, "
            f"{done.waiting_samples:,} that waited, {done.window_rows:,} rows of a window and "
            f"{format_bytes(done.journal_bytes)} of journal, of which {done.folded:,} entries were learnt first"
        )


def _make_sure(yes: bool, question: str) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("is needed where nobody can be asked", param_hint="--yes")
    typer.confirm(question, abort=True, err=True)


def _facts(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    journal = found["journal"]
    rows = {
        "format": str(found["format"]),
        "daemon": f"process {found['pid']}" if found["pid"] is not None else "none runs",
        "source": found["source"] or "-",
        "model": found["model"] or "-",
        **{slot["slot"]: _slot(slot) for slot in found["slots"]},
        "journal": f"{_count(journal['behind'], 'entry', 'entries')} behind the newest checkpoint, "
        f"{format_bytes(journal['bytes'])}",
        "snapshots": f"{len(found['snapshots'])}, current: {found['current'] or 'none'}",
        "on disk": format_bytes(found["bytes"]),
    }
    for name, value in rows.items():
        table.add_row(name, plain(value))
    return table


def _slot(slot: Mapping[str, Any]) -> str:
    if slot["fault"] is not None:
        return f"damaged: {slot['fault']}"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(slot["saved_s"]))
    return (
        f"generation {slot['generation']}, {when} UTC, {slot['learned']:,} samples learnt in {slot['steps']:,} steps, "
        f"{format_bytes(slot['bytes'])}"
    )


def _count(n: int, one: str, more: str = "") -> str:
    return f"{n:,} {one if n == 1 else more or one + 's'}"
