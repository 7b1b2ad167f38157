"""The sides of the step: ours on both roads, bare torch, the explicit penalty, and the peers behind their pipe.

Each has phase A and its Fisher behind it when it is made, and knows how well it has learnt: times of a side that learns
something else would mean nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import workloads
from bench.interleave import say
from bench.workloads import ROOT, Data, Part, Verdict, Workload, assert_learnt
from edge_cl.learning.layers import Conv, Flatten, Layer, Linear, ReLU
from edge_cl.learning.learner import Learner, Rule
from edge_cl.learning.model import Blueprint, design
from edge_cl.learning.network import Learnable, Network
from edge_cl.learning.replay import Reservoir
from edge_cl.learning.torch_network import TorchNetwork

PEERS = ROOT / ".venv-peers"
STANDINS = Path(__file__).parent / "standin"


class Judged(Protocol):
    """A side that can run and be examined."""

    def run(self, steps: int) -> list[float]:
        """Do so many steps; microseconds of each."""

    def verdict(self, part: Part) -> Verdict:
        """Loss and accuracy on samples held out."""


class _InProcess(ABC):
    """A side in this process: steps through the batches of phase B for ever, one after another."""

    at = 0

    @abstractmethod
    def step(self, at: int) -> None:
        """One step on batch number `at`, counted on and on."""

    def run(self, steps: int) -> list[float]:
        times = []
        for _ in range(steps):
            started = time.perf_counter_ns()
            self.step(self.at)
            times.append((time.perf_counter_ns() - started) / 1e3)
            self.at += 1
        return times


class Ours(_InProcess):
    """edge_cl's learner on raw samples, everything included; over built-in layers or over torch modules."""

    def __init__(self, workload: Workload, data: Data, network: Learnable) -> None:
        shape, n_classes, dtype = workload.shape, workload.n_classes, np.dtype(workload.dtype)
        replay = Reservoir(workloads.BUFFER, shape, dtype, n_classes=n_classes)
        rule = Rule(
            learning_rate=workloads.LEARNING_RATE,
            replay_per_step=workload.replayed,
            label_smoothing=0.0,
            ewc_lambda=workloads.EWC_LAMBDA,
            gamma=workloads.GAMMA,
            rehearsal_passes=0,
            exam_share=0.0,
        )
        self.learner = Learner(network, replay, Reservoir(0, shape, dtype, n_classes=n_classes), rule)
        self.hits = 0
        self._learn_from(data.old, workload.new)
        for at in range(workload.warm_up_steps):
            self.step(at)
        self.learner.consolidate()
        self._learn_from(data.new, workload.new)

    def _learn_from(self, part: Part, n: int) -> None:
        labels = part.labels.numpy()
        self.batches = [(part.raw[turn], labels[turn]) for turn in part.turns(n)]

    def step(self, at: int) -> None:
        x, y = self.batches[at % len(self.batches)]
        step = self.learner.learn(x, y)
        self.hits += int((step.predicted == y).sum())

    def verdict(self, part: Part) -> Verdict:
        return workloads.judge(torch.from_numpy(np.array(self.learner.predict(part.raw))), part.labels)


class Bare(_InProcess):
    """What PyTorch's own step costs: zero_grad, forward, cross-entropy, backward, SGD.step on ready float32 batches."""

    def __init__(self, workload: Workload, data: Data) -> None:
        self.model = workload.modules()
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=workloads.LEARNING_RATE)
        self.batches = workloads.replay_batches(data.old, data.old, workload.new, workload.replayed)
        for at in range(workload.warm_up_steps):
            self.step(at)
        self.batches = workloads.replay_batches(data.new, data.old, workload.new, workload.replayed)

    def step(self, at: int) -> None:
        x, y = self.batches[at % len(self.batches)]
        self.optimiser.zero_grad()
        functional.cross_entropy(self.model(x), y).backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def verdict(self, part: Part) -> Verdict:
        return _judge_modules(self.model, part)


class Explicit(_InProcess):
    """The textbook: ½ λ Σ F (θ - θ*)² summed inside the loss, replay from a float32 reservoir, prequential score.

    The Fisher is the empirical one by a loop over samples, scaled down to η λ max F ≤ 1 where it must be: the explicit
    gradient diverges beyond 2, and a NaN costs the same.
    """

    def __init__(self, workload: Workload, data: Data) -> None:
        self.workload, self.model = workload, workload.modules()
        self.parameters = list(self.model.parameters())
        self.optimiser = torch.optim.SGD(self.parameters, lr=workloads.LEARNING_RATE)
        self.items = torch.zeros(workloads.BUFFER, *data.old.standardised.shape[1:])
        self.labels = torch.zeros(workloads.BUFFER, dtype=torch.int64)
        self.rng = np.random.default_rng(0)
        self.size = self.n_seen = self.hits = 0
        self.penalised: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self._learn_from(data.old)
        for at in range(workload.warm_up_steps):
            self.step(at)
        fisher = fisher_by_loop(self.model, self.items[: self.size], self.labels[: self.size])
        largest = workloads.LEARNING_RATE * workloads.EWC_LAMBDA * max(float(part.max()) for part in fisher)
        self.penalised = [
            (p, f / max(1.0, largest), p.detach().clone()) for p, f in zip(self.parameters, fisher, strict=True)
        ]
        self._learn_from(data.new)

    def _learn_from(self, part: Part) -> None:
        self.batches = [(part.standardised[turn], part.labels[turn]) for turn in part.turns(self.workload.new)]

    def step(self, at: int) -> None:
        x, y = self.batches[at % len(self.batches)]
        places = torch.from_numpy(self.rng.integers(0, max(1, self.size), self.workload.replayed if self.size else 0))
        batch, labels = torch.cat([x, self.items[places]]), torch.cat([y, self.labels[places]])
        self.optimiser.zero_grad()
        logits = self.model(batch)
        loss = functional.cross_entropy(logits, labels)
        if self.penalised:
            penalty = sum((fisher * (p - anchor).square()).sum() for p, fisher, anchor in self.penalised)
            loss = loss + workloads.EWC_LAMBDA / 2 * penalty
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.hits += int((logits[: len(y)].argmax(1) == y).sum())
        self._offer(x, y)

    def _offer(self, x: Tensor, y: Tensor) -> None:
        chances = self.rng.random(len(y)).tolist()
        for row, chance in enumerate(chances):
            self.n_seen += 1
            place = self.size if self.size < len(self.items) else int(chance * self.n_seen)
            if place < len(self.items):
                self.size = max(self.size, place + 1)
                self.items[place], self.labels[place] = x[row], y[row]

    def verdict(self, part: Part) -> Verdict:
        return _judge_modules(self.model, part)


class PeerProcess:
    """avalanche_child.py in the peers' environment, on our core; it sleeps unless it is asked."""

    def __init__(self, venv: Path) -> None:
        paths = os.pathsep.join([str(STANDINS), str(Path(__file__).parents[1])])
        self.process = subprocess.Popen(
            [str(venv / "bin" / "python"), str(Path(__file__).with_name("avalanche_child.py"))],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **command: Any) -> Any:
        """Its answer to one command. Raises SystemExit if it has ended."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            sys.exit(f"error: the peers' process ended with exit code {self.process.wait()}\nhint: make peers")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Avalanche:
    """One of the two strategies in the peers' process."""

    def __init__(self, peers: PeerProcess, name: str) -> None:
        self.peers, self.name = peers, name

    def run(self, steps: int) -> list[float]:
        """Do so many steps; microseconds of each, by its own clock."""
        times: list[float] = self.peers.ask(do=self.name, steps=steps)["us"]
        return times

    def verdict(self, part: Part) -> Verdict:
        """Loss and accuracy on the new classes' samples held out, which it has itself."""
        return Verdict(*self.peers.ask(do="check")[self.name])


def start_peers(venv: Path) -> PeerProcess | None:
    """The peers' process, or None where `make peers` was not done."""
    if not (venv / "bin" / "python").exists():
        say(f"no {venv.name}: Avalanche's figures are null; `make peers` installs it")
        return None
    return PeerProcess(venv)


def make_sides(workload: Workload, data: Data, folder: Path, peers: PeerProcess | None) -> dict[str, Judged]:
    """Every side that is installed, each with phase A behind it and found to have learnt it."""
    made: dict[str, Judged] = {
        "ours": Ours(workload, data, built_in_network(workload)),
        "autograd_road": Ours(workload, data, TorchNetwork(workload.modules(), workload.layout)),
        "bare": Bare(workload, data),
        "explicit": Explicit(workload, data),
    }
    for name, side in made.items():
        assert_learnt(f"{workload.name}: {name}", side.verdict(data.old_held_out), workload.old_classes)
    if peers is not None:
        found = peers.ask(do="open", workload=workload.name, data=str(folder))
        for name in ("naive", "online"):
            assert_learnt(f"{workload.name}: avalanche {name}", Verdict(*found[name]), workload.old_classes)
            made["avalanche" if name == "naive" else "avalanche_online"] = Avalanche(peers, name)
    return made


def built_in_network(workload: Workload) -> Network:
    """The network in edge_cl's own layers."""
    if workload.shape == (128, 9):
        return Network(design("cnn1d", workload.shape, workload.n_classes), seed=0)
    layers: list[Layer] = [Flatten(), Linear(784, 256), ReLU(), Linear(256, 256), ReLU(), Linear(256, 10)]
    if workload.name == "W2":
        layers = [Conv(1, 16, [3, 3], stride=2, padding=1), ReLU(), Conv(16, 32, [3, 3], stride=2, padding=1), ReLU()]
        layers += [Flatten(), Linear(1568, 64), ReLU(), Linear(64, 10)]
    return Network(Blueprint(workload.name, workload.shape, workload.layout, layers), seed=0)


def fisher_by_loop(model: nn.Module, x: Tensor, labels: Tensor) -> list[Tensor]:
    """The empirical Fisher diagonal the plain way: one backward pass a sample, squared, averaged."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for n in range(len(x)):
        loss = functional.cross_entropy(model(x[n : n + 1]), labels[n : n + 1])
        for into, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            into.addcmul_(gradient, gradient)
    return [one / len(x) for one in total]


def _judge_modules(model: nn.Module, part: Part) -> Verdict:
    with torch.no_grad():
        return workloads.judge(model(part.standardised).softmax(1), part.labels)
