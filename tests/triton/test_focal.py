"""focal_frequency_loss by Triton kernels, value and gradient, against its float64 definition."""

import itertools

import pytest
import torch
from recurrence import relative_error
from sampling import sampled

from medsora_ops import focal_frequency_loss, use_backend
from medsora_ops.launch import INTERPRETED
from medsora_ops.spectral import reference

HALF = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)
SHAPES = ((2, 3, 1, 1), (2, 3, 7, 5), (3, 2, 2, 8, 12), (2, 24, 40), (1, 1, 33, 17), (40, 2, 2))
SETTINGS = (
    {},
    dict(log_matrix=True),
    dict(batch_matrix=True),
    dict(ave_spectrum=True),
    dict(alpha=0.0),
    dict(alpha=0.5),
    dict(alpha=2.0, log_matrix=True, batch_matrix=True, ave_spectrum=True),
)

# Relative rms errors of the gradient; half types round it once. The value is one number, rounded to its type.
ALLOWED = {torch.float32: 5e-6, torch.float16: 4e-4, torch.bfloat16: 3.2e-3}


def case(shape, device, dtype=torch.float32):
    made = torch.Generator().manual_seed(7)
    return [torch.randn(*shape, generator=made).to(device, dtype) for _ in range(2)]


def run(pred, target, settings):
    pred = pred.detach().requires_grad_()
    with use_backend("triton"):
        loss = focal_frequency_loss(pred, target, **settings)
    return loss.detach(), *torch.autograd.grad(loss, pred, torch.tensor(1.7).to(loss))


def judge(pred, target, settings):
    """Value and gradient against float64, the same bits twice."""
    found = run(pred, target, settings)
    wide = pred.detach().double().cpu().requires_grad_()
    right = reference.focal_frequency_loss(wide, target.double().cpu(), **settings)
    (right_grad,) = torch.autograd.grad(right, wide, torch.tensor(1.7).to(pred.dtype).double())
    loss, grad = found
    assert loss.dtype == grad.dtype == pred.dtype and grad.shape == pred.shape and grad.is_contiguous()
    assert relative_error(loss.cpu(), right) < max(ALLOWED[torch.float32], torch.finfo(pred.dtype).eps)
    assert relative_error(grad.cpu(), right_grad) < ALLOWED[pred.dtype]
    assert all(torch.equal(one, again) for one, again in zip(found, run(pred, target, settings), strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_size(device, shape):
    judge(*case(shape, device), {})


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_setting(device, settings):
    judge(*case((3, 2, 6, 12), device), settings)


@pytest.mark.parametrize("factor, settings", sampled(itertools.product((2, 3, 6), SETTINGS), 4), ids=str)
def test_patches(device, factor, settings):
    judge(*case((2, 2, 12, 18), device), settings | dict(patch_factor=factor))


@pytest.mark.parametrize("dtype", HALF)
def test_half_types(device, dtype):
    for settings in ({}, dict(ave_spectrum=True, patch_factor=2)):
        judge(*case((2, 2, 8, 12), device, dtype), settings)


def test_any_strides(device):
    pred, target = case((2, 3, 12, 10), device)
    right = run(pred, target, dict(patch_factor=2))
    spread = torch.full((3, 12, 2, 25), float("nan"), device=device)
    spread[..., 5:15] = pred.permute(1, 2, 0, 3)
    for one in (spread[..., 5:15].permute(2, 0, 1, 3), pred.mT.contiguous().mT):
        assert all(torch.equal(a, b) for a, b in zip(run(one, target, dict(patch_factor=2)), right, strict=True))
    judge(pred, torch.tensor(0.25, device=device).expand(pred.shape), {})


@pytest.mark.parametrize("settings", [{}, dict(log_matrix=True), dict(batch_matrix=True), dict(alpha=0.0)], ids=str)
def test_equal_images_cost_nothing(device, settings):
    pred, target = case((3, 2, 8, 6), device)
    loss, grad = run(pred, pred.clone(), settings)
    assert loss.item() == 0.0 and not grad.any()
    one = pred.clone()
    one[1] = target[1]  # beside images that differ, the others still get a gradient of exactly zero
    _, grad = run(pred, one, settings)
    assert not grad[0].any() and not grad[2].any() and grad[1].any()


def test_nan_makes_the_loss_nan(device):
    pred, target = case((2, 2, 8, 6), device)
    pred[0, 1, 3, 4] = float("nan")
    for settings in ({}, dict(batch_matrix=True), dict(ave_spectrum=True)):
        loss, grad = run(pred, target, settings)
        assert loss.isnan() and grad[0, 1].isnan().all()


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_very_small_and_large_differences(device, size):
    judge(*(size * one for one in case((2, 2, 8, 6), device)), {})


def test_opcheck(device):
    torch.use_deterministic_algorithms(False)  # it compares fresh outputs of runs that fill none
    pred, target = case((2, 4, 6), device)
    arguments = (target, 1.0, 1, False, False, False, "triton")
    torch.library.opcheck(torch.ops.medsora_ops.focal_frequency_loss.default, (pred.requires_grad_(), *arguments))
    inputs = (torch.tensor(1.0, device=device), pred.detach(), *arguments)
    torch.library.opcheck(torch.ops.medsora_ops.focal_frequency_loss_backward.default, inputs)


def test_what_it_does_not_serve_goes_elsewhere(device):
    for dtype, shape, why in ((torch.float64, (1, 4, 4), "not torch.float64"), (torch.float32, (1, 2, 130), "not 130")):
        pred, target = case(shape, device, dtype)
        with use_backend("triton"), pytest.raises(ValueError, match=f"cannot serve focal_frequency_loss.*{why}"):
            focal_frequency_loss(pred, target)
    judge(*case((1, 2, 130), device), dict(patch_factor=2))
