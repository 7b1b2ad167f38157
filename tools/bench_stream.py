#!/usr/bin/env python3
"""edge_cl beside river on a stream: prequential accuracy and samples a second, labels at once and labels late.

    python tools/bench_stream.py [--data FILE.npz] [--limit N] [--label-delay 100] [--no-forest] [--json]

The file is played in its own order, each sample answered when it comes and learnt when its label does; an answer that
is not given counts as wrong. edge_cl is `--strategy default`, run as `edge-cl evaluate --scenario stream` does; river's
models have river's defaults, and the forest 10 trees. Nothing is tuned. One after another, one thread each; the time is
that within predict and learn (and edge_cl's consolidations). A label that is N late comes after N further samples have
been answered: what river.evaluate.progressive_val_score calls a delay of N + 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from river.base import Classifier
from river.dummy import NoChangeClassifier, PriorClassifier
from river.forest import ARFClassifier
from river.linear_model import LogisticRegression
from river.preprocessing import StandardScaler
from river.tree import HoeffdingAdaptiveTreeClassifier

from edge_cl.errors import EdgeError, OperatorError
from edge_cl.evaluation.data import Dataset, load_dataset
from edge_cl.evaluation.evaluate import Job, contender_of, run_job
from edge_cl.evaluation.labels import delayed
from edge_cl.evaluation.streams import Scenario
from firmware_bridge.errors import BadRecording

ELEC2 = Path(__file__).parents[2] / "shared/data/elec2.npz"
OURS, FOREST = "edge_cl default", "river adaptive random forest of 10"
RIVER: dict[str, Callable[[], Classifier]] = {
    "river logistic regression": lambda: StandardScaler() | LogisticRegression(),
    "river Hoeffding adaptive tree": lambda: HoeffdingAdaptiveTreeClassifier(seed=0),
    FOREST: lambda: ARFClassifier(n_models=10, seed=0),
    "no change": NoChangeClassifier,
    "majority": PriorClassifier,
}

Report = Callable[[float], None]


class Score(NamedTuple):
    """Of one contender: the share of samples that were answered rightly when they came, and samples a second."""

    accuracy: float
    samples_per_s: float


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ELEC2, help="a recording of vectors with two classes (elec2)")
    parser.add_argument("--limit", type=int, metavar="N", help="its first N samples only")
    parser.add_argument("--label-delay", type=int, default=100, metavar="N", help="samples that a late label is late")
    parser.add_argument("--no-forest", action="store_true", help="without the forest, which takes most of the time")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    options = parser.parse_args()
    try:
        scenario = Scenario("stream", limit=options.limit)
        data = vectors(str(options.data), scenario)
        names = [OURS, *(name for name in RIVER if name != FOREST or not options.no_forest)]
        found = {delay: measure(str(options.data), data, scenario, names, delay) for delay in (0, options.label_delay)}
    except (EdgeError, BadRecording) as exc:
        sys.exit(f"{exc}; {exc.hint}" if exc.hint else str(exc))
    n = len(data.y[: options.limit])
    if options.json:
        scores = {str(delay): {name: one._asdict() for name, one in by.items()} for delay, by in found.items()}
        print(json.dumps({"data": data.name, "samples": n, "labels_late": scores}))
    else:
        Console().print(table(f"{data.name}, {n:,} samples, prequential accuracy in %", found))
    return 0


def vectors(source: str, scenario: Scenario) -> Dataset:
    """The data, if every contender takes it: river's logistic regression tells two classes apart, by named features."""
    data = load_dataset(source, test=scenario.held_out)
    labels = sorted(set(data.y.tolist()))
    if data.x.ndim != 2 or labels != [0, 1]:
        raise OperatorError(
            f"{source}: must be vectors (N, D) with the labels 0 and 1 (got {data.x.shape}, {len(labels)} labels)",
            hint="take elec2.npz, or another recording like it",
        )
    return data


def measure(source: str, data: Dataset, scenario: Scenario, names: list[str], delay: int) -> dict[str, Score]:
    """The score of each contender with labels that late."""
    # Nothing is drawn behind the back of what is timed: auto_refresh would do so from a thread.
    bars = Progress(console=Console(stderr=True), transient=True, auto_refresh=False, disable=not sys.stderr.isatty())
    scores = {}
    with bars:
        for name in names:
            task = bars.add_task(f"{name}, labels {delay} late", total=1.0)

            def report(share: float, task: Any = task) -> None:
                bars.update(task, completed=share, refresh=True)

            if name == OURS:
                scores[name] = ours(source, scenario, len(data.y[: scenario.limit]), delay, report)
            else:
                scores[name] = theirs(RIVER[name](), data, scenario.limit, delay, report)
    return scores


def ours(source: str, scenario: Scenario, n: int, delay: int, report: Report) -> Score:
    """The default learner, in this process."""
    run = run_job(Job(source, scenario, contender_of("default"), delay, seed=0, samples=n), now_and_then(report))
    assert run.prequential_accuracy is not None
    return Score(run.prequential_accuracy, run.samples / run.compute_s)


def theirs(model: Classifier, data: Dataset, limit: int | None, delay: int, report: Report) -> Score:
    """A model of river, on features that are named by their column."""
    rows = [dict(enumerate(row)) for row in data.x[:limit].tolist()]
    labels, report = data.y[:limit].tolist(), now_and_then(report)
    right, compute_s = 0, 0.0
    for what, i in delayed(len(labels), delay):
        started = perf_counter()
        if what == "predict":
            answer = model.predict_one(rows[i])
        else:
            model.learn_one(rows[i], labels[i])
        compute_s += perf_counter() - started
        if what == "predict":
            right += answer == labels[i]
            report((i + 1) / len(labels))
    return Score(right / len(labels), len(labels) / compute_s)


def now_and_then(report: Report) -> Report:
    """The same, but told of each hundredth part only."""
    told = 0

    def seldom(share: float) -> None:
        nonlocal told
        if int(100 * share) > told:
            told = int(100 * share)
            report(share)

    return seldom


def table(title: str, found: dict[int, dict[str, Score]]) -> Table:
    """A row a contender; accuracy and speed for each delay."""
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False)
    drawn.add_column("labels", no_wrap=True)
    for delay in found:
        drawn.add_column(f"{delay} late" if delay else "at once", justify="right")
        drawn.add_column("samples/s", justify="right")
    for name in next(iter(found.values())):
        cells = [(f"{100 * by[name].accuracy:.2f}", f"{by[name].samples_per_s:,.0f}") for by in found.values()]
        drawn.add_row(name, *(text for pair in cells for text in pair))
    return drawn


if __name__ == "__main__":
    sys.exit(main())
