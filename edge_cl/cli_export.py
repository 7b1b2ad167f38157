"""`edge-cl export`: its options, and how its answer looks to a person."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from edge_cl.console import DEFAULT_STATE, AsJson, StateDir, data, draw, say
from edge_cl.service.dashboard import plain
from edge_cl.units import format_bytes


class Precision(str, Enum):
    """Bits of a number in the model."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


def export(
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.onnx", help="The file to write.")] = None,
    deploy: Annotated[
        Path | None,
        typer.Option("--deploy", metavar="DIR", help="A folder to write: model, manifest, and programs that run it."),
    ] = None,
    state: StateDir = DEFAULT_STATE,
    snapshot: Annotated[
        str, typer.Option("--snapshot", metavar="ID|current|now", help="now: of what has been learnt up to now.")
    ] = "current",
    precision: Annotated[
        Precision, typer.Option("--precision", help="float16 and int8 are compared with float32 first.")
    ] = Precision.float32,
    max_loss: Annotated[
        float, typer.Option("--max-loss", min=0.0, metavar="POINTS", help="Accuracy that fewer bits may cost.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Hand out a published snapshot, checked against its manifest: as a file, as a folder to deploy, or both.

    Exit 11 if fewer bits would cost more than --max-loss points of accuracy on this device's own samples.
    """
    if out is None and deploy is None:
        raise typer.BadParameter("name a file, a folder, or both", param_hint="--out / --deploy")
    if snapshot not in ("current", "now") and not (snapshot.isascii() and snapshot.isdigit()):
        raise typer.BadParameter(f"must be an id, current or now (got {snapshot!r})", param_hint="--snapshot")
    from edge_cl.export import export as hand_out  # brings torch

    result = hand_out(state, out=out, folder=deploy, snapshot=snapshot, precision=precision.value, max_loss=max_loss)
    if result["state"] == "bad":
        say(f"warning: snapshot {result['snapshot']} is bad; `edge-cl snapshots show` says why")
    if as_json:
        data(result)
    else:
        draw(_facts(result))


def _facts(result: Mapping[str, Any]) -> RenderableType:
    takes, gives, training = result["input"], result["output"], result["training"]
    table = Table.grid(padding=(0, 2))
    size = f"{result['precision']}, {format_bytes(result['bytes'])}"
    for name, fact in (
        ("out", result["out"] and f"{result['out']}, {size}"),
        ("deploy", result["deploy"] and f"{result['deploy']}, {size}"),
        ("snapshot", f"{result['snapshot']} of {result['created']}, {result['state']}"),
        ("sha256", result["sha256"]),
        ("takes", f"{takes['name']} {_shape(takes)}: {takes['values']}"),
        ("gives", f"{gives['name']} {_shape(gives)}: {', '.join(result['labels'])}"),
        ("learnt", f"{training['learned']:,} samples in {training['steps']:,} steps"),
    ):
        if fact:
            table.add_row(name, plain(fact))
    return table if result["precision"] == Precision.float32 else Group(table, "", _comparison(result))


def _comparison(result: Mapping[str, Any]) -> RenderableType:
    """The variant beside the float32 model it was made of."""
    measure = "score" if result["score"] is not None else "exam_accuracy"
    table = Table(box=None, pad_edge=False)
    for heading in ("", "float32", result["precision"]):
        table.add_column(heading, justify="right" if heading else "left")
    before, after = result["latency_us_float32"], result["latency_us"]
    table.add_row("bytes", f"{result['bytes_float32']:,}", f"{result['bytes']:,}")
    table.add_row(measure.replace("_", " "), *(_number(result[key]) for key in (f"{measure}_float32", measure)))
    table.add_row("points lost", "", f"{result['loss_points']:.2f} on {result['compared']:,} samples")
    for name in ("p50", "p99"):
        table.add_row(f"µs for one sample, {name}", f"{before[name]:.0f}", f"{after[name]:.0f}")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _shape(end: Mapping[str, Any]) -> str:
    return f"({', '.join(map(str, end['shape']))})"
