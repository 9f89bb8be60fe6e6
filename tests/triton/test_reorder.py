"""gather and merge by Triton kernels against the definition, bit by bit: nothing is computed but one sum."""

import itertools

import pytest
import torch
from sampling import sampled

from medsora_ops import ScanPath, gather, merge, use_backend
from medsora_ops.backends import select
from medsora_ops.launch import INTERPRETED
from medsora_ops.reorder import reference
from medsora_ops.reorder import triton as kernels

# In the interpreter bfloat16 is cut off, not rounded, so that its sums are not those of the definition.
SUMMED = (torch.float32, torch.float64, torch.float16) + (() if INTERPRETED else (torch.bfloat16,))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CHANNELS = (1, 2, 3, 8, 12, 17, 64, 136, 300)
GRIDS = ((1, 1, 1), (2, 3, 5), (3, 1, 7), (1, 33, 5), (9, 4, 8))
KINDS = ("fw", "fh", "hw", "temporal", "raster")


def made(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def path_of(kind, grid, seed=0):
    if kind in ("temporal", "raster"):
        return getattr(ScanPath, kind)(grid)
    frames, height, width = grid
    cells = {"fw": frames * width, "fh": frames * height, "hw": height * width}[kind]
    return ScanPath.plane(kind, grid, torch.randperm(cells, generator=torch.Generator().manual_seed(seed)))


def gather_case(kind="fw", grid=(2, 3, 5), channels=12, dtype=torch.float32, batch=2):
    path = path_of(kind, grid)
    return made(batch, path.sequences * path.length, channels, dtype=dtype), path


def merge_case(kind="fw", grid=(2, 3, 5), channels=12, dtype=torch.float32, batch=2):
    path = path_of(kind, grid)
    return made(batch, 2, path.sequences, path.length, channels, dtype=dtype, seed=1), path


def judge_gather(x, path, device):
    x = x.to(device) if x.device != device else x
    found = kernels.gather(x, path.offsets(device), path.stride)
    assert found.dtype == x.dtype and found.is_contiguous()
    assert torch.equal(found, reference.gather(x, path.offsets(device), path.stride))
    assert torch.equal(found, kernels.gather(x, path.offsets(device), path.stride))


def judge_merge(y, path, device):
    y = y.to(device) if y.device != device else y
    found = kernels.merge(y, path.offsets(device), path.stride)
    assert found.dtype == y.dtype and found.is_contiguous()
    assert torch.equal(found, reference.merge(y, path.offsets(device), path.stride))
    assert torch.equal(found, kernels.merge(y, path.offsets(device), path.stride))


@pytest.mark.parametrize("kind, grid, channels", sampled(itertools.product(KINDS, GRIDS, CHANNELS), 16))
def test_every_path_and_width(device, kind, grid, channels):
    judge_gather(*gather_case(kind, grid, channels), device)
    judge_merge(*merge_case(kind, grid, channels), device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [3, 40])
def test_every_type(device, dtype, channels):
    judge_gather(*gather_case("fh", channels=channels, dtype=dtype), device)
    if dtype in SUMMED:
        judge_merge(*merge_case("fh", channels=channels, dtype=dtype), device)


@pytest.mark.parametrize("margin", [(1, 0), (4, 4), (3, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_alignment_and_strides(device, margin, dtype):
    """Channels cut out of wider rows, every other video, sequences and steps exchanged."""
    before, after = margin
    x, path = gather_case(dtype=dtype)
    wide = torch.full((4, x.shape[1], before + x.shape[2] + after), float("nan"), dtype=dtype, device=device)
    wide[::2, :, before : before + x.shape[2]] = x.to(device)
    judge_gather(wide[::2, :, before : before + x.shape[2]], path, device)
    y, path = merge_case(dtype=dtype)
    order = (3, 0, 2, 1)
    wide = torch.full((*(y.shape[i] for i in order), before + y.shape[4] + after), float("nan"), dtype=dtype)
    wide[..., before : before + y.shape[4]] = y.permute(*order, 4)
    inverse = [order.index(i) for i in range(4)]
    judge_merge(wide.to(device)[..., before : before + y.shape[4]].permute(*inverse, 4), path, device)


def test_expanded_and_transposed_inputs(device):
    x, path = gather_case()
    judge_gather(x[:1].expand(3, -1, -1), path, device)
    judge_gather(x[..., :1].expand(-1, -1, 7), path, device)
    judge_gather(x[:, :1].expand(-1, x.shape[1], -1), path, device)
    judge_gather(x.mT.contiguous().mT, path, device)
    y, path = merge_case()
    judge_merge(y[:, :1].expand(-1, 2, -1, -1, -1), path, device)
    judge_merge(y[..., :1].expand(*y.shape[:-1], 5), path, device)
    judge_merge(torch.tensor(0.5).expand(y.shape), path, device)


def test_each_is_the_gradient_of_the_other(device):
    x, path = gather_case(dtype=torch.float64)
    y, _ = merge_case(dtype=torch.float64)
    x, y = x.to(device).requires_grad_(), y.to(device).requires_grad_()
    with use_backend("triton"):
        assert torch.equal(torch.autograd.grad(gather(x, path), x, y)[0], merge(y, path))
        assert torch.equal(torch.autograd.grad(merge(y, path), y, x)[0], gather(x, path))
        (twice,) = torch.autograd.grad((gather(x, path) ** 2).sum(), x)
    torch.testing.assert_close(twice, 4 * x)


@pytest.mark.parametrize("batch, channels", [(0, 8), (2, 0)])
def test_nothing_to_do(device, batch, channels):
    judge_gather(*gather_case(batch=batch, channels=channels), device)
    judge_merge(*merge_case(batch=batch, channels=channels), device)


def test_opcheck(device):
    torch.use_deterministic_algorithms(False)  # it compares fresh outputs of runs that fill none
    (x, path), (y, _) = gather_case(), merge_case()
    table = path.offsets(device)
    for operator, tensor in (("gather", x), ("merge", y)):
        arguments = (tensor.to(device).requires_grad_(), table, path.stride, "triton")
        torch.library.opcheck(getattr(torch.ops.medsora_ops, operator).default, arguments)


def test_other_types_go_elsewhere(device):
    path = path_of("fw", (2, 3, 5))
    for operator, shape in (("gather", (1, 30, 4)), ("merge", (1, 2, 3, 10, 4))):
        arguments = torch.zeros(shape, dtype=torch.float8_e5m2, device=device), path.offsets(device), path.stride
        with pytest.raises(ValueError, match="'triton' cannot serve .*: serves float32, float64, bfloat16 and float16"):
            select(operator, device.type, *arguments, backend="triton")
