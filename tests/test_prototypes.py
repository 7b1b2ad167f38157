"""Prototypes against scikit-learn's batch estimators, and against what went wrong elsewhere (METHODS.md, T-10)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from edge_cl.learning.prototypes import NearestMean, StreamingLDA

KINDS = [NearestMean, StreamingLDA]
C, D = 4, 6


def clusters(n: int = 400, *, seed: int = 0, n_features: int = D, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Overlapping classes of different sizes with correlated features of different scales."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(C, n, p=[0.5, 0.3, 0.15, 0.05])
    mix = rng.normal(size=(n_features, n_features)) * np.geomspace(0.1, 3, n_features)
    features = offset + rng.normal(size=(C, n_features))[labels] + rng.normal(size=(n, n_features)) @ mix
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)


def learnt(kind: type[NearestMean], features: Tensor, labels: Tensor, cut: int = 7, n_classes: int = C) -> NearestMean:
    templates = kind(n_classes, features.shape[1])
    for start in range(0, len(labels), cut):
        templates.update(features[start : start + cut], labels[start : start + cut])
    return templates


def logits(templates: NearestMean, features: Tensor) -> Tensor:
    W, b = templates.head()
    return features @ W.t() + b


def within_class_covariance(features: Tensor, labels: Tensor) -> Tensor:
    """Σ_c Σ_{y = c} (f - μ_c)(f - μ_c)ᵀ / n with the final means, in float64."""
    total = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for c in labels.unique():
        rows = features[labels == c].double()
        centred = rows - rows.mean(0)
        total += centred.t() @ centred
    return total / len(labels)


def test_nearest_mean_is_scikit_learns_nearest_centroid() -> None:
    features, labels = clusters()
    templates = learnt(NearestMean, features, labels)
    oracle = NearestCentroid().fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(templates.means.numpy(), oracle.centroids_, rtol=1e-4, atol=1e-5)
    assert (logits(templates, features).argmax(1).numpy() == oracle.predict(features.numpy())).all()


@pytest.mark.parametrize("shrinkage", [0.001, 0.01, 0.3, 1.0])
def test_streaming_lda_is_scikit_learns_batch_estimate(shrinkage: float) -> None:
    """Its covariance is the same mean over classes; the prior of a class stands in its intercept and not in ours."""
    features, labels = clusters()
    templates = StreamingLDA(C, D, shrinkage=shrinkage)
    for start in range(0, len(labels), 7):
        templates.update(features[start : start + 7], labels[start : start + 7])
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    oracle.fit(features.double().numpy(), labels.numpy())
    W, b = templates.head()
    np.testing.assert_allclose(W.numpy(), oracle.coef_, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(b.numpy(), oracle.intercept_ - np.log(oracle.priors_), rtol=2e-3, atol=2e-4)


@settings(deadline=None)
@given(st.integers(1, 40), st.permutations(range(60)), st.sampled_from([0.0, 10.0]))
def test_neither_cut_nor_order_of_the_stream_matters(cut: int, order: list[int], offset: float) -> None:
    """A sufficient statistic forgets nothing: all of the stream at once, or one sample at a time in any order."""
    features, labels = clusters(60, offset=offset)
    templates = learnt(StreamingLDA, features[order], labels[order], cut)
    expected = within_class_covariance(features, labels)
    scale = float(expected.diagonal().mean())
    assert isinstance(templates, StreamingLDA)
    torch.testing.assert_close(templates.covariance.double(), expected, rtol=0.0, atol=1e-5 * scale)
    for c in labels.unique():
        mean = features[labels == c].double().mean(0)
        torch.testing.assert_close(templates.means[c].double(), mean, rtol=1e-6, atol=1e-4)
    assert templates.counts.tolist() == labels.bincount(minlength=C).tolist()


def test_hayes_and_kanans_recurrence_is_not_the_batch_estimate() -> None:
    """Σ ← (t Σ + t / (t + 1) (f - μ_y)(f - μ_y)ᵀ) / (t + 1) weights a sample by all before it, t."""
    features, labels = clusters(200)
    mean, counts, theirs = torch.zeros(C, D).double(), torch.zeros(C), torch.zeros(D, D).double()
    for t, (f, y) in enumerate(zip(features.double(), labels, strict=True)):
        away = f - mean[y]
        theirs = (t * theirs + t / (t + 1) * torch.outer(away, away)) / (t + 1)
        counts[y] += 1
        mean[y] += away / counts[y]
    exact = within_class_covariance(features, labels)
    assert float((theirs - exact).norm() / exact.norm()) > 0.01


def test_float32_keeps_the_head_over_a_long_stream_in_class_order() -> None:
    features, labels = clusters(20_000, n_features=20)
    order = labels.argsort(stable=True)
    templates = learnt(StreamingLDA, features[order], labels[order], cut=10)
    exact = StreamingLDA(C, 20)
    exact.counts, exact.means = templates.counts, torch.stack([features[labels == c].mean(0) for c in range(C)])
    exact.covariance = within_class_covariance(features, labels).float()
    for ours, theirs in zip(templates.head(), exact.head(), strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-3


@pytest.mark.parametrize("rank", [1, 20])
def test_features_that_depend_on_each_other_still_have_a_head(rank: int) -> None:
    """Rounding makes some eigenvalues negative; the smallest shrinkage lifts them all."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(rank, 300, generator=generator)
    templates = StreamingLDA(2, 300, shrinkage=0.001)
    for _ in range(300):
        templates.update(torch.randn(10, rank, generator=generator) @ mix + 3, torch.arange(10) % 2)
    assert all(bool(part.isfinite().all()) for part in templates.head())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_speaks_for_its_own_class(kind: type[NearestMean]) -> None:
    """Trap T-10: the survey's loss drives samples away from their own prototype. Here the distance falls with each."""
    templates = kind(C, D)
    templates.update(*clusters(50))
    one, own = torch.full((1, D), 2.0), torch.tensor([1])
    distances, margins = [], []
    for _ in range(5):
        answers = logits(templates, one)[0]
        distances.append(float((one - templates.means[1]).norm()))
        margins.append(float(answers[1] - answers[[0, 2, 3]].max()))
        templates.update(one, own)
    assert distances == sorted(distances, reverse=True)
    assert margins == sorted(margins)
    assert distances[-1] < distances[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_never_seen_never_wins(kind: type[NearestMean]) -> None:
    """Trap T-10: the survey's hundred random prototypes win for classes that do not exist."""
    features, labels = clusters()
    templates = learnt(kind, features, labels * 2, n_classes=9)
    W, b = templates.head()
    assert b.isinf().tolist() == [c not in (0, 2, 4, 6) for c in range(9)]
    far = torch.cat([features, features * 1e4, torch.zeros(1, D), torch.eye(D) * -1e6])
    assert set((far @ W.t() + b).argmax(1).tolist()) <= {0, 2, 4, 6}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_class_has_its_labels_row_and_leaves_the_others_theirs(kind: type[NearestMean]) -> None:
    """Trap T-10: `add_prototype` appends, so that the new row never matches its label."""
    features, labels = clusters()
    templates = learnt(kind, features, labels, n_classes=9)
    before = templates.means[:C].clone()
    new = torch.full((3, D), 30.0)
    templates.update(new, torch.tensor([7, 7, 7]))
    assert logits(templates, new).argmax(1).tolist() == [7, 7, 7]
    assert torch.equal(templates.means[:C], before)


@pytest.mark.parametrize("kind", KINDS)
def test_many_batches_make_one_prototype_a_class(kind: type[NearestMean]) -> None:
    """Trap T-10: called for every batch, the survey's makes as many prototypes as batches."""
    features, labels = clusters()
    one, many = learnt(kind, features, labels, cut=400), learnt(kind, features, labels, cut=1)
    torch.testing.assert_close(one.means, many.means, rtol=1e-4, atol=1e-5)
    assert one.nbytes == many.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_sample_is_enough_and_none_changes_nothing(kind: type[NearestMean]) -> None:
    templates = kind(C, D)
    assert bool(templates.head()[1].isinf().all())
    templates.update(torch.empty(0, D), torch.empty(0, dtype=torch.int64))
    assert bool(templates.head()[1].isinf().all())
    sample = torch.arange(6.0).unsqueeze(0)
    templates.update(sample, torch.tensor([2]))
    answers = logits(templates, torch.cat([sample, -sample]))
    assert answers.argmax(1).tolist() == [2, 2]
    assert not bool(answers.isnan().any())


def test_lda_without_any_variance_is_the_nearest_mean() -> None:
    lda, nearest = StreamingLDA(C, D), NearestMean(C, D)
    for templates in (lda, nearest):
        templates.update(torch.eye(C, D), torch.arange(C))
    for ours, theirs in zip(lda.head(), nearest.head(), strict=True):
        assert torch.equal(ours, theirs)


def test_lda_does_not_depend_on_the_unit_of_the_features() -> None:
    features, labels = clusters()
    probes, _ = clusters(50, seed=1)
    in_volts, in_millivolts = (learnt(StreamingLDA, features * unit, labels) for unit in (1.0, 1000.0))
    torch.testing.assert_close(
        logits(in_volts, probes), logits(in_millivolts, probes * 1000), rtol=1e-3, atol=1e-3, check_stride=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_templates_rescaled_are_those_of_rescaled_features(kind: type[NearestMean]) -> None:
    """Classes not seen stay at zero, and what comes afterwards comes in the new unit."""
    features, labels = clusters()
    factor, offset = torch.linspace(0.1, 3, D), torch.linspace(-2, 2, D)
    direct, moved = (
        learnt(kind, features * factor + offset, labels, n_classes=6),
        learnt(kind, features, labels, n_classes=6),
    )
    moved.rescale(factor, offset)
    for ours, theirs in zip(moved.head(), direct.head(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert not bool(moved.means[4:].any())


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_a_copy(kind: type[NearestMean]) -> None:
    templates = learnt(kind, *clusters())
    W, b = templates.head()
    W.zero_()
    b.zero_()
    assert bool(templates.means.any())
    assert bool(templates.head()[0].any())


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_what_is_kept(kind: type[NearestMean]) -> None:
    expected = C * 8 + C * D * 4 + (D * D * 4 if kind is StreamingLDA else 0)
    assert kind(C, D).nbytes == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_restored_goes_on_bit_for_bit(kind: type[NearestMean]) -> None:
    features, labels = clusters()
    whole, first = learnt(kind, features, labels), learnt(kind, features[:203], labels[:203])
    second = kind(C, D)
    second.restore(first.state())
    for start in range(203, 400, 7):
        second.update(features[start : start + 7], labels[start : start + 7])
    for ours, theirs in zip(second.head(), whole.head(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_with_fewer_classes_leaves_room_for_more(kind: type[NearestMean]) -> None:
    features, labels = clusters()
    narrow, wide = learnt(kind, features, labels), learnt(kind, features, labels + 3, n_classes=7)
    wide.restore(narrow.state())
    assert wide.counts.tolist() == [*narrow.counts.tolist(), 0, 0, 0]
    assert torch.equal(logits(wide, features)[:, :C], logits(narrow, features))


@pytest.mark.parametrize(("other", "told"), [((C + 1, D), "counts"), ((C, D + 1), "means")])
@pytest.mark.parametrize("kind", KINDS)
def test_another_models_state_is_refused_and_changes_nothing(kind: type[NearestMean], other, told: str) -> None:
    templates = learnt(kind, *clusters())
    before = templates.means.clone()
    with pytest.raises(ValueError, match=rf"{told}: must have shape .* \(got"):
        templates.restore(kind(*other).state())
    assert torch.equal(templates.means, before)


@pytest.mark.parametrize(
    ("features", "labels", "told"),
    [
        (torch.zeros(2, D - 1), [0, 1], r"features: must have shape \(2, 6\) \(got \(2, 5\)\)"),
        (torch.zeros(3, D), [0, 1], r"features: must have shape \(2, 6\)"),
        (torch.zeros(2, D), [0, C], r"labels: must be in 0 … 3 \(got 0 … 4\)"),
        (torch.zeros(2, D), [-1, 0], r"got -1 … 0"),
        (torch.full((2, D), torch.nan), [0, 1], "features: must be finite"),
        (torch.full((2, D), torch.inf), [0, 1], "features: must be finite"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused_and_nothing_learnt(kind: type[NearestMean], features, labels, told) -> None:
    templates = learnt(kind, *clusters())
    before = {name: array.copy() for name, array in templates.state().items()}
    with pytest.raises(ValueError, match=told):
        templates.update(features, torch.tensor(labels))
    assert all((before[name] == array).all() for name, array in templates.state().items())


@pytest.mark.parametrize("shrinkage", [0.0, 1e-4, 1.1, float("nan")])
def test_a_shrinkage_that_is_none_is_refused(shrinkage: float) -> None:
    with pytest.raises(ValueError, match=r"shrinkage: must be in \[0.001, 1\]"):
        StreamingLDA(C, D, shrinkage=shrinkage)
