"""The two mixers of one block of a denoiser, projections and norms included: one step is forward and backward.

Tokens walk the planes fw and fh, then time, each mixer behind a norm and beside a residual, under bfloat16 autocast as
in training. "without scans" has one addition in the place of each scan: what is left is the rest of the block, and no
scan, however fast, makes it faster than that. "chain" has separate kernels for a scan, as before it was fused; "triton,
whole" takes sequences whole even where so few do not fill the chip.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.gpu.chain import chain_path_scan
from benchmarks.gpu.kernels import Kernel, kernels_of
from benchmarks.gpu.measure import Figures, reason, replay_all, time_eagerly
from benchmarks.gpu.shapes import Scale
from benchmarks.gpu.timing import peak_memory, release
from benchmarks.gpu.variants import DEFINITION, OURS
from benchmarks.harness.correctness import relative_rms
from benchmarks.harness.interleaved import Schedule
from medsora_ops import GridMamba2, modules, use_backend
from medsora_ops.scan import triton as triton_scans

WITHOUT, CHAIN, WHOLE = "without scans", "chain", "triton, whole"
GRID = (6, 8, 8)
AGREEMENT = 5e-2


class Block(nn.Module):
    """x + space(norm(x)), then x + time(norm(x)); x (B, F*H*W, E / 2)."""

    def __init__(self, scale: Scale):
        super().__init__()
        sizes = dict(d_model=scale.width // 2, d_state=scale.state, head_dim=scale.head_dim)
        self.norms = nn.ModuleList(nn.LayerNorm(sizes["d_model"]) for _ in range(2))
        self.space = GridMamba2(**sizes, walks=("fw", "fh"))
        self.time = GridMamba2(**sizes, walks=("temporal",))

    def forward(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        for norm, mixer in zip(self.norms, (self.space, self.time), strict=True):
            x = x + mixer(norm(x), grid)
        return x


def measured_block(
    batch: int, scale: Scale, device: torch.device, schedule: Schedule, grid: tuple[int, int, int] = GRID
) -> dict[str, Figures]:
    """Figures of a step by each of `steps`. Caches are as the step leaves them."""
    calls = steps(batch, scale, device, grid)
    figures = {name: Figures() for name in calls}
    right = [result.float() for result in calls[DEFINITION]()]
    for name, call in list(calls.items()):
        try:
            if name not in (DEFINITION, WITHOUT):
                figures[name].errors = agreement(call(), right)
            figures[name].peak = peak_memory(call, device)
        except Exception as error:
            figures[name].failure = reason(error)
            del calls[name]
    sets = {name: [call] for name, call in calls.items()}
    time_eagerly(sets, figures, device)
    if device.type == "cuda":
        replay_all(sets, figures, schedule)
    release(device)
    return figures


def block_kernels(
    batch: int, scale: Scale, device: torch.device, names: Iterable[str], grid: tuple[int, int, int] = GRID
) -> dict[str, list[Kernel]]:
    """The kernels of a step, by the named ways."""
    found = {}
    for name, step in steps(batch, scale, device, grid).items():
        if name in names:
            step()
            found[name] = kernels_of([step, step], device)
    return {name: kernels for name, kernels in found.items() if kernels}


def steps(
    batch: int, scale: Scale, device: torch.device, grid: tuple[int, int, int]
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """A step by each way, on the same block and tokens."""
    torch.manual_seed(0)
    block = Block(scale).to(device)
    x = torch.randn(batch, grid[0] * grid[1] * grid[2], scale.width // 2, device=device).requires_grad_()
    grad = torch.randn_like(x)
    ways = {
        OURS: lambda: use_backend("triton"),
        WHOLE: whole_sequences,
        CHAIN: lambda: mock.patch.object(modules, "path_scan", _chained),
        DEFINITION: lambda: use_backend("reference"),
        WITHOUT: lambda: mock.patch.object(modules, "path_scan", _added),
    }
    return {name: step_of(block, x, grad, grid, way, scale.dtype) for name, way in ways.items()}


def step_of(block: Block, x: Tensor, grad: Tensor, grid, way: Callable, dtype: torch.dtype):
    """Output, and the gradients of the input and of all parameters."""
    leaves = [x, *block.parameters()]

    def step() -> tuple[Tensor, ...]:
        # A cache of cast weights would carry tensors of one graph into the next.
        cast = torch.autocast(x.device.type, torch.bfloat16, dtype == torch.bfloat16, cache_enabled=False)
        with way():
            with cast:
                out = block(x, grid)
            return (out, *torch.autograd.grad(out, leaves, grad))

    return step


def agreement(found: tuple[Tensor, ...], right: list[Tensor]) -> dict[str, float]:
    """Relative RMS differences of output and input's gradient to the definition's, both in the block's own types."""
    errors = {name: relative_rms(a, b) for name, a, b in zip(("output", "d(input)"), found, right)}
    for name, error in errors.items():
        if not error <= AGREEMENT:
            raise AssertionError(f"{name}: differs by {error:.2e} from the definition, wants at most {AGREEMENT:g}")
    return errors


@contextlib.contextmanager
def whole_sequences():
    with use_backend("triton"), mock.patch.object(triton_scans, "_HEADS_APART", 10**9):
        yield


def _chained(*arguments, groups, norm_group_size, **settings):
    return chain_path_scan(*arguments, **settings)


def _added(zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight, paths, **settings):
    """z + x for each path; parameters that only the scan has get gradients of zero."""
    width = norm_weight.shape[0]
    unused = sum(p.sum() for p in (conv_weight, conv_bias, dt_bias, A, D, norm_weight)) * 0
    total = zxbcdt[..., :width] + zxbcdt[..., width : 2 * width] + unused.to(zxbcdt.dtype)
    return tuple(total for _ in paths)
