"""A learner inside somebody else's program: settings by keyword, labels of any type, late classes and features.

Knows assembly and the learner. Must not know scikit-learn or river: sklearn.py and river.py are made of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from edge_cl.assembly import blueprint_of, make_learner, plan_of, task_of
from edge_cl.config import Config, parse
from edge_cl.errors import OperatorError
from edge_cl.learning.online_learner import OnlineLearner
from firmware_bridge.sample import Schema

DEFAULT: Final = Config()  # as `edge-cl run` has it
CONSOLIDATE_EVERY: Final = DEFAULT.consolidation.every_steps * DEFAULT.learning.batch_size  # samples
KEYS: Final = {
    "width": "model.width",
    "learning_rate": "learning.learning_rate",
    "batch_size": "learning.batch_size",
    "replay_samples": "replay.samples",
    "replay_per_step": "replay.per_step",
    "ewc_lambda": "consolidation.ewc_lambda",
    "memory_bytes": "budget.memory_bytes",
}  # an adapter's parameter, and the setting of `edge-cl run` that it is
CHUNK = 256  # samples answered at once: a signal's activations stay within some megabytes

Arrays = dict[str, NDArray[Any]]


class Estimator:
    """A `Learner` of float32 samples (*shape), and the label that each of its outputs stands for.

    Both grow: a label never seen gets the next output, and `widen` makes room for more features. Pickled by
    `Learner.state`, so a copy goes on bit for bit.
    Raises ValueError, as every method may, if a parameter is wrong or the learner does not fit into memory_bytes.
    """

    def __init__(self, config: Config, shape: tuple[int, ...], *, consolidate_every: int, seed: int) -> None:
        if consolidate_every < 0:
            raise ValueError(f"consolidate_every: must be at least 0 samples (got {consolidate_every})")
        storage = config.storage.model_copy(update={"durability": "checkpoint"})  # nobody keeps a journal here
        self.config, self.shape, self.seed = config.model_copy(update={"storage": storage}), shape, seed
        self.consolidate_every, self.since = consolidate_every, 0  # samples, and those since the last consolidation
        self.outputs: dict[Hashable, int] = {}
        self.learner = self._made(shape, n_labels=0)

    def meet(self, labels: Iterable[Hashable]) -> None:
        """Give each label that is new the next output; a head too small for all of them is widened."""
        new = [label for label in dict.fromkeys(labels) if label not in self.outputs]
        n_labels = len(self.outputs) + len(new)
        if n_labels > self.learner.network.n_outputs:
            wide = self._made(self.shape, n_labels)
            wide.restore(*self.learner.state())
            self.learner = wide
        self.outputs |= {label: len(self.outputs) + index for index, label in enumerate(new)}

    def widen(self, n_features: int) -> None:
        """Take vectors of `n_features` from now on; those learnt so far count as having had 0 in the new places."""
        wide = self._made((n_features,), len(self.outputs))
        arrays, values = self.learner.state()
        wide.restore(_padded(self.learner, wide, arrays), values)
        self.learner, self.shape = wide, (n_features,)

    def learn(self, x: NDArray[np.float32], labels: Sequence[Hashable]) -> None:
        """Samples x (N, *shape) in their order, in steps of batch_size, the last one shorter; consolidates when due."""
        self.meet(labels)
        y, size = np.array([self.outputs[label] for label in labels], np.int64), self.config.learning.batch_size
        for start in range(0, len(y), size):
            rows = slice(start, start + size)
            self.learner.learn(x[rows], y[rows])
            self.since += len(y[rows])
            if self.consolidate_every and self.since >= self.consolidate_every:
                self.consolidate()

    def consolidate(self) -> None:
        """`Learner.consolidate`; the next one is due `consolidate_every` samples later."""
        self.learner.consolidate()
        self.since = 0

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (N, labels) of samples x (N, *shape), in the order of `outputs`."""
        chunks = [self.learner.predict(x[start : start + CHUNK]) for start in range(0, len(x), CHUNK)]
        return np.concatenate(chunks)[:, : len(self.outputs)]

    def _made(self, shape: tuple[int, ...], n_labels: int) -> OnlineLearner:
        """A learner that knows nothing, with as much room for classes as the daemon's, or more for that many labels."""
        schema = Schema("samples", "float32", shape, label_names=tuple(map(str, range(n_labels))))
        try:
            task = task_of(self.config, schema)
            blueprint = blueprint_of(self.config, task)
            return make_learner(self.config, task, blueprint, plan_of(self.config, task, blueprint), seed=self.seed)
        except OperatorError as exc:
            raise _as_value_error(exc) from exc

    def __getstate__(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name != "learner"}
        return {"plain": plain, "learner": self.learner.state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays, values = state["learner"]
        vars(self).update(state["plain"])
        self.learner = self._made(self.shape, len(self.outputs))
        # Copies: joblib may hand over pages of a file that must not be written to, and torch warns of such.
        self.learner.restore({name: np.array(array) for name, array in arrays.items()}, values)


def config_of(parameters: Mapping[str, object], settings: Sequence[str]) -> Config:
    """The Config of those of an adapter's parameters that are settings, with `settings` on top, as `edge-cl run -s`.

    No sample is set aside for an exam: who calls an adapter scores it himself. Raises ValueError, naming what is wrong.
    """
    named = [f"{key}={_yaml(parameters[name])}" for name, key in KEYS.items() if name in parameters]
    try:
        return parse("", overrides=[*named, *settings, "exam.share=0"])
    except OperatorError as exc:
        raise _as_value_error(exc) from exc


def _yaml(value: object) -> str:
    return "null" if value is None else str(value)


def _as_value_error(error: OperatorError) -> ValueError:
    """The same complaint in words of a Python program: its own names for settings, no command line."""
    text = f"{error} ({error.hint})".replace("-s: ", "")
    for name, key in KEYS.items():
        text = text.replace(key, name)
    return ValueError(text)


def _padded(narrow: OnlineLearner, wide: OnlineLearner, arrays: Arrays) -> Arrays:
    """The state of a learner of few features as one of more: what it would be had the others been 0 all along.

    What lies in the arena's order keeps the wide learner's own values in the new columns of the first layer; what has
    one value a feature gets 0 there.
    """
    few, many = narrow.replay.shape[0], wide.replay.shape[0]
    sizes = narrow.network.arena.flat.shape, wide.network.arena.flat.shape
    own, padded = wide.state()[0], dict(arrays)
    for name, array in arrays.items():
        if (array.shape, own[name].shape) == sizes:
            flat = torch.from_numpy(own[name].copy())
            theirs = narrow.network.arena.lay_over(torch.from_numpy(array))
            for key, part in wide.network.arena.lay_over(flat).items():
                part[..., : theirs[key].shape[-1]] = theirs[key]
            padded[name] = flat.numpy()
        elif (array.shape[-1:], own[name].shape[-1:]) == ((few,), (many,)):
            padded[name] = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, many - few)])
    return padded
