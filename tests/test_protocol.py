"""Test, then train: what is asked when, against a simulation sample by sample, and through a real learner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import LABELS, features

from edge_cl import assembly, config
from edge_cl.evaluation import protocol
from edge_cl.evaluation.data import Dataset
from edge_cl.evaluation.labels import noisy
from edge_cl.evaluation.run import Run
from edge_cl.evaluation.scoring import PROBE, Scoring
from edge_cl.evaluation.stream import UNLABELLED, Experience
from edge_cl.evaluation.streams import Scenario, make_stream
from edge_cl.learning.learner import Learner
from firmware_bridge.sample import Schema

Stream = Sequence[Experience]


class Rote:
    """Knows by heart the last `room` samples it learnt, and after a consolidation only the last half of them.

    What it answers can be worked out by hand; it keeps count of what it was asked to do.
    """

    def __init__(self, room: int, n_classes: int, every: int = 0) -> None:
        self.room, self.n_classes, self.every = room, n_classes, every
        self.heads: list[tuple[int, ...]] = []
        self.known: list[tuple[int, int]] = []
        self.batches: list[list[int]] = []
        self.steps = self.consolidations = 0
        self.replay = SimpleNamespace(nbytes=7, size=3, bits=None)
        self.trials: list[Any] = []
        self.nbytes = 11

    def predict(self, x: np.ndarray) -> np.ndarray:
        answers, p = dict(self.known), np.zeros((len(x), self.n_classes), np.float32)
        for row, key in enumerate(x[:, 0].tolist()):
            if key in answers:
                p[row, answers[key]] = 1
        return p

    def learn(self, x: np.ndarray, y: np.ndarray) -> SimpleNamespace:
        self.batches.append(x[:, 0].tolist())
        self.known = [*self.known, *zip(x[:, 0].tolist(), y.tolist(), strict=True)][-self.room :]
        self.steps += 1
        return SimpleNamespace(learnt=len(y))

    @property
    def is_due(self) -> bool:
        return self.every > 0 and self.steps % self.every == 0

    def open_head(self, classes: tuple[int, ...]) -> None:
        self.heads.append(classes)

    def consolidate(self) -> None:
        self.known = self.known[len(self.known) // 2 :]
        self.consolidations += 1


def quiz(lengths: Sequence[int], *, seed: int = 0, missing: float = 0.0, keys: int = 6) -> list[Experience]:
    """Experiences that ask for the labels of a few keys each; the same key has the same label in all of them."""
    rng = np.random.default_rng(seed)
    stream = []
    for t, length in enumerate(lengths):
        x = rng.integers(t * 3, t * 3 + keys, length)
        y = np.where(rng.random(length) < missing, UNLABELLED, x % 4)
        test = np.arange(t * 3, t * 3 + keys)
        stream.append(Experience(str(t), x[:, None], y, test[:, None], test % 4, (0, 1, 2, 3)))
    return stream


def is_round(n: int) -> bool:
    return str(n)[0] in "125" and set(str(n)[1:]) <= {"0"}


def simulated(stream: Stream, rote: Rote, *, batch_size: int, every: int, delay: int) -> dict[str, Any]:
    """The protocol in the words of its definition, one sample at a time."""
    samples = [(t, int(x[0]), int(y)) for t, each in enumerate(stream) for x, y in zip(each.x, each.y, strict=True)]
    hits: list[bool] = []
    matrix, curve, batch, no_change = [], [], [], 0
    steps = switched = consolidated = 0
    last_label = -1

    def right(key: int, label: int) -> float:
        known = dict(rote.known)
        return float(known[key] == label) if key in known else 0.25

    def asked(t: int) -> float:
        return float(
            np.mean([right(int(x[0]), int(y)) for x, y in zip(stream[t].test_x, stream[t].test_y, strict=True)])
        )

    def probe(n: int, t: int) -> None:
        point = (n, [asked(i) if i <= t else None for i in range(len(stream))])
        if not curve or curve[-1] != point:
            curve.append(point)

    def learn(n: int, t: int) -> None:
        nonlocal steps, consolidated
        rote.learn(np.array([[key] for key, _ in batch]), np.array([label for _, label in batch]))
        batch.clear()
        steps += 1
        if every and steps % every == 0:
            rote.consolidate()
            consolidated = steps
        if is_round(steps - switched):
            probe(n, t)

    for n, (t, key, label) in enumerate([*samples, *[(len(stream) - 1, -1, UNLABELLED)] * delay]):
        if n < len(samples):
            while len(matrix) < t:
                probe(n, len(matrix))
                matrix.append([asked(i) for i in range(len(stream))])
                switched = steps
            if label != UNLABELLED:
                hits.append(dict(rote.known).get(key) == label)
                no_change += last_label == label
        if n >= delay and samples[n - delay][2] != UNLABELLED:
            last_label = samples[n - delay][2]
            batch.append(samples[n - delay][1:])
            if len(batch) == batch_size:
                learn(min(n + 1, len(samples)), t)
    if batch:
        learn(len(samples), len(stream) - 1)
    if steps > consolidated:
        rote.consolidate()
    while len(matrix) < len(stream):
        probe(len(samples), len(matrix))
        matrix.append([asked(i) for i in range(len(stream))])
        switched = steps
    return {"matrix": matrix, "curve": curve, "hits": hits, "no_change": no_change}


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(0, 12),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_a_run_is_what_its_definition_says(
    lengths: list[int], batch_size: int, every: int, delay: int, missing: float, seed: int
) -> None:
    stream = quiz(lengths, seed=seed, missing=missing)
    rotes = [Rote(5, 4, every), Rote(5, 4, every)]
    wanted = simulated(stream, rotes[0], batch_size=batch_size, every=every, delay=delay)
    run = protocol.run(
        stream, lambda _: rotes[1], scenario="domain", seed=seed, batch_size=batch_size,
        label_delay=delay,
    )  # fmt: skip
    assert rotes[0].batches == rotes[1].batches
    assert run.accuracy_matrix == wanted["matrix"]
    assert run.curve == wanted["curve"]
    assert run.untrained == [0.25] * len(lengths)
    assert run.samples == sum(lengths)
    assert run.consolidations == rotes[0].consolidations
    hits, labelled = wanted["hits"], len(wanted["hits"])
    assert run.prequential_accuracy == (sum(hits) / labelled if labelled else None)
    assert run.no_change == (wanted["no_change"] / labelled if labelled else None)
    if not missing and sum(lengths) < protocol.CURVE_POINTS:
        assert run.prequential_curve == [(n, pytest.approx(np.mean(hits[:n]))) for n in range(1, labelled + 1)]


def by_hand(delay: int) -> Run:
    """Two experiences, of the samples 0, 1 and 2, 3, each its own label; learnt one by one, two remembered."""
    stream = [
        Experience(str(t), x[:, None], x, x[:, None], x, tuple(x.tolist()))
        for t, x in enumerate(np.arange(4).reshape(2, 2))
    ]
    return protocol.run(
        stream, lambda _: Rote(2, 4), scenario="class", seed=0, batch_size=1, label_delay=delay,
    )  # fmt: skip


def test_figures_by_hand() -> None:
    """The consolidation at the end leaves the last sample only; where nothing is known a guess among four counts."""
    run = by_hand(0)
    assert run.untrained == [0.25, 0.25]
    assert run.accuracy_matrix == [[1.0, 0.25], [0.25, 0.625]]
    assert run.curve == [
        (1, [0.625, None]),
        (2, [1.0, None]),
        (3, [0.625, 0.625]),
        (4, [0.25, 1.0]),
        (4, [0.25, 0.625]),
    ]
    assert run.lowest_old_accuracy == 0.25
    assert (run.prequential_accuracy, run.no_change, run.majority) == (0.0, 0.0, 0.0)
    assert (run.samples, run.consolidations, run.replay_bytes, run.replay_samples, run.learner_bytes) == (
        4,
        1,
        7,
        3,
        11,
    )
    late = by_hand(2)
    assert late.accuracy_matrix[0] == [0.25, 0.25]  # no label of the first has come
    assert late.accuracy_matrix[1] == [0.25, 0.625]


def test_figures_are_plain_values() -> None:
    run = by_hand(1)
    plain = json.loads(json.dumps(asdict(run), allow_nan=False))
    again = replace(
        Run(**plain),
        curve=[(n, row) for n, row in plain["curve"]],
        prequential_curve=[(n, accuracy) for n, accuracy in plain["prequential_curve"]],
    )
    assert again == run


def test_baselines_get_their_labels_as_late_as_the_learner() -> None:
    y = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    stream = [Experience("a", y[:, None], y, y[:0, None], y[:0], (0, 1))]
    figures = []
    for delay in (0, 2):
        run = protocol.run(
            stream, lambda _: Rote(9, 2), scenario="stream", seed=0, batch_size=4,
            label_delay=delay,
        )  # fmt: skip
        figures.append((run.no_change, run.majority))
        assert (run.accuracy_matrix, run.untrained, run.curve) == ([[None]], [None], [])
        assert run.lowest_old_accuracy is None
    # at once:      no change   - 0 0 0 1 1 1 1,  majority   - 0 0 0 0 0 0 1
    # two later:    no change   - - - 0 0 0 1 1,  majority   - - - 0 0 0 0 0   (a tie goes to the lower label)
    assert figures == [(5 / 8, 2 / 8), (1 / 8, 1 / 8)]


def test_a_known_task_narrows_the_choice_and_ends_a_batch() -> None:
    """A learner that always prefers class 0 is right about class 1 where 0 cannot be chosen."""

    class Biased(Rote):
        def predict(self, x: np.ndarray) -> np.ndarray:
            return np.tile(np.float32([0.4, 0.3, 0.2, 0.1]), (len(x), 1))

    def stream() -> list[Experience]:
        x = np.array([0, 1, 0]), np.array([2, 3, 3])
        return [Experience("", part[:, None], part, part[:, None], part, tuple(np.unique(part).tolist())) for part in x]

    free, known = Biased(9, 4), Biased(9, 4)
    runs = [
        protocol.run(stream(), lambda _, rote=rote: rote, scenario=kind, seed=0, batch_size=2)
        for kind, rote in (("class", free), ("task", known))
    ]
    assert free.batches == [[0, 1], [0, 2], [3, 3]]
    assert known.batches == [[0, 1], [0], [2, 3], [3]]
    assert runs[0].accuracy_matrix[-1] == [pytest.approx(2 / 3), 0.0]
    assert runs[1].accuracy_matrix[-1] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert runs[0].prequential_accuracy == pytest.approx(2 / 6)
    assert runs[1].prequential_accuracy == pytest.approx(3 / 6)


def test_a_task_of_which_nothing_is_known_is_worth_a_guess() -> None:
    stream = quiz([4])
    rote = Rote(9, 4)
    assert Scoring(stream, task_known=False).accuracies(rote) == [0.25]
    tasks = [replace(stream[0], classes=(1, 2)), replace(stream[0], classes=(3,))]
    assert Scoring(tasks, task_known=True).accuracies(rote) == [0.5, 1.0]


def test_the_same_test_samples_are_answered_once_for_all() -> None:
    class Counting(Rote):
        asked = 0

        def predict(self, x: np.ndarray) -> np.ndarray:
            self.asked += len(x)
            return super().predict(x)

    shared = np.arange(2 * PROBE)[:, None]
    y = shared[:, 0] % 4
    stream = [Experience(str(t), shared[:5], y[:5], shared, y, (0, 1, 2, 3)) for t in range(3)]
    rote = Counting(5, 4)
    scoring = Scoring(stream, task_known=False)
    assert len(set(scoring.accuracies(rote))) == 1
    assert rote.asked == 2 * PROBE
    first, second, third = scoring.probed(rote, 2)
    assert rote.asked == 3 * PROBE
    assert first == second
    assert third is None


# A real learner


def data(n: int = 600) -> Dataset:
    x, y = features(n + 150)
    return Dataset("made-up", x[:n], y[:n], x[n:], y[n:], LABELS, {}, {})


def make_learner(seed: int) -> Learner:
    chosen = config.parse("", overrides=["replay.samples=60", "model.width=16", "consolidation.every_steps=16"])
    x, _ = features(1)
    task = assembly.task_of(chosen, Schema("made-up", "float32", x.shape[1:], label_names=LABELS))
    blueprint = assembly.blueprint_of(chosen, task)
    return assembly.make_learner(chosen, task, blueprint, assembly.plan_of(chosen, task, blueprint), seed=seed)


def test_a_real_learner_is_scored_as_by_a_loop_over_its_samples() -> None:
    stream = noisy(make_stream(data(), Scenario("class"), seed=1), 0.0, seed=1)
    run = protocol.run(stream, make_learner, scenario="class", seed=1, batch_size=10)
    learner, hits, matrix, batch = make_learner(1), [], [], []
    for experience in stream:
        for x, y in zip(experience.x, experience.y, strict=True):
            p = learner.predict(x[None])[0]
            hits.append(bool(p.any() and p.argmax() == y))
            batch.append((x, y))
            if len(batch) == 10:
                learner.learn(np.stack([x for x, _ in batch]), np.array([y for _, y in batch]))
                batch.clear()
                if learner.steps % 16 == 0:
                    learner.consolidate()
        if len(hits) == 600:  # 60 steps: nothing waits
            learner.consolidate()
        matrix.append([float((learner.predict(e.test_x).argmax(1) == e.test_y).mean()) for e in stream])
    assert run.prequential_accuracy == sum(hits) / len(hits)
    assert run.accuracy_matrix == matrix
    assert (run.replay_bytes, run.learner_bytes) == (learner.replay.nbytes, learner.nbytes)
    assert run.replay_samples == learner.replay.size == 60
    assert run.consolidations == learner.consolidations
    assert run.untrained == pytest.approx([1 / 3] * 3)
    assert run.compute_s > 0
    again = protocol.run(stream, make_learner, scenario="class", seed=1, batch_size=10)
    assert replace(again, compute_s=run.compute_s) == run


def test_a_real_learner_learns_a_stream_and_tells_how_far_it_is() -> None:
    heard: list[int] = []
    run = protocol.run(
        make_stream(data(), Scenario("stream"), seed=0), make_learner, scenario="stream", seed=0, batch_size=10,
        on_samples=heard.append,
    )  # fmt: skip
    assert run.accuracy_matrix[0][0] is not None
    assert run.accuracy_matrix[0][0] > 0.95
    assert run.prequential_accuracy is not None
    assert run.majority is not None
    assert run.prequential_accuracy > run.majority + 0.3
    assert heard == list(range(10, 601, 10))
