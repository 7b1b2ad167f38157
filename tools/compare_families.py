#!/usr/bin/env python3
"""The families of methods at equal replay bytes, on five public recordings; one pass, scored on what is held out.

    python tools/compare_families.py [--part fashion|cifar|gtsrb|har|cwru|all] [--seeds 3] [--limit N] [--no-tune]
                                     [--data DIR] [--json]

fashion   Split-Fashion-MNIST, classes two by two, an MLP of 256 hidden units
cifar     Split-CIFAR-10, classes two by two
gtsrb     traffic signs in time order, domains of six track numbers each. The file holds class after class and numbers
          the tracks of each anew. Played by number, each sign is approached in its own time and the classes come mixed,
          until only those with many tracks are left; as a `stream` it would be 43 classes one after another
har       UCI HAR by subject, and by class, scored on other subjects
cwru      CWRU bearing faults by load, and by class; the latter scored on what comes last of each, the higher loads

default, er, er-ace and der++ keep 627,200 bytes of old samples, the bytes of 200 float32 images of 28x28; labels and
logits count. nearest-mean and slda keep none; what they hold is in the column `learner`. slda-random has as many random
features as make its covariance those bytes. slda on the raw colour images is left out: its covariance alone is 37.7 MB.
iid is one pass over everything shuffled, so not a method for a stream.

--tune, which is the default, chooses the comparators' learning rate, and der++'s weight of logits, on the last tenth of
each class of the training split, with seed 0, once for all seeds. No choice made here sees the test split.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from math import isqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edge_cl.errors import EdgeError
from edge_cl.evaluation.data import Dataset, load_dataset, mark_of
from edge_cl.evaluation.evaluate import Contender, Job, Request, contender_of, evaluate
from edge_cl.evaluation.result import SCORES, Result, comparison
from edge_cl.evaluation.streams import Scenario
from edge_cl.units import format_bytes
from firmware_bridge.errors import BadRecording
from firmware_bridge.sources.split import split_by_time

DATA = Path(__file__).parents[2] / "shared/data"
REPLAY_BYTES = 200 * 28 * 28 * 4
HELD_OUT = 0.1  # of each class of the training split, to tune on
SHOWN = ("average", "forgetting", "lowest old", "prequential")

STRATEGIES = ("default", "er", "er-ace", "der++", "nearest-mean", "slda", "slda-random", "iid")
WITHOUT_RAW_SLDA = tuple(name for name in STRATEGIES if name != "slda")
OWN = {"slda-random": (f"model.width={isqrt(REPLAY_BYTES // 4)}",)}

RATES = ("learning.learning_rate=0.1", "learning.learning_rate=0.03")
GRID: dict[str, list[tuple[str, ...]]] = {
    "er": [(rate,) for rate in RATES],
    "er-ace": [(rate,) for rate in RATES],
    "der++": list(product(RATES, ("distillation.logits=0.5", "distillation.logits=0.1"))),
    "iid": [(rate,) for rate in RATES],
}


@dataclass(frozen=True)
class Study:
    """One table: a recording, what its experiences are, and the network of those methods that have one.

    within: a mark of whose every value the last part is held out to tune on, as the file's own test split is made; None
    where that is of other subjects or tracks, as the last in the file are.
    """

    name: str
    file: str
    scenario: Scenario
    model: tuple[str, ...] = ()
    strategies: tuple[str, ...] = STRATEGIES
    within: str | None = None


PARTS = {
    "fashion": (
        Study(
            "Split-Fashion-MNIST",
            "fashion_mnist.npz",
            Scenario("class", experiences=5),
            model=("model.kind=mlp", "model.width=256"),
        ),
    ),
    "cifar": (
        Study("Split-CIFAR-10", "cifar10_10k.npz", Scenario("class", experiences=5), strategies=WITHOUT_RAW_SLDA),
    ),
    "gtsrb": (
        Study(
            "GTSRB by track",
            "gtsrb_tracks.npz",
            Scenario("domain", experiences=10, order="track"),
            strategies=WITHOUT_RAW_SLDA,
        ),
    ),
    "har": (
        Study("UCI HAR by subject", "uci_har.npz", Scenario("domain", order="subject")),
        Study("UCI HAR by class", "uci_har.npz", Scenario("class")),
    ),
    "cwru": (
        Study("CWRU by load", "cwru_bearing.npz", Scenario("domain", order="load_hp"), within="load_hp"),
        Study("CWRU by class", "cwru_bearing.npz", Scenario("class")),
    ),
}


def main() -> int:
    """Parse, run part after part, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--limit", type=int, metavar="N", help="training samples of an experience (all)")
    parser.add_argument("--tune", action=argparse.BooleanOptionalAction, default=True, help="else all learn at 0.1")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where the recordings are")
    parser.add_argument("--only", metavar="A,B", help="these strategies and no others")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    try:
        for study in (one for part, own in PARTS.items() if options.part in (part, "all") for one in own):
            only = tuple(options.only.split(",")) if options.only else study.strategies
            study = replace(study, scenario=replace(study.scenario, limit=options.limit), strategies=only)
            source = str(options.data / study.file)
            chosen = tuned(study, source) if options.tune else {}
            results = compared(study, source, chosen, seeds=options.seeds)
            found[study.name] = {"chosen": chosen, "best": best(results).strategy, **figures(results)}
            if not options.json:
                Console().print(table(study, chosen, results), "")
    except (EdgeError, BadRecording) as exc:
        sys.exit(f"{exc}; {exc.hint}" if exc.hint else str(exc))
    if options.json:
        print(json.dumps({"replay_bytes": REPLAY_BYTES, "studies": found}))
    return 0


def tuned(study: Study, source: str) -> dict[str, tuple[str, ...]]:
    """For each comparator of the grid the overrides with the highest average accuracy on what was held out."""
    tried = [(name, overrides) for name, grid in GRID.items() for overrides in grid]
    data = load_dataset(source, within=study.scenario.mark)
    with TemporaryDirectory() as folder, bar(f"{study.name}: tuning", len(tried)) as told:
        request = Request(
            str(held_out(data, study.within, Path(folder) / study.file)),
            study.scenario,
            tuple(contender(study, name, overrides, number) for number, (name, overrides) in enumerate(tried)),
            replay_bytes=(REPLAY_BYTES,),
        )
        results = evaluate(request, told)
    accuracies = [result.average_accuracy.mean or 0.0 for result in results]
    by = dict(zip(tried, accuracies, strict=True))
    return {name: max(grid, key=lambda overrides: by[name, overrides]) for name, grid in GRID.items()}


def held_out(data: Dataset, within: str | None, path: Path) -> Path:
    """A recording of the training split alone: the last tenth of each class is its test split."""
    groups = [data.y] if within is None else [data.y, mark_of(data, within)]
    kept, held = split_by_time(groups, HELD_OUT)
    marks = {name: values[kept] for name, values in data.marks.items()}
    test_marks = {f"{name}_test": values[held] for name, values in data.marks.items()}
    arrays = {"x_train": data.x[kept], "y_train": data.y[kept], "x_test": data.x[held], "y_test": data.y[held]}
    np.savez(path, label_names=np.array(data.label_names), **arrays, **marks, **test_marks)
    return path


def compared(study: Study, source: str, chosen: dict[str, tuple[str, ...]], *, seeds: int) -> list[Result]:
    """The results on the test split, one a strategy."""
    contenders = tuple(contender(study, name, chosen.get(name, ())) for name in study.strategies)
    with bar(study.name, seeds * len(contenders)) as told:
        return evaluate(Request(source, study.scenario, contenders, replay_bytes=(REPLAY_BYTES,), seeds=seeds), told)


def contender(study: Study, strategy: str, overrides: Sequence[str], number: int | None = None) -> Contender:
    """A strategy with the study's network; a number tells apart those of one strategy."""
    made = contender_of(strategy, before=study.model, after=(*OWN.get(strategy, ()), *overrides))
    return made if number is None else replace(made, name=f"{strategy} {number}")


def best(results: Sequence[Result]) -> Result:
    """The most accurate on average of those that learn from the stream."""
    return max((one for one in results if one.strategy != "iid"), key=lambda one: one.average_accuracy.mean or 0.0)


def figures(results: Sequence[Result]) -> dict[str, Any]:
    """As `edge-cl evaluate --compare --json`, without the curves of each run."""
    told = comparison(results)
    for result in told["results"]:
        del result["runs"]
    return told


@contextmanager
def bar(title: str, runs: int) -> Iterator[Callable[[Job, int], None]]:
    """A bar on a terminal, of how many runs are done."""
    shares: dict[Job, float] = {}
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=runs)

        def told(job: Job, samples: int) -> None:
            shares[job] = samples / job.samples
            progress.update(task, completed=sum(shares.values()))

        yield told


def table(study: Study, chosen: dict[str, tuple[str, ...]], results: Sequence[Result]) -> Table:
    """A row a strategy: mean and deviation over the seeds in percent, bytes, speed; below it what was chosen."""
    first, ahead = results[0], best(results)
    size = f"{len(first.experiences)} experiences, {first.ends[-1]:,} samples, seeds {len(first.runs)}"
    settings = ", ".join(f"{name} {' '.join(value.partition('.')[2] for value in own)}" for name, own in chosen.items())
    lines = (
        f"best average of a stream: {ahead.strategy}",
        f"prequential baselines: no change {first.no_change.percent}, majority {first.majority.percent}",
        f"chosen on training samples: {settings or 'nothing'}",
    )
    drawn = Table(
        title=f"{study.name}, {size}",
        title_justify="left",
        caption="\n".join(lines),
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    scores = [score for score in SCORES if score.name in SHOWN]
    drawn.add_column("accuracy, %", no_wrap=True)
    for heading in (*(score.name for score in scores), "learner", "samples/s"):
        drawn.add_column(heading, justify="right")
    for result in results:
        speed = "–" if result.samples_per_s is None else f"{result.samples_per_s:,.0f}"
        cells = *(score.of(result).percent for score in scores), format_bytes(result.learner_bytes), speed
        drawn.add_row(result.strategy, *cells, style="bold" if result is ahead else "")
    return drawn


if __name__ == "__main__":
    sys.exit(main())
