"""Moments and the Inception score from one pass, against numpy, scipy and torchmetrics on fixed features."""

import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import nn

from medsora.metrics import InceptionScore, Moments, frechet_distance


def features(seed, count, size):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + 100 * rng.normal(size=size)


def gathered(rows, parts):
    moments = Moments(rows.shape[1])
    for part in np.array_split(rows, parts):
        moments.add(part)
    return moments


@given(seed=st.integers(0, 2**31), count=st.integers(2, 40), size=st.integers(1, 7), parts=st.integers(1, 9))
def test_moments_in_parts_are_those_of_the_whole(seed, count, size, parts):
    rows = features(seed, count, size)
    moments = gathered(rows, parts)
    assert moments.count == count
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False).reshape(size, size), rtol=1e-8, atol=1e-8)


def test_merged_moments_are_those_of_both():
    rows = features(0, 31, 5)
    one, other = gathered(rows[:20], 3), gathered(rows[20:], 2)
    one.merge(Moments(5))
    one.merge(other)
    np.testing.assert_allclose(one.covariance, np.cov(rows, rowvar=False), rtol=1e-10)
    np.testing.assert_allclose(one.mean, rows.mean(0), rtol=1e-12)


def test_frechet_distance_of_streamed_features_agrees_with_scipy_and_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    size = 12
    real, fake = features(1, 200, size), features(2, 150, size)
    a, b = gathered(real, 7), gathered(fake, 4)
    ours = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    root = sqrtm(np.cov(real, rowvar=False) @ np.cov(fake, rowvar=False)).real
    theirs = np.square(real.mean(0) - fake.mean(0)).sum() + np.trace(
        np.cov(real, rowvar=False) + np.cov(fake, rowvar=False) - 2 * root
    )
    assert ours == pytest.approx(theirs, rel=1e-9)

    class AsTheyAre(nn.Module):
        num_features = size

        def forward(self, rows):
            return rows

    metric = FrechetInceptionDistance(feature=AsTheyAre(), input_img_size=(size,)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((3, 4)), "wants \\(N, 5\\)"),
        (np.zeros(5), "wants \\(N, 5\\)"),
        (np.full((1, 5), np.inf), "not finite"),
    ],
)
def test_moments_refuse_other_rows(rows, words):
    with pytest.raises(ValueError, match=words):
        Moments(5).add(rows)


def test_one_row_has_no_covariance():
    with pytest.raises(ValueError, match="got 1 rows"):
        _ = gathered(np.zeros((1, 3)), 1).covariance


def probabilities(seed, count, classes):
    return torch.softmax(3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)), dim=1).numpy()


def test_inception_score_agrees_with_torchmetrics_and_the_formula_by_part():
    from torchmetrics.image.inception import InceptionScore as Theirs

    p = probabilities(0, 103, 10)
    whole = InceptionScore(10, splits=1)
    for part in np.array_split(p, 5):
        whole.add(part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features, and that one part has no deviation
        metric = Theirs(feature=nn.Identity(), splits=1)
        metric.update(torch.from_numpy(p).log())
        assert whole.result()[0] == pytest.approx(float(metric.compute()[0]), rel=1e-5)
    parted = InceptionScore(10, splits=4)
    for part in np.array_split(p, 9):
        parted.add(part)
    scores = []
    for part in (p[i::4].astype(float) for i in range(4)):
        scores.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))
    assert parted.result() == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-6)


def test_inception_score_at_its_bounds():
    sure, unsure = InceptionScore(4, splits=1), InceptionScore(4, splits=1)
    sure.add(np.eye(4))
    unsure.add(np.full((8, 4), 0.25))
    assert sure.result()[0] == pytest.approx(4) and unsure.result()[0] == pytest.approx(1)


def test_inception_score_refuses_what_is_no_probability():
    score = InceptionScore(3, splits=2)
    for rows, words in ((np.zeros((2, 4)), "wants \\(N, 3\\)"), (np.ones((2, 3)), "no probabilities")):
        with pytest.raises(ValueError, match=words):
            score.add(rows)
    with pytest.raises(ValueError, match="one or more a part"):
        score.result()


def test_a_large_set_needs_the_memory_of_a_small_one():
    def peak(batches):
        rng = np.random.default_rng(0)
        tracemalloc.start()
        moments, score = Moments(64), InceptionScore(64)
        for _ in range(batches):
            rows = rng.random((16, 64))
            moments.add(rows)
            score.add(rows / rows.sum(1, keepdims=True))
        assert moments.covariance.shape == (64, 64) and score.result()[0] > 1
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(2)
    assert peak(128) < 1.1 * peak(4)
