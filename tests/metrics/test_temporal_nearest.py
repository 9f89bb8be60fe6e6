"""Measures from flow on motions that are known, and the nearest window among recordings made for the purpose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from medsora.alignment.flow import estimate_flow
from medsora.metrics import NearestWindows, temporal_statistics, warping_error, wasserstein
from medsora.metrics.temporal import consistent, warp


def drifting(frames=6, side=48, step=1.5, seed=0):
    """A smooth pattern that moves to the right by `step` pixels a frame."""
    rng = np.random.default_rng(seed)
    waves = [(rng.uniform(0.1, 0.5, 2), rng.uniform(0, 6), rng.uniform(10, 25)) for _ in range(8)]
    y, x = np.mgrid[:side, :side]
    clip = [
        sum(a * np.sin(fx * (x - step * t) + fy * y + phase) for (fx, fy), phase, a in waves) for t in range(frames)
    ]
    return np.repeat(np.clip(127 + np.stack(clip), 0, 255)[..., None], 3, axis=-1).astype(np.uint8)


def constant_flow(frames, side, u, v=0.0):
    return np.broadcast_to(np.array([u, v], np.float32), (frames - 1, side, side, 2)).copy()


def test_true_flow_warps_without_error_and_a_wrong_one_does_not():
    clip = drifting()
    there, back = constant_flow(6, 48, 1.5), constant_flow(6, 48, -1.5)
    error, visible = warping_error(clip, there, back)
    assert error < 1e-4 and visible == pytest.approx(46 / 48)  # columns 46 and 47 leave the picture
    still, _ = warping_error(clip, 0 * there, 0 * back)
    assert still > 30 * error


def test_error_is_the_mean_square_over_places_in_view():
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (2, 16, 20, 3), dtype=np.uint8)
    there, back = np.zeros((2, 1, 16, 20, 2), np.float32)
    there[0, :8] = 3.0  # goes, and does not come back: out of view
    error, visible = warping_error(clip, there, back)
    expected = np.square((clip[1, 8:].astype(float) - clip[0, 8:]) / 255).mean()
    assert error == pytest.approx(expected, rel=1e-5) and visible == 0.5


def test_consistency_and_warp_at_whole_pixels():
    image = np.random.default_rng(1).random((6, 7, 3)).astype(np.float32)
    flow = np.zeros((6, 7, 2), np.float32)
    flow[..., 0] = 2
    np.testing.assert_allclose(warp(image, flow)[:, :5], image[:, 2:])
    assert consistent(flow, -flow)[:, :5].all() and not consistent(flow, -flow)[:, 5:].any()
    assert not consistent(flow, flow).any()


def test_statistics_of_steady_still_and_shaking_clips():
    steady = temporal_statistics(drifting(), estimate_flow)
    assert steady["speed"] == pytest.approx(1.5, rel=0.15) and steady["moving"] > 0.95
    still = temporal_statistics(np.repeat(drifting(1), 6, axis=0), estimate_flow)
    assert still["speed"] < 0.02 and still["warping_error"] == 0 and still["moving"] == 0
    shaking = temporal_statistics(drifting()[[0, 1, 0, 1, 0, 1]], estimate_flow)
    assert shaking["jerk"] > 5 * steady["jerk"] and shaking["speed"] == pytest.approx(steady["speed"], rel=0.2)
    noise = np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3), dtype=np.uint8)
    assert temporal_statistics(noise, estimate_flow)["warping_error"] > 100 * steady["warping_error"]


def test_temporal_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least 2"):
        temporal_statistics(drifting(1), estimate_flow)
    with pytest.raises(ValueError, match="frames - 1"):
        warping_error(drifting(3), constant_flow(6, 48, 1.0), constant_flow(6, 48, 1.0))


numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=12)


@given(numbers, numbers)
def test_wasserstein_agrees_with_scipy(one, other):
    assert wasserstein(one, other) == pytest.approx(wasserstein_distance(one, other), rel=1e-9, abs=1e-9)


def test_wasserstein_refuses_nothing():
    with pytest.raises(ValueError, match="at least one each"):
        wasserstein([], [1.0])


def recordings(count=3, length=20, side=32):
    rng = np.random.default_rng(7)
    return {f"r{i}": rng.integers(0, 256, (length, side, side, 3), dtype=np.uint8) for i in range(count)}


def scanned(clips, interval=2, flips=True, own=None):
    nearest = NearestWindows(np.stack(clips), interval, flips, own)
    for name, frames in recordings().items():
        nearest.scan(name, frames)
    return nearest.matches


def test_a_copy_is_found_where_it_is_mirrored_or_not():
    frames = recordings()["r1"]
    copy, mirrored = frames[3:11:2], frames[5:13:2, :, ::-1]
    first, second = scanned([copy, mirrored])
    assert (first.distance, first.clip, first.start, first.flip) == (0, "r1", 3, False)
    assert (second.distance, second.clip, second.start, second.flip) == (0, "r1", 5, True)
    assert scanned([mirrored], flips=False)[0].distance > 5


def test_distance_is_in_grey_levels_of_cells():
    frames = recordings()["r2"]
    lighter = frames[4:12:2].astype(int)
    lifted = np.clip(lighter // 2 + 40, 0, 255).astype(np.uint8)
    expected = min(
        np.sqrt(np.square(cells(window) - cells(lifted)).mean())
        for name in recordings()
        for window in (recordings()[name][start : start + 8 : 2] for start in range(14))
    )
    assert scanned([lifted], flips=False)[0].distance == pytest.approx(expected, rel=1e-5)


def cells(frames):
    return frames.reshape(len(frames), 16, 2, 16, 2, 3).astype(float).mean((2, 4))


def test_windows_that_share_time_with_a_recorded_one_are_passed_over():
    frames = recordings()["r0"]
    [match] = scanned([frames[6:14:2]], own=[("r0", 6)])
    assert match.distance > 5 and (match.clip != "r0" or abs(match.start - 6) >= 7)


def test_recordings_too_short_for_a_window_give_no_match():
    nearest = NearestWindows(recordings()["r0"][None, :16], 2, False)
    nearest.scan("short", recordings()["r0"][:12])
    assert nearest.matches[0].distance == float("inf")
