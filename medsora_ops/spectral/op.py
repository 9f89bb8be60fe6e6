"""The public frequency operators: argument checks, registration with torch, and the choice of an implementation.

Implementations in the backend table are called as
    spectral_filter        forward(x, weight) -> y                   backward(grad, x, weight) -> (grad_x, grad_weight)
    focal_frequency_loss   forward(pred, target, alpha, patch_factor, ave_spectrum, log_matrix, batch_matrix) -> loss
                           backward(grad, the same arguments) -> grad_pred
and each `supports` with the arguments of its forward. Results must not share memory with arguments.
"""

import torch
from torch import Tensor

from medsora_ops import backends
from medsora_ops.spectral import reference

_FOCAL = (
    "Tensor pred, Tensor target, float alpha, int patch_factor, bool ave_spectrum, bool log_matrix, bool batch_matrix,"
    " str backend"
)
_LIBRARY = torch.library.Library("medsora_ops", "FRAGMENT")
_LIBRARY.define("spectral_filter(Tensor x, Tensor weight, str backend) -> Tensor")
_LIBRARY.define("spectral_filter_backward(Tensor grad, Tensor x, Tensor weight, str backend) -> (Tensor, Tensor)")
_LIBRARY.define(f"focal_frequency_loss({_FOCAL}) -> Tensor")
_LIBRARY.define(f"focal_frequency_loss_backward(Tensor grad, {_FOCAL}) -> Tensor")

backends.register("spectral_filter", "reference", reference.spectral_filter, reference.spectral_filter_backward)
backends.register(
    "focal_frequency_loss", "reference", reference.focal_frequency_loss, reference.focal_frequency_loss_backward
)


def spectral_filter(x: Tensor, weight: Tensor) -> Tensor:
    """Filter each image plane by a learned spectrum: x + irfft2(weight * rfft2(x)), orthonormal 2-D transforms.

    x: (B, C, ..., H, W), real floating point; extra dimensions (such as time) lie between channels and planes.
    weight: (C, H, W // 2 + 1), real or complex. In columns 0 and W / 2 only the part (w(ky) + conj w(-ky)) / 2 acts,
        because the result is real.
    Returns a contiguous tensor of x's shape and dtype. bfloat16 and float16 are computed in float32.
    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    _check_filter(x, weight)
    return _call("spectral_filter", x.device.type, x, weight)


def focal_frequency_loss(
    pred: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    patch_factor: int = 1,
    ave_spectrum: bool = False,
    log_matrix: bool = False,
    batch_matrix: bool = False,
) -> Tensor:
    """Focal frequency loss (Jiang et al., ICCV 2021): mean of weight * |F(pred) - F(target)|^2 over the 2-D spectrum.

    pred, target: (B, ..., H, W), real floating point, of one shape, dtype and device.
    alpha: exponent of the weight |F(pred) - F(target)|^alpha, at least 0.
    patch_factor: images are cut into patch_factor x patch_factor patches, transformed one by one; it divides H and W.
    ave_spectrum: spectra are averaged over the batch first.
    log_matrix: log(weight + 1) takes the place of the weight.
    batch_matrix: the weight is divided by its maximum over everything, not over each image and channel.
    Returns a scalar of pred's dtype (computed in float32 at least). The weight carries no gradient.
    Raises ValueError for arguments that do not fit.
    """
    _check_focal(pred, target, alpha, patch_factor)
    settings = (float(alpha), patch_factor, bool(ave_spectrum), bool(log_matrix), bool(batch_matrix))
    return _call("focal_frequency_loss", pred.device.type, pred, target, *settings)


def _call(operator: str, device: str, *arguments) -> Tensor:
    if torch.compiler.is_compiling():
        return getattr(torch.ops.medsora_ops, operator)(*arguments, "")
    chosen = backends.select(operator, device, *arguments)
    # The reference is differentiable as it stands; the registered operator would only add its dispatch.
    if chosen.backend == "reference":
        return chosen.forward(*arguments)
    return getattr(torch.ops.medsora_ops, operator)(*arguments, backends.requested())


def _check_filter(x: Tensor, weight: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"x: got {x.dtype}, wants a real floating point dtype")
    if not (weight.is_floating_point() or weight.is_complex()):
        raise ValueError(f"weight: got {weight.dtype}, wants a real or complex floating point dtype")
    if x.ndim < 4 or 0 in x.shape[-2:]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, wants (batch, channels, ..., height, width)")
    wanted = (x.shape[1], x.shape[-2], x.shape[-1] // 2 + 1)
    if tuple(weight.shape) != wanted:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, wants {wanted} for x of {tuple(x.shape)}")
    if weight.device != x.device:
        raise ValueError(f"weight: got device {weight.device}, wants that of x, {x.device}")


def _check_focal(pred: Tensor, target: Tensor, alpha: float, patch_factor: int) -> None:
    if not pred.is_floating_point():
        raise ValueError(f"pred: got {pred.dtype}, wants a real floating point dtype")
    if pred.ndim < 3 or 0 in pred.shape:
        raise ValueError(f"pred: got shape {tuple(pred.shape)}, wants (batch, ..., height, width), not empty")
    for name, got, wanted in (
        ("shape", tuple(target.shape), tuple(pred.shape)),
        ("dtype", target.dtype, pred.dtype),
        ("device", target.device, pred.device),
    ):
        if got != wanted:
            raise ValueError(f"target: got {name} {got}, wants that of pred, {wanted}")
    if not alpha >= 0:
        raise ValueError(f"alpha: got {alpha}, wants a number of at least 0")
    height, width = pred.shape[-2:]
    if isinstance(patch_factor, bool) or not isinstance(patch_factor, int) or patch_factor < 1:
        raise ValueError(f"patch_factor: got {patch_factor!r}, wants a whole number of at least 1")
    if height % patch_factor or width % patch_factor:
        raise ValueError(f"patch_factor: got {patch_factor}, wants a divisor of height {height} and width {width}")


def _forward(operator: str):
    def run(*arguments):
        *arguments, backend = arguments
        chosen = backends.select(operator, arguments[0].device.type, *arguments, backend=backend)
        return chosen.forward(*arguments).contiguous()

    return run


def _backward(operator: str):
    def run(grad, *arguments):
        *arguments, backend = arguments
        chosen = backends.select(operator, arguments[0].device.type, *arguments, backend=backend)
        grads = chosen.backward(grad, *arguments)
        return grads.contiguous() if isinstance(grads, Tensor) else tuple(g.contiguous() for g in grads)

    return run


for _operator in ("spectral_filter", "focal_frequency_loss"):
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_operator, _forward(_operator), _device)
        _LIBRARY.impl(f"{_operator}_backward", _backward(_operator), _device)


@torch.library.register_fake("medsora_ops::spectral_filter", lib=_LIBRARY)
def _(x, weight, backend):
    return x.new_empty(x.shape)


@torch.library.register_fake("medsora_ops::spectral_filter_backward", lib=_LIBRARY)
def _(grad, x, weight, backend):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


@torch.library.register_fake("medsora_ops::focal_frequency_loss", lib=_LIBRARY)
def _(pred, *arguments):
    return pred.new_empty(())


@torch.library.register_fake("medsora_ops::focal_frequency_loss_backward", lib=_LIBRARY)
def _(grad, pred, *arguments):
    return pred.new_empty(pred.shape)


def _keep_inputs(ctx, inputs, output):
    one, other, *ctx.settings = inputs
    ctx.save_for_backward(one, other)


def _filter_gradients(ctx, grad):
    found = torch.ops.medsora_ops.spectral_filter_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (*found, *(None for _ in ctx.settings))


def _focal_gradients(ctx, grad):
    of_pred = torch.ops.medsora_ops.focal_frequency_loss_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (of_pred, -of_pred if ctx.needs_input_grad[1] else None, *(None for _ in ctx.settings))


for _operator, _gradients in (("spectral_filter", _filter_gradients), ("focal_frequency_loss", _focal_gradients)):
    torch.library.register_autograd(f"medsora_ops::{_operator}", _gradients, setup_context=_keep_inputs, lib=_LIBRARY)
