"""The scenarios: from a data set to the experiences of a stream, by class, by task, by domain, or in the file's order.

Knows what is learnt in which order and what it is scored on. Must not know learners or scores.

The three scenarios of van de Ven, Tuytelaars and Tolias 2022, Three types of incremental learning:

class     new labels in each experience; choose among all
task      the same experiences; choose among the labels of the experience, which is known
domain    the same labels in each; the values of a mark (subject, load), or pixel permutations, or rotations
stream    no experiences: the file from its first sample to its last

An order that means something is kept, for a sensor's samples are correlated in time: `stream` and a domain by mark play
the file's order. Class, task, permutations and rotations are drawn by the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import OperatorError
from edge_cl.evaluation.data import Dataset, Labels, mark_of
from edge_cl.evaluation.labels import noisy, unlabelled
from edge_cl.evaluation.stream import Experience, Stream, generator
from edge_cl.evaluation.transforms import is_image, n_positions, permuted, rotated
from edge_cl.evaluation.transitions import gradual, recurring
from firmware_bridge.sources.split import ordered

Kind = Literal["class", "task", "domain", "stream"]
Change = Callable[[NDArray[Any]], NDArray[Any]]

TRANSFORMED_TESTS = 2000  # test samples of each permutation or rotation, the same for all and for every seed
NAMED = 3  # labels: more are not named one by one


@dataclass(frozen=True)
class Scenario:
    """What is asked for; every number counts for each experience.

    experiences  how many equal ones; None: two labels each (one, where they are an odd number), or a value of a mark
    order        of class and task: labels as in 3,1,2,0, or random; those left out are left out. Of domain: a mark
    permutations, rotations    so many domains, each with its own fixed shuffle of the pixels, the first one, too; or
                 turned by 0°, 180°/N, 2·180°/N …
    limit        training samples of an experience: drawn by the seed where the order is; the first of a `stream`; the
                 first of each class in a domain by mark. Never every n-th: it would make neighbours in time less alike
    mixing       samples over which one experience goes over into the next
    recurring    how many times each experience comes back, with samples that are new
    noise, missing    part of the labels that are wrong, and that never come
    Raises OperatorError if parts of it exclude each other or a number is out of range.
    """

    kind: Kind
    experiences: int | None = None
    order: str | None = None
    permutations: int | None = None
    rotations: int | None = None
    limit: int | None = None
    mixing: int | None = None
    recurring: int | None = None
    noise: float = 0.0
    missing: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise _refusal("scenario", f"must be one of {', '.join(get_args(Kind))}", self.kind)
        for name in ("experiences", "permutations", "rotations", "limit", "mixing", "recurring"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise _refusal(name, "must be at least 1", number)
        for name in ("permutations", "rotations"):
            if getattr(self, name) is not None and self.kind != "domain":
                raise _refusal(name, "is for scenario domain", f"scenario {self.kind}")
        if self.kind == "stream":
            self._exclude("experiences", "order", "mixing", "recurring", why="is not for scenario stream, which is one")
        if self.kind == "task":
            self._exclude("mixing", why="is not for scenario task, where each sample's task is known")
        if self.kind == "domain":
            given = [name for name in ("order", "permutations", "rotations") if getattr(self, name) is not None]
            if len(given) != 1:
                rule = "must be told by one of: order (the name of a mark), permutations, rotations"
                raise _refusal("scenario domain", rule, " and ".join(given) or "none")
            if self.order is None:
                self._exclude("experiences", why=f"is for marks; {given[0]} says how many there are")

    @property
    def mark(self) -> str | None:
        """The mark whose values are the experiences, if it is one."""
        return self.order if self.kind == "domain" else None

    @property
    def held_out(self) -> float | None:
        """`load_dataset`'s part to hold out of a file without test split: nothing of a `stream`, its own default else.

        A `stream` is scored as it is played, and one with gaps would be another stream.
        """
        return 0.0 if self.kind == "stream" else None

    def _exclude(self, *names: str, why: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise _refusal(name, why, getattr(self, name))


def make_stream(data: Dataset, scenario: Scenario, *, seed: int) -> Stream:
    """The stream of a scenario; whatever is drawn is drawn from the seed, and never from a test split.

    Load the data by `load_dataset(source, test=scenario.held_out, within=scenario.mark)`. Raises OperatorError if the
    scenario does not fit the data.
    """
    makers = {"class": _by_class, "task": _by_class, "domain": _by_domain, "stream": _as_filed}
    stream = makers[scenario.kind](data, scenario, seed)
    if scenario.recurring is not None:
        stream = recurring(stream, scenario.recurring)
    if scenario.mixing is not None:
        stream = gradual(stream, scenario.mixing, seed=seed)
    if scenario.noise:
        stream = noisy(stream, scenario.noise, seed=seed)
    if scenario.missing:
        stream = unlabelled(stream, scenario.missing, seed=seed)
    return stream


def _as_filed(data: Dataset, scenario: Scenario, seed: int) -> Stream:
    return Stream([partial(_experience, data, data.name, np.arange(len(data.y))[: scenario.limit])])


def _by_class(data: Dataset, scenario: Scenario, seed: int) -> Stream:
    labels = _labels_in_order(data, scenario.order, seed)
    n = scenario.experiences or len(labels) // (2 if len(labels) % 2 == 0 else 1)
    makers = []
    for t, classes in enumerate(_equal_groups(labels, n, "labels")):
        rows = _drawn(np.flatnonzero(np.isin(data.y, classes)), scenario.limit, generator(seed, "rows", t))
        tests = np.flatnonzero(np.isin(data.test_y, classes))
        makers.append(partial(_experience, data, _class_names(data, classes), rows, tests))
    return Stream(makers)


def _by_domain(data: Dataset, scenario: Scenario, seed: int) -> Stream:
    if scenario.order is not None:
        return _by_mark(data, scenario, scenario.order)
    if scenario.permutations is not None:
        names, changes = _permutations(data, scenario.permutations, seed)
    else:
        assert scenario.rotations is not None
        names, changes = _rotations(data, scenario.rotations)
    tests = np.sort(_drawn(np.arange(len(data.test_y)), TRANSFORMED_TESTS, generator(0, "tests")))
    rows = [_drawn(np.arange(len(data.y)), scenario.limit, generator(seed, "rows", t)) for t in range(len(names))]
    parts = zip(names, rows, changes, strict=True)
    return Stream([partial(_experience, data, name, chosen, tests, change) for name, chosen, change in parts])


def _by_mark(data: Dataset, scenario: Scenario, name: str) -> Stream:
    mark = mark_of(data, name)
    values = np.unique(mark).tolist()
    groups = _equal_groups(values, scenario.experiences or len(values), f"values of {name}")
    test_mark = data.test_marks.get(name, np.empty(0, np.int64))
    tests = [np.flatnonzero(np.isin(test_mark, group)) for group in groups]
    known = all(len(rows) for rows in tests)  # else the test split is of others, and all of it tests every experience
    makers = []
    for group, own in zip(groups, tests, strict=True):
        rows = ordered(np.flatnonzero(np.isin(mark, group)), mark)
        rows = _first_of_each(rows, data.y[rows], scenario.limit)
        title = f"{name} {_span(list(map(str, group)))}"
        makers.append(partial(_experience, data, title, rows, own if known else None))
    return Stream(makers)


def _permutations(data: Dataset, n: int, seed: int) -> tuple[list[str], list[Change]]:
    positions = n_positions(data.x.shape[1:])
    if positions < 2:
        rule = f"needs samples with at least two positions (got shape {data.x.shape[1:]})"
        raise OperatorError(f"permutations: {rule}", hint="take another scenario")
    orders = [generator(seed, "permutation", t).permutation(positions) for t in range(n)]
    return [f"permutation {t + 1}" for t in range(n)], [partial(permuted, order=order) for order in orders]


def _rotations(data: Dataset, n: int) -> tuple[list[str], list[Change]]:
    if not is_image(data.x.shape[1:]):
        raise OperatorError(f"rotations: needs images (got shape {data.x.shape[1:]})", hint="take permutations")
    angles = [180 * t / n for t in range(n)]
    return [f"rotation {angle:g}°" for angle in angles], [partial(rotated, degrees=angle) for angle in angles]


def _experience(
    data: Dataset, name: str, rows: Labels, tests: Labels | None = None, change: Change = lambda x: x
) -> Experience:
    """The experience of these rows; `tests` None: all test samples, and the very array, so that nobody copies it."""
    test_x, test_y = (data.test_x, data.test_y) if tests is None else (data.test_x[tests], data.test_y[tests])
    y = data.y[rows]
    classes = tuple(np.unique(y).tolist())
    return Experience(name, change(data.x[rows]), y, change(test_x), test_y, classes)


def _labels_in_order(data: Dataset, order: str | None, seed: int) -> list[int]:
    known: list[int] = np.unique(data.y).tolist()
    if order is None:
        return known
    if order == "random":
        return [known[i] for i in generator(seed, "order").permutation(len(known))]
    words = [word.strip() for word in order.split(",")]
    labels = [int(word) for word in words if word.isascii() and word.isdigit()]
    if len(labels) != len(words) or len(set(labels)) != len(labels) or not set(labels) <= set(known):
        rule = f"must be random, or labels of {data.name}, each at most once ({_span(list(map(str, known)))})"
        raise _refusal("order", rule, order)
    return labels


def _equal_groups(values: list[int], n: int, what: str) -> list[list[int]]:
    if len(values) % n:
        rule = f"must divide the {len(values)} {what} into equal parts"
        good = ", ".join(str(m) for m in range(1, len(values) + 1) if len(values) % m == 0)
        raise OperatorError(f"experiences: {rule} (got {n})", hint=f"{good} would do")
    size = len(values) // n
    return [values[start : start + size] for start in range(0, len(values), size)]


def _drawn(rows: Labels, limit: int | None, rng: np.random.Generator) -> Labels:
    return rng.permutation(rows)[:limit]


def _first_of_each(rows: Labels, labels: Labels, limit: int | None) -> Labels:
    """At most `limit` rows, in order: of each class the first, in proportion to what there is of it.

    A recording is often laid out class after class, so its first rows alone would hold a few classes only.
    """
    if limit is None or limit >= len(rows):
        return rows
    place = np.empty(len(rows))
    for label in np.unique(labels):
        own = labels == label
        place[own] = (np.arange(own.sum()) + 0.5) / own.sum()
    return rows[np.sort(np.argsort(place, kind="stable")[:limit])]


def _class_names(data: Dataset, classes: list[int]) -> str:
    return _span([data.label_names[label] for label in classes])


def _span(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= NAMED else f"{names[0]} … {names[-1]}"


def _refusal(name: str, rule: str, got: object) -> OperatorError:
    return OperatorError(f"{name}: {rule} (got {got})", hint="`edge-cl evaluate --help` tells what goes together")
