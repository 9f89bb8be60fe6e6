"""The frequency operators by the CUDA kernels of the extension: images are transformed in the shared memory of blocks.

`spectral_filter`: forward one launch, which reads an image and writes one; back two, images and sums of their spectra,
and then the sums of these. `focal_frequency_loss`: forward the losses and their mean, back the gradients; with
`batch_matrix` the largest weights before either.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from medsora_ops import cuda, launch, native
from medsora_ops.backends import register
from medsora_ops.spectral.filter_launch import as_read, five_dimensions
from medsora_ops.spectral.focal_launch import compared, patches
from medsora_ops.spectral.native import supports_sides

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_WEIGHTS = (*DTYPES, torch.complex64)
_NOWHERE = (0, (1, 1, 1), (0, 0, 0), 0)

Chip = tuple[int, int]


def spectral_filter(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, C, ..., H, W), weight (C, H, W // 2 + 1) -> tensor of x's shape."""
    with launch.on_device(x):
        return run_filter(*_runner(x, "cuda_spectral_filter"), x, weight)


def spectral_filter_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight. That of weight is summed in an order that sizes and the device decide."""
    with launch.on_device(x):
        return run_filter_backward(*_runner(x, "cuda_spectral_filter_backward"), grad, x, weight)


def focal_frequency_loss(pred: Tensor, target: Tensor, *settings) -> Tensor:
    """Arguments and result as the definition's in reference.py."""
    with launch.on_device(pred):
        (focal, chip), (mean, _) = _runner(pred, "cuda_focal"), _runner(pred, "cuda_focal_mean")
        return run_focal(focal, mean, chip, pred, target, *settings)


def focal_frequency_loss_backward(grad: Tensor, pred: Tensor, target: Tensor, *settings) -> Tensor:
    """The gradient of pred."""
    with launch.on_device(pred):
        return run_focal_backward(*_runner(pred, "cuda_focal"), grad, pred, target, *settings)


def _runner(x: Tensor, name: str) -> tuple[Callable, Chip]:
    return partial(getattr(native.extension(), name), stream=cuda.stream(x)), cuda.chip(x.device)


def run_filter(run: Callable[..., object], chip: Chip, x: Tensor, weight: Tensor) -> Tensor:
    """`spectral_filter` by a function of the extension that takes addresses, sizes, strides and the chip's limits."""
    y, wide = x.new_empty(x.shape), weight.is_complex()
    if y.numel():
        gains, images = as_read(weight), five_dimensions(x)
        run(_channels(images), gains.data_ptr(), _channels(y.view(images.shape)), wide=wide, chip=chip, **_common(x))
    return y


def run_filter_backward(
    run: Callable[..., object], chip: Chip, grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """`spectral_filter_backward`, like `run_filter`."""
    grad_x, wide = x.new_empty(x.shape), weight.is_complex()
    grad_weight = torch.empty(weight.shape, dtype=torch.complex64 if wide else torch.float32, device=x.device)
    if not x.numel():
        return grad_x, grad_weight.zero_().to(weight.dtype)
    gains, images, grads = as_read(weight), five_dimensions(x), five_dimensions(grad.to(x.dtype))
    batch, channels, depth, *sides = images.shape
    floats = native.extension().spectral_filter_scratch(sides, channels, batch * depth, chip)
    scratch = torch.empty(floats, dtype=torch.float32, device=x.device)
    run(
        _channels(grads),
        _channels(images),
        gains.data_ptr(),
        _channels(grad_x.view(images.shape)),
        grad_weight.data_ptr(),
        scratch=scratch.data_ptr(),
        wide=wide,
        chip=chip,
        **_common(x),
    )
    return grad_x, grad_weight.to(weight.dtype)


def run_focal(
    run: Callable[..., object],
    run_mean: Callable[..., object],
    chip: Chip,
    pred: Tensor,
    target: Tensor,
    alpha: float,
    patch_factor: int,
    ave_spectrum: bool,
    log_matrix: bool,
    batch_matrix: bool,
) -> Tensor:
    """`focal_frequency_loss`, like `run_filter`; run_mean: the same for the mean of what blocks have found."""
    images = compared(pred, target, patch_factor, ave_spectrum)
    call = _focal_call(run, chip, images, alpha, log_matrix)
    largest = call("largest") if batch_matrix else None
    found, loss = call("loss", largest=largest), pred.new_empty(())
    scale = 1.0 / images[0].numel()
    run_mean(found.data_ptr(), blocks=found.numel(), scale=scale, loss=loss.data_ptr(), dtype=DTYPES[pred.dtype])
    return loss


def run_focal_backward(
    run: Callable[..., object],
    chip: Chip,
    grad: Tensor,
    pred: Tensor,
    target: Tensor,
    alpha: float,
    patch_factor: int,
    ave_spectrum: bool,
    log_matrix: bool,
    batch_matrix: bool,
) -> Tensor:
    """`focal_frequency_loss_backward`, like `run_filter`."""
    images = compared(pred, target, patch_factor, ave_spectrum)
    call = _focal_call(run, chip, images, alpha, log_matrix)
    largest = call("largest") if batch_matrix else None
    found = pred.new_empty(1 if ave_spectrum else pred.shape[0], *pred.shape[1:], dtype=images[0].dtype)
    call("gradient", patches(found, patch_factor), largest, grad, 2.0 / pred.numel())
    return found.to(pred.dtype).expand(pred.shape).contiguous()


def _focal_call(run, chip: Chip, images: tuple[Tensor, ...], alpha: float, log_matrix: bool) -> Callable:
    """A function of the task that returns what the blocks have found, one number each."""
    one = _leading(images[0])
    other = _leading(images[1]) if len(images) == 2 else _NOWHERE
    common = _common(images[0])
    blocks = native.extension().focal_blocks(common["sides"], math.prod(images[0].shape[:-2]), chip)

    def call(task, out=None, largest=None, grad=None, scale=0.0):
        found = torch.empty(blocks, dtype=torch.float64, device=images[0].device)
        run(
            one,
            other,
            _NOWHERE if out is None else _leading(out),
            task=task,
            alpha=alpha,
            logarithm=log_matrix,
            largest=0 if largest is None else largest.data_ptr(),
            found=found.data_ptr(),
            grad=0 if grad is None else grad.data_ptr(),
            grad_dtype="float32" if grad is None else DTYPES[grad.dtype],
            scale=scale,
            chip=chip,
            **common,
        )
        return found

    return call


def _channels(images: Tensor) -> tuple:
    """(B, C, D, H, W), the channels first, for the extension."""
    return _address(images.transpose(0, 1))


def _leading(images: Tensor) -> tuple:
    """(images, rows of patches, columns of patches, H, W) for the extension."""
    return _address(images)


def _address(images: Tensor) -> tuple:
    """Address, sizes and strides of three leading dimensions, bytes between rows. One entry's stride means nothing."""
    size = images.element_size()
    steps = [0 if n == 1 else step * size for n, step in zip(images.shape[:4], images.stride()[:4], strict=True)]
    return images.data_ptr(), tuple(images.shape[:3]), tuple(steps[:3]), steps[3]


def _common(images: Tensor) -> dict:
    return dict(sides=tuple(images.shape[-2:]), dtype=DTYPES[images.dtype])


@functools.cache  # asked at every call
def refusal(height: int, width: int, shared: int) -> str | None:
    """None if blocks with so many bytes of shared memory hold images of these sides, else why not."""
    if (reason := supports_sides(height, width)) is not None:
        return reason
    needed = native.extension().spectral_shared_bytes((height, width))
    if needed > shared:
        return f"{height} x {width} takes {needed} bytes of a block's shared memory, this GPU has {shared}"
    return None


def _supports_filter(x: Tensor, weight: Tensor) -> str | None:
    if x.dtype not in DTYPES or weight.dtype not in _WEIGHTS:
        kinds = "float32, bfloat16 and float16 with weights in single precision"
        return f"serves {kinds}, not {x.dtype} with {weight.dtype}"
    if x.shape[:-2].numel() > 2**31 - 1 or weight.numel() > 2**31 - 1024:
        return "serves fewer than 2^31 images and numbers of the weight"
    return cuda.not_compiled_for(x.device) or refusal(*x.shape[-2:], cuda.chip(x.device)[0])


def _supports_focal(pred: Tensor, target: Tensor, alpha: float, patch_factor: int, *_) -> str | None:
    if pred.dtype not in DTYPES:
        return f"serves float32, bfloat16 and float16, not {pred.dtype}"
    if pred.shape[:-2].numel() * patch_factor**2 > 2**31 - 1:
        return "serves fewer than 2^31 images"
    sides = (pred.shape[-2] // patch_factor, pred.shape[-1] // patch_factor)
    return cuda.not_compiled_for(pred.device) or refusal(*sides, cuda.chip(pred.device)[0])


for _operator, _forward, _backward, _supports in (
    ("spectral_filter", spectral_filter, spectral_filter_backward, _supports_filter),
    ("focal_frequency_loss", focal_frequency_loss, focal_frequency_loss_backward, _supports_focal),
):
    register(
        _operator,
        "cuda",
        _forward,
        _backward,
        devices=("cuda",),
        priority=10,
        unavailable=cuda.unavailable,
        supports=_supports,
    )
