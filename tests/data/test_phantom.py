"""The phantom is deterministic, moves, and shows its polyp."""

import time

import numpy as np
import pytest

from medsora.data import render


def test_same_arguments_same_bytes():
    first, again, other = render(3, 8, 32, True), render(3, 8, 32, True), render(4, 8, 32, True)
    assert first.shape == (8, 32, 32, 3) and first.dtype == np.uint8
    assert (first == again).all() and np.abs(first.astype(int) - other).mean() > 5


@pytest.mark.parametrize("seed", range(6))
def test_looks_like_a_lumen(seed):
    """Lit pink walls around a dark middle distance, some specular spots, and nothing saturated as a whole."""
    frames = render(seed, 8, 64, False).astype(float)
    assert 60 < frames.mean() < 190
    red, green, blue = frames.mean((0, 1, 2))
    assert red > green + 15 and green > blue - 10
    dark = (frames.max(-1) < 40).mean()
    assert 0.005 < dark < 0.3
    assert (frames.min(-1) > 225).mean() < 0.2


def test_camera_moves_smoothly():
    frames = render(1, 12, 64, False).astype(float)
    steps = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert (steps > 1.5).all()
    assert np.abs(frames[6] - frames[0]).mean() > steps.mean()  # it travels, it does not tremble


@pytest.mark.parametrize("seed", range(6))
def test_polyp_changes_its_own_place_only(seed):
    with_it, without = (render(seed, 8, 64, polyp).astype(int) for polyp in (True, False))
    changed = np.abs(with_it - without).max(-1) > 25
    shares = changed.mean((1, 2))
    assert shares.max() > 0.003 and shares.max() < 0.45


def test_quick_enough():
    render(0, 1, 64, False)
    start = time.process_time()
    render(0, 16, 64, True)
    assert time.process_time() - start < 2.0  # 0.12 s on a quiet core


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_frames is 0"):
        render(0, 0, 64, False)
