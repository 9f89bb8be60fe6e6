"""How much detail of each size frames hold: the energy of their spectrum by radial band, and what is lost of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Variance of rounding to 8 bits, in units of a range of 1: below it a band holds nothing that a file could show.
ROUNDING = 1 / 255**2 / 12


def band_centres(bands: int) -> np.ndarray:
    """The middle of each band as a fraction of the highest frequency that the pixels carry: (bands,) in (0, 1)."""
    return (np.arange(bands) + 0.5) / bands


def band_energies(frames: Tensor | np.ndarray, bands: int = 16) -> Tensor:
    """Mean power of a frame's spectrum in rings of equal width, from frequency zero to half a cycle a pixel.

    frames: (N, H, W, 3), uint8 or float in [0, 1], or differences of such; H, W >= 8. Each colour's mean is taken away
    and a Hann window laid over, so that neither brightness nor the jump from one rim to the other counts. Power is that
    of one coefficient, averaged over colours and scaled so that white noise of variance s^2 has s^2 in every band.
    The corners of the spectrum beyond half a cycle a pixel are left out.
    Returns float64 (N, bands). Raises ValueError for other frames, or rings too thin to hold a coefficient.
    """
    frames = torch.as_tensor(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or min(frames.shape[1:3]) < 8:
        raise ValueError(f"frames: got shape {tuple(frames.shape)}, wants (N, H, W, 3) with sides of at least 8")
    height, width = frames.shape[1:3]
    if not 1 <= bands <= min(height, width) // 2:
        raise ValueError(f"bands: got {bands}, wants 1 to {min(height, width) // 2} for frames of {height} x {width}")
    x = frames.double().permute(0, 3, 1, 2)
    x = x / 255 if frames.dtype == torch.uint8 else x
    window = torch.outer(_hann(height), _hann(width))
    power = torch.fft.rfft2((x - x.mean((-2, -1), keepdim=True)) * window).abs().square() / window.square().sum()
    ring, count = _rings(height, width, bands)
    weighted = power.mean(1).flatten(1) * count.flatten()
    inside = ring.flatten() < bands
    ring, count, weighted = ring.flatten()[inside], count.flatten()[inside], weighted[:, inside]
    total = torch.zeros(len(x), bands, dtype=torch.float64).index_add_(1, ring, weighted)
    return total / torch.zeros(bands, dtype=torch.float64).index_add_(0, ring, count)


class SpectralComparison:
    """What a reconstruction keeps of each band, gathered frame by frame.

    `result()` lists for each band: "frequency" (fraction of the highest), "energy_ratio" (energy of the made frames
    over that of the originals: 1 is right, below 1 blurred), "log_difference" (root mean square over frames of the
    difference of their energies in decibels) and "error_ratio" (energy of the difference over that of the originals: 0
    is right, 1 as bad as nothing at all, 2 is detail of the right strength in the wrong place). "distance" is the mean
    of the log differences over bands, in decibels.
    """

    def __init__(self, bands: int = 16):
        self.bands, self.count = bands, 0
        self._original, self._made, self._error, self._squares = torch.zeros(4, bands, dtype=torch.float64)

    def add(self, original: Tensor | np.ndarray, made: Tensor | np.ndarray) -> None:
        """Takes in frames (N, H, W, 3), both uint8 or both float in [0, 1], of one shape."""
        original, made = torch.as_tensor(original), torch.as_tensor(made)
        if original.shape != made.shape or original.dtype != made.dtype:
            raise ValueError(
                f"made: got {made.dtype} of shape {tuple(made.shape)}, wants {original.dtype} of "
                f"{tuple(original.shape)} like the originals"
            )
        scale = 255 if original.dtype == torch.uint8 else 1
        before, after = (band_energies(x, self.bands) for x in (original, made))
        self._error += band_energies((made.double() - original.double()) / scale, self.bands).sum(0)
        self._original += before.sum(0)
        self._made += after.sum(0)
        self._squares += (10 * torch.log10((after + ROUNDING) / (before + ROUNDING))).square().sum(0)
        self.count += len(original)

    def result(self) -> dict[str, list[float] | float]:
        """See the class; ValueError before any frame."""
        if not self.count:
            raise ValueError("count: got no frames, wants at least one")
        floor = ROUNDING * self.count
        difference = (self._squares / self.count).sqrt()
        return {
            "frequency": band_centres(self.bands).tolist(),
            "energy_ratio": ((self._made + floor) / (self._original + floor)).tolist(),
            "log_difference": difference.tolist(),
            "error_ratio": (self._error / (self._original + floor)).tolist(),
            "distance": float(difference.mean()),
        }


def _hann(size: int) -> Tensor:
    """Float64 (size,), above zero at both rims."""
    return torch.hann_window(size + 2, periodic=False, dtype=torch.float64)[1:-1]


def _rings(height: int, width: int, bands: int) -> tuple[Tensor, Tensor]:
    """For each coefficient of a half spectrum the number of its ring (`bands` or more: none), and how often it counts.

    The half spectrum of a real image stands for the whole: all but its first column, and the last of an even width,
    count twice.
    """
    down, across = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.rfftfreq(width, dtype=torch.float64)
    radius = torch.hypot(down[:, None], across[None]) / 0.5
    count = torch.full(radius.shape, 2.0, dtype=torch.float64)
    count[:, 0] = 1
    if width % 2 == 0:
        count[:, -1] = 1
    return (radius * bands - 1e-9).clamp(min=0).long(), count
