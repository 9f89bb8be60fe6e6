"""The frequency operators on a CPU by the native extension: each image is transformed within the caches.

Images are read and written where they lie, whatever the strides of their leading dimensions and rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medsora_ops import native
from medsora_ops.backends import register

_LONGEST_SIDE = 1024
_LARGEST_PRIME = 512  # a prime factor costs its square

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def spectral_filter(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, C, ..., H, W), weight (C, H, W // 2 + 1) -> tensor of x's shape."""
    x, weight = _with_whole_rows(x), _as_complex(weight)
    y = native.new_empty(x, *x.shape)
    native.extension().spectral_filter(
        _images(x.transpose(0, 1)), weight.data_ptr(), _images(y.transpose(0, 1)), channels=x.shape[1], **_common(x)
    )
    return y


def spectral_filter_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight. That of weight is summed in an order that only sizes decide."""
    grad, x, wide = _with_whole_rows(grad.to(x.dtype)), _with_whole_rows(x), _as_complex(weight)
    grad_x = native.new_empty(x, *x.shape)
    grad_weight = torch.empty_like(wide)
    native.extension().spectral_filter_backward(
        _images(grad.transpose(0, 1)),
        _images(x.transpose(0, 1)),
        wide.data_ptr(),
        _images(grad_x.transpose(0, 1)),
        grad_weight.data_ptr(),
        channels=x.shape[1],
        **_common(x),
    )
    if not weight.is_complex():
        grad_weight = grad_weight.real
    return grad_x, grad_weight.to(weight.dtype)


def focal_frequency_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float,
    patch_factor: int,
    ave_spectrum: bool,
    log_matrix: bool,
    batch_matrix: bool,
) -> Tensor:
    """Arguments and result as the definition's in reference.py."""
    one, other = _compared(pred, target, patch_factor, ave_spectrum)
    loss = native.extension().focal_loss(
        _images(one), _images(other), alpha=alpha, logarithm=log_matrix, largest_of_all=batch_matrix, **_common(one)
    )
    return pred.new_tensor(loss)


def focal_frequency_loss_backward(
    grad: Tensor,
    pred: Tensor,
    target: Tensor,
    alpha: float,
    patch_factor: int,
    ave_spectrum: bool,
    log_matrix: bool,
    batch_matrix: bool,
) -> Tensor:
    """The gradient of pred."""
    one, other = _compared(pred, target, patch_factor, ave_spectrum)
    found = native.new_empty(one, *(one.shape[:1] if ave_spectrum else pred.shape[:1]), *pred.shape[1:])
    native.extension().focal_gradient(
        _images(one),
        _images(other),
        _images(_cut_patches(found, patch_factor)),
        scale=2.0 * float(grad) / pred.numel(),
        alpha=alpha,
        logarithm=log_matrix,
        largest_of_all=batch_matrix,
        **_common(one),
    )
    return found.to(pred.dtype).expand(pred.shape).contiguous()


def _compared(pred: Tensor, target: Tensor, patch_factor: int, ave_spectrum: bool) -> tuple[Tensor, Tensor]:
    """Two tensors of images whose spectra are compared, cut into patches.

    The mean of spectra is the spectrum of the mean: for `ave_spectrum` that takes their place, compared with zero.
    """
    if ave_spectrum:
        pred = (pred.float() - target.float()).mean(dim=0, keepdim=True)
        target = torch.zeros(pred.shape[-1]).expand(pred.shape)
    return tuple(_cut_patches(_with_whole_rows(images), patch_factor) for images in (pred, target))


def _cut_patches(images: Tensor, factor: int) -> Tensor:
    """(..., H, W) -> (..., factor, factor, H / factor, W / factor), in place."""
    if factor == 1:
        return images
    return images.unflatten(-2, (factor, -1)).unflatten(-1, (factor, -1)).transpose(-3, -2)


def _images(x: Tensor) -> tuple:
    """Address, sizes and strides of the leading dimensions, and bytes between rows, for the extension."""
    size, strides = x.element_size(), x.stride()
    return x.data_ptr(), x.shape[:-2], [step * size for step in strides[:-2]], strides[-2] * size


def _common(x: Tensor) -> dict:
    return dict(sides=x.shape[-2:], dtype=_DTYPES[x.dtype], threads=native.threads())


def _with_whole_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _as_complex(weight: Tensor) -> Tensor:
    """The weight as the extension reads it; a lazy conjugate is made true, for its address does not tell."""
    return weight.detach().to(torch.complex64).resolve_conj().contiguous()


def supports_sides(height: int, width: int) -> str | None:
    """None for images that the transforms of csrc/common serve, else why not."""
    for side in (height, width):
        if side > _LONGEST_SIDE:
            return f"serves sides up to {_LONGEST_SIDE}, not {side}"
        if (prime := _largest_prime(side)) > _LARGEST_PRIME:
            return f"serves sides without prime factors above {_LARGEST_PRIME}, not {side} = {side // prime} x {prime}"
    return None


def _largest_prime(n: int) -> int:
    prime = 1
    factor = 2
    while n > 1:
        if factor * factor > n:
            return max(prime, n)
        if n % factor == 0:
            prime, n = factor, n // factor
        else:
            factor += 1
    return prime


def _supports_filter(x: Tensor, weight: Tensor) -> str | None:
    if x.dtype not in _DTYPES or weight.dtype in (torch.float64, torch.complex128):
        return f"serves float32 and bfloat16 with weights in single precision, not {x.dtype} with {weight.dtype}"
    return supports_sides(*x.shape[-2:])


def _supports_focal(pred: Tensor, target: Tensor, alpha: float, patch_factor: int, *_) -> str | None:
    if pred.dtype not in _DTYPES:
        return f"serves float32 and bfloat16, not {pred.dtype}"
    return supports_sides(pred.shape[-2] // patch_factor, pred.shape[-1] // patch_factor)


for _operator, _forward, _backward, _supports in (
    ("spectral_filter", spectral_filter, spectral_filter_backward, _supports_filter),
    ("focal_frequency_loss", focal_frequency_loss, focal_frequency_loss_backward, _supports_focal),
):
    register(
        _operator,
        "native",
        _forward,
        _backward,
        devices=("cpu",),
        priority=10,
        unavailable=native.unavailable,
        supports=_supports,
    )
