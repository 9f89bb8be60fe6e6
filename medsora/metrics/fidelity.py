"""How close a picture is to the one it should be: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(made: Tensor | np.ndarray, target: Tensor | np.ndarray, data_range: float | None = None) -> Tensor:
    """Peak signal-to-noise ratio in decibels, 10 log10(data_range^2 / mean square error), over all values together.

    made, target: arrays or tensors of one shape, uint8 or float. data_range: width of the range of values, by default
    255 for uint8 and 1 for floats in [0, 1] (2 for [-1, 1]). Returns a float64 scalar tensor, infinite for equal
    inputs. Raises ValueError for different shapes or kinds.
    """
    made, target, data_range = _pair(made, target, data_range)
    return 10 * torch.log10(data_range**2 / (made - target).square().mean())


def ssim(made: Tensor | np.ndarray, target: Tensor | np.ndarray, data_range: float | None = None) -> Tensor:
    """Structural similarity with an 11 x 11 Gaussian window, sigma 1.5, K1 = 0.01, K2 = 0.03, averaged.

    After Wang, Bovik, Sheikh & Simoncelli 2004, "Image Quality Assessment: From Error Visibility to Structural
    Similarity", equation 13, over places where the window fits in. made, target: (..., H, W) with H, W >= 11: the last
    two dimensions are the picture's, so move a last dimension of colours to the front first. data_range: as in `psnr`.
    Returns a float64 scalar tensor, 1 for equal inputs. Raises ValueError for shapes that do not fit.
    """
    made, target, data_range = _pair(made, target, data_range)
    if made.ndim < 2 or min(made.shape[-2:]) < WINDOW:
        raise ValueError(f"made: got shape {tuple(made.shape)}, wants (..., H, W) with sides of at least {WINDOW}")
    made, target = (x.reshape(-1, 1, *x.shape[-2:]) for x in (made, target))
    mean_a, mean_b = _window_mean(made), _window_mean(target)
    variance_a = _window_mean(made.square()) - mean_a.square()
    variance_b = _window_mean(target.square()) - mean_b.square()
    covariance = _window_mean(made * target) - mean_a * mean_b
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).mean()


def _window_mean(x: Tensor) -> Tensor:
    """(N, 1, H, W) -> (N, 1, H - 10, W - 10), means weighted by the Gaussian window, one axis at a time."""
    position = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weight = torch.exp(-position.square() / (2 * SIGMA**2))
    weight = weight / weight.sum()
    return functional.conv2d(functional.conv2d(x, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))


def _pair(made, target, data_range: float | None) -> tuple[Tensor, Tensor, float]:
    made, target = torch.as_tensor(made), torch.as_tensor(target)
    if made.shape != target.shape or 0 in made.shape:
        raise ValueError(f"target: got shape {tuple(target.shape)}, wants that of made, {tuple(made.shape)}, not empty")
    if made.is_floating_point() != target.is_floating_point():
        raise ValueError(f"target: got {target.dtype} beside {made.dtype}, wants both whole numbers or both floats")
    if data_range is None:
        if not made.is_floating_point() and made.dtype != torch.uint8:
            raise ValueError(f"data_range: got None for {made.dtype}, wants a number unless inputs are uint8 or float")
        data_range = 1.0 if made.is_floating_point() else 255.0
    if not data_range > 0:
        raise ValueError(f"data_range: got {data_range}, wants more than 0")
    return made.double(), target.double(), data_range
