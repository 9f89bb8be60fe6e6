"""spectral_filter by Triton kernels, values and gradients, against its float64 definition."""

import itertools

import pytest
import torch
import triton
import triton.language as tl
from recurrence import relative_error
from sampling import sampled

from medsora_ops import spectral_filter, use_backend
from medsora_ops.launch import INTERPRETED
from medsora_ops.spectral import filter_launch, reference
from medsora_ops.spectral.filter_launch import FilterConfig
from medsora_ops.spectral.spectral_kernels import row_starts
from medsora_ops.spectral.tables import fourier_tables

HALF = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)
SIDES = (1, 2, 3, 5, 7, 8, 16, 17, 24, 32, 33)
CHOSEN = ((1, 1), (5, 8), (24, 40), (33, 17), (2, 32))
LEADING = ((2, 3), (1, 1), (14, 1), (2, 1, 3), (3, 2, 1, 2))

# Relative rms errors of values, against what rounding results alone makes of them, and of the weight's gradient, whose
# inputs alone are rounded. float32 is three tf32 products on a GPU.
ALLOWED = {torch.float32: 3e-6, torch.float16: 4e-4, torch.bfloat16: 3.2e-3}
ALLOWED_OF_WEIGHT = 5e-6


def made(shape, dtype, seed):
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)
    return (numbers if dtype.is_complex else numbers.real).to(dtype)


def case(size, device, leading=(2, 3), dtype=torch.float32, weight_dtype=torch.complex64):
    """x, weight, and a gradient of the result."""
    shape, half = (*leading, *size), size[1] // 2 + 1
    x, weight = made(shape, dtype, 1), made((leading[1], size[0], half), weight_dtype, 2)
    return x.to(device), weight.to(device), made(shape, dtype, 3).to(device)


def wide(tensor):
    return tensor.cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)


def run(x, weight, grad):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    with use_backend("triton"):
        y = spectral_filter(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


def wanted(x, weight, grad):
    x, weight, grad = wide(x), wide(weight), wide(grad)
    return reference.spectral_filter(x, weight), *reference.spectral_filter_backward(grad, x, weight)


def compare(found, right, x, weight):
    allowed = (ALLOWED[x.dtype], ALLOWED[x.dtype], max(ALLOWED_OF_WEIGHT, torch.finfo(weight.dtype).eps))
    for name, one, true, limit, like in zip(("y", "x", "weight"), found, right, allowed, (x, x, weight), strict=True):
        assert one.dtype == like.dtype and one.shape == like.shape and one.is_contiguous()
        error = relative_error(*(torch.view_as_real(t) if t.is_complex() else t for t in (wide(one), true)))
        assert error < limit, f"{name}: {error:.2e}"


def judge(x, weight, grad):
    """Values and every gradient against float64."""
    compare(run(x, weight, grad), wanted(x, weight, grad), x, weight)


@pytest.mark.parametrize("size", [*CHOSEN, *sampled(itertools.product(SIDES, SIDES), 7)], ids=str)
def test_every_size(device, size):
    judge(*case(size, device))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_the_same_bits_twice(device, dtype):
    tensors = case((11, 6), device, (5, 2), dtype)
    assert all(torch.equal(one, again) for one, again in zip(run(*tensors), run(*tensors), strict=True))


@pytest.mark.parametrize("size", [*sampled([(64, 64), (65, 3), (3, 100), (40, 72), (128, 128)], 2)], ids=str)
def test_large_sizes(device, size):
    judge(*case(size, device, (1, 1)))


@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_packs_and_leading_dimensions(device, leading):
    """32 // 5 images a pack: whole packs, incomplete ones, several for a program."""
    for size in ((5, 6), (16, 4)):
        judge(*case(size, device, leading))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("weight_dtype", [torch.complex64, torch.float32, torch.float16])
def test_half_types_and_real_weights(device, dtype, weight_dtype):
    judge(*case((8, 12), device, (2, 2), dtype, weight_dtype))


def test_half_types_are_rounded_once(device):
    """No worse than the definition in that type, which computes in float32."""
    for dtype in HALF:
        x, weight, grad = case((16, 16), device, dtype=dtype)
        right = wanted(x, weight, grad)[0]
        error = relative_error(run(x, weight, grad)[0].cpu(), right)
        assert error < 1.05 * relative_error(reference.spectral_filter(x, weight).cpu(), right)


CONFIGS = [
    FilterConfig(rows, columns, width, terms, programs, warps)
    for rows, columns, width, terms, programs, warps in itertools.product(
        (16, 32, 64), (16, 32), (16, 64), (16, 32), (1, 2), (4, 8)
    )
]


@pytest.mark.parametrize("config", sampled(CONFIGS, 3), ids=str)
def test_every_way_of_cutting(device, config):
    for size, leading in (((7, 9), (9, 1)), ((33, 36), (1, 1))):
        x, weight, grad = case(size, device, leading)
        found = (
            filter_launch.filtered(x, weight, config),
            filter_launch.filtered(grad, weight, config, conjugate=True),
            filter_launch.weight_gradient(grad, x, weight, config),
        )
        compare(found, wanted(x, weight, grad), x, weight)


def test_any_strides(device):
    """Images cut out of larger ones, dimensions exchanged, columns apart, expanded gradients, conjugate weights."""
    x, weight, grad = case((10, 12), device, (3, 2, 2))
    right = run(x, weight, grad)
    spread = torch.full((2, 3, 10, 2, 30), float("nan"), device=device)
    for start in (7, 8):
        spread[..., start : start + 12] = x.permute(2, 0, 3, 1, 4)
        strided = spread[..., start : start + 12].permute(1, 3, 0, 2, 4)
        assert all(torch.equal(a, b) for a, b in zip(run(strided, weight, grad), right, strict=True))
    other = x.mT.contiguous().mT, weight.mT.contiguous().mT, grad.mT.contiguous().mT
    assert all(torch.equal(a, b) for a, b in zip(run(*other), right, strict=True))
    judge(x[:1, :1, :1].expand(3, 2, 2, 10, 12), weight, torch.tensor(0.5, device=device).expand(3, 2, 2, 10, 12))
    judge(x, weight[:1, :1].expand(2, 10, 7), grad[..., :1].expand(3, 2, 2, 10, 12))
    assert torch.equal(run(x, weight.conj(), grad)[0], run(x, weight.conj_physical(), grad)[0])


def test_a_zero_weight_leaves_every_bit(device):
    for size in ((11, 14), (32, 7)):
        x, weight, _ = case(size, device)
        assert torch.equal(filter_launch.filtered(x, torch.zeros_like(weight), filter_launch.CONFIG), x)


def test_a_bad_number_stays_in_its_channel(device):
    """A NaN may reach the images that share its pack, and never others."""
    x, weight, grad = case((12, 8), device, (5, 2))
    clean, clean_grad, _ = run(x, weight, grad)
    x[0, 1, 3, 3] = grad[0, 1, 0, 0] = float("nan")
    y, grad_x, grad_weight = run(x, weight, grad)
    assert y[0, 1].isnan().all() and grad_x[0, 1].isnan().all() and grad_weight[1].isnan().all()
    assert torch.equal(y[:, 0], clean[:, 0]) and torch.equal(y[2:], clean[2:])
    assert torch.equal(grad_x[:, 0], clean_grad[:, 0]) and not grad_weight[0].isnan().any()


@pytest.mark.parametrize("leading", [(0, 3), (2, 0), (2, 3, 0)], ids=str)
def test_nothing_to_do(device, leading):
    x, weight, grad = case((6, 8), device, leading)
    y, grad_x, grad_weight = run(x, weight, grad)
    assert y.shape == grad_x.shape == x.shape and grad_weight.shape == weight.shape and not grad_weight.any()


def test_tables_are_the_transforms(device):
    """One row after another of the identity, transformed by torch."""
    rows, width, columns = 32, 16, 16
    table = fourier_tables(5, 12, rows, width, columns, torch.device("cpu")).double()
    along, across, back = table.split((2 * rows * rows, 2 * width * columns, 2 * width * columns))
    along, across, back = along.view(2, rows, rows), across.view(2, width, columns), back.view(2, columns, width)
    true = torch.fft.rfft(torch.eye(12, dtype=torch.float64), norm="ortho")
    torch.testing.assert_close(torch.complex(*across[:, :12, :7]), true, atol=1e-7, rtol=0)
    true = torch.fft.fft(torch.eye(5, dtype=torch.complex128), norm="ortho")
    for image in range(6):
        inside = slice(5 * image, 5 * image + 5)
        torch.testing.assert_close(torch.complex(along[0], -along[1])[inside, inside], true, atol=1e-7, rtol=0)
    torch.testing.assert_close(
        across[0, :12] @ back[0, :, :12] + across[1, :12] @ back[1, :, :12], torch.eye(12).double(), atol=1e-6, rtol=0
    )
    assert not along[:, 30:].any() and not across[:, 12:].any() and not across[..., 7:].any() and not back[1, 6].any()


@triton.jit
def _starts_kernel(x, out, batch_step, channel, pack, BLOCK: tl.constexpr):
    images = (x, batch_step, 1 << 20, 1 << 12, 64, 2, 1 << 30, 3, 8)
    at, _exists = row_starts(images, channel, pack, tl.arange(0, BLOCK), 2, BLOCK)
    tl.store(out + tl.arange(0, BLOCK), at.to(tl.int64) - x.to(tl.int64))


def test_addresses_beyond_two_to_the_31(device):
    """By arithmetic alone: nothing of that size is allocated."""
    x, out = torch.empty(1, dtype=torch.float16, device=device), torch.empty(32, dtype=torch.int64, device=device)
    _starts_kernel[(1,)](x, out, 1 << 24, 5, 70000, BLOCK=32)
    image = 70000 * 10 + torch.arange(30) // 3
    steps = (image // 2 << 24) + (5 << 20) + (image % 2 << 12) + torch.arange(30) % 3 * 64
    assert torch.equal(out[:30].cpu(), 2 * 2 * steps) and steps[-1] > 2**31


@pytest.mark.parametrize("weight_dtype", [torch.complex64, torch.float32])
def test_opcheck(device, weight_dtype):
    torch.use_deterministic_algorithms(False)  # it compares fresh outputs of runs that fill none
    x, weight, grad = case((6, 8), device, (1, 2), weight_dtype=weight_dtype)
    arguments = (x.requires_grad_(), weight.requires_grad_(), "triton")
    torch.library.opcheck(torch.ops.medsora_ops.spectral_filter.default, arguments)
    arguments = (grad, x.detach(), weight.detach(), "triton")
    torch.library.opcheck(torch.ops.medsora_ops.spectral_filter_backward.default, arguments)


@pytest.mark.parametrize(
    "dtype, weight_dtype, size, why",
    [
        (torch.float64, torch.complex64, (4, 4), "float32, bfloat16 and float16 with weights in single precision, not"),
        (torch.float32, torch.complex128, (4, 4), "not torch.float32 with torch.complex128"),
        (torch.float32, torch.complex64, (1, 129), "serves sides up to 128, not 129"),
    ],
)
def test_what_it_does_not_serve_goes_elsewhere(device, dtype, weight_dtype, size, why):
    x, weight, _ = case(size, device, (1, 1), dtype, weight_dtype)
    with (
        use_backend("triton"),
        pytest.raises(ValueError, match=f"backend 'triton' cannot serve spectral_filter.*{why}"),
    ):
        spectral_filter(x, weight)
    assert spectral_filter(x, weight).shape == x.shape
