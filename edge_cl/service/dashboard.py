"""A Status drawn for a person at a terminal, from 80 columns up. Draws only: no file, no memory, no printing.

accuracy   test-then-train, over time: every sample is predicted before it is learnt
exam       each class on samples that are never trained on, now and after each consolidation: here forgetting shows
memory     the planned bytes against the budget; latency: the slowest in a hundred against its limit
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edge_cl.service import plot
from edge_cl.service.status import ExamPoint, ExamResult, PlanPart, Status
from edge_cl.units import format_bytes

WIDE: Final = 110  # columns from which two columns of panels stand side by side
MOST_CURVE: Final = 14  # lines of the accuracy's curve: a high terminal is not filled for its own sake
_STATES: Final = {"starting": "yellow", "running": "green", "stopped": "blue", "failed": "bold red"}


def render(status: Status, *, full_screen: bool = False) -> RenderableType:
    """The whole screen of one moment; it takes the width of whatever console draws it.

    `full_screen` fits it to the terminal's height, too: what is too much is left out, what is free goes to the curve.
    """
    return _Screen(status, full_screen=full_screen)


def exam_panel(exam: Sequence[ExamResult], history: Sequence[ExamPoint], most: int | None = None) -> RenderableType:
    """Each class on the exam: a bar for now, a cell for each consolidation, and what was lost since its best.

    Of more than `most` classes the worst are shown.
    """
    shown = exam if most is None else _worst(exam, most)
    table = Table(box=None, expand=True, pad_edge=False)
    table.add_column("class", max_width=18, no_wrap=True, overflow="ellipsis")
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("now", ratio=2)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("by consolidation", ratio=3)
    table.add_column("lost", justify="right", no_wrap=True)
    for result in shown:
        table.add_row(*_exam_row(result, [point["accuracy"].get(result["label"]) for point in history]))
    if not exam:
        table.add_row(Text("no exam yet", "bright_black"))
    hidden = len(exam) - len(shown)
    return _panel("exam: samples never trained on" + (f", the worst; {hidden} more" if hidden else ""), table)


def plan_table(plan: Sequence[PlanPart], budget_bytes: int) -> RenderableType:
    """The memory plan as a table, one part a line, and what is free."""
    table = Table(title="memory plan", title_justify="left", box=None, pad_edge=False)
    table.add_column("part")
    table.add_column("bytes", justify="right")
    table.add_column("of budget", justify="right")
    free = budget_bytes - sum(part["bytes"] for part in plan)
    for part in [*plan, PlanPart(part="free", bytes=free)]:
        share = f"{part['bytes'] / budget_bytes:.1%}" if budget_bytes else "-"
        table.add_row(plain(part["part"]), f"{part['bytes']:,}", share)
    return table


def plain(text: str) -> Text:
    """Text from a source or a file, harmless: a label must not steer the terminal."""
    return Text("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))


def percent(share: float | None) -> Text:
    """A share of 1 as a percentage in its grade; a dash if it is not known."""
    return Text("-", "bright_black") if share is None else Text(f"{share:.1%}", plot.grade(share))


def limit(p50: float | None, p99: float | None, budget: float) -> Text:
    """Times in milliseconds against their limit."""
    if p99 is None:
        return Text("-", "bright_black")
    median = "" if p50 is None else f"p50 {p50:.3g}  "
    style = plot.load(p99 / budget) if budget else ""
    return Text.assemble(median, (f"p99 {p99:.3g}", style), f" of {budget:g} ms")


def drops(dropped: Mapping[str, int]) -> Text:
    """What was lost on the way, by reason, the greatest first."""
    lost = sorted(((n, reason) for reason, n in dropped.items() if n), reverse=True)
    if not lost:
        return Text("none", "green")
    return Text(", ".join(f"{plain(reason)} {n:,}" for n, reason in lost), "yellow")


def clock(seconds: float) -> str:
    """A stretch of time: 7 s, 4:05, 2:30:00, 3 d 04:00."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{rest} s"


class _Screen:
    def __init__(self, status: Status, *, full_screen: bool) -> None:
        self.status, self.full_screen = status, full_screen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        status = self.status
        wide = options.max_width >= WIDE
        height = options.max_height if self.full_screen else None  # rich resets options.height on the way to here
        most = None if height is None else max(3, height - (16 if wide else 19))
        exam = exam_panel(status["exam"], status["exam_history"], most)
        spare = 0 if height is None else height - 11 - max(1, min(len(status["exam"]), most or 0))
        legend = wide and (height is None or height >= 17 + len(status["plan"]))
        memory, latency = _memory(status, legend=legend), _latency(status)
        yield _header(status)
        if wide:
            curve = _accuracy(status, min(max(spare, 6), MOST_CURVE))
            yield _beside(Group(curve, exam), Group(memory, latency), ratios=(3, 2))
        else:
            yield _accuracy(status, 3)
            yield exam
            yield _beside(memory, latency, ratios=(1, 1))
        yield _footer(status)


class _Fit:
    """Lines made for the width there is: bars and curves have none of their own."""

    def __init__(self, lines: Callable[[int], Iterable[Text]]) -> None:
        self.lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.lines(options.max_width)


def _bar(fraction: float, style: str) -> _Fit:
    return _Fit(lambda width: [plot.bar(fraction, width, style)])


def _header(status: Status) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    up = (status["updated_s"] or 0) - (status["started_s"] or 0) if status["started_s"] else 0
    model = f"  {plain(status['model'])}" if status["model"] else ""
    state = Text.assemble(("● " + status["state"], _STATES.get(status["state"], "")), f" {clock(up)}")
    grid.add_row(Text.assemble((" edge_cl ", "bold reverse"), "  ", plain(status["source"]), model), state)
    counts = f"{status['samples']:,} samples, {status['learned']:,} learnt"
    steps = f"{status['steps']:,} steps, {status['consolidations']:,} consolidations"
    grid.add_row(Text(f"{counts}, {steps}"), Text(f"{status['samples_per_s']:,.0f} samples/s", "bold"))
    return grid


def _accuracy(status: Status, height: int) -> RenderableType:
    history = status["prequential_history"]

    def lines(width: int) -> Iterable[Text]:
        drawn = plot.curve(history, max(1, width - 5), height)
        labels = ["100%", *[""] * (height - 2), "0%"]
        return (Text(f"{label:>4} ", "bright_black") + line for label, line in zip(labels, drawn, strict=True))

    if status["anomaly_p50"] is not None:
        return _anomaly(status)
    title = Text.assemble("accuracy, test-then-train: ", percent(status["prequential_accuracy"]))
    return _panel(title, _Fit(lines), subtitle=_last_answer(status))


def _anomaly(status: Status) -> RenderableType:
    """Without labels there is no accuracy; what counts is the latest score beside the usual one."""
    usual, latest = status["anomaly_p50"], status["anomaly_score"]
    line = Text.assemble(f"{latest:.4g}", (f"   in the median {usual:.4g}", "bright_black"))
    return _panel(Text("anomaly score, before the sample is learnt"), line)


def _last_answer(status: Status) -> Text:
    true, said = status["true_label"], status["predicted_label"]
    if said is None:
        return Text()
    if true is None:
        return Text.assemble("says ", plain(said))
    return Text.assemble("says ", (str(plain(said)), "green" if said == true else "red"), ", was ", plain(true))


def _worst(exam: Sequence[ExamResult], most: int) -> list[ExamResult]:
    ranked = sorted(range(len(exam)), key=lambda index: exam[index]["accuracy"] or 0.0)
    return [exam[index] for index in sorted(ranked[:most])]


def _exam_row(result: ExamResult, history: Sequence[float | None]) -> tuple[RenderableType, ...]:
    now = result["accuracy"]
    best = max((value for value in [*history, now] if value is not None), default=None)
    lost = 0.0 if now is None or best is None else best - now
    return (
        plain(result["label"]),
        f"{result['samples']:,}",
        _bar(now or 0.0, plot.grade(now or 0.0)),
        percent(now),
        _Fit(lambda width: [plot.sparkline(history, width)]),
        Text(f"{100 * lost:.0f}" if lost >= 0.005 else "", "red" if lost >= 0.1 else "yellow"),
    )


def _memory(status: Status, *, legend: bool) -> RenderableType:
    plan, budget = status["plan"], status["budget_bytes"]
    parts = [part["bytes"] for part in plan] or [status["learner_bytes"]]
    share = sum(parts) / budget if budget else 0.0
    title = Text.assemble("memory: ", (format_bytes(sum(parts)), plot.load(share)), f" of {format_bytes(budget)}")
    fill = status["replay_samples"] / status["replay_capacity"] if status["replay_capacity"] else 0.0
    replay = (
        f"replay {status['replay_samples']:,}/{status['replay_capacity']:,}, {format_bytes(status['replay_bytes'])}"
    )
    if status["replay_bits"]:
        replay += f", {status['replay_bits']} bits a value"
    rss = f"process {format_bytes(status['rss_bytes'])}, most {format_bytes(status['rss_peak_bytes'])}"
    return _panel(
        title,
        _Fit(lambda width: [plot.stacked(parts, max(budget, sum(parts)), width)]),
        *([_legend(plan)] if legend and plan else []),
        Text(replay, no_wrap=True, overflow="ellipsis"),
        _bar(fill, "cyan"),
        Text(rss, "bright_black", no_wrap=True, overflow="ellipsis"),
    )


def _legend(plan: Sequence[PlanPart]) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", no_wrap=True)
    for index, part in enumerate(plan):
        table.add_row(plot.key(index), plain(part["part"]), format_bytes(part["bytes"]))
    return table


def _latency(status: Status) -> RenderableType:
    rows: list[RenderableType] = []
    for name, p50, p99, budget in (
        ("step   ", status["step_p50_ms"], status["step_p99_ms"], status["step_budget_ms"]),
        ("predict", status["predict_p50_ms"], status["predict_p99_ms"], status["predict_budget_ms"]),
    ):
        share = (p99 or 0.0) / budget if budget else 0.0
        rows.append(Text.assemble(f"{name} ", limit(p50, p99, budget), no_wrap=True, overflow="ellipsis"))
        rows.append(_bar(share, plot.load(share)))
    return _panel(Text.assemble("latency", *_governed(status)), *rows)


def _governed(status: Status) -> list[tuple[str, str]]:
    """What the governor withholds so that steps keep their limit, and how often they do not."""
    governor, limit = status["governor"], status["step_limit"]
    less = governor["replay_per_step"] < governor["replay_wanted"]
    said = [
        (f"replay {governor['replay_per_step']} of {governor['replay_wanted']}", "yellow") if less else None,
        (f"learns 1 of {governor['skipping'] + 1}", "yellow") if governor["skipping"] else None,
        None if limit["kept"] else (f"late in {limit['recent_late']} of {limit['recent_seconds']} s", "red"),
    ]
    return [part for one in said if one for part in ((", ", ""), one)]


def _footer(status: Status) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="bright_black", no_wrap=True, min_width=8)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    age = status["snapshot_age_s"]
    snapshot = plain(status["snapshot"] or "none yet") + Text("" if age is None else f", {clock(age)} old")
    grid.add_row("dropped", Text.assemble(drops(status["dropped"]), "; ", _kept(status)))
    grid.add_row("snapshot", snapshot)
    if len(status["sources"]) > 1:
        grid.add_row("sources", _sources(status))
    grid.add_row("last", plain(status["message"]))
    return grid


def _sources(status: Status) -> Text:
    """Each of several by its name, with what it said last; red while it is gone."""
    parts = []
    for source in status["sources"]:
        told = plain(f"{source['name']}: {source['said']}" if source["said"] else source["name"])
        parts.append(Text(told.plain, style="red" if source["said"].startswith("gone") else ""))
    return Text("; ").join(parts)


def _kept(status: Status) -> Text:
    """What a power cut would leave of this run."""
    durable = status["durable"]
    if durable["refused"]:
        return Text(f"kept nothing at present: {durable['refused']}", style="red")
    return Text(f"kept {durable['acknowledged']:,}")


def _beside(left: RenderableType, right: RenderableType, *, ratios: tuple[int, int]) -> RenderableType:
    grid = Table.grid(expand=True)
    for ratio in ratios:
        grid.add_column(ratio=ratio)
    grid.add_row(left, right)
    return grid


def _panel(title: str | Text, *content: RenderableType, subtitle: Text | None = None) -> Panel:
    return Panel(
        Group(*content), title=title, title_align="left", subtitle=subtitle, subtitle_align="right", border_style="cyan"
    )
