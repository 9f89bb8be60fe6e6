"""spectral_filter against an explicit full complex transform, its gradients, its registration and its refusals."""

import itertools

import pytest
import torch
from sampling import sampled

from medsora_ops import use_backend
from medsora_ops.spectral import reference, spectral_filter

SIZES = [(1, 1), (1, 5), (4, 1), (2, 2), (3, 3), (4, 4), (5, 8), (8, 5), (7, 7), (6, 10), (13, 16), (12, 31), (30, 45)]
LEADING = [(2, 3), (1, 1), (2, 2, 3), (1, 2, 2, 2)]
CASES = sampled(itertools.product(SIZES, LEADING, ["real", "complex"]), 40)


def registered(x, weight):
    return torch.ops.medsora_ops.spectral_filter(x, weight, "")


def random_case(size, leading=(2, 3), kind="complex", dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + 7919 * size[0] + size[1])
    x = torch.randn(*leading, *size, generator=generator, dtype=dtype)
    shape = (leading[1], size[0], size[1] // 2 + 1)
    weight_dtype = dtype.to_complex() if kind == "complex" else dtype
    return x, torch.randn(*shape, generator=generator, dtype=weight_dtype)


def transform(size):
    """The orthonormal DFT of `size` points as a matrix."""
    k = torch.arange(size, dtype=torch.float64)
    return torch.exp(-2j * torch.pi * k[:, None] * k / size) / size**0.5


def by_full_transform(x, weight):
    """The filter by dense DFT matrices over the whole complex spectrum.

    Negative columns are the mirror image of positive ones; in the columns that mirror onto themselves a real output
    keeps the Hermitian part.
    """
    height, width = x.shape[-2:]
    rows, columns = transform(height), transform(width)
    spectrum = rows @ x.to(torch.complex128) @ columns
    shape = (1, weight.shape[0], *(1,) * (x.ndim - 4))
    full = torch.zeros(*shape, height, width, dtype=torch.complex128)
    for row, column in itertools.product(range(height), range(width)):
        mirror_row, mirror_column = -row % height, -column % width
        if column == mirror_column:
            value = (weight[:, row, column] + weight[:, mirror_row, column].conj()) / 2
        elif column < mirror_column:
            value = weight[:, row, column]
        else:
            value = weight[:, mirror_row, mirror_column].conj()
        full[..., row, column] = value.reshape(shape)
    image = rows.conj() @ (full * spectrum) @ columns.conj()
    assert image.imag.abs().max() < 1e-10
    return x + image.real


@pytest.mark.parametrize("size, leading, kind", CASES)
def test_equals_the_full_complex_transform(size, leading, kind):
    x, weight = random_case(size, leading, kind)
    torch.testing.assert_close(spectral_filter(x, weight), by_full_transform(x, weight), rtol=1e-10, atol=1e-10)


def test_agrees_with_plain_torch_where_the_filter_is_hermitian():
    x, _ = random_case((9, 12))
    weight = torch.fft.rfft2(torch.randn(3, 9, 12, dtype=torch.float64))
    plain = x + torch.fft.irfft2(weight * torch.fft.rfft2(x), s=(9, 12))
    torch.testing.assert_close(spectral_filter(x, weight), plain)


def test_a_zero_weight_leaves_every_bit():
    x, weight = random_case((11, 14), dtype=torch.float32)
    assert torch.equal(spectral_filter(x, torch.zeros_like(weight)), x)


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 3), (6, 1)])
def test_gradients(size, kind):
    x, weight = (t.requires_grad_() for t in random_case(size, kind=kind))
    assert torch.autograd.gradcheck(spectral_filter, (x, weight))
    assert torch.autograd.gradcheck(registered, (x, weight))
    assert torch.autograd.gradgradcheck(spectral_filter, (x, weight))


@pytest.mark.parametrize("size, leading, kind", CASES[::3])
def test_written_gradient_is_that_of_autograd(size, leading, kind):
    x, weight = (t.requires_grad_() for t in random_case(size, leading, kind))
    grad = torch.randn_like(x)
    wanted = torch.autograd.grad(reference.spectral_filter(x, weight), (x, weight), grad)
    got = reference.spectral_filter_backward(grad, x.detach(), weight.detach())
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 6e-4)])
def test_low_precision_is_rounded_only_at_the_end(dtype, bound):
    x, weight = random_case((17, 24), (2, 3, 2))
    x = x.to(dtype)
    got = spectral_filter(x, weight.to(torch.complex64))
    wanted = spectral_filter(x.double(), weight.to(torch.complex64).to(torch.complex128))
    assert got.dtype == dtype and got.shape == x.shape
    assert (got.double() - wanted).norm() / wanted.norm() < bound


def test_bfloat16_real_weight_gets_a_gradient_of_its_own_dtype():
    x, weight = random_case((6, 6), kind="real", dtype=torch.bfloat16)
    for call in (spectral_filter, registered):
        leaf, gain = x.clone().requires_grad_(), weight.clone().requires_grad_()
        call(leaf, gain).sum().backward()
        assert leaf.grad.dtype == gain.grad.dtype == torch.bfloat16


def test_strided_input():
    x, weight = random_case((6, 8), (2, 3, 4))
    transposed = x.movedim(1, 3)  # (batch, time, height, channels, width) in memory
    strided = transposed.contiguous().movedim(3, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(spectral_filter(strided, weight), spectral_filter(x, weight))
    assert registered(strided, weight).is_contiguous()
    torch.testing.assert_close(registered(strided, weight), spectral_filter(x, weight))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size, leading, kind", CASES[::3])
def test_cuda_equals_cpu(size, leading, kind):
    x, weight = (t.requires_grad_() for t in random_case(size, leading, kind))
    results = []
    for device in ("cpu", "cuda"):
        y = spectral_filter(x.to(device), weight.to(device))
        results.append([y.cpu(), *torch.autograd.grad(y.square().sum(), (x, weight))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(kind, dtype):
    x, weight = (t.requires_grad_() for t in random_case((5, 6), (2, 3, 2), kind, dtype))
    torch.library.opcheck(torch.ops.medsora_ops.spectral_filter.default, (x, weight, ""))
    inputs = (torch.randn_like(x), x.detach(), weight.detach(), "")
    torch.library.opcheck(torch.ops.medsora_ops.spectral_filter_backward.default, inputs)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_compiles_whole(kind):
    x, weight = (t.requires_grad_() for t in random_case((6, 7), kind=kind, dtype=torch.float32))
    compiled = torch.compile(lambda *inputs: spectral_filter(*inputs).square().sum(), fullgraph=True)
    wanted = torch.autograd.grad(spectral_filter(x, weight).square().sum(), (x, weight))
    for got, expected in zip(torch.autograd.grad(compiled(x, weight), (x, weight)), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "x, weight, message",
    [
        (torch.zeros(2, 3, 4, 6), torch.zeros(3, 4, 6), r"weight: got shape \(3, 4, 6\), wants \(3, 4, 4\)"),
        (torch.zeros(2, 3, 4, 6), torch.zeros(2, 4, 4), r"weight: got shape \(2, 4, 4\), wants \(3, 4, 4\)"),
        (torch.zeros(3, 4, 6), torch.zeros(3, 4, 4), r"x: got shape \(3, 4, 6\), wants \(batch, channels"),
        (torch.zeros(2, 3, 0, 6), torch.zeros(3, 0, 4), r"x: got shape"),
        (torch.zeros(2, 3, 4, 6, dtype=torch.int32), torch.zeros(3, 4, 4), r"x: got torch.int32, wants"),
        (torch.zeros(2, 3, 4, 6), torch.zeros(3, 4, 4, dtype=torch.int64), r"weight: got torch.int64, wants"),
        (torch.zeros(2, 3, 4, 6), torch.zeros(3, 4, 4, device="meta"), r"weight: got device meta, wants"),
        (torch.zeros(2, 3, 4, 6), 1.0, r"weight: got float, wants a tensor \(channels, height, width // 2 \+ 1\)"),
        (None, torch.zeros(3, 4, 4), r"x: got NoneType, wants a tensor \(batch, channels"),
    ],
)
def test_refuses_what_does_not_fit(x, weight, message):
    with pytest.raises(ValueError, match=message):
        spectral_filter(x, weight)


def test_the_backend_table_is_asked():
    x, weight = random_case((4, 4), dtype=torch.float32)
    with use_backend("reference"):
        torch.testing.assert_close(spectral_filter(x, weight), by_full_transform(x.double(), weight).float())
    with use_backend("cuda"), pytest.raises(ValueError, match="backend 'cuda' cannot serve spectral_filter on cpu"):
        spectral_filter(x, weight)
