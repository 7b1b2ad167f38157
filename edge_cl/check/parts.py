"""The bytes of a learner, part by part, under the names that the plan gives them."""

from __future__ import annotations

from dataclasses import replace

from edge_cl.budget import Plan
from edge_cl.check.line import CheckLine
from edge_cl.learning.draws import DRAWS_BYTES
from edge_cl.learning.learner import Learner
from edge_cl.learning.online_learner import OnlineLearner

NEVER = "more is held than was planned: please report it"
PROMISED = ("queue", "window", "journal", "snapshot")  # room that others than the learner fill


def held(learner: OnlineLearner, planned: Plan) -> dict[str, int]:
    """What is allocated for each part of the plan; what the methods hold is what no other part does."""
    network = learner.network
    found = {
        "parameters": network.arena.nbytes,
        "input statistics": network.standardise.nbytes,
        "targets": learner.objective.nbytes,
        "random numbers": 2 * DRAWS_BYTES,
        "backbone": 0 if learner.backbone is None else learner.backbone.nbytes,
        "buffers": sum(tensor.nbytes for tensor in network.extras.values()),
        "exam": learner.exam.nbytes,
        "replay": learner.replay.nbytes,
    }
    if isinstance(learner, Learner):
        anchor = learner.anchor
        found["anchor"], found["fisher"] = anchor.theta.nbytes, anchor.codes.nbytes
        found["pull workspace"] = anchor.nbytes - found["anchor"] - found["fisher"]
        found["batch"] = learner.batch.nbytes
    found["methods"] = learner.nbytes - sum(found.values())
    found |= {part.name: part.nbytes for part in planned.parts if part.name in PROMISED}
    return found


def byte_lines(planned: Plan, found: dict[str, int]) -> list[CheckLine]:
    """A line for each part, against what was planned for it."""
    plan = {part.name: part.nbytes for part in planned.parts}
    names = [*plan, *(name for name, size in found.items() if size and name not in plan)]
    lines = [CheckLine(f"memory: {name}", plan.get(name, 0), found.get(name, 0), "bytes") for name in names]
    return [line if line.passed else replace(line, advice=NEVER) for line in lines]
