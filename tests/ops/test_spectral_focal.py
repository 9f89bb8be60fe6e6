"""focal_frequency_loss against stored values, the published full-spectrum form, and its own gradient written out."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sampling import sampled

from medsora_ops.spectral import focal_frequency_loss, reference

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "focal_frequency.safetensors")
VARIANTS = [{}, {"alpha": 2.0}, {"log_matrix": True}, {"batch_matrix": True}]
SHAPES = [(2, 3, 16, 16), (1, 4, 8, 12), (3, 2, 6, 7), (2, 1, 1, 1), (2, 2, 3, 9, 5), (2, 5, 4)]
SETTINGS = [
    dict(zip(("alpha", "patch_factor", "ave_spectrum", "log_matrix", "batch_matrix"), values, strict=True))
    for values in itertools.product((0.0, 0.5, 1.0, 2.0), (1, 2, 3), (False, True), (False, True), (False, True))
]
CASES = sampled(
    [
        (s, k)
        for s, k in itertools.product(SHAPES, SETTINGS)
        if not (s[-2] % k["patch_factor"] or s[-1] % k["patch_factor"])
    ],
    60,
)


def random_pair(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2)]


def registered(pred, target, alpha=1.0, patch_factor=1, ave_spectrum=False, log_matrix=False, batch_matrix=False):
    return torch.ops.medsora_ops.focal_frequency_loss(
        pred, target, alpha, patch_factor, ave_spectrum, log_matrix, batch_matrix, ""
    )


@pytest.mark.parametrize("call", [focal_frequency_loss, registered, reference.focal_frequency_loss_full_spectrum])
@pytest.mark.parametrize("variant", range(4))
@pytest.mark.parametrize("case", range(3))
def test_stored_values_and_gradients(case, variant, call):
    pred = GOLDEN[f"{case}.pred"].double().requires_grad_()
    loss = call(pred, GOLDEN[f"{case}.target"].double(), **VARIANTS[variant])
    (grad,) = torch.autograd.grad(loss, pred)
    wanted_loss, wanted_grad = (GOLDEN[f"{case}.{variant}.{name}"].double() for name in ("loss", "grad"))
    assert abs(loss - wanted_loss).item() < 1e-6 * wanted_loss.item()
    assert (grad - wanted_grad).norm() < 1e-6 * wanted_grad.norm()


@pytest.mark.parametrize("shape, settings", CASES)
def test_half_spectrum_equals_the_published_form(shape, settings):
    pred, target = (t.requires_grad_() for t in random_pair(shape))
    half, full = (
        focal_frequency_loss(pred, target, **settings),
        reference.focal_frequency_loss_full_spectrum(pred, target, **settings),
    )
    torch.testing.assert_close(half, full)
    grads = [torch.autograd.grad(loss, (pred, target), retain_graph=True) for loss in (half, full)]
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape, settings", CASES[::3])
def test_written_gradient_is_that_of_autograd(shape, settings):
    pred, target = (t.requires_grad_() for t in random_pair(shape))
    scale = torch.tensor(1.7, dtype=torch.float64)
    wanted = torch.autograd.grad(focal_frequency_loss(pred, target, **settings), (pred, target), scale)
    got = torch.autograd.grad(registered(pred, target, **settings), (pred, target), scale)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("call", [focal_frequency_loss, registered])
def test_gradcheck_where_the_weight_is_constant(call):
    # With alpha = 0 the detached weight is 1 everywhere, so finite differences see the whole dependence.
    pred, target = (t.requires_grad_() for t in random_pair((2, 2, 4, 5)))
    for settings in ({}, {"patch_factor": 1, "ave_spectrum": True}):
        assert torch.autograd.gradcheck(lambda p, t, s=settings: call(p, t, alpha=0.0, **s), (pred, target))


def test_the_weight_carries_no_gradient():
    pred, target = random_pair((1, 1, 6, 6))
    pred.requires_grad_()
    (grad,) = torch.autograd.grad(focal_frequency_loss(pred, target), pred)
    spectrum = torch.fft.fft2(pred - target, norm="ortho")
    frozen = spectrum.abs().detach() / spectrum.abs().max().detach()
    (wanted,) = torch.autograd.grad((frozen * spectrum.abs().square()).mean(), pred)
    torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("settings", [{}, {"log_matrix": True}, {"batch_matrix": True}, {"alpha": 0.0}])
def test_equal_images_cost_nothing(settings):
    pred, _ = random_pair((2, 3, 8, 8), torch.float32)
    pred.requires_grad_()
    loss = focal_frequency_loss(pred, pred.detach().clone(), **settings)
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(pred.grad, torch.zeros_like(pred))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    pred, target = (t.to(dtype) for t in random_pair((2, 3, 16, 18)))
    loss = focal_frequency_loss(pred, target)
    wanted = focal_frequency_loss(pred.double(), target.double())
    assert loss.dtype == dtype
    assert abs(loss.double() - wanted).item() <= torch.finfo(dtype).eps * wanted.item()


@pytest.mark.parametrize("settings", [{}, {"patch_factor": 2, "ave_spectrum": True, "log_matrix": True}])
def test_opcheck(settings):
    pred, target = (t.requires_grad_() for t in random_pair((2, 2, 4, 6), torch.float32))
    values = {"alpha": 1.0, "patch_factor": 1, "ave_spectrum": False, "log_matrix": False, "batch_matrix": False}
    arguments = (*(values | settings).values(), "")
    torch.library.opcheck(torch.ops.medsora_ops.focal_frequency_loss.default, (pred, target, *arguments))
    inputs = (torch.tensor(1.0), pred.detach(), target.detach(), *arguments)
    torch.library.opcheck(torch.ops.medsora_ops.focal_frequency_loss_backward.default, inputs)


def test_compiles_whole():
    pred, target = (t.requires_grad_() for t in random_pair((2, 2, 5, 6), torch.float32))
    compiled = torch.compile(lambda p, t: 2 * focal_frequency_loss(p, t, log_matrix=True), fullgraph=True)
    wanted = torch.autograd.grad(2 * focal_frequency_loss(pred, target, log_matrix=True), (pred, target))
    for got, expected in zip(torch.autograd.grad(compiled(pred, target), (pred, target)), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


IMAGE = torch.zeros(2, 3, 6, 8)


@pytest.mark.parametrize(
    "pred, target, settings, message",
    [
        (IMAGE, IMAGE[:1], {}, r"target: got shape \(1, 3, 6, 8\), wants \(2, 3, 6, 8\) \(batch, "),
        (IMAGE, IMAGE.double(), {}, r"target: got torch.float64, wants that of pred, torch.float32"),
        (IMAGE, IMAGE.int(), {}, r"target: got torch.int32, wants a floating point dtype"),
        (IMAGE, 0.0, {}, r"target: got float, wants a tensor \(batch"),
        ([1.0], IMAGE, {}, r"pred: got list, wants a tensor \(batch"),
        (IMAGE, IMAGE.to("meta"), {}, r"target: got device meta, wants that of pred"),
        (IMAGE.int(), IMAGE.int(), {}, r"pred: got torch.int32"),
        (IMAGE[0, 0], IMAGE[0, 0], {}, r"pred: got shape \(6, 8\), wants"),
        (IMAGE[:0], IMAGE[:0], {}, r"pred: got shape \(0, 3, 6, 8\), wants"),
        (IMAGE, IMAGE, {"alpha": -1.0}, r"alpha: got -1.0"),
        (IMAGE, IMAGE, {"patch_factor": 3}, r"patch_factor: got 3, wants a divisor of height 6 and width 8"),
        (IMAGE, IMAGE, {"patch_factor": 0}, r"patch_factor: got 0"),
        (IMAGE, IMAGE, {"patch_factor": 1.5}, r"patch_factor: got 1.5"),
    ],
)
def test_refuses_what_does_not_fit(pred, target, settings, message):
    with pytest.raises(ValueError, match=message):
        focal_frequency_loss(pred, target, **settings)
