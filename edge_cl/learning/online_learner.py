"""What every online learner is: a network that answers, an exam it never learns from, and a time to consolidate.

Knows network, exam, objective and trigger. Must not know how anything is learnt: learner.py and template_learner.py do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_cl.learning.backbone import Backbone
from edge_cl.learning.bits import Trial
from edge_cl.learning.network import Learnable
from edge_cl.learning.objective import Objective, most_likely
from edge_cl.learning.replay import Reservoir
from edge_cl.learning.rule import Rule
from edge_cl.learning.step import Step
from edge_cl.learning.trigger import Trigger

Arrays = dict[str, NDArray[Any]]


class OnlineLearner:
    """Answers, learns in steps, consolidates when due, and sets a share of its labelled samples aside for an exam.

    `labelled` samples came, of which `learnt` were learnt in `steps` steps. With a `backbone` it learns from features:
    network, replay and steps see only those, while callers give raw samples and the exam holds raw samples.
    """

    def __init__(
        self,
        network: Learnable,
        replay: Reservoir,
        exam: Reservoir,
        rule: Rule,
        objective: Objective,
        trigger: Trigger,
        *,
        seed: int,
        backbone: Backbone | None = None,
    ) -> None:
        self.network, self.replay, self.exam, self.rule = network, replay, exam, rule
        self.backbone = backbone
        self.objective, self.trigger = objective, trigger
        self.device = network.arena.flat.device
        self.rng = np.random.default_rng(seed)
        self.labelled = self.learnt = self.steps = self.consolidations = 0
        self.trials: list[Trial] = []  # of fewer bits a stored value, once there are samples to try them on

    @property
    def seen(self) -> Tensor:
        """Outputs in use (C,) bool: the classes seen."""
        return self.objective.seen

    def predict(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities (B, C) of raw samples x (B, *shape); classes not seen yet have 0."""
        answers = self.objective.answer(self._outputs(self._there(self.features(x))))
        return answers.nan_to_num(0.0).cpu().numpy()

    def losses(self, x: NDArray[Any], y: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Loss (B,) of samples x (B, *shape), with labels y (B,) if the objective asks for them: the anomaly score."""
        rows, labels = self._there(self.features(x)), self._there(np.zeros(len(x), np.int64) if y is None else y)
        losses: NDArray[np.float32] = self.objective.losses(self._outputs(rows), rows, labels).cpu().numpy()
        return losses

    def features(self, x: NDArray[Any]) -> NDArray[Any]:
        """What is learnt from of raw samples x (B, *shape): their features (B, D), or without a backbone x itself."""
        return x if self.backbone is None else self.backbone.features(x)

    def examples(self, most: int) -> NDArray[Any]:
        """Raw samples (n, *shape) that it holds, n ≤ `most`: of the replay memory; with a backbone those of the exam.

        Where there is no exam, with a backbone, the last ones that went through it.
        """
        held = self.replay if self.replay.size and self.backbone is None else self.exam
        if held.size == 0 and self.backbone is not None:
            return self.backbone.recent()[:most]
        return held.take(np.linspace(0, held.size - 1, min(held.size, most)).astype(np.int64))

    @property
    def is_due(self) -> bool:
        """Whether it is time to consolidate."""
        return self.trigger.is_due(self.labelled)

    def examine(self) -> dict[int, tuple[int, float]]:
        """Samples and accuracy of each class in the exam reservoir, whose samples are never learnt from."""
        if self.exam.size == 0:
            return {}
        labels = self.exam.labels[: self.exam.size]
        x = self._there(self.features(self.exam.held()))
        right = most_likely(self.objective.answer(self._outputs(x))) == labels
        return {int(c): (int((labels == c).sum()), float(right[labels == c].mean())) for c in np.unique(labels)}

    def learn(self, x: NDArray[Any], y: NDArray[np.int64], *, most_replayed: int | None = None) -> Step:
        """One step on labelled samples x (B, *shape), y (B,), with at most `most_replayed` old ones beside them."""
        raise NotImplementedError

    def consolidate(self, *, most_steps: int | None = None) -> int:
        """Make what was learnt last; the steps of learning that took, at most `most_steps`."""
        raise NotImplementedError

    def open_head(self, classes: Sequence[int]) -> None:
        """Tell these classes apart among themselves only, from now on (task-incremental learning)."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        raise NotImplementedError

    @property
    def brought_bytes(self) -> int:
        """Bytes of what a user brought: the backbone, and what a module holds beside its parameters."""
        extras = sum(tensor.nbytes for tensor in self.network.extras.values())
        return extras + (0 if self.backbone is None else self.backbone.nbytes)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and plain values from which `restore` makes the same learner, bit for bit."""
        raise NotImplementedError

    def restore(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """Become the learner whose state this is. Raises ValueError, naming the array, for another model's state."""
        raise NotImplementedError

    def _outputs(self, x: Tensor) -> Tensor:
        """Outputs (B, C) for raw samples as when deployed."""
        raise NotImplementedError

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of its state, live."""
        raise NotImplementedError

    def _widened(self, arrays: Arrays) -> Arrays:
        """The parameters of a state with fewer classes, and what is of their order, as this wider network has them."""
        raise NotImplementedError

    def _fitting(self, arrays: Arrays) -> Arrays:
        """A state with room for all classes. Raises ValueError, naming an array that still differs."""
        n = len(arrays.get("seen", self.seen))
        if n < len(self.seen):
            wide = {name: np.zeros(len(tensor), arrays[name].dtype) for name, tensor in self.objective.state.items()}
            for name, array in wide.items():
                array[:n] = arrays[name]
            arrays = arrays | self._widened(arrays) | wide
        for name, tensor in self._tensors().items():
            if name not in arrays or arrays[name].shape != tuple(tensor.shape):
                got = arrays[name].shape if name in arrays else "nothing"
                raise ValueError(f"{name}: must have shape {tuple(tensor.shape)} (got {got})")
        return arrays

    def _set_exam_aside(self, x: NDArray[Any], y: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Give a share of the samples to the exam; says which (B,), None if none."""
        if self.exam.capacity == 0 or self.rule.exam_share == 0:
            return None
        examined = self.rng.random(len(y)) < self.rule.exam_share
        if not examined.any():
            return None
        self.exam.offer(x[examined], y[examined])
        return examined

    def _there(self, array: NDArray[Any]) -> Tensor:
        """A copy where the network computes."""
        return torch.tensor(array, device=self.device)


def part_of(arrays: Arrays, part: str) -> Arrays:
    """The arrays of one part of a state, under the part's own names."""
    return {key.removeprefix(f"{part}."): array for key, array in arrays.items() if key.startswith(f"{part}.")}
