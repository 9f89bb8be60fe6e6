"""What is known to break such kernels elsewhere, one test each; what else is tested elsewhere:

fresh memory that nobody writes     conftest.py fills it with NaN, for every test here
every length and edge of a tile     test_every_length and the like
one token, one head, nothing        test_every_shape, test_ssd_of_nothing
any strides, expanded gradients     test_any_strides, test_ssd_any_strides, test_ssd_expanded
tensors beyond 2^31 numbers         test_large_scans.py, whole kernels; here their addresses alone, also on a GPU
every way of cutting                test_every_way_of_cutting and the like; here that tuning tries no others
"""

import ast
import dataclasses
import itertools
from pathlib import Path

import pytest
import test_chunk_scan
import test_sequence_scan
import test_tile_scan
import torch
import triton
import triton.language as tl
from scan_case import Case, check, run
from test_chunk_scan import ssd_case

import medsora_ops
from medsora_ops import backends, ssd_scan, tune, use_backend
from medsora_ops.launch import INTERPRETED, launch
from medsora_ops.scan import runs
from medsora_ops.scan import triton as triton_scans
from medsora_ops.scan.walk_kernels import row_starts
from medsora_ops.triton_math import sigmoid, softplus

KERNELS = sorted(Path(medsora_ops.__file__).parent.glob("**/*_kernels.py"))


@triton.jit
def _starts_kernel(rows, table, out, video_stride, token_stride, video, start, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    walk = (table, video + place * 0, start + place * 0, place, place >= 0, BLOCK, False)
    at, _inside = row_starts((rows, video_stride, token_stride), walk, 0)
    tl.store(out + place, at.to(tl.int64) - rows.to(tl.int64))


@pytest.mark.parametrize("video_stride, token_stride, video, start", [(1 << 20, 2320, 5000, 17), (1, 2320, 0, 2**30)])
def test_addresses_beyond_two_to_the_31(device, video_stride, token_stride, video, start):
    """By arithmetic alone: nothing of that size is allocated."""
    rows, out = torch.empty(1, dtype=torch.float16, device=device), torch.empty(4, dtype=torch.int64, device=device)
    table = torch.tensor([3, 1, 0, 2], dtype=torch.int32, device=device)
    _starts_kernel[(1,)](rows, table, out, video_stride, token_stride, video, start, BLOCK=4)
    elements = [video * video_stride + (start + offset) * token_stride for offset in table.tolist()]
    assert out.tolist() == [2 * element for element in elements] and elements[-1] > 2**31


def test_no_grid_is_larger_than_a_gpu_takes(device):
    """Axes y and z of a grid end at 65,535: y counts the runs of a sequence, z the paths of a call."""
    assert runs.MOST <= 65_535
    rows, table = torch.empty(1, device=device), torch.zeros(4, dtype=torch.int32, device=device)
    for grid in ((2**31,), (1, 65_536), (1, 1, 65_536)):
        with pytest.raises(ValueError, match="_starts_kernel: asks for .* programs along axis"):
            launch(_starts_kernel, grid, rows, table, rows, 1, 1, 0, 0, BLOCK=4)


def test_nothing_tunes_itself_or_adds_in_any_order():
    for path in KERNELS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr != "autotune" and not node.attr.startswith("atomic"), path


def test_they_serve_gpus_by_default():
    for operator in ("path_scan", "ssd_scan"):
        assert backends._ranked(operator, "cuda")[0].backend == "triton"


def _names(tree) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _assigned(tree, matches) -> set[str]:
    """Names that some statement of the file gives, or adds, a value that `matches`."""
    statements = (node for node in ast.walk(tree) if isinstance(node, (ast.Assign, ast.AugAssign)))
    targets = [
        target
        for node in statements
        if matches(node.value)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return set().union(*map(_names, targets))


def _calls(tree, function):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == function]


def test_no_product_takes_a_transposed_product():
    """Triton 3.4 to 3.7.0 miscompiles dot(trans(accumulator), x) on Hopper."""
    for path in KERNELS:
        tree = ast.parse(path.read_text())
        products = _assigned(tree, lambda value: _calls(value, "matmul"))

        def turns_a_product(value, products=products):
            return any(_names(call) & products for call in _calls(value, "tl.trans"))

        turned = _assigned(tree, turns_a_product)
        for product in _calls(tree, "matmul"):
            assert not turns_a_product(product) and not _names(product) & turned, f"{path.name}:{product.lineno}"


@triton.jit
def _of_each_kernel(x, out, function: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, function(tl.load(x + at)))


def test_softplus_of_everything(device):
    """Small results keep their digits, large ones do not overflow."""
    x = torch.tensor([-100, -80, -20, -9, -3, -2.7, -1, -1e-3, 0, 1e-3, 1, 2.7, 3, 20, 80, 1e30], device=device)
    out = torch.empty_like(x)
    _of_each_kernel[(1,)](x, out, softplus, BLOCK=16)
    true = torch.nn.functional.softplus(x.double(), threshold=1e9)
    assert ((out.double() - true).abs() <= 1.5e-6 * true + 1e-37).all()


def test_sigmoid_of_everything(device):
    """Small results keep their digits, down to where float32 has no more."""
    x = torch.tensor([-3e38, -200, -80, -20, -9, -5, -1, -1e-3, 0, 1e-3, 1, 5, 20, 80, 200, 3e38], device=device)
    out = torch.empty_like(x)
    _of_each_kernel[(1,)](x, out, sigmoid, BLOCK=16)
    true = torch.sigmoid(x.double())
    rounded = 2e-7 * (1 + x.double().abs().clamp(max=100))  # of x * log2(e), as an exponent
    assert ((out.double() - true).abs() <= rounded * true + 1e-37).all()


@pytest.mark.parametrize("length, step, rate, longest", [(48, 30, -2, 256), (70, 4, -1, 256), (70, 4, -1, 64)])
def test_decays_that_would_overflow_unmasked(device, length, step, rate, longest, monkeypatch):
    """exp of a future difference overflows float32 here: it must be masked before, not after."""
    monkeypatch.setattr(triton_scans, "LONGEST", longest)
    case = Case(kinds=("raster",), grid=(1, 1, length))
    tensors, grads = case.tensors(device)
    tensors[3] = tensors[3] * 0 + step
    tensors[4] = tensors[4] * 0 + rate
    check(case, device, tensors, grads)


def test_operands_in_bfloat16_do_not_fail_in_the_interpreter(device):
    check(Case(heads=2, head_dim=16, dtype=torch.bfloat16, parameters=torch.float32), device)


@pytest.mark.parametrize("length, longest", [(12, 256), (70, 256), (70, 64)])
def test_gradients_of_a_sum(device, length, longest, monkeypatch):
    """One number, expanded over videos, tokens and channels, is the gradient; the same bits as written out."""
    monkeypatch.setattr(triton_scans, "LONGEST", longest)
    case = Case(kinds=("raster",), grid=(1, 1, length), batch=2, heads=1)
    tensors, (grad,) = case.tensors(device)
    _, found = run(case, tensors, [torch.ones((), device=device).expand(grad.shape)])
    _, written_out = run(case, tensors, [torch.ones_like(grad)])
    assert all(map(torch.equal, found, written_out))


def test_fresh_memory_is_poisoned_whatever_makes_it(device):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        given = torch.zeros(3, 5, dtype=dtype, device=device)
        for fresh in (given.new_empty(7), torch.empty_like(given), given.new_empty(4, dtype=torch.float32)):
            assert fresh.isnan().all()


def test_no_second_gradient_of_ssd_scan(device):
    x, dt, A, B, C = (t.to(device) for t in ssd_case(6, without=("D", "z", "dt_bias", "initial_states"))[0][:5])
    with use_backend("triton"):
        out = ssd_scan(x.requires_grad_(), dt, A, B, C, dt_softplus=True)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tuning_tries_no_value_that_is_not_tested(architecture, dtype):
    tested = {"tile": test_tile_scan.CONFIGS, "sequence": test_sequence_scan.CONFIGS}
    tested |= {"chunk": test_chunk_scan.CONFIGS, "ssd": test_chunk_scan.CONFIGS}
    for kernel in ("path_scan_tile", "path_scan_sequence", "path_scan_chunk", "ssd_scan"):
        configs = next(found for name, found in tested.items() if name in kernel)
        for way, length in itertools.product(("fwd", "bwd"), (4, 48, 4096)[: 2 if "tile" in kernel else 3]):
            default, *tried = tune.candidates(f"{kernel}_{way}", length, dtype, 128, architecture)
            for field in dataclasses.fields(default):
                values = {getattr(config, field.name) for config in tried} - {getattr(default, field.name)}
                assert not INTERPRETED or values <= {getattr(config, field.name) for config in configs}, field.name
