"""The frequency operators by Triton kernels, on GPUs: sides of up to LONGEST_SIDE, by products with Fourier matrices.

`spectral_filter`: forward one launch, which reads an image and writes one; back three, the filter of the conjugate
weight, products of spectra, and their sum. `focal_frequency_loss`: forward the largest of each spectrum and then the
sums, back the largest and then the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medsora_ops import launch
from medsora_ops.backends import register
from medsora_ops.spectral.filter_launch import CONFIG, filtered, weight_gradient
from medsora_ops.spectral.focal_launch import focal_frequency_loss, focal_frequency_loss_backward

LONGEST_SIDE = 128

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WEIGHTS = (*_DTYPES, torch.complex64)


def spectral_filter(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, C, ..., H, W), weight (C, H, W // 2 + 1) -> tensor of x's shape."""
    return filtered(x, weight, CONFIG)


def spectral_filter_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight. That of weight is summed in an order that sizes and the device decide."""
    grad = grad.to(x.dtype)
    return filtered(grad, weight, CONFIG, conjugate=True), weight_gradient(grad, x, weight, CONFIG)


def _supports_filter(x: Tensor, weight: Tensor) -> str | None:
    if x.dtype not in _DTYPES or weight.dtype not in _WEIGHTS:
        kinds = "float32, bfloat16 and float16 with weights in single precision"
        return f"serves {kinds}, not {x.dtype} with {weight.dtype}"
    return _supports_sides(*x.shape[-2:])


def _supports_focal(pred: Tensor, target: Tensor, alpha: float, patch_factor: int, *_) -> str | None:
    if pred.dtype not in _DTYPES:
        return f"serves float32, bfloat16 and float16, not {pred.dtype}"
    return _supports_sides(pred.shape[-2] // patch_factor, pred.shape[-1] // patch_factor)


def _supports_sides(height: int, width: int) -> str | None:
    longest = max(height, width)
    return None if longest <= LONGEST_SIDE else f"serves sides up to {LONGEST_SIDE}, not {longest}"


for _operator, _forward, _backward, _supports in (
    ("spectral_filter", spectral_filter, spectral_filter_backward, _supports_filter),
    ("focal_frequency_loss", focal_frequency_loss, focal_frequency_loss_backward, _supports_focal),
):
    register(
        _operator,
        "triton",
        _forward,
        _backward,
        devices=("cuda", "cpu") if launch.INTERPRETED else ("cuda",),
        priority=5,
        unavailable=launch.unavailable,
        supports=_supports,
    )
