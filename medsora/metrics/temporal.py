"""How frames follow one another, told from optical flow: does the picture move as a whole, how fast, how smoothly?

Flows are as `medsora.alignment.flow` makes them: float32 (T - 1, H, W, 2), (u, v) in pixels a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

MOVING = 0.1  # pixels a frame from which a place counts as moving
STATISTICS = ("warping_error", "visible", "speed", "moving", "jerk")


def temporal_statistics(frames: np.ndarray, estimate: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """The measures of one clip, uint8 (T, H, W, 3) with T >= 2; estimate: frames -> flow between neighbours.

    Returns "warping_error" and "visible" (see `warping_error`), "speed" (mean length of the flow, pixels a frame),
    "moving" (share of places that move by 0.1 pixels or more) and "jerk" (mean length of the difference between the
    flows of neighbouring pairs, pixels a frame; 0 for 2 frames). Raises ValueError for fewer frames.
    """
    if len(frames) < 2:
        raise ValueError(f"frames: got {len(frames)}, wants at least 2")
    forward, backward = estimate(frames), estimate(frames[::-1])[::-1]
    error, visible = warping_error(frames, forward, backward)
    length = np.hypot(forward[..., 0], forward[..., 1])
    change = np.diff(forward, axis=0)
    return {
        "warping_error": error,
        "visible": visible,
        "speed": float(length.mean()),
        "moving": float((length >= MOVING).mean()),
        "jerk": float(np.hypot(change[..., 0], change[..., 1]).mean()) if len(change) else 0.0,
    }


def warping_error(frames: np.ndarray, forward: np.ndarray, backward: np.ndarray) -> tuple[float, float]:
    """Mean square difference between each frame and the next one, drawn back along the flow, where both are in view.

    After Lai et al. 2018, "Learning Blind Video Temporal Consistency", section 4; what is in view by the consistency of
    both flows, Ruder et al. 2016, "Artistic Style Transfer for Videos", equation 5. frames: uint8 (T, H, W, 3).
    forward: flow from frame k to k + 1; backward: from k + 1 to k. Returns the error, for a range of 1, averaged over
    all places in view of all pairs, and their share of all places. Low for clips at rest too: judge it beside speed.
    """
    if frames.shape[:3] != (len(forward) + 1, *forward.shape[1:3]) or forward.shape != backward.shape:
        raise ValueError(
            f"forward, backward: got shapes {forward.shape} and {backward.shape} for frames of {frames.shape}, wants "
            "(frames - 1, H, W, 2) both"
        )
    total, seen = 0.0, 0
    for before, after, there, back in zip(frames[:-1], frames[1:], forward, backward, strict=True):
        visible = consistent(there, back)
        difference = warp(after.astype(np.float32) / 255, there) - before.astype(np.float32) / 255
        total += float(np.square(difference).mean(axis=-1, dtype=np.float64)[visible].sum())
        seen += int(visible.sum())
    return total / max(seen, 1), seen / forward[..., 0].size


def warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """`image` (H, W, C) float32 read at (x + u, y + v), bilinear; beyond the rim its edge goes on."""
    import cv2

    rows, columns = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return cv2.remap(
        image, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def consistent(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """bool (H, W): places inside the next frame from which the flow back leads home, |a + b|^2 <= 0.01 (|a|^2 + |b|^2)
    + 0.5 pixels squared."""
    height, width = there.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    x, y = columns + there[..., 0], rows + there[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    home = warp(np.ascontiguousarray(back), there)
    apart = np.square(there + home).sum(-1)
    return inside & (apart <= 0.01 * (np.square(there).sum(-1) + np.square(home).sum(-1)) + 0.5)


def wasserstein(one: Sequence[float], other: Sequence[float]) -> float:
    """Area between the distribution functions of two samples of numbers: the 1-Wasserstein distance, in their unit.

    Raises ValueError for an empty sample.
    """
    one, other = (np.sort(np.asarray(x, dtype=np.float64)) for x in (one, other))
    if not len(one) or not len(other):
        raise ValueError(f"one, other: got {len(one)} and {len(other)} numbers, wants at least one each")
    places = np.sort(np.concatenate([one, other]))
    below = [np.searchsorted(x, places[:-1], side="right") / len(x) for x in (one, other)]
    return float((np.abs(below[0] - below[1]) * np.diff(places)).sum())
