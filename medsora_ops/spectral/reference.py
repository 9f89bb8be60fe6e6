"""What do the frequency operators compute? Their plain PyTorch definitions, and their gradients written out.

The spectrum of a real image is symmetric, X(-k) = conj X(k), so half of its columns are enough. `focal_frequency_loss`
uses that; `focal_frequency_loss_full_spectrum` is the published form with two full complex transforms, kept to be
compared with.

Conjugates are taken with `conj_physical`: inside a compiled graph torch switches off the dispatch that resolves the
lazy `conj`, and an operator would silently see unconjugated values.
"""

import torch
from torch import Tensor


def spectral_filter(x: Tensor, weight: Tensor) -> Tensor:
    """x + irfft2(weight * rfft2(x)), both transforms orthonormal; differentiable.

    x: (B, C, ..., H, W), any real dtype; computed in float32, in float64 if x or weight is double.
    weight: (C, H, W // 2 + 1), real or complex.
    Returns a tensor of x's shape and dtype.
    """
    compute = _compute_dtype(x, weight)
    real = x.to(compute)
    spectrum = _hermitian(_as_computed(weight, compute), x.shape[-1]) * _channels_beside_planes(_rfft2(real), x)
    return (real + _channels_back(_irfft2(spectrum, x.shape[-2:]), x)).to(x.dtype)


def spectral_filter_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `spectral_filter` with respect to x and weight, for an output gradient of x's shape.

    With a symmetric weight the filter is a circular convolution, so its adjoint is the filter of the conjugate weight.
    The half spectrum stands for the whole one: its columns count twice, except 0 and (for even W) W / 2.
    """
    compute = _compute_dtype(x, weight)
    grad_x = spectral_filter(grad.to(compute), weight.conj_physical())
    spectrum = _channels_beside_planes(_rfft2(x.to(compute)), x)
    grad_spectrum = _channels_beside_planes(_rfft2(grad.to(compute)), x)
    grad_weight = (spectrum.conj_physical() * grad_spectrum).sum(dim=tuple(range(spectrum.ndim - 3)))
    grad_weight = grad_weight * _multiplicity(x.shape[-1], compute, x.device)
    if not weight.is_complex():
        grad_weight = grad_weight.real
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype)


def focal_frequency_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    patch_factor: int = 1,
    ave_spectrum: bool = False,
    log_matrix: bool = False,
    batch_matrix: bool = False,
) -> Tensor:
    """Focal frequency loss from one half-spectrum transform of pred - target; a scalar, differentiable.

    Arguments as in `medsora_ops.focal_frequency_loss`. The weight matrix carries no gradient.
    """
    difference = _difference_spectrum(pred, target, patch_factor, ave_spectrum)
    weight = _focal_weight(difference.detach().abs(), alpha, log_matrix, batch_matrix)
    width = pred.shape[-1] // patch_factor
    distance = (difference.real.square() + difference.imag.square()) * weight
    counted = distance * _multiplicity(width, distance.dtype, distance.device)
    return (counted.sum() / _full_size(difference, width)).to(pred.dtype)


def focal_frequency_loss_backward(
    grad: Tensor,
    pred: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    patch_factor: int = 1,
    ave_spectrum: bool = False,
    log_matrix: bool = False,
    batch_matrix: bool = False,
) -> Tensor:
    """Gradient of `focal_frequency_loss` with respect to pred (that of target is its negative).

    grad: the scalar gradient of the loss. With the weight held fixed the loss is a weighted square, so its gradient is
    the difference filtered by that weight: 2 / N * irfft2(weight * rfft2(pred - target)).
    """
    difference = _difference_spectrum(pred, target, patch_factor, ave_spectrum)
    weight = _focal_weight(difference.abs(), alpha, log_matrix, batch_matrix)
    height, width = pred.shape[-2] // patch_factor, pred.shape[-1] // patch_factor
    scale = 2.0 * grad.to(weight.dtype) / _full_size(difference, width)
    gradient = _irfft2(difference * weight, (height, width)) * scale
    if ave_spectrum:
        gradient = (gradient / pred.shape[0]).expand(pred.shape[0], *gradient.shape[1:])
    return _join_patches(gradient, patch_factor).to(pred.dtype).contiguous()


def focal_frequency_loss_full_spectrum(
    pred: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    patch_factor: int = 1,
    ave_spectrum: bool = False,
    log_matrix: bool = False,
    batch_matrix: bool = False,
) -> Tensor:
    """The same loss as published (Jiang et al., ICCV 2021): two full complex transforms and their distance."""
    compute = _compute_dtype(pred, target)
    spectra = [torch.fft.fft2(_cut_patches(image.to(compute), patch_factor), norm="ortho") for image in (pred, target)]
    if ave_spectrum:
        spectra = [spectrum.mean(dim=0, keepdim=True) for spectrum in spectra]
    difference = torch.view_as_real(spectra[0] - spectra[1])
    distance = difference.square().sum(dim=-1)
    weight = _focal_weight(distance.detach().sqrt(), alpha, log_matrix, batch_matrix)
    return (weight * distance).mean().to(pred.dtype)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    double = any(t.dtype in (torch.float64, torch.complex128) for t in tensors)
    return torch.float64 if double else torch.float32


def _as_computed(weight: Tensor, compute: torch.dtype) -> Tensor:
    return weight.to(compute.to_complex() if weight.is_complex() else compute)


def _rfft2(image: Tensor) -> Tensor:
    return torch.fft.rfft2(image, norm="ortho")


def _irfft2(spectrum: Tensor, size) -> Tensor:
    return torch.fft.irfft2(spectrum, s=tuple(size), norm="ortho")


def _hermitian(weight: Tensor, width: int) -> Tensor:
    """The weight that acts: in columns 0 and W / 2 the mean of weight(ky) and conj(weight(-ky)).

    A real image keeps only this part of a filter, and a transform library may treat the rest as it likes.
    """
    mirrored = weight.flip(-2).roll(1, dims=-2).conj_physical()
    column = torch.arange(weight.shape[-1], device=weight.device)
    alone = (column == 0) | (2 * column == width)
    return torch.where(alone, (weight + mirrored) / 2, weight)


def _multiplicity(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How often each half-spectrum column stands in the full spectrum: 1, 2, ..., 2 and, for even W, 1."""
    column = torch.arange(width // 2 + 1, device=device)
    return 2.0 - ((column == 0) | (2 * column == width)).to(dtype)


def _channels_beside_planes(spectrum: Tensor, x: Tensor) -> Tensor:
    """(B, C, ..., H, W') -> (B, ..., C, H, W'), so that a weight (C, H, W') broadcasts."""
    return spectrum.movedim(1, x.ndim - 3)


def _channels_back(planes: Tensor, x: Tensor) -> Tensor:
    return planes.movedim(x.ndim - 3, 1)


def _cut_patches(image: Tensor, factor: int) -> Tensor:
    """(..., H, W) -> (..., factor, factor, H / factor, W / factor)."""
    *leading, height, width = image.shape
    cut = image.reshape(*leading, factor, height // factor, factor, width // factor)
    return cut.transpose(-3, -2)


def _join_patches(patches: Tensor, factor: int) -> Tensor:
    *leading, _, _, height, width = patches.shape
    return patches.transpose(-3, -2).reshape(*leading, factor * height, factor * width)


def _difference_spectrum(pred: Tensor, target: Tensor, factor: int, ave_spectrum: bool) -> Tensor:
    compute = _compute_dtype(pred, target)
    spectrum = _rfft2(_cut_patches(pred.to(compute) - target.to(compute), factor))
    return spectrum.mean(dim=0, keepdim=True) if ave_spectrum else spectrum


def _full_size(half_spectrum: Tensor, width: int) -> int:
    return half_spectrum[..., 0].numel() * width


def _focal_weight(magnitude: Tensor, alpha: float, log_matrix: bool, batch_matrix: bool) -> Tensor:
    """|d|^alpha divided by its maximum, over one image and channel or over everything; 0 where that is 0 / 0."""
    weight = magnitude.pow(alpha)
    if log_matrix:
        weight = torch.log(weight + 1.0)
    largest = weight.amax() if batch_matrix else weight.amax(dim=(-2, -1), keepdim=True)
    return torch.nan_to_num(weight / largest, nan=0.0).clamp(0.0, 1.0)
