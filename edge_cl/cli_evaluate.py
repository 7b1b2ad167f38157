"""`edge-cl evaluate`: from its options to a request, and from its results to a table.

torch is imported once a run is asked for: `--list` is quick.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from edge_cl import config as configuration
from edge_cl.console import AsJson, Overrides, draw, say
from edge_cl.console import data as show_data
from edge_cl.errors import OperatorError
from edge_cl.evaluation.strategies import MODELS, STRATEGIES
from edge_cl.service.dashboard import plain
from edge_cl.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from edge_cl.evaluation.evaluate import Contender, Job
    from edge_cl.evaluation.result import Result

FEW: Final = 3  # results up to which each is a column, so that 80 characters hold all figures
MAIN: Final = ("average", "forgetting", "prequential")  # of many results, so that a row holds them
BASELINES: Final = ("no change", "majority")


def evaluate(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]", help="A recording (.npz), MNIST-style IDX files, or digits, which is built in."
        ),
    ] = None,
    scenario: Annotated[
        str,
        typer.Option(
            metavar="class|task|domain|stream|anomaly",
            help="What an experience is; stream: test, then train, as filed; anomaly: only normal samples are learnt.",
        ),
    ] = "class",
    experiences: Annotated[
        int | None, typer.Option(metavar="N", help="Equal experiences; labels or marks are split.")
    ] = None,
    permutations: Annotated[int | None, typer.Option(metavar="N", help="Domains by shuffled pixels.")] = None,
    rotations: Annotated[int | None, typer.Option(metavar="N", help="Domains by turned images.")] = None,
    order: Annotated[
        str | None,
        typer.Option(metavar="ORDER", help="Of class and task: labels, as 3,1,0,2, or random; of domain: a mark."),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Training samples of an experience.")] = None,
    mixing: Annotated[
        int | None, typer.Option(metavar="N", help="Samples over which one experience becomes the next.")
    ] = None,
    recurring: Annotated[int | None, typer.Option(metavar="N", help="Times each experience comes back.")] = None,
    label_delay: Annotated[int, typer.Option(min=0, metavar="N", help="Samples until a label comes.")] = 0,
    label_noise: Annotated[
        float, typer.Option(min=0, max=1, metavar="P", help="Part of the labels that are wrong.")
    ] = 0.0,
    missing_labels: Annotated[
        float, typer.Option(min=0, max=1, metavar="P", help="Part of them that never come.")
    ] = 0.0,
    normal: Annotated[str | None, typer.Option(metavar="CLASS", help="Of anomaly: the class that is learnt.")] = None,
    strategy: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of --list; default: as `run` has it.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Several strategies on the same streams.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="These settings instead.")] = None,
    overrides: Overrides = None,
    replay_bytes: Annotated[
        list[str] | None,
        typer.Option(metavar="N", help="Bytes of replay, labels and logits counted; more than once: each of them."),
    ] = None,
    replay_samples: Annotated[
        list[int] | None, typer.Option(min=1, metavar="N", help="Samples of replay; more than once: each of them.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="KIND", help="One of --list.")] = None,
    hidden: Annotated[int | None, typer.Option(metavar="N", help="Hidden units, or channels of a CNN.")] = None,
    depth: Annotated[int | None, typer.Option(metavar="N", help="Hidden layers of an mlp.")] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Runs, with the seeds 0 to N - 1.")] = 1,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page with plots there, and their PNGs.")
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Name strategies and models.")] = False,
    as_json: AsJson = False,
) -> None:
    """Play recorded data to the learner as a stream, and say how much it learnt and how much it forgot.

    One pass, each sample answered before it is learnt. Several strategies, sizes of replay and seeds run side by side.
    """
    if list_them:
        _list_strategies(as_json=as_json)
        return
    if data is None:
        raise typer.BadParameter("name a recording, IDX files, or digits", param_hint="DATA")
    chosen = {"model.kind": model, "model.width": hidden, "model.depth": depth}
    settings = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    if scenario == "anomaly":
        idle = {"--strategy": strategy, "--compare": compare, "--report": report, "--limit": limit}
        _refuse([name for name, given in idle.items() if given is not None], "scenario anomaly")
        _anomaly(data, normal, order, config, [*settings, *(overrides or [])], seeds, as_json=as_json)
        return
    _refuse(["--normal"] if normal is not None else [], f"scenario {scenario}")
    from edge_cl.evaluation.evaluate import Request
    from edge_cl.evaluation.evaluate import evaluate as evaluated
    from edge_cl.evaluation.report import prepare, write_report
    from edge_cl.evaluation.result import comparison
    from edge_cl.evaluation.streams import Scenario

    request = Request(
        source=data,
        scenario=Scenario(
            scenario,  # type: ignore[arg-type]  # it says itself what it may be
            experiences=experiences,
            order=order,
            permutations=permutations,
            rotations=rotations,
            limit=limit,
            mixing=mixing,
            recurring=recurring,
            noise=label_noise,
            missing=missing_labels,
        ),
        contenders=_contenders(strategy, compare, config, settings, overrides or []),
        replay_bytes=tuple(_sizes(replay_bytes or [])),
        replay_samples=tuple(replay_samples or []),
        label_delay=label_delay,
        seeds=seeds,
    )
    if report is not None:
        prepare(report)
    with _bars(shown=sys.stderr.isatty()) as told:
        results = evaluated(request, told)
    if report is not None:
        page = write_report(results, report, command=shlex.join(["edge-cl", *sys.argv[1:]]))
        say(f"report: {page}")
    if as_json:
        show_data(results[0].as_json() if len(results) == 1 and compare is None else comparison(results))
    else:
        draw(_results_table(results))


def _anomaly(
    source: str,
    normal: str | None,
    within: str | None,
    config: Path | None,
    overrides: Sequence[str],
    seeds: int,
    *,
    as_json: bool,
) -> None:
    """Learn the normal state only, and score the faults."""
    from edge_cl.evaluation.anomaly import evaluate_anomaly

    chosen = configuration.resolve(config, overrides).config
    columns = TextColumn("seeds"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("seeds", total=seeds)
        result = evaluate_anomaly(
            source,
            chosen,
            normal=normal,
            within=within,
            seeds=seeds,
            on_progress=lambda done: progress.update(task, completed=done),
        )
    if as_json:
        show_data(result.as_json())
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, figure in result.table():
        table.add_row(plain(name), plain(figure))
    draw(table)


def _refuse(options: Sequence[str], where: str) -> None:
    if options:
        raise OperatorError(f"{', '.join(options)}: not for {where}", hint="leave it out, or take another scenario")


def _contenders(
    strategy: str | None, compare: str | None, config: Path | None, chosen: Sequence[str], overrides: Sequence[str]
) -> tuple[Contender, ...]:
    """Those named by --strategy, --compare or --config. What --set says holds for all of them."""
    from edge_cl.evaluation.evaluate import Contender, contender_of

    named = [f"--{name}" for name, given in (("strategy", strategy), ("compare", compare), ("config", config)) if given]
    if len(named) > 1:
        raise OperatorError(f"{' and '.join(named)} both say what is to be evaluated", hint="leave one of them out")
    if config is not None:
        return (Contender(config.stem, configuration.load(config, [*chosen, *overrides])),)
    names = (compare or strategy or "default").split(",")
    return tuple(contender_of(name.strip(), before=chosen, after=overrides) for name in names)


def _sizes(texts: Sequence[str]) -> Iterator[int]:
    for text in texts:
        try:
            yield int(text) if text.isdecimal() else parse_bytes(text)
        except ValueError as exc:
            raise OperatorError(
                f"replay-bytes: {exc} (got {text})", hint="as in --replay-bytes 627200, or '612 KiB'"
            ) from exc


@contextmanager
def _bars(*, shown: bool) -> Iterator[Callable[[Job, int], None]]:
    """A bar for each run, on stderr; nothing where that is no terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress:
        tasks: dict[Job, Any] = {}

        def told(job: Job, samples: int) -> None:
            if job not in tasks:
                tasks[job] = progress.add_task(str(job), total=job.samples)
            progress.update(tasks[job], completed=samples)

        yield told


def _results_table(results: Sequence[Result]) -> RenderableType:
    """A column a strategy and size, or a row with the main figures if they are many; mean and deviation over the seeds.

    Accuracies in percent; the no-change and majority baselines stand beside them.
    """
    from edge_cl.evaluation.result import scores_of

    scores, first = scores_of(results), results[0]
    few = len(results) <= FEW
    shown = scores if few else [score for score in scores if score.name in MAIN]
    rows = [["", *(score.name for score in shown), "replay", "learner", "samples/s"]]
    for result in results:
        speed = "–" if result.samples_per_s is None else f"{result.samples_per_s:,.0f}"
        sizes = format_bytes(result.replay_bytes), format_bytes(result.learner_bytes)
        rows.append([result.strategy, *(score.of(result).percent for score in shown), *sizes, speed])
    header, *body = list(zip(*rows, strict=True)) if few else rows
    parts = f"scenario {first.scenario}", f"experiences {len(first.experiences)}", f"seeds {len(first.runs)}"
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(plain(name), justify="right" if index else "left", no_wrap=True)
    for cells in body:
        table.add_row(*map(plain, cells))
    baselines = [f"{score.name} {score.of(first).percent}" for score in scores if score.name in BASELINES and not few]
    left_out = [plain(", ".join(baselines))] if baselines else []
    return Group(plain(", ".join((first.data, *parts, "accuracies in %"))), table, *left_out)


def _list_strategies(*, as_json: bool) -> None:
    if as_json:
        show_data({"strategies": {name: each.summary for name, each in STRATEGIES.items()}, "models": MODELS})
        return
    for title, rows in (
        ("strategies", {name: each.summary for name, each in STRATEGIES.items()}),
        ("models", MODELS),
    ):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for name, summary in rows.items():
            table.add_row(name, summary)
        draw(table)
