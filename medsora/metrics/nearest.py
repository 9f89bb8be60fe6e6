"""Has a clip been seen before? The nearest window of recorded clips, by pixels at low resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDE = 16  # pixels along each side at which clips are compared


@dataclass
class Match:
    """The window nearest to a clip: how far (root mean square over pixels and colours, in grey levels of 255) and where
    it is (clip, first frame, mirrored left to right)."""

    distance: float = float("inf")
    clip: str = ""
    start: int = 0
    flip: bool = False


def low_resolution(frames: np.ndarray) -> np.ndarray:
    """Means of frames uint8 (T, H, W, 3) over 16 x 16 cells, less 127.5: float32 (T, 16, 16, 3)."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() - 127.5
    return torch.nn.functional.adaptive_avg_pool2d(x, SIDE).permute(0, 2, 3, 1).contiguous().numpy()


class NearestWindows:
    """The nearest recorded window of each of a few clips, found in one pass over the recordings.

    clips: uint8 (N, T, H, W, 3). interval: step between the frames of a window. flips: look at mirror images too.
    own: for clips that are recorded windows themselves, where each is from, (clip, first frame); windows of its clip
        that share a frame's time with it are passed over.
    """

    def __init__(self, clips: np.ndarray, interval: int, flips: bool, own: list[tuple[str, int]] | None = None):
        self.frames, self.interval, self.flips, self.own = clips.shape[1], interval, flips, own
        self._wanted = np.stack([low_resolution(clip) for clip in clips]).reshape(len(clips), -1)
        self.matches = [Match() for _ in clips]

    def scan(self, name: str, frames: np.ndarray) -> None:
        """Compares with every window of a recorded clip, uint8 (L, H, W, 3)."""
        span = (self.frames - 1) * self.interval + 1
        if len(frames) < span:
            return
        small = low_resolution(frames)
        starts = np.arange(len(frames) - span + 1)
        places = starts[:, None] + self.interval * np.arange(self.frames)
        for flip in (False, True)[: 1 + self.flips]:
            windows = (small[:, :, ::-1] if flip else small)[places].reshape(len(starts), -1)
            self._compare(name, starts, flip, windows, span)

    def _compare(self, name: str, starts: np.ndarray, flip: bool, windows: np.ndarray, span: int) -> None:
        # Products find the nearest window; its distance is then computed from differences, which lose no digits.
        length = np.square(windows).sum(axis=1)
        apart = length[None] - 2 * self._wanted @ windows.T
        for number, wanted in enumerate(self._wanted):
            if self.own is not None and self.own[number][0] == name:
                apart[number, np.abs(starts - self.own[number][1]) < span] = np.inf
            best = int(apart[number].argmin())
            if np.isfinite(apart[number, best]):
                distance = float(np.sqrt(np.square(windows[best] - wanted).mean(dtype=np.float64)))
                if distance < self.matches[number].distance:
                    self.matches[number] = Match(distance, name, int(starts[best]), flip)
