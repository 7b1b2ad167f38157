"""A learner without a learning rate: frozen features, and templates of the classes as the network's last layer.

Knows how a network, its templates and an exam meet. Must not know replay, gradients or anchors: there are none. It has
the methods of `Learner`, so that daemon and evaluation need not know which they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_cl.learning.backbone import Backbone
from edge_cl.learning.draws import DRAWS_BYTES
from edge_cl.learning.layers import Conv, Flatten, Linear, Shape
from edge_cl.learning.learner import SETTLED
from edge_cl.learning.model import KERNEL, Blueprint, choose_kind, mlp
from edge_cl.learning.network import Network
from edge_cl.learning.objective import Classification
from edge_cl.learning.online_learner import Arrays, OnlineLearner, part_of
from edge_cl.learning.pooling import LogVariancePool
from edge_cl.learning.prototypes import NearestMean
from edge_cl.learning.replay import Reservoir
from edge_cl.learning.rule import Rule
from edge_cl.learning.step import Step
from edge_cl.learning.trigger import Trigger

FIXED_AFTER = 100  # samples: random features of statistics that moved on would be others than those in the templates
NEWS = 0.01  # share of all samples that have come since the head was worked out; from here on it is again


def template_blueprint(shape: Shape, n_outputs: int, n_features: int) -> Blueprint:
    """The network under a template learner for raw samples of `shape`, its last layer left to the templates.

    With n_features = 0 the templates are of the standardised samples themselves. Else of random features that never
    learn: of a signal the loudness and level of `n_features` random filters, of anything else as many random
    projections, rectified (Rahimi & Recht 2008; for templates, McDonnell et al. 2023).
    """
    if n_features and choose_kind(shape) == "cnn1d":
        length, channels = shape if len(shape) == 2 else (*shape, 1)
        bank = Conv(channels, n_features, [KERNEL], stride=2, padding=KERNEL // 2)
        layers = [bank, LogVariancePool(), Linear(n_features, n_outputs)]
        return Blueprint("templates", shape, (length, channels), layers)
    return replace(mlp(shape, n_outputs, n_features, depth=1 if n_features else 0), kind="templates")


class TemplateLearner(OnlineLearner):
    """Class templates over frozen features; no learning rate, no replay, and nothing to forget.

    One step on labelled samples (x, y):

        f         ← the network's input to its last layer
        templates ← templates + (f, y)                     6 templates
        W, b      ← templates.logits_head(), when it is asked for

    No class unseen can win in a snapshot either: one logit of the others is at or above 0. Answers come from a head no
    older than 1 % of the samples learnt, and never from before a class was first seen; `consolidate` brings it up to
    date.

    Input statistics: templates of standardised samples are moved with them, exactly but for what lay beyond the
    standardisation's bound. For random features that cannot be done; they are fixed after FIXED_AFTER samples, and a
    channel that has not moved by then is taken to deviate as the others do in the mean, so that it can speak later.

    The random weights come from the network's seed and are held like all others: `nbytes` counts them.
    Raises ValueError if the templates are not of the last layer's shape.
    """

    def __init__(
        self,
        network: Network,
        templates: NearestMean,
        exam: Reservoir,
        rule: Rule,
        *,
        backbone: Backbone | None = None,
        seed: int = 0,
    ) -> None:
        head = network.layers[-1]
        assert isinstance(head, Linear)
        if templates.means.shape != head.shapes["weight"]:
            got = tuple(templates.means.shape)
            raise ValueError(f"templates: must be of shape {head.shapes['weight']}, as the last layer (got {got})")
        objective = Classification(network.n_outputs, network.arena.flat.device)
        none = Reservoir(0, network.blueprint.shape, exam.dtype, n_classes=network.n_outputs)
        trigger = Trigger("timer", rule.every_steps * rule.batch_size, network.arena.flat)
        super().__init__(network, none, exam, rule, objective, trigger, seed=seed, backbone=backbone)
        self.templates = templates
        self._head = head
        self._head.own["weight"].zero_()
        self._since = 0  # samples learnt since the head was worked out
        self._moves_along = all(isinstance(layer, Flatten) for layer in network.layers[:-1])

    def learn(self, x: NDArray[Any], y: NDArray[np.int64], *, most_replayed: int | None = None) -> Step:
        """Take labelled samples into the templates; a share of them goes to the exam instead and is never learnt from.

        Raises ValueError if a label is outside the network's outputs, or there is not one for each sample.
        """
        n = len(y)
        if len(x) != n:
            raise ValueError(f"y: must have a label for each of the {len(x)} samples (got {n})")
        news = self.objective.is_news(y)
        self.labelled += n
        examined = self._set_exam_aside(x, y)
        x = self.features(x)
        if examined is None:
            examined = np.zeros(n, dtype=np.bool_)
        if self.network.standardise.seen == 0 and not examined.all():
            self.network.standardise.observe(self._there(x[~examined]))
        rows, labels = self._there(x), self._there(y)
        z = self._outputs(rows)
        answered = self.objective.masked(z)
        taught = torch.from_numpy(~examined).to(self.device)
        learnt = int(taught.sum())
        if learnt:
            self._teach(rows[taught], self._head.x[taught], labels[taught], news)
        return Step(self.objective, n, learnt, answered, z[taught], rows[taught], labels[taught], None)

    def open_head(self, classes: Sequence[int]) -> None:
        """Templates of one task do not push those of another: nothing needs to be kept apart."""

    def consolidate(self, *, most_steps: int | None = None) -> int:
        """Bring the head up to date; there is nothing to rehearse. Nothing happens while nothing has been learnt."""
        if self.learnt:
            self.trigger.done(self.labelled)
            self._renew_head()
            self.consolidations += 1
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes held: parameters, frozen ones included, statistics, templates, exam, and what a user brought."""
        parts = (self.network.arena, self.network.standardise, self.templates, self.exam, self.replay)
        return sum(part.nbytes for part in parts) + self.objective.nbytes + 2 * DRAWS_BYTES + self.brought_bytes

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and plain values from which `restore` makes the same learner, bit for bit; live views on a CPU."""
        exam, exam_values = self.exam.state()
        arrays: Arrays = {
            **{name: tensor.cpu().numpy() for name, tensor in self._tensors().items()},
            **{f"templates.{name}": array for name, array in self.templates.state().items()},
            **{f"exam.{name}": array for name, array in exam.items()},
        }
        counts = [
            self.labelled,
            self.learnt,
            self.steps,
            self.consolidations,
            self.network.standardise.seen,
            self._since,
        ]
        values = {"rng": self.rng.bit_generator.state, "counts": counts, "exam": exam_values}
        return arrays, {**values, "trigger": self.trigger.state()[1]}

    def restore(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """Become the learner whose state this is, with room for more classes if this one has it.

        Raises ValueError, naming the array, for another model's state.
        """
        arrays = self._fitting(arrays)
        self.templates.restore(part_of(arrays, "templates"))
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.from_numpy(arrays[name]))
        self.rng.bit_generator.state = values["rng"]
        standardise = self.network.standardise
        (self.labelled, self.learnt, self.steps, self.consolidations, standardise.seen, self._since) = values["counts"]
        self.trigger.restore({}, values["trigger"])
        standardise.refresh()
        self.objective.refresh()
        self.exam.restore(part_of(arrays, "exam"), values["exam"])

    def _teach(self, x: Tensor, features: Tensor, labels: Tensor, news: bool) -> None:
        """Take features (B, D) of the samples x with labels (B,) into the templates, and x into the statistics."""
        self.templates.update(features, labels)
        if news:
            self.objective.meet(labels.cpu().numpy())
        self._observe(x)
        self.steps += 1
        self.learnt += len(labels)
        self._since = self.learnt if news else self._since + len(labels)

    def _observe(self, x: Tensor) -> None:
        """Take x into the input statistics; the very first samples are in them already.

        Once they have settled, one step in eight does, as with any learner.
        """
        seen = self.network.standardise.seen
        if self.steps == 0:
            return
        if not self._moves_along:
            if seen < FIXED_AFTER:
                self._observe_and_fix(x)
        elif seen < SETTLED or self.steps % 8 == 0:
            self._observe_and_rescale(x)

    def _observe_and_rescale(self, x: Tensor) -> None:
        """Take x into the statistics, and the templates along into the new unit of each feature."""
        standardise = self.network.standardise
        mean, rate = standardise.mean.clone(), standardise.inverse_deviation.clone()
        standardise.observe(x)
        factor = torch.where(rate > 0, standardise.inverse_deviation / rate, 0.0)
        offset = (mean - standardise.mean) * standardise.inverse_deviation
        self.templates.rescale(self._by_feature(factor), self._by_feature(offset))

    def _observe_and_fix(self, x: Tensor) -> None:
        """Take x into the statistics; after the last time, give a channel that never moved the others' variance."""
        standardise = self.network.standardise
        standardise.observe(x)
        moves = standardise.inverse_deviation > 0
        if standardise.seen >= FIXED_AFTER and bool(moves.any()):
            standardise.variance[~moves] = standardise.variance[moves].mean()
            standardise.refresh()

    def _by_feature(self, by_channel: Tensor) -> Tensor:
        """A value of each channel (C,) for each feature (D,) of a flattened sample."""
        channels, *positions = self.network.standardise.output_shape
        return by_channel.view(channels, *[1] * len(positions)).expand(channels, *positions).flatten()

    def _outputs(self, x: Tensor) -> Tensor:
        """Logits (B, C) for raw samples, from a head that is recent enough."""
        if len(x) == 0:
            return torch.empty(0, self.network.n_outputs, device=self.device)
        if self._since > NEWS * self.learnt:
            self._renew_head()
        return self.network.forward(x)

    def _renew_head(self) -> None:
        (W, b), known = self.templates.logits_head(), self.templates.counts > 0
        self._head.own["weight"][known] = W[known]
        self._head.own["bias"][known] = b[known]
        self._since = 0

    def _widened(self, arrays: Arrays) -> Arrays:
        n, theta = len(arrays["seen"]), self.network.arena.flat.cpu()
        return {"parameters": self.network.widened(torch.from_numpy(arrays["parameters"]), n, theta).numpy()}

    def _tensors(self) -> dict[str, Tensor]:
        standardise = self.network.standardise
        return {
            "parameters": self.network.arena.flat,
            "standardise.mean": standardise.mean,
            "standardise.variance": standardise.variance,
            **self.objective.state,
        }
