"""The learner as a scikit-learn classifier. Knows scikit-learn's conventions; what learns is estimator.py's."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from edge_cl.estimator import CONSOLIDATE_EVERY, DEFAULT, Estimator, config_of
from edge_cl.learning.online_learner import OnlineLearner

PASSES = 10  # of `fit`


class EdgeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """An incremental classifier that does not forget: experience replay and online EWC in a fixed number of bytes.

    `partial_fit` is one pass in the order given, as the daemon learns. `fit` begins anew and makes `passes` passes,
    each in a random order, with a consolidation at the end.

    Parameters (the defaults, where the daemon has them, are those of `edge-cl run`; config.yaml says what each costs)
    ----------
    width : units of each hidden layer, or channels with `sample_shape`.
    learning_rate : step size of plain gradient descent.
    batch_size : new samples in a step.
    replay_samples : old samples kept; None: as many as memory_bytes holds.
    replay_per_step : old samples in each step.
    ewc_lambda : strength of the pull towards the anchor; 0: none.
    consolidate_every : samples from one consolidation to the next; 0: only at the end of `fit`.
    memory_bytes : bytes for all learner state, a number or a text such as "8 MiB".
    passes : passes of `fit`.
    sample_shape : None: a row is a vector of features in no order, for an MLP; a shape such as (128, 9) or (28, 28): a
        row is a flattened signal or image of that shape, for a convolutional network.
    settings : any other setting, as `edge-cl run -s` takes it, such as ("consolidation.gamma=0.9",).
    random_state : None, an int or a RandomState; an int makes every result repeatable.

    Attributes
    ----------
    classes_ : labels known so far, sorted: the columns of `predict_proba`. `partial_fit` may add to them.
    n_features_in_ : features of a row.
    feature_names_in_ : their names, if X had some.
    learner_ : the `Learner` itself: `learner_.nbytes`, `learner_.replay`.
    """

    def __init__(
        self,
        *,
        width: int = DEFAULT.model.width,
        learning_rate: float = DEFAULT.learning.learning_rate,
        batch_size: int = DEFAULT.learning.batch_size,
        replay_samples: int | None = DEFAULT.replay.samples,
        replay_per_step: int = DEFAULT.replay.per_step,
        ewc_lambda: float = DEFAULT.consolidation.ewc_lambda,
        consolidate_every: int = CONSOLIDATE_EVERY,
        memory_bytes: int | str = DEFAULT.budget.memory_bytes,
        passes: int = PASSES,
        sample_shape: tuple[int, ...] | None = None,
        settings: tuple[str, ...] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.width = width
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.replay_samples = replay_samples
        self.replay_per_step = replay_per_step
        self.ewc_lambda = ewc_lambda
        self.consolidate_every = consolidate_every
        self.memory_bytes = memory_bytes
        self.passes = passes
        self.sample_shape = sample_shape
        self.settings = settings
        self.random_state = random_state

    @property
    def learner_(self) -> OnlineLearner:
        """The learner, once there is one."""
        return self._estimator.learner

    def fit(self, X: ArrayLike, y: ArrayLike) -> EdgeClassifier:
        """Begin anew with samples X (N, D) and labels y (N,). Raises ValueError if they are not such."""
        if self.passes < 1:
            raise ValueError(f"passes: must be at least 1 (got {self.passes})")
        rows, labels = self._checked(X, y, reset=True)
        rng = self._begin()
        self._meet(unique_labels(labels))
        for _ in range(self.passes):
            order = rng.permutation(len(labels))
            self._estimator.learn(self._samples(rows[order]), labels[order].tolist())
        self._estimator.consolidate()
        return self

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> EdgeClassifier:
        """Go on with samples X (N, D) and labels y (N,), once and in their order.

        `classes` may name labels before they come, at any call; labels of y that are new need no announcement.
        Raises ValueError if `classes` is given and lacks a label of y.
        """
        first = not hasattr(self, "classes_")
        rows, labels = self._checked(X, y, reset=first)
        known = labels if classes is None else np.asarray(classes)
        strangers = np.setdiff1d(labels, known)
        if len(strangers):
            raise ValueError(f"classes: must name every label of y, {strangers.tolist()} not among them")
        if first:
            self._begin()
        self._meet(unique_labels(known) if first else unique_labels(self.classes_, known))
        self._estimator.learn(self._samples(rows), labels.tolist())
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probabilities (N, C) in the order of `classes_`; 0 for a class that was announced and has not come yet."""
        check_is_fitted(self, "classes_")
        rows = validate_data(self, X, dtype=np.float32, reset=False)
        outputs = [self._estimator.outputs[label] for label in self.classes_.tolist()]
        return self._estimator.predict(self._samples(rows))[:, outputs]

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable label (N,) of each row."""
        p = self.predict_proba(X)
        labels: NDArray[Any] = self.classes_[p.argmax(1)]
        return labels

    def _begin(self) -> np.random.RandomState:
        """A learner that knows nothing; the generator its seed came from."""
        rng: np.random.RandomState = check_random_state(self.random_state)
        kind = ("model.kind=mlp",) if self.sample_shape is None else ()
        shape = (self.n_features_in_,) if self.sample_shape is None else tuple(self.sample_shape)
        if prod(shape) != self.n_features_in_:
            raise ValueError(f"sample_shape: must hold the {self.n_features_in_} features of a row (got {shape})")
        config = config_of(vars(self), (*kind, *(self.settings or ())))
        seed = int(rng.randint(np.iinfo(np.int32).max))
        self._estimator = Estimator(config, shape, consolidate_every=self.consolidate_every, seed=seed)
        return rng

    def _meet(self, classes: NDArray[Any]) -> None:
        self._estimator.meet(classes.tolist())
        self.classes_ = classes

    def _checked(self, X: ArrayLike, y: ArrayLike, *, reset: bool) -> tuple[NDArray[np.float32], NDArray[Any]]:
        rows, labels = validate_data(self, X, y, dtype=np.float32, reset=reset)
        check_classification_targets(labels)
        return rows, labels

    def _samples(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return rows.reshape(-1, *self._estimator.shape)
