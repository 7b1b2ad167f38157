"""The learner as a river classifier. Knows river's conventions and dicts of features; what learns is estimator.py's."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river.base import Classifier

from edge_cl.estimator import CONSOLIDATE_EVERY, DEFAULT, Estimator, config_of

Features = dict[Hashable, Any]
# Features have no order to be convolved over, and one new sample alone has no class beside it to be told from.
OWN_SETTINGS = ("model.kind=mlp", "replay.asymmetric=false")
LARGEST = float(np.finfo(np.float32).max)


class RiverClassifier(Classifier):
    """An incremental classifier that does not forget: experience replay and online EWC in a fixed number of bytes.

    Each `learn_one` is a learning step of its own, one new sample beside `replay_per_step` old ones, so that the next
    answer knows of it. A feature has its own input from the day it first comes: it counts as 0 in every sample
    before that, and in every later one that lacks it. A feature that was never learnt is ignored in a prediction.

    Parameters (the defaults are those of `edge-cl run`; config.yaml says what each costs)
    ----------
    width
        Units of each hidden layer.
    learning_rate
        Step size of plain gradient descent.
    replay_samples
        Old samples kept; None: as many as memory_bytes holds.
    replay_per_step
        Old samples in each step.
    ewc_lambda
        Strength of the pull towards the anchor; 0: none.
    consolidate_every
        Samples from one consolidation to the next; 0: none.
    memory_bytes
        Bytes for all learner state, a number or a text such as "8 MiB".
    settings
        Any other setting, as `edge-cl run -s` takes it, such as ("consolidation.gamma=0.9",).
    seed
        An int makes every result repeatable.
    """

    def __init__(
        self,
        width: int = DEFAULT.model.width,
        learning_rate: float = DEFAULT.learning.learning_rate,
        replay_samples: int | None = DEFAULT.replay.samples,
        replay_per_step: int = DEFAULT.replay.per_step,
        ewc_lambda: float = DEFAULT.consolidation.ewc_lambda,
        consolidate_every: int = CONSOLIDATE_EVERY,
        memory_bytes: int | str = DEFAULT.budget.memory_bytes,
        settings: tuple[str, ...] | None = None,
        seed: int | None = None,
    ) -> None:
        self.width = width
        self.learning_rate = learning_rate
        self.replay_samples = replay_samples
        self.replay_per_step = replay_per_step
        self.ewc_lambda = ewc_lambda
        self.consolidate_every = consolidate_every
        self.memory_bytes = memory_bytes
        self.settings = settings
        self.seed = seed
        self._places: dict[Hashable, int] = {}  # of the features, in the order in which they came
        self._estimator: Estimator | None = None

    @property
    def _multiclass(self) -> bool:
        return True

    def learn_one(self, x: Features, y: Hashable) -> None:
        """One step on the features x and their label y. Raises ValueError if a feature is no finite number."""
        numbers = {key: _number(key, value) for key, value in x.items()}
        estimator = self._room_for(numbers)
        estimator.learn(self._row(numbers), [y])

    def predict_proba_one(self, x: Features, **kwargs: Any) -> dict[Any, float]:
        """The probability of each label that has come; none before the first. Raises ValueError as `learn_one`."""
        if self._estimator is None:
            return {}
        p = self._estimator.predict(self._row({key: _number(key, x[key]) for key in x})).astype(np.float64)[0]
        return dict(zip(self._estimator.outputs, (p / (p.sum() or 1.0)).tolist(), strict=True))

    @property
    def _raw_memory_usage(self) -> int:
        """Bytes: river's own count, which cannot see what torch holds, and the learner's."""
        return super()._raw_memory_usage + (self._estimator.learner.nbytes if self._estimator else 0)

    def _room_for(self, features: Iterable[Hashable]) -> Estimator:
        """The estimator, with an input for each of the features; those that come together get theirs in one order."""
        new = sorted(set(features) - self._places.keys(), key=repr)
        n_features = max(1, len(self._places) + len(new))
        if self._estimator is None:
            config = config_of(vars(self), (*OWN_SETTINGS, *(self.settings or ())))
            seed = int(np.random.default_rng(self.seed).integers(2**31))
            self._estimator = Estimator(config, (n_features,), consolidate_every=self.consolidate_every, seed=seed)
        elif new:
            self._estimator.widen(n_features)
        self._places |= {key: len(self._places) + index for index, key in enumerate(new)}
        return self._estimator

    def _row(self, numbers: dict[Hashable, float]) -> NDArray[np.float32]:
        """Features as one sample (1, D)."""
        row = np.zeros((1, max(1, len(self._places))), np.float32)
        for key, number in numbers.items():
            if key in self._places:
                row[0, self._places[key]] = number
        return row


def _number(key: Hashable, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise ValueError(f"{key}: must be a finite number (got {value!r})")
    return number
