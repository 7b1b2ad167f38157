"""What one step of learning did, for whoever wants to know.

Knows outputs, labels and an objective. Must not know how the step was taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edge_cl.learning.objective import Objective, most_likely


@dataclass(slots=True)
class Step:
    """What a step did: how many of the `new` samples it learnt, and what it answered before that.

    z (B, C) are the outputs for all rows x of the step, the new samples first, with `labels` (B,) and each row's
    `share` (B, 1) of the loss if some were set aside; `answered` (n or B, C) begins with the answers to the new samples
    as they came. Classes and loss are worked out when asked for, so that a step on a GPU never waits for its own
    answer; ask before the learner does anything else, for all of it is looked up in this step's buffers.
    """

    objective: Objective
    new: int
    learnt: int
    answered: Tensor
    z: Tensor
    x: Tensor
    labels: Tensor
    share: Tensor | None

    @property
    def answers(self) -> Tensor:
        """Answers (n, C) to the new samples before they were learnt: probabilities, or values foretold."""
        return self.objective.answer(self.answered[: self.new])

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Classes (n,) predicted for the new samples before they were learnt; NOT_SEEN while no class was known."""
        return most_likely(self.answers)

    @property
    def loss(self) -> float:
        """Mean loss before the step over what it learnt, NaN if nothing was learnt."""
        if self.learnt == 0:
            return float("nan")
        losses = self.objective.losses(self.z, self.x, self.labels)
        return float(losses.mean() if self.share is None else (losses * self.share.squeeze(1)).sum())
