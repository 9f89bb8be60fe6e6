"""The way of separate kernels: what `path_scan` computes, as a chain of launches over copies in scan order.

It has the structure of the Mamba-2 pipeline that users otherwise call (Dao and Gu, arXiv 2405.21060, and its library
mamba_ssm): rows gathered into scan order, causal convolution, sums of decays in each chunk, what each chunk adds to the
state, the states passed on, the scores of each chunk, the scan, the gated norm, and the results merged back. It stands
in for that library where it is not installed and is generous to it: chunks no longer than a short sequence, operands
kept in place of computed again, scores in the type of the rows. Products that torch has are cuBLAS's; the rest is
Triton. Like the library it computes the states of a sequence of one chunk too.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks.harness.case import Unavailable
from medsora_ops import ScanPath
from medsora_ops.launch import on_device

LONGEST_CHUNK = 128
BLOCK = 64  # tokens of a tile at most
WORKERS = 512  # programs that each sum gradients of parameters
PASSED = 512  # numbers of the state that one program carries


def chain_path_scan(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    paths: tuple[ScanPath, ...],
    *,
    head_dim: int,
    bidirectional: bool = True,
    eps: float = 1e-5,
) -> tuple[Tensor, ...]:
    """As the public `path_scan` with one group: one (B, F*H*W, E) a path. Differentiable once.

    Raises Unavailable for sequences that do not divide into chunks of at most 128 tokens evenly.
    """
    parameters, found = (conv_weight, conv_bias, dt_bias, A, D, norm_weight), []
    for path in paths:
        there, back = scan_orders(path, bidirectional, zxbcdt.device)
        rows = _Gather.apply(zxbcdt, there, back)
        y = _Chain.apply(rows.view(-1, path.length, rows.shape[-1]), *parameters, head_dim, eps)
        found.append(_Merge.apply(y.view(*rows.shape[:2], -1), there, back))
    return tuple(found)


@functools.lru_cache(maxsize=64)
def scan_orders(path: ScanPath, bidirectional: bool, device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Tokens in visiting order, a direction after the other; and where each token then lies, a tensor a direction."""
    tokens = path.tokens()
    directions = [tokens.flatten(), tokens.flip(1).flatten()] if bidirectional else [tokens.flatten()]
    back = [torch.argsort(order) + number * tokens.numel() for number, order in enumerate(directions)]
    return torch.cat(directions).to(device), tuple(order.to(device) for order in back)


def _merged(rows: Tensor, back: tuple[Tensor, ...]) -> Tensor:
    return functools.reduce(torch.add, (rows.index_select(1, order) for order in back))


class _Gather(torch.autograd.Function):
    """Rows in visiting order; torch's own gradient of index_select adds atomically, slower than a merge."""

    @staticmethod
    def forward(ctx, rows, there, back):
        ctx.back = back
        return rows.index_select(1, there)

    @staticmethod
    def backward(ctx, grad):
        return _merged(grad, ctx.back), None, None


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, there, back):
        ctx.there = there
        return _merged(rows, back)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(1, ctx.there), None, None


class _Chain(torch.autograd.Function):
    """rows (n, L, 2E + 2N + nh) -> (n, L, E), one direction; n sequences."""

    @staticmethod
    def forward(ctx, rows, conv_weight, conv_bias, dt_bias, A, D, norm_weight, head_dim, eps):
        parameters = tuple(p.contiguous() for p in (conv_weight, conv_bias, dt_bias, A, D, norm_weight))
        sizes = _Sizes(rows, parameters, head_dim, eps)
        with on_device(rows):
            out, kept = _forward(sizes, rows, *parameters)
        ctx.sizes = sizes
        ctx.save_for_backward(rows, *parameters, *kept)
        return out

    @staticmethod
    def backward(ctx, grad):
        rows, *saved = ctx.saved_tensors
        with on_device(rows):
            return (*_backward(ctx.sizes, grad.contiguous(), rows, saved[:6], saved[6:]), None, None)


class _Sizes:
    """The sizes of one call and the constants of its kernels."""

    def __init__(self, rows: Tensor, parameters, head_dim: int, eps: float):
        self.sequences, self.length, self.row = rows.shape
        self.mixed, self.taps = parameters[0].shape
        self.width, self.head_dim, self.eps = parameters[-1].shape[0], head_dim, eps
        self.heads, self.state = self.width // head_dim, (self.mixed - self.width) // 2
        self.chunk = min(self.length, LONGEST_CHUNK)
        if self.length % self.chunk:
            raise Unavailable(f"the chain takes sequences of at most {LONGEST_CHUNK} tokens or of multiples of that")
        self.tokens = self.sequences * self.length
        self.of_sequence = self.length // self.chunk
        self.chunks = self.sequences * self.of_sequence
        self.block = min(BLOCK, _block(self.chunk))
        self.blocks = -(-self.chunk // self.block)
        self.passed = -(-head_dim * self.state // PASSED)

    @property
    def products(self) -> dict:
        """Constants of kernels with matrix products."""
        return dict(
            SIZES=(self.heads, self.head_dim, self.state),
            BLOCK_T=self.block,
            BLOCK_P=_block(self.head_dim),
            num_warps=4 if self.block * _block(self.state) <= 4096 else 8,
        )

    @property
    def conv(self) -> dict:
        return dict(WIDTH=self.width, MIXED=self.mixed, TAPS=self.taps, BLOCK_T=32, BLOCK_C=64)

    @property
    def conv_grid(self) -> tuple[int, int]:
        return -(-self.tokens // 32), -(-self.mixed // 64)

    @property
    def sums(self) -> dict:
        return dict(HEADS=self.heads, BLOCK_T=_block(self.chunk), BLOCK_H=_block(self.heads))


def _forward(sizes: _Sizes, rows, conv_weight, conv_bias, dt_bias, A, D, norm_weight):
    """The result, and what the way back needs of the stages."""
    from benchmarks.gpu import chain_kernels as kernels

    states_block = dict(BLOCK_S=_block(sizes.state))
    mixed = rows.new_empty(sizes.tokens, sizes.mixed)
    kernels.chain_conv_fwd_kernel[sizes.conv_grid](
        rows, sizes.row, conv_weight, conv_bias, mixed, sizes.tokens, sizes.length, **sizes.conv
    )
    dt, cum = (rows.new_empty(sizes.tokens, sizes.heads, dtype=torch.float32) for _ in range(2))
    raw = rows.view(sizes.tokens, sizes.row)[:, -sizes.heads :]
    kernels.chain_cumsum_fwd_kernel[(sizes.chunks,)](raw, sizes.row, dt_bias, A, dt, cum, sizes.chunk, **sizes.sums)
    x, B, C = mixed.split((sizes.width, sizes.state, sizes.state), dim=1)
    states, before = (rows.new_empty(sizes.chunks, sizes.heads, sizes.head_dim, sizes.state) for _ in range(2))
    kernels.chain_states_kernel[(sizes.chunks * sizes.heads,)](
        x, sizes.mixed, B, sizes.mixed, dt, cum, states, sizes.chunk, TO_END=True, **sizes.products, **states_block
    )
    kernels.chain_pass_fwd_kernel[(sizes.sequences * sizes.heads, sizes.passed)](
        *(states, cum, before, sizes.chunk, sizes.of_sequence),
        HEADS=sizes.heads,
        SIZE=sizes.head_dim * sizes.state,
        BLOCK=PASSED,
    )
    scores = torch.bmm(_by_chunk(C, sizes), _by_chunk(B, sizes).transpose(1, 2))
    y, out = rows.new_empty(sizes.tokens, sizes.width), rows.new_empty(sizes.sequences, sizes.length, sizes.width)
    kernels.chain_scan_fwd_kernel[(sizes.chunks * sizes.heads, sizes.blocks)](
        mixed, sizes.mixed, scores, dt, cum, before, D, y, sizes.chunk, **sizes.products, **states_block
    )
    kernels.chain_norm_fwd_kernel[(sizes.tokens,)](
        y, rows, sizes.row, norm_weight, out, sizes.eps, WIDTH=sizes.width, BLOCK=_block(sizes.width)
    )
    return out, (mixed, dt, cum, before, scores, y)


def _backward(sizes: _Sizes, grad, rows, parameters, kept) -> tuple[Tensor, ...]:
    """Gradients of the rows and the six parameters."""
    from benchmarks.gpu import chain_backward_kernels as kernels

    conv_weight, conv_bias, dt_bias, A, D, norm_weight = parameters
    mixed, dt, cum, before, scores, y = kept

    def sums(*shape):
        return rows.new_empty(shape, dtype=torch.float32)

    grad_rows, grad_y = torch.empty_like(rows), torch.empty_like(y)
    workers = min(WORKERS, sizes.tokens)
    of_norm = sums(workers, sizes.width)
    kernels.chain_norm_bwd_kernel[(workers,)](
        *(y, rows, sizes.row, norm_weight, grad, grad_y, grad_rows, of_norm, sizes.eps, sizes.tokens, workers),
        WIDTH=sizes.width,
        BLOCK=_block(sizes.width),
    )
    grad_mixed, of_D, steps = _scan_backward(sizes, grad_y, mixed, dt, cum, before, scores, D)
    of_A, of_bias = sums(sizes.chunks, sizes.heads), sums(sizes.chunks, sizes.heads)
    grad_raw = grad_rows.view(sizes.tokens, sizes.row)[:, -sizes.heads :]
    kernels.chain_cumsum_bwd_kernel[(sizes.chunks,)](
        *(dt, A, *steps, grad_raw, sizes.row, of_A, of_bias, sizes.chunk, sizes.tokens, sizes.blocks), **sizes.sums
    )
    workers = min(WORKERS, sizes.conv_grid[0])
    of_weight, of_conv_bias = sums(workers, sizes.mixed, sizes.taps), sums(workers, sizes.mixed)
    kernels.chain_silu_bwd_kernel[(workers, sizes.conv_grid[1])](
        *(grad_mixed, rows, sizes.row, conv_weight, conv_bias, of_weight, of_conv_bias),
        *(sizes.tokens, sizes.length, workers),
        BLOCK_TAPS=1 << (sizes.taps - 1).bit_length(),
        **sizes.conv,
    )
    kernels.chain_conv_bwd_kernel[sizes.conv_grid](
        grad_mixed, conv_weight, grad_rows, sizes.row, sizes.tokens, sizes.length, **sizes.conv
    )
    shares = (of_weight, of_conv_bias, of_bias, of_A, of_D, of_norm)
    return grad_rows, *(share.sum(0).to(p.dtype) for share, p in zip(shares, parameters, strict=True))


def _scan_backward(sizes: _Sizes, grad_y, mixed, dt, cum, before, scores, D):
    """The gradient of (x, B, C), shares of that of D, and what the gradients of the time steps are made of."""
    from benchmarks.gpu import chain_backward_kernels as kernels
    from benchmarks.gpu.chain_kernels import chain_states_kernel

    def sums(*shape):
        return dt.new_empty(shape)

    block_s, programs = dict(BLOCK_S=_block(sizes.state)), (sizes.chunks, sizes.blocks)
    x, B, C = mixed.split((sizes.width, sizes.state, sizes.state), dim=1)
    grad_scores, grad_mixed = torch.empty_like(scores), torch.empty_like(mixed)
    grad_before, grad_states = torch.empty_like(before), torch.empty_like(before)
    of_rows, of_columns = (sums(sizes.blocks, sizes.tokens, sizes.heads) for _ in range(2))
    of_queries, of_keys = sums(sizes.tokens, sizes.heads), sums(sizes.tokens, sizes.heads)
    kernels.chain_scores_bwd_kernel[(sizes.chunks, sizes.blocks**2)](
        *(grad_y, mixed, sizes.mixed, scores, dt, cum, grad_scores, of_rows, of_columns, sizes.chunk, sizes.tokens),
        **sizes.products,
    )
    chain_states_kernel[(sizes.chunks * sizes.heads,)](
        *(grad_y, sizes.width, C, sizes.mixed, dt, cum, grad_before, sizes.chunk),
        **dict(TO_END=False, **sizes.products, **block_s),
    )
    of_last = sums(sizes.passed, sizes.chunks, sizes.heads)
    kernels.chain_pass_bwd_kernel[(sizes.sequences * sizes.heads, sizes.passed)](
        *(grad_before, before, cum, grad_states, of_last, sizes.chunk, sizes.of_sequence, sizes.sequences),
        HEADS=sizes.heads,
        SIZE=sizes.head_dim * sizes.state,
        BLOCK=PASSED,
    )
    grad_C, grad_B = (mixed.new_empty(sizes.tokens, sizes.state) for _ in range(2))
    for values, states, keys, out, of_weights, to_end in (
        (grad_y, before, C, grad_C, of_queries, False),
        (x, grad_states, B, grad_B, of_keys, True),
    ):
        kernels.chain_keys_bwd_kernel[programs](
            *(values, values.stride(0), states, keys, sizes.mixed, dt, cum, out, of_weights, sizes.chunk),
            **dict(TO_END=to_end, **sizes.products, **block_s),
        )
    of_D = sums(sizes.chunks * sizes.blocks, sizes.heads)
    kernels.chain_values_bwd_kernel[(sizes.chunks * sizes.heads, sizes.blocks)](
        *(grad_y, mixed, sizes.mixed, scores, dt, cum, grad_states, D, grad_mixed, of_D, sizes.chunk),
        **dict(**sizes.products, **block_s),
    )
    _, to_B, to_C = grad_mixed.split((sizes.width, sizes.state, sizes.state), dim=1)
    for to, own, turned, other in ((to_B, grad_B, grad_scores.transpose(1, 2), C), (to_C, grad_C, grad_scores, B)):
        _by_chunk(to, sizes).copy_(torch.baddbmm(_by_chunk(own, sizes), turned, _by_chunk(other, sizes)))
    return grad_mixed, of_D, (of_rows, of_columns, of_queries, of_keys, of_last.sum(0))


def _by_chunk(rows: Tensor, sizes: _Sizes) -> Tensor:
    return rows.unflatten(0, (sizes.chunks, sizes.chunk))


def _block(size: int) -> int:
    """The matrix units want 16 at least."""
    return max(16, 1 << (size - 1).bit_length())
