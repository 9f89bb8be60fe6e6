"""What a block would hold in place of MedSora's mixers: softmax attention over all tokens, or over groups of them.

Projections are those of the mixers' kind: one linear map in (to q, k and v), one out, no biases. Heads are 64 wide. The
products go through `scaled_dot_product_attention`, by whichever of its kernels is fastest for the sizes at hand.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEAD_WIDTH = 64
WINDOW = (4, 8, 8)
KERNELS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
TRIALS = 3
CLEARLY = 1.1  # times as fast: what few calls can tell
SCORES = 1 << 25  # numbers: the definition holds no more scores of a block of queries
Grid = tuple[int, int, int]


def whole(x: Tensor, grid: Grid) -> Tensor:
    """(B, F*H*W, D) -> (B, F*H*W, D): one group of all tokens, full spatio-temporal attention."""
    return x


def frames(x: Tensor, grid: Grid) -> Tensor:
    """(B, F*H*W, D) -> (B F, H*W, D): one group a frame, the spatial half of factorised attention."""
    return x.reshape(-1, grid[1] * grid[2], x.shape[-1])


def instants(x: Tensor, grid: Grid) -> Tensor:
    """(B, F*H*W, D) -> (B H W, F, D): one group a position, the temporal half of factorised attention."""
    x = x.view(len(x), grid[0], -1, x.shape[-1]).transpose(1, 2)
    # A view (of one video) would make nn.Linear copy its weight for every position when no gradient is asked for.
    return x.contiguous().view(-1, grid[0], x.shape[-1])


def windows(x: Tensor, grid: Grid) -> Tensor:
    """(B, F*H*W, D) -> (B windows, tokens of a window, D): boxes of at most 4 x 8 x 8, side by side.

    As in Video Swin (Liu et al. 2022) without its shifts. Raises ValueError for a grid that boxes do not fill.
    """
    box = tuple(map(min, grid, WINDOW))
    if any(side % length for side, length in zip(grid, box)):
        raise ValueError(f"grid: got {grid}, wants sides that are multiples of {WINDOW}, or shorter")
    (f, h, w), (a, b, c) = (side // length for side, length in zip(grid, box)), box
    x = x.view(len(x), f, a, h, b, w, c, x.shape[-1])
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, a * b * c, x.shape[-1])


def put_back(y: Tensor, group: Callable, batch: int, grid: Grid) -> Tensor:
    """The inverse of `group`: (groups, tokens of one, D) -> (batch, F*H*W, D)."""
    width, (f, h, w) = y.shape[-1], grid
    if group is instants:
        return y.view(batch, h * w, f, width).transpose(1, 2).reshape(batch, -1, width)
    if group is windows:
        a, b, c = map(min, grid, WINDOW)
        y = y.view(batch, f // a, h // b, w // c, a, b, c, width)
        return y.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, -1, width)
    return y.reshape(batch, -1, width)


class Attention(nn.Module):
    """Multi-head self-attention inside groups of tokens: in (D to 3D), softmax(q k' / 8) v, out (D to D), no biases.

    width: D, a multiple of 64. group: one of `whole`, `frames`, `instants`, `windows`.
    forward(x (B, F*H*W, D), grid (F, H, W)) -> (B, F*H*W, D); it takes the place of a mixer of `medsora.models`.
    kernel: SDPA's kernel, as `choose_kernels` sets it; None leaves the choice to SDPA.
    plain: computes by `plain_attention`, the definition, instead.
    """

    def __init__(self, width: int, group: Callable[[Tensor, Grid], Tensor]):
        super().__init__()
        if width % HEAD_WIDTH:
            raise ValueError(f"width: got {width}, wants a multiple of {HEAD_WIDTH}")
        self.group, self.heads = group, width // HEAD_WIDTH
        self.enter = nn.Linear(width, 3 * width, bias=False)
        self.leave = nn.Linear(width, width, bias=False)
        for linear in (self.enter, self.leave):
            nn.init.xavier_uniform_(linear.weight)
        self.kernel: SDPBackend | None = None
        self.plain = False

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        attended = self._attend(*self.split(self.enter(self.group(x, grid)))).transpose(1, 2).flatten(-2)
        return put_back(self.leave(attended), self.group, len(x), grid)

    def split(self, entered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(groups, tokens, 3 D) -> q, k and v: views (groups, heads, tokens, 64) each."""
        return entered.unflatten(-1, (3, self.heads, HEAD_WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.plain:
            return plain_attention(q, k, v)
        if self.kernel is None:
            return F.scaled_dot_product_attention(q, k, v)
        with sdpa_kernel(self.kernel):
            return F.scaled_dot_product_attention(q, k, v)


class Mixing(nn.Module):
    """Mixers one after another, each beside a residual: x + mixer(x), as a block has them but for norms and gates."""

    def __init__(self, *mixers: nn.Module):
        super().__init__()
        self.mixers = nn.ModuleList(mixers)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """x: (B, F*H*W, D) -> (B, F*H*W, D)."""
        for mixer in self.mixers:
            x = x + mixer(x, grid)
        return x


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(width)) v, the definition, for any floating point type; (groups, heads, tokens, width) each.

    Takes queries a block at a time, and their scores again in the pass back: any number of tokens fits in memory.
    """
    from torch.utils.checkpoint import checkpoint

    groups, heads, tokens, width = q.shape
    block = max(1, SCORES // (groups * heads * tokens))
    attend = functools.partial(checkpoint, _attended, use_reentrant=False) if block < tokens else _attended
    return torch.cat([attend(part, k, v) for part in q.split(block, dim=2)], dim=2)


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v


def choose_kernels(model: nn.Module, x: Tensor, grid: Grid, backward: bool) -> dict[str, dict[str, object]]:
    """Times SDPA's kernels for each `Attention` in `model`, by random numbers of the shape and type that tokens x
    (B, F*H*W, D) would give it, and sets the fastest; what SDPA takes by itself stays where none is clearly faster.

    Returns by the attention's group: "default", what SDPA takes by itself, "fastest", which was set, and the "seconds"
    of each kernel that can run here (few calls: they decide, they are no measurement), the pass back included if
    `backward`. The plain products are tried only where all scores together are few: beyond, they may not fit in memory.
    """
    found, fastest = {}, {}
    for module in model.modules():
        if not isinstance(module, Attention):
            continue
        name = module.group.__name__
        if name not in found:
            entered = torch.randn_like(module.group(x.detach(), grid).repeat(1, 1, 3))
            q, k, v = (t.requires_grad_(backward) for t in module.split(entered))
            few = q.numel() // HEAD_WIDTH * q.shape[2] <= SCORES
            tried = [kernel for kernel in KERNELS if few or kernel != SDPBackend.MATH]
            seconds = {kernel: t for kernel in tried if (t := _trial(kernel, q, k, v, backward)) is not None}
            default = SDPBackend(torch._fused_sdp_choice(q, k, v))
            best = min(seconds, key=seconds.get, default=SDPBackend.MATH)
            stays = default in seconds and seconds[default] <= CLEARLY * seconds[best]
            fastest[name] = default if stays else best
            found[name] = {
                "default": kernel_name(default),
                "fastest": kernel_name(fastest[name]),
                "seconds": {kernel_name(kernel): t for kernel, t in seconds.items()},
            }
        module.kernel = fastest[name]
    return found


def kernel_name(kernel: SDPBackend) -> str:
    """ "flash", "cudnn", "efficient" or "math"."""
    return kernel.name.lower().removesuffix("_attention")


def _trial(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor, backward: bool) -> float | None:
    """Seconds of the best of a few calls after one more; None if the kernel cannot run here, or not in memory."""

    def call():
        with sdpa_kernel(kernel):
            out = F.scaled_dot_product_attention(q, k, v)
        if backward:
            torch.autograd.grad(out, (q, k, v), out)
        if out.is_cuda:
            torch.cuda.synchronize(out.device)

    def timed() -> float:
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each reason for which a kernel cannot run is a warning
            call()
    except RuntimeError:
        return None
    return min(timed() for _ in range(TRIALS))
