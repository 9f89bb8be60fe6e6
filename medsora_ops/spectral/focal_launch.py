"""Launches of the focal frequency loss's kernels: images cut into patches in place, two passes each way."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medsora_ops import launch
from medsora_ops.spectral.filter_launch import CONFIG, Sizes, programs_for

_SMALL = replace(CONFIG, terms=16)  # images of one block of 32 terms are unrolled, and then do not fit into registers


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
    images = compared(pred, target, patch_factor, ave_spectrum)
    largest = _largest(images, alpha, log_matrix, batch_matrix)
    sums = _of_rows(images, largest, alpha, log_matrix)
    return (sums.sum() / images[0].numel()).to(pred.dtype)


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
    images = compared(pred, target, patch_factor, ave_spectrum)
    largest = _largest(images, alpha, log_matrix, batch_matrix)
    found = pred.new_empty(1 if ave_spectrum else pred.shape[0], *pred.shape[1:], dtype=images[0].dtype)
    results = patches(found, patch_factor)
    sizes = _sizes(*images, results)
    blocks = sizes.blocks
    rows, columns, block = blocks["ROWS"], blocks["COLUMNS"], blocks["BLOCK_K"]
    programs = programs_for(sizes.channels * sizes.packs, pred, CONFIG)
    scratch = pred.new_empty(programs * rows * (4 * block + 2 * columns), dtype=torch.float32)
    with launch.on_device(pred):
        launch.launch(
            _kernels().focal_gradient_kernel,
            programs,
            *(*_arguments(images, sizes), results, *sizes.steps(results)),
            *(largest, grad, 2.0 / pred.numel(), sizes.tables(pred.device), scratch),
            *(sizes.channels, sizes.depth, sizes.count, sizes.height, sizes.width // sizes.piece, sizes.packs),
            PIECE=sizes.piece,
            ALPHA=float(alpha),
            LOGARITHM=log_matrix,
            BLOCK_W=min(CONFIG.width, blocks["WIDTH"]),
            **blocks,
            **CONFIG.options(),
            **launch.sparing(pred.device),
        )
    return found.to(pred.dtype).expand(pred.shape).contiguous()


def compared(pred: Tensor, target: Tensor, factor: int, ave_spectrum: bool) -> tuple[Tensor, ...]:
    """One or two tensors of patches; of two, the difference counts.

    The mean of spectra is the spectrum of the mean: for `ave_spectrum` that takes their place.
    """
    if ave_spectrum:
        return (patches((pred.float() - target.float()).mean(dim=0, keepdim=True), factor),)
    return patches(pred, factor), patches(target, factor)


def patches(images: Tensor, factor: int) -> Tensor:
    """(..., H, W) -> (images, factor, factor, H / factor, W / factor), where they lie if their strides allow it."""
    whole = images if images.stride(-1) == 1 or images.shape[-1] == 1 else images.contiguous()
    whole = whole.reshape(-1, *images.shape[-2:])
    return whole.unflatten(1, (factor, -1)).unflatten(3, (factor, -1)).transpose(2, 3)


def _largest(images: tuple[Tensor, ...], alpha: float, log_matrix: bool, batch_matrix: bool) -> Tensor:
    """The largest |d|^alpha of each image: (channels, images of a channel)."""
    largest = _of_rows(images, None, alpha, log_matrix).amax(dim=(2, 3))
    return largest.amax().expand(largest.shape).contiguous() if batch_matrix else largest


def _of_rows(images: tuple[Tensor, ...], largest: Tensor | None, alpha: float, log_matrix: bool) -> Tensor:
    """What `focal_rows_kernel` finds."""
    sizes, x = _sizes(*images), images[0]
    blocks = sizes.blocks
    rows, columns, block = blocks["ROWS"], blocks["COLUMNS"], blocks["BLOCK_K"]
    programs = programs_for(sizes.channels * sizes.packs, x, CONFIG)
    found = x.new_empty(sizes.channels, sizes.count, sizes.height, columns // block, dtype=torch.float32)
    scratch = x.new_empty(programs * rows * 2 * block, dtype=torch.float32)
    with launch.on_device(x):
        launch.launch(
            _kernels().focal_rows_kernel,
            programs,
            *(*_arguments(images, sizes), largest, found, sizes.tables(x.device), scratch),
            *(sizes.channels, sizes.depth, sizes.count, sizes.height, sizes.width // sizes.piece, sizes.width),
            sizes.packs,
            PIECE=sizes.piece,
            ALPHA=float(alpha),
            LOGARITHM=log_matrix,
            **blocks,
            **CONFIG.options(),
            **_registers(x, sizes),
        )
    return found


def _sizes(*images: Tensor) -> Sizes:
    return Sizes.of(_SMALL if max(images[0].shape[-2:]) <= 32 else CONFIG, *images)


def _registers(x: Tensor, sizes: Sizes) -> dict:
    """Of small images, unrolled, NVIDIA's assembler would rather spill than take more than 128 registers."""
    limit = launch.at_most(x.device, 168) if sizes.config == _SMALL else {}
    return launch.sparing(x.device) | limit


def _arguments(images: tuple[Tensor, ...], sizes: Sizes) -> list:
    found = [argument for one in images for argument in (one, *sizes.steps(one))]
    return found if len(images) == 2 else [*found, None, 0, 0, 0, 0]


def _kernels():
    from medsora_ops.spectral import focal_kernels

    return focal_kernels
