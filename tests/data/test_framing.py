"""Borders, squares, lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_recordings import moving_frames

from medsora.data.framing import BorderFinder, cut, square_frame
from medsora.data.latents import spread
from medsora.data.settings import PrepareSettings, is_valid_length
from medsora.errors import UserError


def picture_of(frames):
    border = BorderFinder()
    for frame in frames:
        border.add(frame)
    return border.picture()


def bordered(rng, noise):
    frames = np.zeros((10, 90, 120, 3))
    frames[:, 12:71, 20:98] = moving_frames(10, 59, 78)
    return np.clip(frames + rng.normal(0, noise, frames.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [0, 3, 8])
def test_black_borders_are_found_through_noise(noise):
    frames = bordered(np.random.default_rng(0), noise)
    assert picture_of(frames) == (slice(12, 71), slice(20, 98))


def test_one_dark_or_bright_frame_does_not_move_the_border():
    frames = bordered(np.random.default_rng(0), 0)
    frames[3] = 0
    frames[7, :5] = 60
    assert picture_of(frames) == (slice(12, 71), slice(20, 98))


def test_picture_without_borders_stays_whole():
    assert picture_of(moving_frames(8)) == (slice(0, 48), slice(0, 64))


def test_a_speck_is_no_picture():
    frames = np.zeros((8, 60, 60, 3), np.uint8)
    frames[:, 30:34, 30:34] = 255
    assert picture_of(frames) == (slice(0, 60), slice(0, 60))


def test_circle_of_an_endoscope_is_cut_to_its_box():
    y, x = np.mgrid[:100, :140]
    frame = np.where((np.hypot(y - 50, x - 66) < 40)[..., None], 150, 2).astype(np.uint8).repeat(3, -1)
    rows, columns = picture_of([frame] * 8)
    assert abs(rows.start - 11) < 4 and abs(rows.stop - 90) < 4 and abs(columns.start - 27) < 4


@pytest.mark.parametrize(("height", "width"), [(96, 54), (54, 96), (64, 64), (300, 31), (17, 90)])
def test_square_keeps_centre_and_proportions(height, width):
    """A disc in the middle stays a disc in the middle, in portrait and in landscape."""
    y, x = np.mgrid[:height, :width]
    side = min(height, width)
    disc = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) < 0.3 * side
    frame = (disc[..., None] * np.array([200, 200, 200])).astype(np.uint8)
    square = square_frame(frame, (slice(0, height), slice(0, width)), 32)
    assert square.shape == (32, 32, 3)
    inside = square[..., 0] > 100
    places = np.argwhere(inside)
    assert np.abs(places.mean(0) - 15.5).max() < 1.0
    assert inside.mean() == pytest.approx(np.pi * 0.09, rel=0.15)


def test_cut_to_lengths():
    frames = [np.full((1, 1, 3), i, np.uint8) for i in range(45)]
    assert [(start, len(clip)) for start, clip in cut(frames, 16, 8)] == [(0, 16), (16, 16), (32, 13)]
    assert [(start, len(clip)) for start, clip in cut(frames[:39], 16, 8)] == [(0, 16), (16, 16)]
    assert all(clip[0, 0, 0, 0] == start for start, clip in cut(frames, 16, 8))


def test_valid_lengths():
    assert [n for n in range(-1, 34) if is_valid_length(n)] == [1, 8, 9, 16, 17, 24, 25, 32, 33]


@given(st.integers(-5, 300), st.integers(0, 40))
def test_starts_are_spread_over_the_whole_clip(places, count):
    starts = spread(places, count)
    assert len(starts) == min(max(places, 0), count) and sorted(set(starts)) == starts
    if len(starts) > 1:
        gaps = np.diff(starts)
        assert starts[0] == 0 and starts[-1] == places - 1 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_frames": 12}, "num_frames is 12"),
        ({"size": 100}, "multiple of 8"),
        ({"interval": 0}, "interval is 0"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"encode_dtype": "int8"}, "encode_dtype"),
        ({"min_clip_frames": 200}, "min_clip_frames is 200"),
        ({"default_fps": 0}, "default_fps"),
        ({"images_per_clip": -1}, "images_per_clip"),
    ],
)
def test_settings_out_of_range(values, words):
    with pytest.raises(UserError, match=words):
        PrepareSettings(**values).check()
