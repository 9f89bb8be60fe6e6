"""Energy by radial band: against a full transform written out, and what blur, noise and shift do to it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medsora.metrics import SpectralComparison, band_energies


def noise(seed, *shape):
    return np.random.default_rng(seed).random(shape)


@pytest.mark.parametrize("size", [(16, 16), (15, 20), (9, 8)])
def test_energies_agree_with_the_full_transform(size):
    frames, bands = noise(0, 3, *size, 3), 4
    height, width = size
    hann = np.outer(*(np.sin(np.pi * np.arange(1, n + 1) / (n + 1)) ** 2 for n in size))
    expected = np.zeros((3, bands))
    fy, fx = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    radius = 2 * np.hypot(fy, fx)
    for band in range(bands):
        inside = (radius > band / bands + 1e-9) & (radius <= (band + 1) / bands + 1e-9)
        inside |= (radius == 0) & (band == 0)
        for n, frame in enumerate(frames):
            powers = [
                np.abs(np.fft.fft2((frame[..., c] - frame[..., c].mean()) * hann)) ** 2 / (hann**2).sum()
                for c in range(3)
            ]
            expected[n, band] = np.mean(powers, axis=0)[inside].mean()
    np.testing.assert_allclose(band_energies(frames, bands).numpy(), expected, rtol=1e-9)


def test_white_noise_has_its_variance_in_every_band():
    frames = 0.5 + 0.1 * np.random.default_rng(1).normal(size=(40, 64, 64, 3))
    np.testing.assert_allclose(band_energies(frames, 8).mean(0), 0.01, rtol=0.1)


def test_a_wave_lies_in_its_band():
    wave = 0.5 + 0.4 * np.sin(2 * np.pi * 0.3 * np.arange(64))  # 0.3 cycles a pixel: 0.6 of the highest frequency
    energy = band_energies(np.broadcast_to(wave[None, None, :, None], (1, 64, 64, 3)).copy(), 10)[0]
    assert int(energy.argmax()) in (5, 6) and energy[5:7].sum() > 0.98 * energy.sum()


def test_bytes_count_as_the_range_of_one():
    frames = (255 * noise(2, 2, 16, 16, 3)).astype(np.uint8)
    torch.testing.assert_close(band_energies(frames, 4), band_energies(frames / 255.0, 4))


def compared(original, made, bands=8):
    comparison = SpectralComparison(bands)
    for start in range(0, len(original), 3):
        comparison.add(original[start : start + 3], made[start : start + 3])
    return {name: np.array(value) for name, value in comparison.result().items()}


def test_equal_frames_differ_in_no_band():
    frames = (255 * noise(3, 5, 32, 32, 3)).astype(np.uint8)
    found = compared(frames, frames)
    np.testing.assert_allclose(found["energy_ratio"], 1)
    assert found["distance"] == 0 and not found["error_ratio"].any()


def test_blur_takes_high_bands_and_detail_out_of_place_shows_as_error_alone():
    frames = noise(4, 6, 32, 32, 3)
    blurred = compared(frames, np.clip(gaussian_filter(frames, (0, 1, 1, 0)), 0, 1))
    assert (np.diff(blurred["energy_ratio"][:6]) < 0).all() and blurred["energy_ratio"][-1] < 0.01
    assert blurred["error_ratio"][-1] == pytest.approx(1, abs=0.1)
    other = compared(frames, noise(5, 6, 32, 32, 3))
    np.testing.assert_allclose(other["energy_ratio"], 1, atol=0.3)
    np.testing.assert_allclose(other["error_ratio"], 2, atol=0.6)


def test_log_difference_of_a_known_gain():
    frames = 0.5 + 0.4 * (noise(6, 4, 16, 16, 3) - 0.5)
    found = compared(frames, 0.5 + 0.5 * (frames - 0.5), bands=4)
    np.testing.assert_allclose(found["log_difference"], 20 * np.log10(2), atol=0.01)
    np.testing.assert_allclose(found["energy_ratio"], 0.25, atol=1e-3)
    np.testing.assert_allclose(found["frequency"], [0.125, 0.375, 0.625, 0.875])


def test_refuses_other_frames():
    for frames, bands, words in (
        (np.zeros((2, 16, 16)), 4, "wants \\(N, H, W, 3\\)"),
        (np.zeros((2, 16, 7, 3)), 2, "at least 8"),
        (np.zeros((2, 16, 16, 3)), 9, "wants 1 to 8"),
    ):
        with pytest.raises(ValueError, match=words):
            band_energies(frames, bands)
    with pytest.raises(ValueError, match="like the originals"):
        SpectralComparison(4).add(np.zeros((2, 16, 16, 3)), np.zeros((2, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="no frames"):
        SpectralComparison(4).result()
