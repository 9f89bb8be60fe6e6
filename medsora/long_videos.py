"""Videos longer than what a model makes at once: windows that begin with the frames on which the last one ended."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def count_windows(num_frames: int, window: int, overlap: int) -> int:
    """How many windows of `window` frames, each sharing `overlap` with the one before, make `num_frames` frames."""
    return 1 + max(0, -(-(num_frames - window) // (window - overlap)))


def joined(windows: Iterator[Tensor], overlap: int, num_frames: int | None) -> Iterator[Tensor]:
    """Windows (N, window, H, W, 3) as chunks that follow each other, `num_frames` frames in all (None: all there are).

    Both neighbours show the frames they share; there the video goes over from the first to the second in equal steps,
    so that whatever they differ by does not jump at one frame. Of the windows, two are alive at a time.
    """
    rising = (torch.arange(1, overlap + 1) / (overlap + 1)).view(1, -1, 1, 1, 1)
    shared: Tensor | None = None
    left = num_frames
    for window in windows:
        if shared is not None:
            head = torch.lerp(shared, window[:, :overlap], rising)
            window = torch.cat([head, window[:, overlap:]], dim=1)
        body, shared = window[:, :-overlap], window[:, -overlap:].clone()
        if left is not None and left <= window.shape[1]:
            yield window[:, :left]
            return
        yield body
        left = None if left is None else left - body.shape[1]
