"""The numbers of a learning step; config.yaml says what each costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """How a step learns: which method stands at which of its doors, and how strongly; 0 leaves a door closed."""

    learning_rate: float = 0.1
    batch_size: int = 10  # of new samples; a step may bring more
    label_smoothing: float = 0.1
    # 1 replay
    replay_per_step: int = 20
    asymmetric: bool = False
    # 2 parameter regularisation
    ewc_lambda: float = 3.0
    gamma: float = 1.0
    importance: str = "fisher"
    fisher: str = "exact"
    fisher_samples: int = 200
    # 3 functional regularisation
    stored_logits: float = 0.0
    logits_at_arrival: bool = False
    replay_labels: float = 1.0
    teacher: float = 0.0
    temperature: float = 2.0
    # 4 optimisation
    project: bool = False
    protect: float = 0.0
    # consolidation and exam
    trigger: str = "timer"
    every_steps: int = 100
    rehearsal_passes: int = 10
    rehearsal_steps: int = 300  # most of one rehearsal
    rehearsal_batch: int = 32
    exam_share: float = 0.03

    @property
    def whole_gradient(self) -> bool:
        """Whether something needs the gradient of all parameters before any of them moves."""
        return self.project or self.protect > 0 or self.importance == "path"

    @property
    def measures_fisher(self) -> bool:
        """Whether something asks for the Fisher: the anchor's pull, or the rates that it scales."""
        return self.importance == "fisher" and (self.ewc_lambda > 0 or self.protect > 0)

    def replayed_with(self, n_new: int, most: int | None = None) -> int:
        """Replayed samples of a step on `n_new` new ones: as many to each of them as in a full batch, never more.

        Nor more than `most`, where there is no time for all.
        """
        share = -(-self.replay_per_step * min(n_new, self.batch_size) // self.batch_size)
        return share if most is None else min(share, most)

    def __post_init__(self) -> None:
        """Raises ValueError, naming both settings, where one leaves the other nothing to do."""
        if self.project and self.replay_per_step == 0:
            raise ValueError("projection: a-gem needs replayed samples to compare gradients with (got replay 0 a step)")
        if self.replay_labels == 0 and self.stored_logits == 0:
            raise ValueError("distillation: replayed samples are learnt from labels or stored logits (got neither)")


def rows_of_a_step(rule: Rule) -> int:
    """Most rows that a step or a rehearsal takes, unless it brings more new samples than the rule says."""
    return max(rule.batch_size + rule.replay_per_step, rule.rehearsal_batch)


def method_bytes(rule: Rule, n_parameters: int, *, keeps_none: bool) -> int:
    """Bytes that the methods chosen hold beside parameters, anchor and replay; `keeps_none`: there is no replay memory.

    Whole tensors of all parameters in float32, and half of one for each of the trigger's two copies.
    """
    whole = rule.whole_gradient + rule.project + (rule.protect > 0) + 2 * (rule.importance == "path")
    passing = keeps_none and rule.measures_fisher
    return 4 * n_parameters * (whole + (rule.teacher > 0) + passing + (rule.trigger != "timer"))
