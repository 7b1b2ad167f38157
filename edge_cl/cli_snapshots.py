"""`edge-cl snapshots`: what lies on the shelf, and the person's hand on it.

Works while a daemon runs and when none does: it takes the shelf's own short lock and not the daemon's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from edge_cl.console import DEFAULT_STATE, AsJson, StateDir, data, draw, say
from edge_cl.errors import Exit, OperatorError
from edge_cl.service.dashboard import percent, plain
from edge_cl.storage.errors import DamagedFile
from edge_cl.storage.inspection import (
    damage,
    damage_of,
    damage_of_current,
    differences,
    exam_accuracy,
    facts,
    row,
)
from edge_cl.storage.published import CURRENT_NAME, Published, ShelfReader
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.signature import verifier, write_key_pair
from edge_cl.storage.state_dir import check_state_dir
from edge_cl.units import format_bytes

snapshots_app = typer.Typer(help="List, compare, verify, roll back and pin published snapshots.", no_args_is_help=True)

IdOrCurrent = Annotated[
    str, typer.Argument(metavar="ID|current", help="As in the list; the zeros in front may be left out.")
]


@snapshots_app.command("list")
def list_snapshots(state: StateDir = DEFAULT_STATE, as_json: AsJson = False) -> None:
    """List the snapshots on the shelf, newest first."""
    shelf = _reader(state)
    current, pinned = _current_id(shelf), shelf.pinned()
    rows = [row(entry, current=entry.id == current) for entry in _readable(shelf)]
    if as_json:
        data(rows)
    elif rows:
        draw(_rows_table(rows, pinned))
    else:
        say(f"{state}: no snapshot was published yet")


@snapshots_app.command()
def show(name: IdOrCurrent = CURRENT_NAME, state: StateDir = DEFAULT_STATE, as_json: AsJson = False) -> None:
    """Show what the manifest of a snapshot says, and whether the model is still the one it names; exit 11 if not."""
    shelf = _reader(state)
    entry = _find(shelf, name)
    problems = damage_of(shelf, entry.id)
    is_current, is_pinned = entry.id == _current_id(shelf), entry.id == shelf.pinned()
    if as_json:
        beside = {"why": entry.why, "pinned": is_pinned, "path": entry.path, "problems": problems}
        data({**row(entry, current=is_current), **beside, "manifest": entry.manifest})
    else:
        draw(_facts_table(entry, problems, _marks(current=is_current, pinned=is_pinned)))
    if problems:
        raise typer.Exit(Exit.VERIFY_FAILED)


@snapshots_app.command()
def diff(
    before: IdOrCurrent,
    after: IdOrCurrent = CURRENT_NAME,
    state: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
) -> None:
    """Show every fact in which two manifests differ: counters, exam, labels, configuration, size, versions."""
    shelf = _reader(state)
    old, new = _find(shelf, before), _find(shelf, after)
    found = differences(old, new)
    if as_json:
        data({"before": old.id, "after": new.id, "differences": found})
        return
    table = Table(box=None, pad_edge=False)
    for name in ("", old.id, new.id):
        table.add_column(name, overflow="fold")
    for fact in found:
        table.add_row(*(plain(_text(fact[name])) for name in ("key", "before", "after")))
    draw(table)


@snapshots_app.command()
def rollback(
    state: StateDir = DEFAULT_STATE,
    to: Annotated[
        str | None, typer.Option("--to", metavar="ID", help="This one instead of the newest good one before.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an earlier snapshot current again; all that is newer becomes bad. The daemon goes on learning."""
    shelf = _shelf(state)
    entry = shelf.rollback(None if to is None else _find(shelf, to).id)
    if as_json:
        data(row(entry, current=True))
    else:
        say(f"{entry.id} is current")


@snapshots_app.command()
def pin(
    number: Annotated[str | None, typer.Argument(metavar="ID|current", help="The one to keep current.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Let newer snapshots become current again.")] = False,
    state: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
) -> None:
    """Keep a snapshot current, whatever is published meanwhile, until --off."""
    if (number is None) != off:
        raise typer.BadParameter("name a snapshot, or give --off", param_hint="ID")
    shelf = _shelf(state)
    shelf.pin(None if number is None else _find(shelf, number).id)
    pinned, current = shelf.pinned(), _current_id(shelf)
    if as_json:
        data({"pinned": pinned, "current": current})
    else:
        say(f"{pinned} is pinned" if pinned else f"nothing is pinned; {current or 'nothing'} is current")


@snapshots_app.command()
def verify(
    state: StateDir = DEFAULT_STATE,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="PUB.pem", help="Every manifest must be signed by its private key.")
    ] = None,
    not_older_than: Annotated[
        str | None, typer.Option("--not-older-than", metavar="ID", help="The current snapshot must be this or newer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether every snapshot is what was once published: exit 0, or 11 with what is damaged."""
    is_genuine = None if key is None else verifier(key)
    shelf = _reader(state)
    by_id = damage(shelf, is_genuine)
    wrong = damage_of_current(shelf, None if not_older_than is None else _as_id(not_older_than))
    is_sound = not wrong and not any(by_id.values())
    if as_json:
        entries = [{"id": number, "problems": problems} for number, problems in by_id.items()]
        data({"sound": is_sound, "problems": wrong, "snapshots": entries})
    else:
        for problem in (*wrong, *(f"{number}: {problem}" for number in by_id for problem in by_id[number])):
            say(f"error: {problem}")
        if is_sound:
            say(f"sound: {', '.join(by_id) or 'nothing was published yet'}")
    raise typer.Exit(Exit.OK if is_sound else Exit.VERIFY_FAILED)


@snapshots_app.command()
def keygen(
    out: Annotated[Path, typer.Option("--out", metavar="KEY.pem", help="The private key; *.pub.pem is put beside it.")],
    as_json: AsJson = False,
) -> None:
    """Make an Ed25519 key for `snapshots.signing_key`, and the public one that verifies what it signs."""
    public = write_key_pair(out)
    if as_json:
        data({"private": out, "public": public})
    else:
        say(f"private: {out}, for snapshots.signing_key of this device alone\npublic:  {public}, for those who verify")


def _reader(state: Path) -> ShelfReader:
    check_state_dir(state)
    return ShelfReader(state)


def _shelf(state: Path) -> Shelf:
    check_state_dir(state)
    return Shelf(state)


def _find(shelf: ShelfReader, name: str) -> Published:
    if name != CURRENT_NAME:
        return shelf.get(_as_id(name))
    found = shelf.current()
    if found is None:
        raise OperatorError(f"{shelf.folder}: nothing is current", hint="edge-cl snapshots list shows what there is")
    return found


def _as_id(name: str) -> str:
    if not (name.isascii() and name.isdigit()):
        raise typer.BadParameter(f"a snapshot's id is a number (got {name!r})", param_hint="ID")
    return name.zfill(6)


def _readable(shelf: ShelfReader) -> list[Published]:
    """Newest first, without the damaged ones, which are talked about."""
    found = []
    for number in reversed(shelf.ids()):
        try:
            found.append(shelf.get(number))
        except DamagedFile as exc:
            say(f"warning: {exc}")
    return found


def _current_id(shelf: ShelfReader) -> str | None:
    try:
        current = shelf.current()
    except DamagedFile as exc:
        say(f"warning: {exc}")
        return None
    return None if current is None else current.id


def _rows_table(rows: Sequence[Mapping[str, Any]], pinned: str | None) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("id", "state", "created (UTC)"):
        table.add_column(name, no_wrap=True)
    for name in ("samples", "exam", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for each in rows:
        samples = "-" if each["samples"] is None else f"{each['samples']:,}"
        marks = _marks(current=each["current"], pinned=each["id"] == pinned)
        cells = each["created"][:19], samples, percent(each["exam_accuracy"]), format_bytes(each["bytes"])
        table.add_row(each["id"], _state(each["state"]), *cells, marks)
    return table


def _marks(*, current: bool, pinned: bool) -> str:
    return ", ".join(name for name, is_so in (("current", current), ("pinned", pinned)) if is_so)


def _facts_table(entry: Published, problems: Sequence[str], marks: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    why = f": {entry.why}" if entry.why else ""
    table.add_row("state", Text.assemble(_state(entry.state), plain(why), plain(f", {marks}" if marks else "")))
    table.add_row("model", Text("; ".join(problems), "bold red") if problems else Text("sound", "green"))
    table.add_row("path", plain(str(entry.path)))
    table.add_row("exam", percent(exam_accuracy(entry.manifest)))
    for name, value in facts(entry.manifest).items():
        table.add_row(plain(name), plain(_text(value)))
    return table


def _state(state: str) -> Text:
    return Text(state, {"good": "green", "trial": "yellow", "bad": "red"}[state])


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
