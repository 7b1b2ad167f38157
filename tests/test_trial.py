"""One model against another on the same samples: what is clearly worse is found, what is chance is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.publishing.agreement import TAILS, Agreement
from edge_cl.publishing.trial import LEAST_LIVE, Trial, clearly_worse, losses


def answers(predicted: np.ndarray, n_classes: int = 4) -> np.ndarray:
    return np.eye(n_classes, dtype=np.float32)[predicted]


def test_losses_are_of_what_only_one_of_the_two_knows() -> None:
    y = np.array([0, 1, 2, 3])
    newer, older = answers(np.array([0, 1, 0, 0])), answers(np.array([0, 0, 2, 1]))
    assert losses(newer, older, y).tolist() == [0, -1, 1, 0]
    scores = np.array([[5.0, 1.0]], np.float32), np.array([[9.0, 0.25]], np.float32)
    assert losses(*scores, None).tolist() == [0.75]


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ([0.0] * 100, False),
        ([1.0] * 9, False),  # too few to say
        ([1.0] * 10, True),
        ([1.0] * 30 + [0.0] * 70, True),
        ([1.0] * 30 + [-1.0] * 30, False),
        ([-1.0] * 50, False),
        ([1.0] + [0.0] * 99, False),
    ],
)
def test_clearly_worse(lost: list[float], expected: bool) -> None:
    assert clearly_worse(np.array(lost)) is expected


def test_chance_alone_seldom_makes_worse() -> None:
    rng = np.random.default_rng(0)
    found = [clearly_worse(rng.choice([-1.0, 0.0, 1.0], 100, p=[0.1, 0.8, 0.1])) for _ in range(2000)]
    assert np.mean(found) < 0.004  # 3 standard errors, one side: 0.0013


def test_a_trial_finds_the_worse_model_and_lets_an_equal_one_be() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(400, 2)), rng.integers(0, 4, 400)

    def knows(share: float, seed: int):  # type: ignore[no-untyped-def]
        draws = np.random.default_rng(seed)
        return lambda rows: answers(np.where(draws.random(len(rows)) < share, current_y, (current_y + 1) % 4))

    verdicts = []
    for newer_share in (0.9, 0.5):
        trial, verdict, n = Trial(knows(newer_share, 2), knows(0.9, 3), 200), None, 0
        while verdict is None:
            current_y = y[n : n + 10]
            verdict, n = trial.judge(x[n : n + 10], current_y), n + 10
        verdicts.append((verdict, n))
    assert verdicts[0] == ("good", 200)
    assert verdicts[1][0] == "bad"
    assert LEAST_LIVE <= verdicts[1][1] < 120


def unrelated(n: int, n_classes: int, seed: int = 0) -> Agreement:
    rng, agreement = np.random.default_rng(seed), Agreement()
    for predicted, label in rng.integers(0, n_classes, (n, 2)):
        agreement.add(int(predicted), int(label))
    return agreement


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(0, 99))
def test_shuffled_labels_are_found_within_the_shortest_tail(n_classes: int, seed: int) -> None:
    assert unrelated(TAILS[0], n_classes, seed).at_odds(0.97) in (0, TAILS[0])
    found = [unrelated(TAILS[0], n_classes, 100 * seed + more).at_odds(0.97) for more in range(10)]
    assert sum(n > 0 for n in found) >= 7  # unrelated labels agree too well one time in forty


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(0, 99))
def test_a_learner_that_is_as_good_as_expected_is_never_at_odds(n_classes: int, seed: int) -> None:
    rng, agreement = np.random.default_rng(seed), Agreement()
    for label in rng.integers(0, n_classes, 400):
        agreement.add(int(label) if rng.random() < 0.8 else int(rng.integers(n_classes)), int(label))
        assert agreement.at_odds(0.8) == 0


def test_a_stream_of_one_class_agrees_by_chance_and_is_right() -> None:
    agreement = Agreement()
    for _ in range(400):
        agreement.add(3, 3)
    assert agreement.at_odds(0.99) == 0


@pytest.mark.parametrize("wrong", range(0, 320, 8))
def test_class_after_class_says_nothing_however_long_the_new_one_is_taken_for_the_old(wrong: int) -> None:
    agreement = Agreement()
    for _ in range(100):
        agreement.add(0, 0)
    for _ in range(wrong):
        agreement.add(0, 1)
    assert agreement.at_odds(0.95) == 0


def test_nothing_is_said_of_too_few() -> None:
    assert unrelated(TAILS[0] - 1, 4).at_odds(1.0) == 0
    assert Agreement().at_odds(1.0) == 0


def test_answers_before_there_were_any_say_nothing() -> None:
    agreement = Agreement()
    for label in range(TAILS[0]):
        agreement.add(None, label % 4)
    assert agreement.at_odds(0.9) == 0
