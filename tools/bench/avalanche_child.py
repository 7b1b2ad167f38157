"""Avalanche's side, in a process and a virtual environment of its own (`make peers`), driven over its pipes.

One JSON command a line on stdin, one JSON answer a line on stdout:

    {"do": "open", "workload": NAME, "data": FOLDER}   phase A of both strategies; what each has learnt
    {"do": "naive" | "online", "steps": K}             K steps; microseconds of each
    {"do": "check"}                                    what each has learnt of phase B
    {"do": "fisher", "batch": 10 | 1}                  EWCPlugin.compute_importances over 500 samples; milliseconds
    {"do": "close"}                                    ready for the next workload

naive: one experience a phase, so nothing is inserted into replay while the clock runs. A plugin that comes last stops
inside the training loop after each block and waits for the next command; a step runs from one end of an iteration to
the next, so the data loader is in it and the waiting is not.
online: an experience of `new` samples a step, trained by itself; EWC and replay then do all their work in each step.

Without metrics and loggers, with reservoir sampling for both: the best case for the peer.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
WIRE = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # whatever a library prints is talk

import torch  # noqa: E402
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience  # type: ignore[import-not-found] # noqa: E402
from avalanche.benchmarks.utils.classification_dataset import (  # type: ignore[import-not-found] # noqa: E402
    _make_taskaware_tensor_classification_dataset as make_dataset,
)
from avalanche.core import SupervisedPlugin  # type: ignore[import-not-found] # noqa: E402
from avalanche.training.plugins import EWCPlugin, ReplayPlugin  # type: ignore[import-not-found] # noqa: E402
from avalanche.training.storage_policy import ReservoirSamplingBuffer  # type: ignore[import-not-found] # noqa: E402
from avalanche.training.supervised import Naive, OnlineNaive  # type: ignore[import-not-found] # noqa: E402

from bench import workloads  # noqa: E402
from bench.workloads import Data, Part, Workload  # noqa: E402

# The peer warns of its own deprecations in every online step; writing them out is no cost of learning.
for name in ("warn", "simplefilter"):
    setattr(warnings, name, lambda *_, **__: None)

ONE_EPOCH, FOR_EVER = 1, 1_000_000


class Closed(Exception):  # noqa: N818  (not an error: the parent is done with this workload)
    """Leaves the training loop from within."""


class Peers:
    """Both strategies on one workload, each after its phase A."""

    def __init__(self, workload: Workload, data: Data) -> None:
        self.workload, self.data = workload, data
        self.old, self.new = (make_dataset(part.standardised, part.labels) for part in (data.old, data.new))
        self.pacer = Pacer(self)
        self.naive = self._strategy(Naive, "train_epochs", [self.pacer])
        self.online = self._strategy(OnlineNaive, "train_passes", [])
        self.turns: list[Any] = []
        n = workload.warm_up_steps * workload.new
        self.naive.train(experience(self.old, slice(0, n)), eval_streams=[])
        for turn in data.old.turns(workload.new)[: workload.warm_up_steps]:
            self.online.train(experience(self.old, turn), eval_streams=[])

    def learn_new_classes(self) -> None:
        """Phase B of the naive strategy; returns when the parent closes it."""
        self.naive.train_epochs = FOR_EVER
        self.pacer.active = True
        with suppress(Closed):
            self.naive.train(experience(self.new, slice(0, len(self.new))), eval_streams=[])

    def learn_online(self, steps: int) -> list[float]:
        """So many experiences of a few samples; making the experience is not on the clock."""
        times = []
        for _ in range(steps):
            self.turns = self.turns or self.data.new.turns(self.workload.new)
            few = experience(self.new, self.turns.pop())
            started = time.perf_counter_ns()
            self.online.train(few, eval_streams=[])
            times.append((time.perf_counter_ns() - started) / 1e3)
        return times

    def fisher(self, batch: int) -> float:
        """Milliseconds of the plugin's own estimate over 500 samples."""
        dataset = self.old.subset(range(workloads.FISHER_SAMPLES)).eval()
        strategy = self.online
        plugin = EWCPlugin(workloads.EWC_LAMBDA / 2)
        arguments = (strategy.model, strategy._criterion, strategy.optimizer, dataset, strategy.device, batch)
        started = time.perf_counter_ns()
        plugin.compute_importances(*arguments)
        return (time.perf_counter_ns() - started) / 1e6

    def verdicts(self, part: Part) -> dict[str, list[float]]:
        """Loss and accuracy of both on samples held out."""
        found = {}
        for name, strategy in (("naive", self.naive), ("online", self.online)):
            with torch.no_grad():
                verdict = workloads.judge(strategy.model(part.standardised).softmax(1), part.labels)
            found[name] = [verdict.loss, verdict.accuracy]
        return found

    def _strategy(self, kind: Any, epochs: str, plugins: list[Any]) -> Any:
        model = self.workload.modules()
        # Theirs is λ Σ F (θ - θ*)², without the ½.
        ewc = EWCPlugin(workloads.EWC_LAMBDA / 2, mode="online", decay_factor=workloads.GAMMA)
        replay = ReplayPlugin(
            workloads.BUFFER,
            batch_size=self.workload.new,
            batch_size_mem=self.workload.replayed,
            storage_policy=ReservoirSamplingBuffer(workloads.BUFFER),
        )
        return kind(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=workloads.LEARNING_RATE),
            criterion=torch.nn.CrossEntropyLoss(),
            train_mb_size=self.workload.new,
            plugins=[replay, ewc, *plugins],
            evaluator=None,
            **{epochs: ONE_EPOCH},
        )


class Pacer(SupervisedPlugin):  # type: ignore[misc]
    """Lets the training loop run for as many iterations as were asked for, and times each."""

    def __init__(self, peers: Peers) -> None:
        super().__init__()
        self.peers, self.active = peers, False
        self.left, self.times = 0, [0.0][:0]
        self.mark = 0

    def before_training_epoch(self, *_: Any, **__: Any) -> None:
        """Phase B is about to begin: wait for the first command."""
        if self.active and not self.left:
            self._wait()

    def after_training_iteration(self, *_: Any, **__: Any) -> None:
        """A step is over."""
        if not self.active:
            return
        now = time.perf_counter_ns()
        self.times.append((now - self.mark) / 1e3)
        self.mark = now
        self.left -= 1
        if not self.left:
            answer({"us": self.times})
            self._wait()

    def _wait(self) -> None:
        self.left, self.times = serve(self.peers), []
        self.mark = time.perf_counter_ns()


def experience(dataset: Any, turn: slice) -> Any:
    """The samples of a turn, as the peer's own splitters hand them out: a subset, so that replay can merge them."""
    return DatasetExperience(dataset=dataset.subset(range(turn.start, turn.stop)), current_experience=0)


def serve(peers: Peers) -> int:
    """Do what the parent asks for until it asks for naive steps; how many. Raises Closed when it is done."""
    while True:
        command = read()
        if command["do"] == "naive":
            return int(command["steps"])
        if command["do"] == "online":
            answer({"us": peers.learn_online(command["steps"])})
        elif command["do"] == "check":
            answer(peers.verdicts(peers.data.new_held_out))
        elif command["do"] == "fisher":
            answer({"ms": peers.fisher(command["batch"])})
        elif command["do"] == "close":
            answer({})
            raise Closed


def read() -> dict[str, Any]:
    """The next command; the end of the pipe is the end of the process."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    command: dict[str, Any] = json.loads(line)
    return command


def answer(values: dict[str, Any]) -> None:
    """One line to the parent."""
    WIRE.write(json.dumps(values) + "\n")
    WIRE.flush()


def main() -> None:
    """Workload after workload."""
    torch.set_num_threads(1)
    while True:
        command = read()
        assert command["do"] == "open", command
        workload = workloads.WORKLOADS[command["workload"]]
        peers = Peers(workload, workloads.load(workload, Path(command["data"])))
        gc.collect()
        gc.freeze()
        answer(peers.verdicts(peers.data.old_held_out))
        peers.learn_new_classes()


if __name__ == "__main__":
    main()
