"""The last screen of a run: what was learnt, what it cost, and the file to take away. Draws only."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edge_cl.service.dashboard import clock, drops, exam_panel, limit, percent, plain
from edge_cl.service.status import Summary
from edge_cl.units import format_bytes

NOTICED: Final = 0.005  # half a point of accuracy: the exam panel shows whole ones


def summary(result: Summary, *, next_step: str = "") -> RenderableType:
    """A finished run as a table of facts under the exam's result; what the summary lacks is left out.

    `next_step` is a command that the reader may want now; it stands alone on the last line, ready to be copied.
    """
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bright_black", no_wrap=True)
    facts.add_column()
    for name, fact in _facts(result):
        facts.add_row(name, fact)
    if next_step:
        facts.add_row("next", Text(next_step, "bold", overflow="fold"))
    panel = Panel(facts, title="summary", title_align="left", border_style="cyan")
    exam = result.get("exam", [])
    return Group(exam_panel(exam, result.get("exam_history", [])), panel) if exam else panel


def _facts(result: Summary) -> list[tuple[str, RenderableType]]:
    learnt = f"{result.get('learned', result.get('samples', 0)):,} samples in {result.get('steps', 0):,} steps"
    took = f", {clock(result['seconds'])}" if "seconds" in result else ""
    size, budget = result.get("learner_bytes", 0), result.get("budget_bytes", 0)
    facts: list[tuple[str, RenderableType]] = [
        ("learnt", f"{learnt}, {result.get('consolidations', 0):,} consolidations{took}"),
        _answered(result),
    ]
    if result.get("exam"):
        facts.append(("forgotten", _forgotten(result)))
    if result.get("test_accuracy") is not None:
        facts.append(
            ("test split", Text.assemble(percent(result.get("test_accuracy")), ", the snapshot in onnxruntime"))
        )
    return [
        *facts,
        (
            "memory",
            f"{format_bytes(size)} of {format_bytes(budget)}, replay {format_bytes(result.get('replay_bytes', 0))}",
        ),
        ("process", f"{format_bytes(result.get('rss_peak_bytes', 0))} at most"),
        ("step", limit(result.get("step_p50_ms"), result.get("step_p99_ms"), result.get("step_budget_ms", 0.0))),
        *_governed(result),
        ("predict", limit(None, result.get("predict_p99_ms"), result.get("predict_budget_ms", 0.0))),
        ("dropped", drops(result.get("dropped", {}))),
        ("snapshot", Text.assemble((str(plain(result.get("snapshot") or "none")), "bold"), overflow="fold")),
    ]


def _governed(result: Summary) -> list[tuple[str, RenderableType]]:
    """What it took to keep the step's limit, if it took anything."""
    governor, kept = result.get("governor"), result.get("step_limit")
    if governor is None or kept is None or (kept["late"] == 0 and governor["lowered"] == 0):
        return []
    late = f"steps late in {kept['late']:,} of {kept['seconds']:,} seconds"
    did = f"replay lowered {governor['lowered']:,} and raised {governor['raised']:,} times"
    skipped = f"{governor['skipped_samples']:,} samples not learnt"
    return [("governor", f"{late}; {did}, {skipped}")]


def _answered(result: Summary) -> tuple[str, RenderableType]:
    usual = result.get("anomaly_p50")
    if usual is not None:
        return "anomaly", f"score {result.get('anomaly_score'):.4g} at last, {usual:.4g} in the median"
    share = percent(result.get("prequential_accuracy"))
    return "accuracy", Text.assemble(share, " of all answers, each given before its sample was learnt")


def _forgotten(result: Summary) -> Text:
    """The class that lost most, between its best exam of this run and its last one."""
    history = result.get("exam_history", [])
    worst, most = "", 0.0
    for last in result.get("exam", []):
        label, now = last["label"], last["accuracy"]
        before = [point["accuracy"][label] for point in history if label in point["accuracy"]]
        if now is not None and before and max(before) - now > most:
            worst, most = label, max(before) - now
    if most < NOTICED:
        return Text("nothing: in its last exam every class did as well as in its best", "green")
    words = f"{plain(worst)} most: {100 * most:.0f} points below its best exam"
    return Text(words, "red" if most >= 0.1 else "yellow")
