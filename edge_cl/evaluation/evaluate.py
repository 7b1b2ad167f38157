"""From a request to results: every strategy with every seed on the same stream, the runs side by side in processes.

Knows how data, stream, learner and protocol are put together. Must not know what a person sees of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np

from edge_cl.assembly import Task, blueprint_of, make_learner, plan_of, task_of
from edge_cl.budget import Plan
from edge_cl.config import Config, parse
from edge_cl.errors import OperatorError
from edge_cl.evaluation import protocol
from edge_cl.evaluation.data import Dataset, load_dataset
from edge_cl.evaluation.processes import side_by_side
from edge_cl.evaluation.result import Result
from edge_cl.evaluation.run import Run
from edge_cl.evaluation.strategies import strategy_of
from edge_cl.evaluation.stream import Experience, ends, generator
from edge_cl.evaluation.streams import Scenario, make_stream
from edge_cl.learning.outline import Outline
from firmware_bridge.sample import Schema

ROOM: Final = 2**40  # bytes; the largest budget there is


@dataclass(frozen=True)
class Contender:
    """A configuration under a name; `replays` and `shuffles` as of a `Strategy`."""

    name: str
    config: Config
    replays: bool = True
    shuffles: bool = False


@dataclass(frozen=True)
class Request:
    """What is to be found out: each contender, with each size of replay, with each seed 0 … seeds - 1, on one stream.

    `source` as of `load_dataset`. Sizes are in bytes (labels and logits counted) or in samples, and the budget is then
    what the learner needs; without them contenders are as configured, within the configured budget. `label_delay` is in
    samples. Raises OperatorError for a request that nobody can mean.
    """

    source: str
    scenario: Scenario
    contenders: tuple[Contender, ...]
    replay_bytes: tuple[int, ...] = ()
    replay_samples: tuple[int, ...] = ()
    label_delay: int = 0
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise OperatorError(f"seeds: must be at least 1 (got {self.seeds})")
        if self.replay_bytes and self.replay_samples:
            raise OperatorError("replay: its size is given in bytes and in samples", hint="leave one of them out")
        names = [contender.name for contender in self.contenders]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise OperatorError(f"compare: every strategy may be there once (got {twice} twice)")
        if self.scenario.kind == "task" and any(contender.shuffles for contender in self.contenders):
            raise OperatorError("iid: is not for scenario task, where each sample's task is known")


@dataclass(frozen=True)
class Job:
    """One run: a contender on a seed, and how many samples it will take."""

    source: str
    scenario: Scenario
    contender: Contender
    label_delay: int
    seed: int
    samples: int

    def __str__(self) -> str:
        replay = self.contender.config.replay
        size = (
            f" with {replay.samples} old samples" if replay.samples else f" with {replay.memory_bytes} bytes of replay"
        )
        return f"{self.contender.name}{size if self.contender.replays else ''}, seed {self.seed}"


def contender_of(strategy: str, *, before: Sequence[str] = (), after: Sequence[str] = ()) -> Contender:
    """The contender of a named strategy; overrides `before` give way to the strategy's own, those `after` do not.

    Raises OperatorError for a name that is none, ConfigError for overrides that are wrong.
    """
    found = strategy_of(strategy)
    config = parse("", overrides=[*before, *found.overrides, *after])
    return Contender(strategy, config, found.replays, found.shuffles)


def evaluate(request: Request, on_progress: Callable[[Job, int], None] = lambda job, samples: None) -> list[Result]:
    """A result for each contender and size, in that order; `on_progress` is told how many samples a job has had.

    What is wrong with the request is said before a process is started: OperatorError, and what `load_dataset` raises.
    Raises EdgeError if a process dies. With any exception, KeyboardInterrupt among them, the processes are ended.
    """
    data = _load(request.source, request.scenario)
    stream = make_stream(data, request.scenario, seed=0)
    over = ends(stream)
    sized = [one for contender in request.contenders for one in _sized(request, contender, data)]
    jobs = [
        Job(request.source, request.scenario, one, request.label_delay, seed, over[-1])
        for one in sized
        for seed in range(request.seeds)
    ]
    runs = side_by_side(run_job, jobs, lambda job, share: on_progress(job, round(share * job.samples)))
    return [
        Result(
            data=data.name,
            scenario=request.scenario.kind,
            strategy=one.name,
            model=_model(one.config, data),
            experiences=_names(stream, request.scenario),
            ends=tuple(over),
            settings=tuple(_changed(one.config)),
            runs=tuple(runs[number * request.seeds : (number + 1) * request.seeds]),
        )
        for number, one in enumerate(sized)
    ]


def run_job(job: Job, report: Callable[[float], None]) -> Run:
    """One run, from the file to its figures; `report` is told the share of it that is done."""
    config, data = _with(job.contender.config, "learning", threads=1), _load(job.source, job.scenario)
    stream: Sequence[Experience] = make_stream(data, job.scenario, seed=job.seed)
    if job.contender.shuffles:
        stream = _shuffled(stream, job.seed)
    task, blueprint, planned = _planned(config, data)
    return protocol.run(
        stream,
        lambda seed: make_learner(config, task, blueprint, planned, seed=seed),
        scenario=job.scenario.kind,
        seed=job.seed,
        # A source in its own time is slower than learning.max_wait_ms: the daemon takes a step for every label there.
        batch_size=1 if job.scenario.kind == "stream" else config.learning.batch_size,
        label_delay=job.label_delay,
        on_samples=lambda samples: report(samples / job.samples),
    )


@lru_cache(maxsize=1)
def _load(source: str, scenario: Scenario) -> Dataset:
    return load_dataset(source, test=scenario.held_out, within=scenario.mark)


def _shuffled(stream: Sequence[Experience], seed: int) -> list[Experience]:
    """Experiences of the same lengths and tests, their samples dealt from all of them in random order."""
    parts = list(stream)
    x, y = np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
    dealt = np.split(generator(seed, "shuffled").permutation(len(y)), ends(parts)[:-1])
    return [replace(part, x=x[rows], y=y[rows]) for part, rows in zip(parts, dealt, strict=True)]


def _sized(request: Request, contender: Contender, data: Dataset) -> Iterator[Contender]:
    """The contender with each size of replay that was asked for, and with the budget that holds it."""
    if not request.replay_bytes and not request.replay_samples:
        yield contender
        return
    config, sizes = contender.config, [contender.config]
    if contender.replays and request.replay_samples:  # so many samples are so many, as the sensor made them
        bits = None if config.replay.bits == "auto" else config.replay.bits
        counts = request.replay_samples
        sizes = [_with(config, "replay", samples=n, memory_bytes=None, bits=bits) for n in counts]
    elif contender.replays:
        _check_sizes(request.replay_bytes, config, data)
        sizes = [_with(config, "replay", samples=None, memory_bytes=n) for n in request.replay_bytes]
    for sized in sizes:
        needed = _planned(_with(sized, "budget", memory_bytes=ROOM), data)[2].nbytes
        yield replace(contender, config=_with(sized, "budget", memory_bytes=needed))


def _check_sizes(sizes: Sequence[int], config: Config, data: Dataset) -> None:
    one = _with(_with(config, "budget", memory_bytes=ROOM), "replay", samples=1, memory_bytes=None)
    each = _planned(one, data)[2]["replay"]
    for size in sizes:
        if size < each:
            raise OperatorError(f"replay-bytes: must be at least {each:,}, which one sample takes (got {size:,})")


def _planned(config: Config, data: Dataset) -> tuple[Task, Outline, Plan]:
    schema = Schema(data.name, data.x.dtype.name, data.x.shape[1:], label_names=data.label_names)
    if config.model.max_classes == "auto":  # nothing else will ever come
        config = _with(config, "model", max_classes=max(2, len(data.label_names)))
    task = task_of(config, schema)
    blueprint = blueprint_of(config, task)
    return task, blueprint, plan_of(config, task, blueprint)


def _with(config: Config, group: str, **values: object) -> Config:
    return config.model_copy(update={group: getattr(config, group).model_copy(update=values)})


def _model(config: Config, data: Dataset) -> str:
    _, blueprint, _ = _planned(config, data)
    return f"{blueprint.kind}, {blueprint.n_parameters:,} parameters"


def _names(stream: Sequence[Experience], scenario: Scenario) -> tuple[str, ...]:
    """What the experiences are called; by number where each seed has others in their place."""
    if scenario.order == "random":
        return tuple(f"experience {t + 1}" for t in range(len(stream)))
    return tuple(experience.name for experience in stream)


def _changed(config: Config) -> Iterator[str]:
    """The settings that are not the defaults, as overrides `key=value`."""
    ours, defaults = config.model_dump(), Config().model_dump()
    for group, values in ours.items():
        if isinstance(values, dict):
            differing = {key: value for key, value in values.items() if value != defaults[group][key]}
            yield from (f"{group}.{key}={_scalar(value)}" for key, value in differing.items())


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
