"""A fixed description of how a clip looks and moves, for comparing sets of clips without pretrained weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

DETAIL_GRIDS = (16, 8, 4)  # cells along each side
# Changes are judged on coarser cells: finer ones see speckle, which a small autoencoder loses though all moves well.
CHANGE_GRIDS = (8, 4)
LAGS = (1, 2, 4)  # frames between two compared
SHORTEST = 1 + max(LAGS)
LUMINANCE, CB, CR = (0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)  # JPEG's YCbCr
JUST_VISIBLE = 1 / 255  # a grey level, the size below which changes and detail count as none

# What one unit of the feature is; constants, so that no compared data enters.
MEAN_UNIT = 0.02  # brightness or colour, of a range of 1
DETAIL_UNIT = 0.1  # natural logarithm
CHANGE_UNIT = 0.2
LOCAL_CHANGE_UNIT = 0.25
COHERENCE_UNIT = 0.1  # correlation


class MotionFeatures:
    """A clip as 23 numbers, from averages over grids of cells, so that codec noise and slight blur hardly count.

    Each number is in fixed units that depend on no data: mean brightness in 2 x 2 quarters and mean colour (6; unit
    0.02 of the full range); amount of detail between grids of 16, 8, 4 and 2 cells a side (3; logarithm, unit 0.1);
    amount of change over 1, 2 and 4 frames on grids of 8 and 4 cells (6; logarithm of the root mean square, unit 0.2)
    and over 2 frames in each quarter (4; unit 0.25); coherence, the correlation of one change with the next one, over
    1 and 2 frames on grids of 8 and 4 cells (4; unit 0.1): steady motion is positive, a still clip 0, frames in
    random order and noise -0.5. Changes and detail below one grey level count as none.
    """

    size = 23

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Float64 (23,) of a clip, uint8 (T, H, W, 3) with T >= 5 and H, W >= 16; ValueError for another."""
        clip = np.asarray(clip)
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
            raise ValueError(f"clip: got {clip.dtype} of shape {clip.shape}, wants uint8 (T, H, W, 3)")
        if clip.shape[0] < SHORTEST or min(clip.shape[1:3]) < max(DETAIL_GRIDS):
            raise ValueError(
                f"clip: got {clip.shape[0]} frames of {clip.shape[1]} x {clip.shape[2]}, wants at least {SHORTEST} "
                f"frames of {max(DETAIL_GRIDS)} x {max(DETAIL_GRIDS)}"
            )
        pixels = torch.from_numpy(np.ascontiguousarray(clip)).double() / 255
        luminance = pixels @ pixels.new_tensor(LUMINANCE)  # (T, H, W)
        levels = {grid: functional.adaptive_avg_pool2d(luminance[:, None], grid)[:, 0] for grid in (*DETAIL_GRIDS, 2)}
        parts = [_means(pixels, levels), _details(levels), _changes(levels), _local_changes(levels), _coherence(levels)]
        return torch.cat(parts).numpy()


def _means(pixels: Tensor, levels: dict[int, Tensor]) -> Tensor:
    colour = torch.stack([(pixels @ pixels.new_tensor(axis)).mean() for axis in (CB, CR)])
    return torch.cat([levels[2].mean(0).flatten(), colour]) / MEAN_UNIT


def _details(levels: dict[int, Tensor]) -> Tensor:
    """What each grid shows and the next coarser one does not."""
    bands = [
        levels[fine] - levels[fine // 2].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        for fine in DETAIL_GRIDS
    ]
    return torch.stack([_log_strength(band.square().mean()) for band in bands]) / DETAIL_UNIT


def _changes(levels: dict[int, Tensor]) -> Tensor:
    strengths = [_log_strength(_change(levels[g], lag).square().mean()) for g in CHANGE_GRIDS for lag in LAGS]
    return torch.stack(strengths) / CHANGE_UNIT


def _local_changes(levels: dict[int, Tensor]) -> Tensor:
    square = _change(levels[CHANGE_GRIDS[0]], LAGS[1]).square().mean(0)
    quarters = functional.adaptive_avg_pool2d(square[None, None], 2)
    return _log_strength(quarters.flatten()) / LOCAL_CHANGE_UNIT


def _coherence(levels: dict[int, Tensor]) -> Tensor:
    """Correlation of x[t + lag] - x[t] with x[t + 2 lag] - x[t + lag]."""
    values = []
    for grid in CHANGE_GRIDS:
        for lag in LAGS[:2]:
            change = _change(levels[grid], lag)
            before, after = change[:-lag], change[lag:]
            size = (before.square().mean() * after.square().mean()).sqrt()
            values.append((before * after).mean() / (size + JUST_VISIBLE**2))
    return torch.stack(values) / COHERENCE_UNIT


def _change(level: Tensor, lag: int) -> Tensor:
    return level[lag:] - level[:-lag]


def _log_strength(mean_square: Tensor) -> Tensor:
    return torch.log(mean_square.sqrt() + JUST_VISIBLE)
