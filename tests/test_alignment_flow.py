"""Flow between frames on motions that are known, and the colour picture of a flow."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from medsora.alignment import flow_image
from medsora.alignment.flow import colour_wheel, estimate_flow


def texture(height, width, seed=0):
    """A smooth random picture, float (height, width) in [0, 1]."""
    noise = np.random.default_rng(seed).standard_normal((height, width))
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    smooth = np.fft.ifft2(np.fft.fft2(noise) * np.exp(-((y**2 + x**2) * 300))).real
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def warped(move, height=96, width=128):
    """Two frames: a texture, and the same after each pixel p moved by move(p), (x, y) from the centre."""
    picture = texture(height, width)
    y, x = np.mgrid[:height, :width].astype(float)
    u, v = move(x - (width - 1) / 2, y - (height - 1) / 2)
    # To first order in small motions, the moved picture at p is the old one at p - move(p).
    after = map_coordinates(picture, [y - v, x - u], order=3, mode="mirror")
    return np.stack([np.repeat((p.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, -1) for p in (picture, after)])


def inside(field, margin=16):
    return field[..., margin:-margin, margin:-margin, :]


@pytest.mark.parametrize("shift", [(2.0, 0.0), (0.0, -1.5), (-3.0, 2.0)])
def test_dis_recovers_a_translation(shift):
    flow = estimate_flow(warped(lambda x, y: (0 * x + shift[0], 0 * y + shift[1])))
    assert flow.shape == (1, 96, 128, 2) and flow.dtype == np.float32
    assert np.abs(np.median(inside(flow[0]), axis=(0, 1)) - shift).max() < 0.1
    assert np.abs(inside(flow[0]) - shift).mean() < 0.2


def test_dis_sees_nothing_where_nothing_moves():
    assert np.abs(estimate_flow(np.repeat(warped(lambda x, y: (0 * x, 0 * y))[:1], 3, 0))).max() < 1e-3


@pytest.mark.parametrize("size", [16, 24, 64])
def test_dis_takes_small_frames(size):
    frames = warped(lambda x, y: (0 * x + 1.0, 0 * y), size, size)
    flow = estimate_flow(frames)
    assert flow.shape == (1, size, size, 2)
    assert abs(np.median(flow[..., 0]) - 1) < 0.35 and abs(np.median(flow[..., 1])) < 0.2


@pytest.mark.parametrize(
    "frames, arguments, message",
    [
        (np.zeros((2, 8, 8, 3), np.float32), {}, "frames: got float32 of shape"),
        (np.zeros((2, 8, 8), np.uint8), {}, "frames: got uint8 of shape"),
        ("clip.mp4", {}, "frames: got str"),
        (
            np.zeros((2, 32, 32, 3), np.uint8),
            {"estimator": "farneback"},
            "flow: got 'farneback', wants one of dis, raft",
        ),
    ],
)
def test_frames_and_estimators_that_do_not_fit_are_refused(frames, arguments, message):
    with pytest.raises(ValueError, match=message):
        estimate_flow(frames, **arguments)


def test_raft_says_what_it_needs():
    """Without torchvision its name, with it the weights it is not given."""
    with pytest.raises(ValueError, match="torchvision|flow_weights: got None"):
        estimate_flow(np.zeros((2, 128, 128, 3), np.uint8), "raft")


def test_raft_runs_with_weights_from_a_file(tmp_path):
    raft = pytest.importorskip("torchvision.models.optical_flow", exc_type=(ImportError, RuntimeError))
    torch.manual_seed(0)
    torch.save(raft.raft_large(weights=None).state_dict(), tmp_path / "raft.pth")
    frames = warped(lambda x, y: (0 * x + 1, 0 * y), 60, 76)
    flow = estimate_flow(frames, "raft", str(tmp_path / "raft.pth"))
    assert flow.shape == (1, 60, 76, 2) and np.isfinite(flow).all()
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit RAFT"):
        estimate_flow(frames, "raft", str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match="flow_weights: cannot load 'C_T', there is no such path; download raft_large"):
        estimate_flow(frames, "raft", "C_T")


def test_the_wheel_is_middleburys():
    wheel = colour_wheel()
    assert wheel.shape == (55, 3) and wheel.min() == 0 and wheel.max() == 1
    at = dict(zip(("red", "yellow", "green", "cyan", "blue", "magenta"), np.cumsum([0, 15, 6, 4, 11, 13]), strict=True))
    for name, colour in {"red": (1, 0, 0), "yellow": (1, 1, 0), "green": (0, 1, 0), "cyan": (0, 1, 1)}.items():
        assert tuple(wheel[at[name]]) == colour
    assert tuple(wheel[at["blue"]]) == (0, 0, 1) and tuple(wheel[at["magenta"]]) == (1, 0, 1)


def test_rest_is_white_and_speed_adds_colour():
    flow = np.zeros((1, 4, 2), np.float32)
    flow[0, :, 0] = [0, 1, 2, 4]
    picture = flow_image(flow)
    np.testing.assert_allclose(picture[0, 0], [1, 1, 1])
    np.testing.assert_allclose(picture[0, 3], [1, 0, 0], atol=1e-6)  # full speed to the right: pure red
    assert (np.diff(picture[0, :, 1]) < 0).all()
    np.testing.assert_allclose(flow_image(flow, largest=2.0)[0, 3], [0.75, 0, 0], atol=1e-6)  # beyond: darkened


def test_opposite_directions_have_different_hues_and_a_turn_has_one_small_seam():
    angle = np.linspace(-np.pi, np.pi, 721)
    ring = flow_image(np.stack([np.cos(angle), np.sin(angle)], -1)[None])[0]
    steps = np.abs(np.diff(ring, axis=0)).max(-1)
    assert (steps > 0.05).sum() == 1 and steps.argmax() in (359, 360)  # the wheel's own: 55 entries, 54 gaps, at red
    assert steps.max() < 1 / 6 + 0.02
    np.testing.assert_allclose(ring[0], ring[-1], atol=1e-6)
    assert np.abs(ring[:360] - ring[360:720]).max(-1).min() > 0.3
    down = flow_image(np.array([[[0.0, 1.0]]]))[0, 0]
    np.testing.assert_allclose(down, [1, 0.9, 0], atol=1e-6)  # v points down: 13.5 entries after red, nearly yellow
