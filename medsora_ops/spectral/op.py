"""The public frequency operators: argument checks, registration with torch, and the choice of an implementation.

Implementations in the backend table are called as
    spectral_filter        forward(x, weight) -> y                   backward(grad, x, weight) -> (grad_x, grad_weight)
    focal_frequency_loss   forward(pred, target, alpha, patch_factor, ave_spectrum, log_matrix, batch_matrix) -> loss
                           backward(grad, the same arguments) -> grad_pred
and each `supports` with the arguments of its forward. Results must not share memory with arguments.
"""

import torch
from torch import Tensor

from medsora_ops import backends, checks, dispatch
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
    Returns a tensor of x's shape and dtype, computed in float32, or in float64 if x or weight is double.
    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    _check_filter(x, weight)
    return dispatch.call("spectral_filter", x, weight)


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
    return dispatch.call("focal_frequency_loss", pred, target, *settings)


def _check_filter(x: Tensor, weight: Tensor) -> None:
    checks.tensor("x", x, "(batch, channels, ..., height, width)")
    if 0 in x.shape[-2:]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, wants a height and width of at least 1")
    if not isinstance(weight, Tensor):
        raise ValueError(f"weight: got {type(weight).__name__}, wants a tensor (channels, height, width // 2 + 1)")
    if not (weight.is_floating_point() or weight.is_complex()):
        raise ValueError(f"weight: got {weight.dtype}, wants a real or complex floating point dtype")
    wanted = (x.shape[1], x.shape[-2], x.shape[-1] // 2 + 1)
    if tuple(weight.shape) != wanted:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, wants {wanted} for x of {tuple(x.shape)}")
    if weight.device != x.device:
        raise ValueError(f"weight: got device {weight.device}, wants that of x, {x.device}")


def _check_focal(pred: Tensor, target: Tensor, alpha: float, patch_factor: int) -> None:
    dimensions = "(batch, ..., height, width)"
    checks.tensor("pred", pred, dimensions)
    if 0 in pred.shape:
        raise ValueError(f"pred: got shape {tuple(pred.shape)}, wants {dimensions}, not empty")
    checks.shape("target", target, tuple(pred.shape), dimensions)
    checks.goes_with("target", target, "pred", pred)
    if not alpha >= 0:
        raise ValueError(f"alpha: got {alpha}, wants a number of at least 0")
    height, width = pred.shape[-2:]
    if isinstance(patch_factor, bool) or not isinstance(patch_factor, int) or patch_factor < 1:
        raise ValueError(f"patch_factor: got {patch_factor!r}, wants a whole number of at least 1")
    if height % patch_factor or width % patch_factor:
        raise ValueError(f"patch_factor: got {patch_factor}, wants a divisor of height {height} and width {width}")


for _operator in ("spectral_filter", "focal_frequency_loss"):
    dispatch.implement(_LIBRARY, _operator)


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


def _filter_gradients(ctx, saved, grad):
    found = dispatch.backward("spectral_filter", grad, *saved, *ctx.settings)
    return (*found, *(None for _ in ctx.settings))


def _focal_gradients(ctx, saved, grad):
    of_pred = dispatch.backward("focal_frequency_loss", grad, *saved, *ctx.settings)
    return (of_pred, -of_pred if ctx.needs_input_grad[1] else None, *(None for _ in ctx.settings))


for _operator, _gradients in (("spectral_filter", _filter_gradients), ("focal_frequency_loss", _focal_gradients)):
    dispatch.differentiate(_LIBRARY, _operator, _gradients, _keep_inputs)
