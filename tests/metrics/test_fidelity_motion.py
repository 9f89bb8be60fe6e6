"""Fidelity and Frechet distances: known values, and that the motion feature tells motion from its absence."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from medsora.metrics import MotionFeatures, frechet_distance, frechet_motion_distance, psnr, ssim


@pytest.fixture(scope="module")
def cine():
    """The built-in ultrasound at 64 x 64 as overlapping windows of 16 frames: uint8 (15, 16, 64, 64, 3)."""
    from medsora.data.cine import load_cine

    frames = [Image.fromarray(frame).resize((64, 64), Image.Resampling.BICUBIC) for frame in load_cine().frames]
    frames = np.stack([np.asarray(frame) for frame in frames])
    return np.stack([frames[start : start + 16] for start in range(15)])


def test_psnr_of_known_errors():
    target = torch.zeros(2, 3, 8, 8)
    assert float(psnr(target + 0.1, target)) == pytest.approx(20.0)
    assert float(psnr(target + 0.2, target, data_range=2.0)) == pytest.approx(20.0)
    dark = np.zeros((4, 4), np.uint8)
    assert float(psnr(dark + np.uint8(51), dark)) == pytest.approx(20 * math.log10(5))
    assert float(psnr(dark, dark)) == math.inf


def test_ssim_agrees_with_the_formula_written_out():
    rng = np.random.default_rng(0)
    target = rng.random((20, 17))
    made = np.clip(target + rng.normal(0, 0.2, target.shape), 0, 1)
    x = np.arange(11) - 5
    window = np.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(10):
        for column in range(7):
            a, b = (image[row : row + 11, column : column + 11] for image in (made, target))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert float(ssim(made, target)) == pytest.approx(np.mean(values), rel=1e-10)
    assert float(ssim(target, target)) == pytest.approx(1.0)


def test_psnr_and_ssim_agree_with_torchmetrics():
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    made, target = torch.rand(2, 3, 3, 24, 31, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(psnr(made, target)) == pytest.approx(float(peak_signal_noise_ratio(made, target, data_range=1.0)))
    _, theirs = structural_similarity_index_measure(made, target, data_range=1.0, return_full_image=True)
    inside = theirs[..., 5:-5, 5:-5]  # it counts windows that hang over the rim too, over mirrored pixels
    assert float(ssim(made, target)) == pytest.approx(float(inside.mean()), rel=1e-9)


def test_ssim_averages_over_all_pictures():
    rng = np.random.default_rng(1)
    made, target = rng.random((2, 5, 3, 16, 16))
    each = [float(ssim(a, b)) for a, b in zip(made, target, strict=True)]
    assert float(ssim(made, target)) == pytest.approx(np.mean(each))


@pytest.mark.parametrize(
    ("made", "target", "words"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), "wants that of made"),
        (np.zeros((2, 3)), np.zeros((2, 3), np.uint8), "both floats"),
        (np.zeros((2, 3), np.int64), np.zeros((2, 3), np.int64), "data_range"),
    ],
)
def test_fidelity_refuses_what_it_cannot_compare(made, target, words):
    with pytest.raises(ValueError, match=words):
        psnr(made, target)


def test_ssim_refuses_small_pictures():
    with pytest.raises(ValueError, match="at least 11"):
        ssim(np.zeros((10, 64)), np.zeros((10, 64)))


@given(seed=st.integers(0, 2**31), size=st.integers(1, 12), rank=st.integers(1, 12))
def test_frechet_distance_agrees_with_the_matrix_root(seed, size, rank):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(2, size))
    factors = rng.normal(size=(2, size, size))
    factors[0, :, rank:] = 0  # the first may be singular
    a, b = (f @ f.T for f in factors)
    expected = np.square(means[0] - means[1]).sum() + np.trace(a + b - 2 * sqrtm(a @ b + 1e-13 * np.eye(size)).real)
    assert frechet_distance(means[0], a, means[1], b) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_frechet_distance_of_gaussians_in_closed_form():
    mean, variance = np.array([1.0, -2.0]), np.array([4.0, 9.0])
    got = frechet_distance(np.zeros(2), np.eye(2), mean, np.diag(variance))
    assert got == pytest.approx(5 + (2 - 1) ** 2 + (3 - 1) ** 2)
    assert frechet_distance(mean, np.zeros((2, 2)), mean, np.zeros((2, 2))) == 0


def test_frechet_distance_refuses_shapes_and_values():
    with pytest.raises(ValueError, match="wants \\(D,\\)"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(np.full(2, np.nan), np.eye(2), np.zeros(2), np.eye(2))


def test_a_set_has_no_distance_to_itself_and_the_distance_is_symmetric(cine):
    a, b = cine[::2], cine[1::2]
    assert frechet_motion_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_motion_distance(a, b) == pytest.approx(frechet_motion_distance(b, a))


def test_motion_distance_ranks_real_blurred_still_shuffled_and_noise(cine):
    """Halves of the real clips, and clips as a small VAE gives them back, lie far below clips of wrong motion."""
    rng = np.random.default_rng(0)
    blurred = gaussian_filter(cine.astype(float), (0, 0, 0.8, 0.8, 0)) + rng.normal(0, 5, cine.shape)
    still = np.repeat(cine.mean((0, 1))[None], 16, axis=0).round().astype(np.uint8)
    sets = {
        "vae": np.clip(blurred, 0, 255).round().astype(np.uint8),
        "mean clip": np.repeat(cine.mean(0).round().astype(np.uint8)[None], 15, axis=0),
        "half speed": np.stack([np.repeat(clip[:8], 2, axis=0) for clip in cine]),
        "shuffled": np.stack([clip[rng.permutation(16)] for clip in cine]),
        "still": np.repeat(still[None], 15, axis=0),
        "noise": rng.integers(0, 256, cine.shape, dtype=np.uint8),
    }
    distance = {name: frechet_motion_distance(cine, clips) for name, clips in sets.items()}
    distance["halves"] = frechet_motion_distance(cine[::2], cine[1::2])
    good = max(distance["halves"], distance["vae"])
    assert distance["halves"] < 1
    for wrong in ("mean clip", "half speed", "shuffled", "still", "noise"):
        assert distance[wrong] > 10 * good, distance


def test_features_are_fixed_numbers_of_the_clip_alone(cine):
    features = MotionFeatures()
    values = features(cine[0])
    assert values.shape == (MotionFeatures.size,) and values.dtype == np.float64
    np.testing.assert_array_equal(values, MotionFeatures()(cine[0]))
    still = features(np.repeat(cine[0][:1], 16, axis=0))
    np.testing.assert_allclose(still[-4:], 0, atol=1e-9)  # no coherence without change


def test_coherence_tells_steady_motion_from_random_order():
    columns = np.arange(96)
    wave = np.stack([127 + 100 * np.sin((columns[None, :64] + 1.5 * t) / 8) * np.ones((64, 1)) for t in range(16)])
    clip = np.repeat(wave[..., None], 3, axis=-1).astype(np.uint8)
    mixed = clip[np.random.default_rng(0).permutation(16)]
    features = MotionFeatures()
    assert (features(clip)[-4:] > 7).all()
    assert (features(mixed)[-4:] < 0).all()


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (np.zeros((16, 64, 64, 3)), "uint8"),
        (np.zeros((16, 64, 64), np.uint8), "uint8"),
        (np.zeros((4, 64, 64, 3), np.uint8), "at least 5 frames"),
        (np.zeros((16, 8, 64, 3), np.uint8), "16 x 16"),
    ],
)
def test_features_refuse_other_clips(clip, words):
    with pytest.raises(ValueError, match=words):
        MotionFeatures()(clip)


def test_motion_distance_refuses_a_single_clip(cine):
    with pytest.raises(ValueError, match="other: got 1 clips"):
        frechet_motion_distance(cine, cine[:1])
