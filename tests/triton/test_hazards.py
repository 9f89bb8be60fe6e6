"""What is known to break such kernels elsewhere, one test each."""

import ast
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from scan_case import Case, check

import medsora_ops
from medsora_ops.scan import runs
from medsora_ops.scan.walk_kernels import row_starts
from medsora_ops.triton_math import softplus

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


def test_large_numbers_of_programs_are_on_the_first_axis_and_nothing_tunes_itself():
    """Axes y and z of a grid end at 65,535: y counts the runs of a sequence, z nothing. First calls must not tune."""
    assert runs.MOST <= 65_535
    for path in KERNELS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in ("program_id", "num_programs"):
                    assert ast.literal_eval(node.args[0]) in (0, 1), path
                assert node.func.attr not in ("autotune", "atomic_add", "atomic_cas"), path


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
def _softplus_kernel(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, softplus(tl.load(x + at)))


def test_softplus_of_everything(device):
    """Small results keep their digits, large ones do not overflow."""
    x = torch.tensor([-100, -80, -20, -9, -3, -2.7, -1, -1e-3, 0, 1e-3, 1, 2.7, 3, 20, 80, 1e30], device=device)
    out = torch.empty_like(x)
    _softplus_kernel[(1,)](x, out, BLOCK=16)
    true = torch.nn.functional.softplus(x.double(), threshold=1e9)
    assert ((out.double() - true).abs() <= 1.5e-6 * true + 1e-37).all()


def test_decays_that_would_overflow_unmasked(device):
    """exp of a future difference overflows float32 here: it must be masked before, not after."""
    case = Case(kinds=("hw",), grid=(1, 6, 8))
    tensors, grads = case.tensors(device)
    tensors[3] = tensors[3] * 0 + 30.0
    tensors[4] = tensors[4] * 0 - 2.0
    check(case, device, tensors, grads)


def test_operands_in_bfloat16_do_not_fail_in_the_interpreter(device):
    check(Case(heads=2, head_dim=16, dtype=torch.bfloat16, parameters=torch.float32), device)
