"""What follows the scan of long sequences, row by row of the grid: the gate, RMSNorm, and the sum of the directions.

y          (directions, videos, tokens, E): the scans before their gate; on the way back overwritten by its gradient
DIVISION   rows of a tile, channels that a norm runs over, the power of two that holds them
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.triton_math import sigmoid, silu_slope


@triton.jit
def rows_of_tile(tile, rows, tokens, ROWS: tl.constexpr):
    """Number over all videos, video and token of each row of a tile, as columns, and which are real."""
    row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    return row, row // tokens, row % tokens, row < rows


@triton.jit
def load_rows(tensor, video, token, channel, mask):
    pointer, video_stride, token_stride = tensor
    at = pointer + video * video_stride + token * token_stride + channel[None, :]
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "tokens"])
def path_scan_norm_fwd_kernel(
    y, z, z_video_stride, z_token_stride, norm_weight, out, eps, rows, tokens,
    DIRECTIONS: tl.constexpr, WIDTH: tl.constexpr, DIVISION: tl.constexpr,
):  # fmt: skip
    """One program a tile of rows and norm."""
    NORMED: tl.constexpr = DIVISION[1]
    NORMS: tl.constexpr = WIDTH // NORMED
    ROWS: tl.constexpr = DIVISION[0]
    BLOCK: tl.constexpr = DIVISION[2]
    within = tl.arange(0, BLOCK)
    channel = tl.program_id(0) % NORMS * NORMED + within
    row, video, token, real = rows_of_tile(tl.program_id(0) // NORMS, rows, tokens, ROWS)
    mask = real & (within < NORMED)[None, :]
    gate = load_rows((z, z_video_stride, z_token_stride), video, token, channel, mask)
    gate *= sigmoid(gate)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for direction in tl.static_range(DIRECTIONS):
        kept = y + (row + tl.cast(rows, tl.int64) * direction) * WIDTH + channel[None, :]
        gated = tl.load(kept, mask=mask, other=0.0).to(tl.float32) * gate
        total += gated * tl.rsqrt(tl.sum(gated * gated, axis=1) / NORMED + eps)[:, None]
    total *= tl.load(norm_weight + channel, mask=within < NORMED, other=0.0).to(tl.float32)[None, :]
    tl.store(out + row * WIDTH + channel[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "tokens", "workers"])
def path_scan_norm_bwd_kernel(
    y, z, z_video_stride, z_token_stride, norm_weight, grad, grad_video_stride, grad_token_stride,
    grad_z, grad_z_video_stride, grad_z_token_stride, sums, eps, rows, tokens, workers,
    DIRECTIONS: tl.constexpr, WIDTH: tl.constexpr, DIVISION: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """One program a norm and every workers-th tile of rows. y becomes its own gradient; grad_z is written, or added to.

    sums: (workers, E), the gradient of norm_weight of each program's rows.
    """
    NORMED: tl.constexpr = DIVISION[1]
    NORMS: tl.constexpr = WIDTH // NORMED
    ROWS: tl.constexpr = DIVISION[0]
    BLOCK: tl.constexpr = DIVISION[2]
    within = tl.arange(0, BLOCK)
    channel = tl.program_id(0) % NORMS * NORMED + within
    worker = tl.program_id(0) // NORMS
    weight = tl.load(norm_weight + channel, mask=within < NORMED, other=0.0).to(tl.float32)
    of_weight = tl.zeros([BLOCK], tl.float32)
    for tile in tl.range(worker, tl.cdiv(rows, ROWS), workers, disable_licm=True):
        row, video, token, real = rows_of_tile(tile, rows, tokens, ROWS)
        mask = real & (within < NORMED)[None, :]
        before = load_rows((z, z_video_stride, z_token_stride), video, token, channel, mask)
        opened = sigmoid(before)
        of_normed = load_rows((grad, grad_video_stride, grad_token_stride), video, token, channel, mask)
        of_gate = tl.zeros([ROWS, BLOCK], tl.float32)
        for direction in tl.static_range(DIRECTIONS):
            kept = y + (row + tl.cast(rows, tl.int64) * direction) * WIDTH + channel[None, :]
            mixed = tl.load(kept, mask=mask, other=0.0).to(tl.float32)
            gated = mixed * before * opened
            scale = tl.rsqrt(tl.sum(gated * gated, axis=1) / NORMED + eps)[:, None]
            normed = gated * scale
            of_weight += tl.sum(of_normed * normed, axis=0)
            scaled = of_normed * weight[None, :]
            of_gated = scale * (scaled - normed * (tl.sum(scaled * normed, axis=1) / NORMED)[:, None])
            of_gate += of_gated * mixed
            tl.store(kept, (of_gated * before * opened).to(y.dtype.element_ty), mask=mask)
        of_gate *= silu_slope(before, opened)
        at = grad_z + video * grad_z_video_stride + token * grad_z_token_stride + channel[None, :]
        if ACCUMULATE:
            of_gate += tl.load(at, mask=mask, other=0.0).to(tl.float32)
        tl.store(at, of_gate.to(grad_z.dtype.element_ty), mask=mask)
    tl.store(sums + worker * WIDTH + channel, of_weight, mask=within < NORMED)
