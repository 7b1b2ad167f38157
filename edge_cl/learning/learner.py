"""The learner: predict, learn, consolidate. The one file that knows how network, replay, anchor and exam meet.

Rule 1: a step reads top to bottom, each family of methods at its own line (`learn`, `_descend`, `_down`).
Rule 2: everything random comes from generators in the state, but for a dropout in a user's module; no clock, no file.
Rule 3: memory is allocated in the constructor; only a step larger than the rule says makes the batch grow, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_cl.learning.anchor import Anchor
from edge_cl.learning.backbone import Backbone
from edge_cl.learning.batch import Batch, Rows
from edge_cl.learning.bits import LEAST, Trial, fewest, try_bits
from edge_cl.learning.cuda_graph import CudaGraph
from edge_cl.learning.distillation import match_logits, match_teacher
from edge_cl.learning.draws import DRAWS_BYTES
from edge_cl.learning.network import Learnable
from edge_cl.learning.objective import NOT_SEEN, Classification, Objective, most_likely
from edge_cl.learning.online_learner import Arrays, OnlineLearner, part_of
from edge_cl.learning.replay import Reservoir
from edge_cl.learning.rule import Rule, rows_of_a_step
from edge_cl.learning.step import Step
from edge_cl.learning.teacher import Teacher
from edge_cl.learning.trigger import Trigger
from edge_cl.learning.whole_gradient import WholeGradient

__all__ = ["NOT_SEEN", "Learner", "Rule", "Step", "most_likely", "rows_of_a_step"]

TRIED = 256  # samples that tell how few bits serve; and so many are answered at once
PASSING = 5  # steps from one whose new samples tell the Fisher to the next, where no samples are kept
SETTLED = 1000  # samples; from here on one batch moves an input statistic by less than a hundredth


class Learner(OnlineLearner):
    """An online learner that does not forget: experience replay, and online EWC as a proximal pull.

    One step on labelled samples (x, y), with each family of methods at its own place:

        batch ← x + replay.draw()                   1 replay
        z     ← network(batch)
        δ     ← ∂loss/∂z, over the classes allowed  5 context
                + distillation from stored logits   3 functional regularisation
        θ     ← θ - η ∂loss/∂θ                      4 projected or with scaled rates; else the backward product itself
        θ     ← θ + a (θ* - θ)                      2 parameter regularisation: the anchor's pull
        replay.offer(x, y, z)

    Family 6, templates, needs no step: template_learner.py. x (B, *shape) in the sensor's own dtype, y (B,) class
    indices below the network's outputs. `objective` is classification unless another is given.
    """

    def __init__(
        self,
        network: Learnable,
        replay: Reservoir,
        exam: Reservoir,
        rule: Rule,
        *,
        objective: Objective | None = None,
        backbone: Backbone | None = None,
        seed: int = 0,
    ) -> None:
        theta = network.arena.flat
        objective = objective or Classification(
            network.n_outputs,
            theta.device,
            smoothing=rule.label_smoothing,
            asymmetric=rule.asymmetric,
            replay_labels=rule.replay_labels,
        )
        trigger = Trigger(rule.trigger, rule.every_steps * rule.batch_size, theta)
        super().__init__(network, replay, exam, rule, objective, trigger, seed=seed, backbone=backbone)
        self.anchor = Anchor(theta)
        self.batch = Batch(rows_of_a_step(rule), replay.shape, replay.dtype, self.device, replay.n_logits)
        in_passing = replay.capacity == 0 and rule.measures_fisher
        self._passing = torch.zeros_like(network.arena.flat) if in_passing else None
        self._n_passed = 0
        self._teacher = Teacher(network) if rule.teacher else None
        self._whole = WholeGradient(network.arena.flat, rule) if rule.whole_gradient else None
        on_gpu = self.device.type == "cuda" and network.recordable and not (self._teacher or self._whole)
        self._recorded = CudaGraph(self._descend, self.device) if on_gpu else None

    def open_head(self, classes: Sequence[int]) -> None:
        """Tell these classes apart among themselves only, from now on: a task of its own (task-incremental learning).

        Raises ValueError if one is no output of the network, or if the objective knows no classes.
        """
        if not isinstance(self.objective, Classification):
            raise ValueError("head: there are no classes to tell apart")
        self.objective.context.split(classes)
        self.objective.refresh()

    def go_on_from(self, used: NDArray[np.int64], *, learned: int, steps: int, consolidations: int) -> None:
        """Take the network's parameters for what was learnt in so many steps, in which these outputs were used."""
        self.labelled, self.learnt, self.steps, self.consolidations = learned, learned, steps, consolidations
        self.network.standardise.seen = learned
        self.objective.meet(used)
        self.trigger.done(learned)
        self.anchor.theta.copy_(self.network.arena.flat)
        self._follow_anchor()

    def learn(self, x: NDArray[Any], y: NDArray[np.int64], *, most_replayed: int | None = None) -> Step:
        """One step on labelled samples; a share of them goes to the exam instead and is never learnt from.

        At most `most_replayed` old samples beside them, where there is no time for as many as the rule says. Raises
        ValueError if a label is outside the network's outputs, or there is not one for each sample.
        """
        n = len(y)
        if len(x) != n:
            raise ValueError(f"y: must have a label for each of the {len(x)} samples (got {n})")
        news = self.objective.is_news(y)
        self.labelled += n
        examined = self._set_exam_aside(x, y)
        x = self.features(x)
        places = self.replay.draw(self.rule.replayed_with(n, most_replayed))
        rows = self.batch.fill(x, y, self.replay, places, only_predicted=examined)
        if examined is not None:
            x, y = x[~examined], y[~examined]

        # The pass that learns also predicts, unless a new class or a dropout would make that another prediction.
        answered = self._outputs(rows.x[:n]) if news or not len(y) or not self.network.honest else None
        if answered is not None and not len(y):
            return Step(self.objective, n, 0, answered, answered, rows.x[:n], rows.labels[:n], None)
        told = None if answered is None else self.objective.masked(answered)
        if answered is not None and examined is not None:  # already answered: nobody's statistics need to see them
            rows = self.batch.fill(x, y, self.replay, places, only_predicted=None)

        if news:
            self._meet(x, y)
        self.objective.arrive(y)
        z = self._step(rows)
        new = z[: rows.n_new]
        if self.replay.n_logits:
            kept = new if examined is None or len(new) == len(y) else new[torch.from_numpy(~examined)]
            logits = self.objective.keepsake(kept).cpu().numpy()
            self.replay.offer(x, y, logits if self.rule.logits_at_arrival else np.full_like(logits, np.nan))
        else:
            self.replay.offer(x, y)
        self._observe(x)

        self.steps += 1
        self.learnt += len(y)
        if self.trigger.watches or self._passing is not None:
            self._look_at_new(rows, z)
        return Step(self.objective, n, len(y), z if told is None else told, z, rows.x, rows.labels, rows.share)

    def _descend(self, x: Tensor, labels: Tensor, share: Tensor | None, stored: Tensor | None, n_new: int) -> Tensor:
        """Outputs (B, C) for the rows, then one step down their mean loss, then one towards the anchor."""
        z = self.network.forward(x)
        self._down(Rows(x, labels, share, stored, n_new), z, self.rule.learning_rate)
        self.anchor.pull(self.rule.learning_rate * self.rule.ewc_lambda)
        return z

    def _down(self, rows: Rows, z: Tensor, learning_rate: float) -> None:
        """θ ← θ - η ∂loss/∂θ for the mean loss of the rows, each by its share, and what distillation adds to it."""
        delta, B = self.objective.delta(z, rows.x, rows.labels, rows.n_new), len(z)
        if rows.share is not None:
            delta.mul_(rows.share * B)
        if rows.stored is not None and self.rule.stored_logits:
            delta[rows.n_new :] += match_logits(z[rows.n_new :], rows.stored, self.rule.stored_logits).mul_(B)
        if self._teacher is not None and (taught := self._teacher.outputs(rows.x)) is not None:
            known, weight = self._teacher.known, self.rule.teacher * B
            delta += match_teacher(z, taught, known, weight, self.rule.temperature)
        if self._whole is None:
            self.network.descend(delta, learning_rate / B)
        else:
            self._whole.descend(self.network, delta.div_(B), learning_rate, rows.n_new)

    def consolidate(self, *, most_steps: int | None = None) -> int:
        """Make what was learnt last: rehearse the reservoir, measure the Fisher over it, move the anchor.

        If the trigger noticed a change, what is anchored is what was there before it, and the rehearsal comes after.
        Returns the steps that the rehearsal took, at most `most_steps` and the rule's. Nothing happens before the first
        step of learning.
        """
        if self.steps == 0:
            return 0
        live, before = self.network.arena.flat, self.trigger.before()
        self.trigger.done(self.labelled)
        if self.replay.undecided and int(self.seen.sum()) > 1 and self.replay.size >= LEAST:
            self._decide_bits()
        most = self.rule.rehearsal_steps if most_steps is None else min(most_steps, self.rule.rehearsal_steps)
        if before is None:
            rehearsed = self._rehearse(most)
            self._store_logits()
            self._move_anchor()
            return rehearsed
        if bool(live.isfinite().all()):
            now = live.clone()
            live.copy_(before)
            self._move_anchor()
            live.copy_(now)
        rehearsed = self._rehearse(most)
        self._store_logits()
        return rehearsed

    def _decide_bits(self) -> None:
        """Find out on the samples held how few bits a stored value may have, and keep as many more of them."""
        places = self.replay.shuffled()[:TRIED]
        x, y = self.replay.take(places), self.replay.labels[places].astype(np.int64)
        self.trials = try_bits(x, lambda decoded: self.losses(decoded, y), self.replay.layout)
        self.replay.repack(fewest(self.trials))

    def _move_anchor(self) -> None:
        """Anchor what the parameters are; if they have diverged, the anchor keeps what was known before."""
        if not bool(self.network.arena.flat.isfinite().all()):
            return
        self.anchor.consolidate(self._importance(), self.rule.gamma)
        if self._teacher is not None:
            self._teacher.known.copy_(self.seen)
        self._follow_anchor()
        self.consolidations += 1

    def _importance(self) -> Tensor:
        """How much each parameter matters (P,): the Fisher over the reservoir, or what it did on its way."""
        if self._whole is not None and self._whole.path is not None:
            return self._whole.path.take()
        if self._passing is not None:
            importance = self._passing / max(1, self._n_passed)
            self._passing.zero_()
            self._n_passed = 0
            return importance
        if self.replay.size == 0 or not self.rule.measures_fisher:
            return torch.zeros_like(self.network.arena.flat)
        generator = torch.Generator(self.device).manual_seed(int(self.rng.integers(2**63)))
        places = self.replay.shuffled()[: self.rule.fisher_samples]
        x, labels = self._there(self.replay.take(places)), self._there(self.replay.labels[places].astype(np.int64))
        return self.objective.fisher(self.network, x, labels, self.rule.fisher, generator)

    def _look_at_new(self, rows: Rows, z: Tensor) -> None:
        """What is known of new samples only while they pass: their loss, and where none are kept, their Fisher."""
        learnt = slice(rows.n_new) if rows.share is None else (rows.share[: rows.n_new, 0] > 0).nonzero().squeeze(1)
        z, x, labels = z[: rows.n_new][learnt], rows.x[: rows.n_new][learnt], rows.labels[: rows.n_new][learnt]
        if self.trigger.watches:
            loss = float(self.objective.losses(z, x, labels).mean())
            self.trigger.observe(loss, self.network.arena.flat, self.steps)
        if self._passing is not None and self.steps % PASSING == 0:
            generator = torch.Generator(self.device).manual_seed(int(self.rng.integers(2**63)))
            fisher = self.objective.fisher(self.network, x, labels, self.rule.fisher, generator)
            self._passing.add_(fisher, alpha=len(x))
            self._n_passed += len(x)

    def _follow_anchor(self) -> None:
        """Bring up to date what is derived from the anchor: teacher and rates."""
        if self._teacher is not None:
            self._teacher.become(self.anchor.theta)
        if self._whole is not None:
            self._whole.protect_by(self.anchor.fisher())

    def _rehearse(self, most: int) -> int:
        """A few passes over the reservoir with a rate that falls to zero, so that the snapshot is taken at rest.

        Returns the steps taken, at most `most`: a larger memory gets fewer passes, or a part of one.
        """
        if self.replay.size == 0:
            return 0
        cuts = -(-self.replay.size // self.rule.rehearsal_batch)
        n = min(most, cuts * self.rule.rehearsal_passes)
        passes = [np.array_split(self.replay.shuffled(), cuts) for _ in range(-(-n // cuts))]
        batches = [places for one in passes for places in one][:n]
        nothing = np.empty((0, *self.batch.shape), self.batch.dtype), np.empty(0, np.int64)
        for number, places in enumerate(batches):
            rows = self.batch.fill(*nothing, self.replay, places, only_predicted=None)
            z = self.network.forward(rows.x)
            self._down(rows, z, self.rule.learning_rate * (1 - number / n))
        return n

    def _store_logits(self) -> None:
        """Store what is answered now, at rest, beside every sample that came since: by now its class is known."""
        if self.replay.n_logits == 0 or self.rule.logits_at_arrival:
            return
        since = np.isnan(self.replay.logits[: self.replay.size]).all(1).nonzero()[0]
        for start in range(0, len(since), TRIED):
            places = since[start : start + TRIED]
            z = self._outputs(self._there(self.replay.take(places)))
            self.replay.store_logits(places, self.objective.keepsake(z).cpu().numpy())

    def _step(self, rows: Rows) -> Tensor:
        """`_descend`, on a GPU as one recorded piece: nothing in it waits for the host."""
        if self._recorded is None:
            return self._descend(rows.x, rows.labels, rows.share, rows.stored, rows.n_new)
        self.anchor.offset_for(self.rule.learning_rate * self.rule.ewc_lambda)  # brought up to date where it is read
        return self._recorded(rows.x, rows.labels, rows.share, rows.stored, key=rows.n_new)

    def _meet(self, x: NDArray[Any], y: NDArray[np.int64]) -> None:
        """What must be known of new samples before they are learnt: their classes; of the very first, their range."""
        self.objective.meet(y)
        if self.network.standardise.seen == 0:
            self.network.standardise.observe(self._there(x))

    def _observe(self, x: NDArray[Any]) -> None:
        """Take x into the input statistics; once they have settled, one step in eight does."""
        if self.steps and (self.network.standardise.seen < SETTLED or self.steps % 8 == 0):
            self.network.standardise.observe(self._there(x))

    def _outputs(self, x: Tensor) -> Tensor:
        """Outputs (B, C) for raw samples as when deployed."""
        if len(x) == 0:
            return torch.empty(0, self.network.n_outputs, device=self.device)
        with torch.inference_mode(), self.network.evaluating():
            return self.network.forward(x)

    @property
    def nbytes(self) -> int:
        """Bytes held: parameters, statistics, anchor, Fisher, replay, exam, batch, and what a user brought."""
        held = (self.network.arena, self.network.standardise, self.anchor, self.batch, self.replay, self.exam)
        optional = sum(part.nbytes for part in (self._teacher, self._whole, self._passing) if part is not None)
        optional += self.objective.nbytes + self.trigger.nbytes + self.brought_bytes
        return sum(part.nbytes for part in held) + optional + 2 * DRAWS_BYTES

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and plain values from which `restore` makes the same learner, bit for bit; live views on a CPU."""
        standardise, anchor = self.network.standardise, self.anchor
        arrays: Arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        values: dict[str, Any] = {
            "rng": self.rng.bit_generator.state,
            "counts": [self.labelled, self.learnt, self.steps, self.consolidations, standardise.seen],
            "anchor": [anchor.scale, anchor.evidence, anchor.turn],
            "passed": self._n_passed,
            "trials": [[trial.bits, trial.extra_loss, trial.error] for trial in self.trials],
        }
        held, values["trigger"] = self.trigger.state()
        arrays |= {f"trigger.{key}": array for key, array in held.items()}
        for name, reservoir in (("replay", self.replay), ("exam", self.exam)):
            held, values[name] = reservoir.state()
            arrays |= {f"{name}.{key}": array for key, array in held.items()}
        return arrays, values

    def restore(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """Become the learner whose state this is, with room for more classes if this one has it.

        The rows of new classes start as this learner's own did, and no anchor holds them. Raises ValueError, naming the
        array, for another model's state.
        """
        arrays = self._fitting(arrays)
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.from_numpy(arrays[name]))
        self.rng.bit_generator.state = values["rng"]
        self.labelled, self.learnt, self.steps, self.consolidations, self.network.standardise.seen = values["counts"]
        self.anchor.scale, self.anchor.evidence, turn = values["anchor"]
        self.anchor.turn = turn % self.anchor.n_slices
        self.network.standardise.refresh()
        self.objective.refresh()
        self._follow_anchor()
        self._n_passed, self.trials = values["passed"], [Trial(*numbers) for numbers in values["trials"]]
        for name, part in (("replay", self.replay), ("exam", self.exam), ("trigger", self.trigger)):
            part.restore(part_of(arrays, name), values[name])

    def _widened(self, arrays: Arrays) -> Arrays:
        n, theta = len(arrays["seen"]), self.network.arena.flat.cpu()
        rests = {
            "parameters": theta,
            "anchor.theta": theta.half(),
            "anchor.fisher_codes": torch.zeros(len(theta), dtype=self.anchor.codes.dtype),
        }
        return {
            name: self.network.widened(torch.from_numpy(arrays[name]), n, rest).numpy() for name, rest in rests.items()
        }

    def _tensors(self) -> dict[str, Tensor]:
        standardise = self.network.standardise
        return {
            "parameters": self.network.arena.flat,
            "anchor.theta": self.anchor.theta,
            "anchor.fisher_codes": self.anchor.codes,
            "standardise.mean": standardise.mean,
            "standardise.variance": standardise.variance,
            **self.objective.state,
            **({} if self._passing is None else {"passing": self._passing}),
            **({} if self._teacher is None else {"teacher.known": self._teacher.known}),
            **({} if self._whole is None else self._whole.state),
            **{f"network.{name}": tensor for name, tensor in self.network.extras.items()},
        }
