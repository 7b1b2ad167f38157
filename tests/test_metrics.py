"""The metrics against matrices worked out by hand, slow second versions, and scikit-learn."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from edge_cl.learning import learner
from edge_cl.learning.metrics import (
    NOT_SEEN,
    Majority,
    NoChange,
    Prequential,
    auroc,
    average_accuracy,
    backward_transfer,
    balanced_accuracy,
    forgetting,
    forward_transfer,
    kappa_temporal,
    lowest_old_accuracy,
)

# Learnt first, second, third; the second experience is at its best after the third.
R = [
    [0.9, 0.2, 0.1],
    [0.6, 0.8, 0.3],
    [0.7, 0.9, 0.5],
]
UNTRAINED = [0.5, 0.1, 0.4]
UNASKED = [[0.9, nan, nan], [0.6, 0.8, nan], [0.7, 0.9, 0.5]]  # the same, nobody asked about what was not learnt yet
MATRIX_FIGURES = [average_accuracy, forgetting, backward_transfer]


def test_a_matrix_worked_out_by_hand() -> None:
    assert average_accuracy(R) == pytest.approx((0.7 + 0.9 + 0.5) / 3)
    assert forgetting(R) == pytest.approx(((0.9 - 0.7) + (0.8 - 0.9)) / 2)
    assert backward_transfer(R) == pytest.approx(((0.7 - 0.9) + (0.9 - 0.8)) / 2)
    assert forward_transfer(R, UNTRAINED) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.4)) / 2)


def test_backward_transfer_compares_an_experience_with_itself() -> None:
    """Trap T-03: the survey subtracts the accuracy on the experience before; a hard one after an easy one would seem
    to have been forgotten."""
    kept = [[0.9, 0.1], [0.9, 0.5]]
    assert backward_transfer(kept) == 0.0
    assert forgetting(kept) == 0.0


def test_average_accuracy_is_what_is_left_at_the_end() -> None:
    """Trap T-03: the mean of the accuracies right after learning is 1 for a learner that forgets everything."""
    assert average_accuracy([[1.0, 0.0], [0.0, 1.0]]) == 0.5


def test_forgetting_remembers_the_best_and_not_the_first() -> None:
    """Chaudhry's forgetting and Lopez-Paz's backward transfer differ where an old experience first got better."""
    risen = [[0.5, 0.0, 0.0], [0.9, 0.8, 0.0], [0.6, 0.8, 0.7]]
    assert forgetting(risen) == pytest.approx((0.9 - 0.6 + 0.0) / 2)
    assert backward_transfer(risen) == pytest.approx((0.6 - 0.5 + 0.0) / 2)


def test_what_nobody_asked_is_not_needed_for_what_was_learnt() -> None:
    for figure in MATRIX_FIGURES:
        assert figure(UNASKED) == pytest.approx(figure(R))
    assert isnan(forward_transfer(UNASKED, UNTRAINED))


@pytest.mark.parametrize("figure", MATRIX_FIGURES)
def test_a_figure_that_needs_what_nobody_measured_is_not_a_number(figure) -> None:
    matrix = np.array(R)
    matrix[-1, 0] = nan
    assert isnan(figure(matrix))


def test_with_one_experience_nothing_can_be_forgotten_or_transferred() -> None:
    """Trap T-03: the survey takes the mean of an empty list there."""
    assert average_accuracy([[0.8]]) == 0.8
    assert isnan(forgetting([[0.8]]))
    assert isnan(backward_transfer([[0.8]]))
    assert isnan(forward_transfer([[0.8]], [0.1]))
    assert isnan(lowest_old_accuracy([5, 10], [[0.5], [0.8]], [10]))


@pytest.mark.parametrize("figure", MATRIX_FIGURES)
def test_without_experiences_nothing_is_defined(figure) -> None:
    assert isnan(figure([]))


@pytest.mark.parametrize("figure", MATRIX_FIGURES)
def test_a_matrix_that_is_none_is_refused(figure) -> None:
    with pytest.raises(ValueError, match=r"R: must be square.*\(2, 3\)"):
        figure(np.zeros((2, 3)))


def test_forward_transfer_wants_an_untrained_accuracy_for_each() -> None:
    with pytest.raises(ValueError, match=r"untrained: must have shape \(3,\)"):
        forward_transfer(R, [0.1, 0.1])


SQUARE = st.integers(1, 5).flatmap(
    lambda T: st.lists(st.lists(st.floats(0, 1), min_size=T, max_size=T), min_size=T, max_size=T)
)


@given(SQUARE)
def test_against_sums_written_out(matrix: list[list[float]]) -> None:
    T = len(matrix)
    average = lost = moved = ahead = 0.0
    for i in range(T):
        average += matrix[T - 1][i] / T
    for i in range(T - 1):
        lost += (max(matrix[row][i] for row in range(T - 1)) - matrix[T - 1][i]) / (T - 1)
        moved += (matrix[T - 1][i] - matrix[i][i]) / (T - 1)
        ahead += (matrix[i][i + 1] - 0.25) / (T - 1)
    assert average_accuracy(matrix) == pytest.approx(average)
    if T > 1:
        assert forgetting(matrix) == pytest.approx(lost)
        assert backward_transfer(matrix) == pytest.approx(moved)
        assert forward_transfer(matrix, [0.25] * T) == pytest.approx(ahead)
        assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-12  # the best was at least the first


def test_the_stability_gap_is_seen_between_the_ends() -> None:
    """Both old experiences recover by the end, where R alone would see nothing; before its own end none is old."""
    at = [0, 10, 11, 15, 20, 21, 30]
    accuracies = [
        [0.0, 0.0, 0.0],
        [0.9, 0.1, 0.0],  # the end of the first
        [0.3, 0.5, 0.0],  # right after the switch
        [0.8, 0.7, 0.0],
        [0.9, 0.9, 0.0],  # the end of the second
        [0.5, 0.6, 0.4],
        [0.9, 0.9, 0.9],
    ]
    assert lowest_old_accuracy(at, accuracies, [10, 20, 30]) == pytest.approx((0.3 + 0.6) / 2)


def test_moments_at_which_nobody_asked_are_passed_over() -> None:
    assert lowest_old_accuracy([10, 11, 20], [[0.9, nan], [nan, 0.1], [0.7, 0.8]], [10, 20]) == 0.7


def test_an_old_experience_nobody_asked_about_leaves_no_figure() -> None:
    assert isnan(lowest_old_accuracy([10, 20], [[0.9, nan], [nan, 0.8]], [10, 20]))


def test_a_curve_of_other_experiences_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accuracies: must have shape \(2, 3\) \(got \(2, 2\)\)"):
        lowest_old_accuracy([10, 20], [[0.9, 0.8], [0.8, 0.7]], [10, 20, 30])


HITS = st.lists(st.booleans(), min_size=1, max_size=60)


@given(HITS, st.integers(1, 70), st.floats(0.01, 1.0))
def test_prequential_accuracy_against_its_definitions(hits: list[bool], window: int, fading: float) -> None:
    prequential = Prequential(window, fading)
    for n, hit in enumerate(hits, 1):
        overall, windowed, faded = prequential.score(hit)
        weights = fading ** np.arange(n)[::-1]
        assert overall == pytest.approx(np.mean(hits[:n]))
        assert windowed == pytest.approx(np.mean(hits[max(0, n - window) : n]))
        assert faded == pytest.approx((weights * hits[:n]).sum() / weights.sum())
    assert (overall, windowed, faded) == (prequential.overall, prequential.windowed, prequential.faded)
    assert (prequential.hits, prequential.n) == (sum(hits), len(hits))


def test_prequential_accuracy_of_nothing_is_not_a_number() -> None:
    prequential = Prequential()
    assert isnan(prequential.overall)
    assert isnan(prequential.windowed)
    assert isnan(prequential.faded)


def test_fading_sees_a_change_that_the_overall_accuracy_hides() -> None:
    prequential = Prequential(window=100, fading=0.99)
    for hit in [True] * 5000 + [False] * 500:
        prequential.score(hit)
    assert prequential.overall > 0.9
    assert prequential.windowed == 0.0
    assert prequential.faded < 0.01


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({"window": 0}, "window: must be at least 1"), ({"fading": 0.0}, "fading:"), ({"fading": 1.1}, "got 1.1")],
)
def test_a_window_or_fading_that_is_none_is_refused(arguments, told) -> None:
    with pytest.raises(ValueError, match=told):
        Prequential(**arguments)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_baselines_answer_from_the_labels_they_were_told(labels: list[int]) -> None:
    no_change, majority = NoChange(), Majority()
    for n, label in enumerate(labels):
        told = labels[:n]
        assert no_change.predict() == (told[-1] if told else NOT_SEEN)
        assert majority.predict() == (min(set(told), key=lambda c: (-told.count(c), c)) if told else NOT_SEEN)
        no_change.learn(label)
        majority.learn(label)


def test_late_labels_take_the_ease_out_of_long_runs() -> None:
    """LITERATURE.md §2: on a stream of runs "as the last label" is nearly always right, unless labels come late."""
    labels = np.repeat(np.arange(50) % 5, 100)

    def accuracy(delay: int) -> float:
        baseline, prequential = NoChange(), Prequential()
        for n, label in enumerate(labels):
            prequential.score(baseline.predict() == label)
            if n >= delay:
                baseline.learn(int(labels[n - delay]))
        return prequential.overall

    assert accuracy(0) == pytest.approx(0.99)
    assert accuracy(90) < 0.1


def test_baselines_and_learner_mean_the_same_by_no_answer() -> None:
    assert NOT_SEEN == learner.NOT_SEEN


def test_kappa_temporal_is_nothing_where_no_change_is_perfect() -> None:
    assert kappa_temporal(1.0, 0.4) == 1.0
    assert kappa_temporal(0.4, 0.4) == 0.0
    assert isnan(kappa_temporal(0.9, 1.0))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_balanced_accuracy_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = zip(*pairs, strict=True)
    assert balanced_accuracy(labels, predicted) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_balanced_accuracy_is_not_carried_by_the_common_class() -> None:
    assert balanced_accuracy([0] * 98 + [1, 1], [0] * 100) == 0.5
    assert isnan(balanced_accuracy([], []))
    with pytest.raises(ValueError, match="predicted: must have the labels' shape"):
        balanced_accuracy([0, 1], [0])


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_scikit_learns_with_and_without_ties(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = zip(*pairs, strict=True)
    if len(set(positive)) == 1:
        assert isnan(auroc(scores, positive))
    else:
        assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_auroc_by_hand() -> None:
    assert auroc([1, 2, 3, 4], [False, False, True, True]) == 1.0
    assert auroc([4, 3, 2, 1], [False, False, True, True]) == 0.0
    assert auroc([5, 5, 5, 5], [False, True, False, True]) == 0.5
    assert auroc([-np.inf, 0.0, np.inf], [False, True, True]) == 1.0


def test_auroc_refuses_what_has_no_rank() -> None:
    with pytest.raises(ValueError, match="scores: must be numbers"):
        auroc([1.0, nan], [True, False])
    with pytest.raises(ValueError, match="positive: must have the scores' shape"):
        auroc([1.0, 2.0], [True])
