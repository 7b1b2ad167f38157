"""The bytes of a learner, planned before the first of them is allocated.

Numbers in, a table out. Knows neither files nor the stream, nor what the process itself needs for torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_cl.errors import BudgetExceeded
from edge_cl.learning.anchor import slices
from edge_cl.learning.batch import batch_bytes
from edge_cl.learning.draws import DRAWS_BYTES
from edge_cl.learning.outline import Outline
from edge_cl.learning.replay import bytes_per_sample

GRAPH_BYTES = 8 * 1024  # what a template holds beside weights: nodes, names, shapes, metadata
LEAST_REPLAY = 1


@dataclass(frozen=True)
class Part:
    """One line of the plan."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class Plan:
    """What a learner holds, part by part; `replay_samples` is what the budget leaves room for, or the limit given."""

    parts: tuple[Part, ...]
    replay_samples: int
    exam_samples: int
    budget_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    def __getitem__(self, name: str) -> int:
        """Bytes of one part."""
        return next(part.nbytes for part in self.parts if part.name == name)

    @property
    def promised(self) -> int:
        """Bytes of the parts that the learner itself does not hold."""
        return sum(self[name] for name in ("queue", "window", "journal", "labels", "snapshot"))


def plan(
    outline: Outline,
    dtype: np.dtype[np.generic],
    *,
    budget_bytes: int,
    queue_bytes: int,
    window_bytes: int = 0,
    journal_bytes: int = 0,
    label_bytes: int = 0,
    replay_limit: int | None,
    replay_bytes: int | None = None,
    replay_bits: int | None = None,
    replay_layout: tuple[int, ...] | None = None,
    replay_logits: int = 0,
    exam_samples: int,
    batch_rows: int,
    method_bytes: int = 0,
    descends: bool = True,
    on_gpu: bool = False,
) -> Plan:
    """Count all else first; what the budget leaves goes to replay, up to `replay_limit` samples and `replay_bytes`.

    For P parameters: 4 P parameters + 2 P anchor (float16) + P Fisher codes + P / 2 working slices of the pull
    + 8 P snapshot (the template and the copy that is filled) + `method_bytes` of the methods chosen + exam + queue
    + window + what waits for the journal, or for a label + the rows of a step + replay.
    Without `descends` there is no anchor, Fisher, workspace and batch. A GPU pulls all parameters at once and holds the
    rows of a step a second time. A backbone counts with its file, once by itself and twice in the snapshot, and the
    rows of a step and of replay are then its features; those of the exam, of `dtype`, never are.
    Raises BudgetExceeded, with what is missing and what would mend it, if not one sample of replay is left.
    """
    P, C, backbone = outline.n_parameters, outline.n_outputs, outline.backbone
    exam_sample = bytes_per_sample(outline.shape if backbone is None else backbone.shape, dtype)
    learnt = dtype if backbone is None else np.dtype(np.float32)
    sample = bytes_per_sample(outline.shape, learnt, bits=replay_bits, layout=replay_layout, n_logits=replay_logits)
    counted = [
        Part("parameters", 4 * P),
        *(_of_descent(P, slices(on_gpu)) if descends else []),
        Part("input statistics", 4 * 4 * outline.layout[-1]),
        *([] if outline.aim else [Part("targets", 4 * C * C)]),
        Part("random numbers", 2 * DRAWS_BYTES),
        Part("batch", descends * (2 if on_gpu else 1) * batch_bytes(batch_rows, outline.shape, learnt, replay_logits)),
        *([Part("methods", method_bytes)] if method_bytes else []),
        *_brought(outline),
        Part("snapshot", 2 * (4 * P + GRAPH_BYTES + outline.extra_bytes + (backbone.model_bytes if backbone else 0))),
        Part("exam", exam_samples * exam_sample),
        Part("queue", queue_bytes),
        Part("window", window_bytes),
        Part("journal", journal_bytes),
        Part("labels", label_bytes),
    ]
    left = budget_bytes - sum(part.nbytes for part in counted)
    limits = (replay_limit, None if replay_bytes is None else max(LEAST_REPLAY, replay_bytes // sample))
    replay = min([left // sample, *(limit for limit in limits if limit is not None)])
    if left < (0 if replay_limit == 0 else LEAST_REPLAY * sample):
        raise _too_small(counted, left, sample, budget_bytes)
    return Plan((*counted, Part("replay", replay * sample)), replay, exam_samples, budget_bytes)


def _of_descent(P: int, n_slices: int) -> list[Part]:
    """What only a learner that descends a gradient holds."""
    return [Part("anchor", 2 * P), Part("fisher", P), Part("pull workspace", 2 * 4 * -(-P // n_slices))]


def _brought(outline: Outline) -> list[Part]:
    """What a user brought: a backbone, and what a module holds beside its parameters."""
    backbone = [] if outline.backbone is None else [Part("backbone", outline.backbone.nbytes)]
    return [*backbone, *([Part("buffers", outline.extra_bytes)] if outline.extra_bytes else [])]


def _too_small(counted: list[Part], left: int, sample: int, budget_bytes: int) -> BudgetExceeded:
    needed = budget_bytes - left + LEAST_REPLAY * sample
    parts = ", ".join(f"{part.name} {part.nbytes:,}" for part in sorted(counted, key=lambda p: -p.nbytes)[:4])
    return BudgetExceeded(
        f"budget.memory_bytes: must be at least {needed:,} to hold one sample of replay beside {parts} bytes "
        f"(got {budget_bytes:,})",
        hint=f"set budget.memory_bytes to {needed:,} or more, or lower model.width, exam.samples or bridge.queue_bytes",
    )
