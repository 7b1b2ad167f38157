"""Which sample is learnt when, and what it is scored on: scenarios, transforms, transitions, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river.stream import simulate_qa

from edge_cl.errors import OperatorError
from edge_cl.evaluation.data import Dataset
from edge_cl.evaluation.labels import delayed, noisy, unlabelled
from edge_cl.evaluation.stream import UNLABELLED, Experience, Stream, ends
from edge_cl.evaluation.streams import Scenario, make_stream
from edge_cl.evaluation.transforms import n_positions, permuted, rotated
from edge_cl.evaluation.transitions import gradual, recurring

CLASSES, SUBJECTS = 6, 4


def dataset(n: int = 240, n_test: int = 60, *, shape: tuple[int, ...] = (2,), **more: Any) -> Dataset:
    """Samples whose first value is their place in the file, so that each can be told from every other."""
    rng = np.random.default_rng(0)
    x = np.zeros((n + n_test, *shape), np.int16)
    x.reshape(n + n_test, -1)[:, 0] = np.arange(n + n_test)
    y = rng.permutation(np.arange(n + n_test) % CLASSES)
    arrays: dict[str, Any] = {
        "name": "made-up",
        "x": x[:n],
        "y": y[:n],
        "test_x": x[n:],
        "test_y": y[n:],
        "label_names": tuple("abcdef"),
        "marks": {"subject": np.arange(n) * SUBJECTS // n + 3},
        "test_marks": {"subject": rng.permutation(np.arange(n_test) % SUBJECTS + 3)},
    }
    return Dataset(**(arrays | more))


def places(x: np.ndarray) -> list[int]:
    """Which samples of the file these are."""
    return x.reshape(len(x), -1)[:, 0].tolist()


def stream_of(data: Dataset, kind: Any, *, seed: int = 0, **asked: Any) -> Stream:
    return make_stream(data, Scenario(kind, **asked), seed=seed)


def assert_labels_belong_to_samples(stream: Sequence[Experience], data: Dataset) -> None:
    labels = dict(zip(places(data.x) + places(data.test_x), [*data.y, *data.test_y], strict=True))
    for experience in stream:
        assert [labels[place] for place in places(experience.x)] == experience.y.tolist()
        assert [labels[place] for place in places(experience.test_x)] == experience.test_y.tolist()


def assert_same(one: Sequence[Experience], other: Sequence[Experience]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert (mine.name, mine.classes) == (theirs.name, theirs.classes)
        for name in ("x", "y", "test_x", "test_y"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


# Scenarios


@pytest.mark.parametrize("kind", ["class", "task"])
def test_labels_come_in_ascending_order_in_equal_experiences(kind: str) -> None:
    data = dataset()
    stream = stream_of(data, kind, experiences=3)
    assert [experience.classes for experience in stream] == [(0, 1), (2, 3), (4, 5)]
    assert [experience.name for experience in stream] == ["a, b", "c, d", "e, f"]
    assert_labels_belong_to_samples(stream, data)
    assert sorted(place for experience in stream for place in places(experience.x)) == places(data.x)
    for experience in stream:
        assert places(experience.test_x) == places(data.test_x[np.isin(data.test_y, experience.classes)])
        assert places(experience.x) != sorted(places(experience.x))  # drawn, not the file's order
    assert_same(stream, stream_of(data, kind))  # two labels each are the default


def test_an_odd_number_of_labels_comes_one_by_one() -> None:
    data = dataset()
    few = data.y < 3
    stream = stream_of(dataset(x=data.x[few], y=data.y[few], marks={}), "class")
    assert [experience.classes for experience in stream] == [(0,), (1,), (2,)]


def test_labels_in_a_given_or_a_drawn_order() -> None:
    data = dataset()
    assert [each.classes for each in stream_of(data, "class", order="5,0, 3,2")] == [(0, 5), (2, 3)]
    drawn = [tuple(each.classes for each in stream_of(data, "class", order="random", seed=seed)) for seed in range(9)]
    assert len(set(drawn)) > 3
    assert all(sorted(label for classes in order for label in classes) == list(range(CLASSES)) for order in drawn)


def test_the_seed_draws_the_samples_and_nothing_else_does() -> None:
    data = dataset()
    for scenario in (Scenario("class"), Scenario("class", limit=20), Scenario("domain", permutations=2, noise=0.2)):
        assert_same(make_stream(data, scenario, seed=3), make_stream(data, scenario, seed=3))
        assert places(make_stream(data, scenario, seed=3)[0].x) != places(make_stream(data, scenario, seed=4)[0].x)


def test_the_values_of_a_mark_are_experiences_in_the_order_of_the_file() -> None:
    data = dataset()
    stream = stream_of(data, "domain", order="subject")
    assert [experience.name for experience in stream] == [f"subject {value}" for value in (3, 4, 5, 6)]
    assert [places(experience.x) for experience in stream] == np.arange(240).reshape(4, 60).tolist()
    tests = [places(data.test_x[data.test_marks["subject"] == value]) for value in (3, 4, 5, 6)]
    assert [places(experience.test_x) for experience in stream] == tests
    assert_labels_belong_to_samples(stream, data)


def test_values_of_a_mark_in_groups_follow_one_another() -> None:
    data = dataset(marks={"load": np.arange(240) % 4})
    stream = stream_of(data, "domain", order="load", experiences=2)
    assert [experience.name for experience in stream] == ["load 0, 1", "load 2, 3"]
    assert places(stream[0].x) == [*range(0, 240, 4), *range(1, 240, 4)]


@pytest.mark.parametrize("test_marks", [{}, {"subject": np.full(60, 3)}])
def test_a_test_split_of_others_tests_every_experience_whole(test_marks: dict[str, np.ndarray]) -> None:
    data = dataset(test_marks=test_marks)
    assert all(experience.test_x is data.test_x for experience in stream_of(data, "domain", order="subject"))


def test_each_permutation_moves_all_pixels_of_all_its_images_alike() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 5, 4)).astype(np.uint8)
    data = dataset(40, 10, x=images[:40], test_x=images[40:], marks={}, test_marks={})
    stream = stream_of(data, "domain", permutations=3, limit=30)
    orders = []
    for experience in stream:
        flat = experience.test_x.reshape(10, -1)
        order = [
            next(p for p in range(20) if (flat[:, q] == images[40:].reshape(10, -1)[:, p]).all()) for q in range(20)
        ]
        assert sorted(order) == list(range(20)) != order  # the first task is permuted, too
        back = np.argsort(order)
        known = {image.tobytes() for image in images[:40]}
        assert experience.x.shape == (30, 5, 4)
        assert all(image.reshape(-1)[back].tobytes() in known for image in experience.x)
        orders.append(tuple(order))
    assert len(set(orders)) == 3
    assert len({experience.y.tobytes() for experience in stream}) == 3  # each draws its own samples
    other = stream_of(data, "domain", permutations=3, seed=1)
    assert [each.test_x.tobytes() for each in stream] != [each.test_x.tobytes() for each in other]


def test_channels_of_a_position_stay_together() -> None:
    x = np.arange(2 * 3 * 2 * 3).reshape(2, 3, 2, 3)
    order = np.array([5, 0, 1, 2, 3, 4])
    assert n_positions((3, 2, 3)) == 6
    assert permuted(x, order)[1, 0, 0].tolist() == x[1, 2, 1].tolist()
    signal = np.arange(24).reshape(2, 4, 3)
    assert permuted(signal, np.array([3, 2, 1, 0])).tolist() == signal[:, ::-1].tolist()


def test_rotations_start_upright_and_end_before_they_are_upside_down() -> None:
    images = np.random.default_rng(0).integers(0, 256, (240, 20, 20)).astype(np.uint8)
    data = dataset(x=images, test_x=images[:60], marks={}, test_marks={})
    stream = stream_of(data, "domain", rotations=2, limit=5)
    assert [experience.name for experience in stream] == ["rotation 0°", "rotation 90°"]
    np.testing.assert_array_equal(stream[0].test_x, images[np.sort(np.arange(60))])
    np.testing.assert_array_equal(stream[1].test_x, np.rot90(images[:60], axes=(1, 2)))


def turned_slowly(image: np.ndarray, degrees: float) -> np.ndarray:
    """Bilinear, pixel by pixel: where it comes from, and the four neighbours there, 0 outside."""
    height, width = image.shape
    angle, out = np.deg2rad(degrees), np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            up, right = (height - 1) / 2 - row, column - (width - 1) / 2
            from_right = right * np.cos(angle) + up * np.sin(angle)
            from_up = -right * np.sin(angle) + up * np.cos(angle)
            r, c = (height - 1) / 2 - from_up, from_right + (width - 1) / 2
            for i in (int(np.floor(r)), int(np.floor(r)) + 1):
                for j in (int(np.floor(c)), int(np.floor(c)) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        out[row, column] += image[i, j] * (1 - abs(r - i)) * (1 - abs(c - j))
    return out


@pytest.mark.parametrize("degrees", [0, 18, 45, 90, 123.4])
def test_a_rotation_is_bilinear_about_the_centre(degrees: float) -> None:
    image = np.random.default_rng(1).uniform(0, 100, (20, 17)).astype(np.float32)
    wanted = turned_slowly(image, degrees)
    np.testing.assert_allclose(rotated(image[None], degrees)[0], wanted, atol=2e-3)  # float32 grid, values to 100
    colours = np.stack([image, 2 * image], axis=-1)[None]
    np.testing.assert_allclose(rotated(colours, degrees)[0, ..., 1], 2 * wanted, atol=4e-3)
    whole = rotated(np.rint(image).astype(np.uint8)[None], degrees)
    assert whole.dtype == np.uint8
    np.testing.assert_allclose(whole[0], turned_slowly(np.rint(image), degrees), atol=0.51)


def test_a_stream_is_the_file_from_its_first_sample_to_its_last() -> None:
    data = dataset()
    (whole,) = stream_of(data, "stream")
    assert places(whole.x) == places(data.x)
    assert whole.test_x is data.test_x
    assert whole.classes == tuple(range(CLASSES))
    (short,) = stream_of(data, "stream", limit=7)
    assert places(short.x) == list(range(7))


def test_transformed_experiences_share_at_most_2000_test_samples_of_all_classes() -> None:
    n = 5000
    y = np.sort(np.arange(n) % CLASSES)
    data = dataset(60, 60, test_x=np.zeros((n, 3)), test_y=y, x=np.zeros((60, 3)), marks={}, test_marks={})
    first, second = stream_of(data, "domain", permutations=2)
    assert len(first.test_y) == 2000
    np.testing.assert_array_equal(first.test_y, second.test_y)
    np.testing.assert_array_equal(first.test_y, stream_of(data, "domain", permutations=2, seed=9)[0].test_y)
    assert np.bincount(first.test_y).min() > 250


# --limit


def test_a_limit_draws_by_seed_where_the_order_is_drawn() -> None:
    data = dataset()
    stream = stream_of(data, "class", limit=10)
    assert ends(stream) == [10, 20, 30]
    assert {place for seed in range(99) for place in places(stream_of(data, "class", limit=10, seed=seed)[0].x)} == set(
        places(data.x[data.y < 2])
    )
    assert ends(stream_of(data, "class", limit=10**6)) == ends(stream_of(data, "class"))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 45))
@settings(deadline=None)
def test_a_limit_keeps_the_first_of_each_class_of_a_mark(labels: list[int], limit: int) -> None:
    n = len(labels)
    data = dataset(n, 1, y=np.array(labels), marks={"subject": np.zeros(n, int)}, test_marks={})
    (experience,) = stream_of(data, "domain", order="subject", limit=limit)
    kept = places(experience.x)
    assert kept == sorted(kept)
    assert len(kept) == min(limit, n)
    for label, size in Counter(labels).items():
        own = [place for place in range(n) if labels[place] == label]
        taken = [place for place in kept if labels[place] == label]
        assert taken == own[: len(taken)]
        assert abs(len(taken) - size * len(kept) / n) <= 1  # its share of what there is


# Transitions


def numbered(lengths: Sequence[int]) -> Stream:
    """Experiences whose samples are (experience, place), with the experience as label."""

    def make(t: int) -> Experience:
        x = np.stack([np.full(lengths[t], t), np.arange(lengths[t])], axis=1)
        return Experience(str(t), x, x[:, 0].copy(), x[:1], x[:1, 0], (t,))

    return Stream([lambda t=t: make(t) for t in range(len(lengths))])  # type: ignore[misc]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.data())
@settings(max_examples=30, deadline=None)
def test_a_gradual_transition_hands_out_every_sample_once_in_its_own_order(lengths: list[int], data: Any) -> None:
    mixing = data.draw(st.integers(1, min(lengths)))
    stream, abrupt = gradual(numbered(lengths), mixing, seed=0), numbered(lengths)
    assert ends(stream) == ends(abrupt)
    rows = np.concatenate([experience.x for experience in stream]).tolist()
    for t, length in enumerate(lengths):
        assert [place for origin, place in rows if origin == t] == list(range(length))
    assert [row[0] for row in rows] == [label for experience in stream for label in experience.y]
    nominal = np.concatenate([experience.x for experience in abrupt])[:, 0]
    moved = np.flatnonzero(np.array(rows)[:, 0] != nominal)
    changes = np.array(ends(abrupt)[:-1])
    assert all(np.abs(place + 0.5 - changes).min() <= mixing for place in moved)
    assert all(set(experience.y) <= set(experience.classes) for experience in stream)


def test_the_probability_of_the_next_experience_rises_linearly() -> None:
    length, mixing, seeds = 300, 200, 400
    origins = np.stack(
        [np.concatenate([each.y for each in gradual(numbered([length] * 2), mixing, seed=s)]) for s in range(seeds)]
    )
    wanted = np.clip((np.arange(2 * length) + 0.5 - (length - mixing / 2)) / mixing, 0, 1)
    # Mean over stretches of 20 places and 400 seeds: deviation at most 0.5 / sqrt(8000) = 0.006.
    np.testing.assert_allclose(origins.mean(0).reshape(-1, 20).mean(1), wanted.reshape(-1, 20).mean(1), atol=0.025)


def test_what_comes_back_is_new() -> None:
    stream = recurring(numbered([5, 6]), 2)
    assert [experience.name for experience in stream] == [
        "0",
        "1",
        "0, visit 2",
        "1, visit 2",
        "0, visit 3",
        "1, visit 3",
    ]
    rows = np.concatenate([experience.x for experience in stream]).tolist()
    assert [place for origin, place in rows if origin == 0] == list(range(5))
    assert [place for origin, place in rows if origin == 1] == list(range(6))
    assert np.diff([0, *ends(stream)]).tolist() == [1, 2, 2, 2, 2, 2]
    assert all(experience.test_y.tolist() == [t % 2] for t, experience in enumerate(stream))


def test_a_scenario_may_recur_mix_and_err_at_once() -> None:
    data = dataset()
    stream = stream_of(data, "domain", order="subject", recurring=1, mixing=10, noise=0.1, missing=0.2)
    assert ends(stream) == list(range(30, 241, 30))
    assert sorted(place for experience in stream for place in places(experience.x)) == places(data.x)
    assert sum((experience.y == UNLABELLED).sum() for experience in stream) == 8 * 6
    known = dict(zip(places(data.x), data.y, strict=True))
    pairs = [pair for each in stream for pair in zip(places(each.x), each.y, strict=True) if pair[1] != UNLABELLED]
    # 3 of each 30 are wrong, and a fifth of all is unknown afterwards
    assert 8 * 3 * 0.4 < sum(known[place] != label for place, label in pairs) <= 8 * 3


# Labels


@given(st.integers(2, 5), st.floats(0, 0.99), st.integers(0, 10))
@settings(deadline=None)
def test_noise_replaces_that_part_by_other_classes_of_the_experience(n_classes: int, noise: float, seed: int) -> None:
    classes = tuple(range(3, 3 + 2 * n_classes, 2))
    y = np.random.default_rng(seed).choice(classes, 50)
    clean = Experience("a", y[:, None], y, y[:, None], y, classes)
    stream = noisy([clean], noise, seed=seed)
    (dirty,) = stream
    assert (dirty.y != y).sum() == round(noise * 50)
    assert set(dirty.y.tolist()) <= set(classes)
    np.testing.assert_array_equal(dirty.test_y, y)
    np.testing.assert_array_equal(dirty.y, stream[0].y)
    np.testing.assert_array_equal(clean.y, y)


def test_every_other_class_is_as_likely_a_mistake() -> None:
    y = np.full(30_000, 2)
    (dirty,) = noisy([Experience("a", y, y, y, y, (0, 2, 5, 7))], 0.9, seed=0)
    counts = Counter(dirty.y.tolist())
    assert counts[2] == 3000
    # 9,000 each are expected; the deviation of a multinomial count is sqrt(27000 · ⅓ · ⅔) = 77.
    assert all(abs(counts[label] - 9000) < 4 * 77 for label in (0, 5, 7))


def test_missing_labels_are_marked_and_the_others_stay() -> None:
    y = np.arange(40) % 3
    (some,) = unlabelled([Experience("a", y, y, y, y, (0, 1, 2))], 0.25, seed=0)
    assert (some.y == UNLABELLED).sum() == 10
    np.testing.assert_array_equal(some.y[some.y != UNLABELLED], y[some.y != UNLABELLED])


@given(st.integers(0, 30), st.integers(0, 40))
@settings(deadline=None)
def test_a_label_comes_so_many_samples_after_its_sample(count: int, delay: int) -> None:
    wanted: list[tuple[str, int]] = []
    for t in range(count):
        wanted.append(("predict", t))
        wanted += [("learn", i) for i in range(count) if i + delay == t]
    wanted += [("learn", i) for i in range(count) if i + delay >= count]
    assert list(delayed(count, delay)) == wanted


@given(st.integers(0, 30), st.integers(0, 40))
@settings(deadline=None)
def test_labels_are_as_late_as_those_of_river(count: int, delay: int) -> None:
    """River reveals a label just before the question at its time is put, so its delay counts one more."""
    session = simulate_qa(zip(range(count), range(count), strict=True), moment=None, delay=delay + 1)
    assert list(delayed(count, delay)) == [("predict" if y is None else "learn", i) for i, _, y in session]


# What is refused


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"kind": "classes"}, r"scenario: must be one of class, task, domain, stream \(got classes\)"),
        ({"kind": "class", "experiences": 0}, r"experiences: must be at least 1 \(got 0\)"),
        ({"kind": "class", "experiences": 4}, r"experiences: must divide the 6 labels into equal parts \(got 4\)"),
        ({"kind": "class", "experiences": 7}, r"experiences: must divide the 6 labels into equal parts \(got 7\)"),
        ({"kind": "class", "permutations": 3}, r"permutations: is for scenario domain \(got scenario class\)"),
        ({"kind": "task", "rotations": 3}, r"rotations: is for scenario domain \(got scenario task\)"),
        ({"kind": "task", "mixing": 3}, "mixing: is not for scenario task"),
        ({"kind": "class", "order": "0,1,1"}, r"order: must be random, or labels .* at most once .* \(got 0,1,1\)"),
        ({"kind": "class", "order": "0,9"}, r"order: must be random, or labels of made-up.*\(0 … 5\) \(got 0,9\)"),
        ({"kind": "class", "order": "subject"}, r"order: must be random, or labels .* \(got subject\)"),
        ({"kind": "class", "limit": 0}, r"limit: must be at least 1 \(got 0\)"),
        ({"kind": "class", "noise": 1.0}, r"noise: must be a part of the labels, 0 up to 1 \(got 1.0\)"),
        ({"kind": "class", "noise": -0.1}, r"noise: must be a part of the labels, 0 up to 1 \(got -0.1\)"),
        ({"kind": "class", "experiences": 6, "noise": 0.1}, "noise: a must have a second class"),
        ({"kind": "class", "missing": 1.5}, r"missing: must be a part of the labels, 0 up to 1 \(got 1.5\)"),
        ({"kind": "class", "mixing": 1000}, r"mixing: must be 1 up to \d+, .* \(got 1000\)"),
        ({"kind": "class", "experiences": 1, "mixing": 10}, "mixing: must be .* at least two experiences"),
        ({"kind": "class", "recurring": 500}, r"recurring: must be 1 up to \d+, .* \(got 500\)"),
        ({"kind": "domain"}, r"scenario domain: must be told by one of: order .* \(got none\)"),
        ({"kind": "domain", "order": "subject", "rotations": 2}, r"by one of: .* \(got order and rotations\)"),
        ({"kind": "domain", "permutations": 2, "experiences": 2}, "experiences: is for marks; permutations says"),
        ({"kind": "domain", "order": "lode"}, r"there is no mark of this name \(got lode\)"),
        ({"kind": "domain", "order": "subject", "experiences": 3}, "must divide the 4 values of subject into equal"),
        ({"kind": "domain", "rotations": 2}, r"rotations: needs images \(got shape \(2,\)\)"),
        ({"kind": "stream", "experiences": 2}, "experiences: is not for scenario stream"),
        ({"kind": "stream", "order": "subject"}, "order: is not for scenario stream"),
        ({"kind": "stream", "mixing": 2}, "mixing: is not for scenario stream"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(OperatorError, match=said) as caught:
        make_stream(dataset(), Scenario(**asked), seed=0)
    assert caught.value.hint


def test_a_single_value_cannot_be_permuted() -> None:
    data = dataset(shape=(1,))
    with pytest.raises(OperatorError, match=r"permutations: needs samples with at least two positions \(got shape"):
        stream_of(data, "domain", permutations=2)


def test_a_label_cannot_come_before_its_sample() -> None:
    with pytest.raises(OperatorError, match=r"label-delay: must be a number of samples, 0 or more \(got -1\)"):
        delayed(3, -1)


def test_a_stream_can_be_cut() -> None:
    stream = numbered([1, 2, 3])
    assert_same(stream[1:], [stream[1], stream[2]])
