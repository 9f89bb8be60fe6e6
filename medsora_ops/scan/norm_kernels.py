"""What follows the scan of long sequences: the gate u = y * SiLU(z), RMSNorm, and the sum of the directions.

Forward, row by row of the grid. On the way back the programs that take a head chunk by chunk do it too: the gradient of
u needs two numbers of a token from all heads of its norm, the sums of u^2 and of u * d(u / rms). Those that compute y
again leave their parts of both in memory; those that go back through the scans add them up.

    y          (paths, directions, videos, tokens, E): the scans before their gate
    sums       (paths, directions, videos, tokens, 2, heads, parts, TOUCHED) float32
    norm       (weights, sums, eps)
    DIVISION   rows of a tile, channels that a norm runs over, the power of two that holds them
    NORMED     the channels that a norm runs over; the norms that a program's channels touch, TOUCHED; the heads that a
               norm touches: at most. Norms of whole heads touch each program once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.scan.walk_kernels import load_rows, path_of_program, row_starts, rows_before, rows_of_tile
from medsora_ops.triton_math import pick, sigmoid, silu_slope


@triton.jit(do_not_specialize=["rows", "tokens"])
def path_scan_norm_fwd_kernel(
    y, z, z_video_stride, z_token_stride, norm_weight, outs, eps, rows, tokens,
    PATHS: tl.constexpr, DIRECTIONS: tl.constexpr, WIDTH: tl.constexpr, DIVISION: tl.constexpr,
):  # fmt: skip
    """One program a tile of rows and norm, and path."""
    NORMED: tl.constexpr = DIVISION[1]
    NORMS: tl.constexpr = WIDTH // NORMED
    ROWS: tl.constexpr = DIVISION[0]
    BLOCK: tl.constexpr = DIVISION[2]
    path = path_of_program(PATHS)
    within = tl.arange(0, BLOCK)
    channel = tl.program_id(0) % NORMS * NORMED + within
    row, video, token, real = rows_of_tile(tl.program_id(0) // NORMS, rows, tokens, ROWS)
    mask = real & (within < NORMED)[None, :]
    gate = load_rows((z, z_video_stride, z_token_stride), video, token, channel, mask)
    gate *= sigmoid(gate)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for direction in tl.static_range(DIRECTIONS):
        kept = y + (row + tl.cast(rows, tl.int64) * (path * DIRECTIONS + direction)) * WIDTH + channel[None, :]
        gated = tl.load(kept, mask=mask, other=0.0).to(tl.float32) * gate
        total += gated * tl.rsqrt(tl.sum(gated * gated, axis=1) / NORMED + eps)[:, None]
    total *= tl.load(norm_weight + channel, mask=within < NORMED, other=0.0).to(tl.float32)[None, :]
    out = pick(path, outs)
    tl.store(out + row * WIDTH + channel[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def sums_along(norm, plane, positions, tokens, SIZES: tl.constexpr, BLOCKS: tl.constexpr, NORMED: tl.constexpr):
    """norm, its sums as the rows of one path and direction."""
    weights, sums, eps = norm
    PARTS: tl.constexpr = (SIZES[1] + BLOCKS[1] - 1) // BLOCKS[1]
    ROW: tl.constexpr = 2 * SIZES[0] * PARTS * NORMED[1]
    return weights, (sums + plane.to(tl.int64) * positions * ROW, tokens * ROW, ROW), eps


@triton.jit
def load_gate(rows, of_out, norm, walk, column, wanted):
    """z, the gradient of the result, and the weights of the norm, of the columns of a head: float32."""
    weight = tl.load(norm[0] + column, mask=wanted, other=0.0).to(tl.float32)
    return rows_before(rows, walk, column, wanted, 0), rows_before(of_out, walk, column, wanted, 0), weight


@triton.jit
def keep_sums(
    mixed, gate, norm, walk, head, part, column, SIZES: tl.constexpr, BLOCKS: tl.constexpr, NORMED: tl.constexpr
):
    """The program's part of the sums of each token. mixed: y; gate: from load_gate."""
    PARTS: tl.constexpr = (SIZES[1] + BLOCKS[1] - 1) // BLOCKS[1]
    before, of_out, weight = gate
    gated = mixed * before * sigmoid(before)
    of_normed = of_out * weight[None, :]
    at, inside = row_starts(norm[1], walk, 0)
    at += (head * PARTS + part) * NORMED[1]
    first = (head * SIZES[1] + part * BLOCKS[1]) // NORMED[0]
    for touched in tl.range(NORMED[1]):
        own = gated
        if NORMED[1] > 1:
            own = tl.where((column // NORMED[0] == first + touched)[None, :], gated, 0.0)
        tl.store(at + touched, tl.sum(own * gated, axis=1), mask=inside)
        tl.store(at + (SIZES[0] * PARTS * NORMED[1] + touched), tl.sum(own * of_normed, axis=1), mask=inside)


@triton.jit
def norm_of_tokens(norm, walk, which, SIZES: tl.constexpr, BLOCKS: tl.constexpr, NORMED: tl.constexpr):
    """Of one norm: 1 / rms of each token, and how much of u that takes from d(u / rms): [tokens] each."""
    PARTS: tl.constexpr = (SIZES[1] + BLOCKS[1] - 1) // BLOCKS[1]
    EACH: tl.constexpr = PARTS * NORMED[1]
    ALL: tl.constexpr = SIZES[0] * EACH
    which_head = which * NORMED[0] // SIZES[1]
    place = which_head * EACH + tl.arange(0, triton.next_power_of_2(NORMED[2] * EACH))
    begin = place // EACH * SIZES[1] + place % EACH // NORMED[1] * BLOCKS[1]
    part_of_it = (place < ALL) & (begin // NORMED[0] + place % NORMED[1] == which)
    at, inside = row_starts(norm[1], walk, 0)
    at, mask = at[:, None] + place[None, :], inside[:, None] & part_of_it[None, :]
    squares = tl.sum(tl.load(at, mask=mask, other=0.0), axis=1)
    products = tl.sum(tl.load(at + ALL, mask=mask, other=0.0), axis=1)
    scale = tl.where(inside, tl.rsqrt(squares / NORMED[0] + norm[2]), 0.0)
    return scale, scale * scale * products / NORMED[0]


@triton.jit
def through_norm(
    mixed, gate, norm, walk, head, part, column, SIZES: tl.constexpr, BLOCKS: tl.constexpr, NORMED: tl.constexpr
):
    """From y and load_gate's to the gradients of y and z, [tokens, channels], and of the weights, [channels]."""
    before, of_out, weight = gate
    opened = sigmoid(before)
    gated = mixed * before * opened
    first = (head * SIZES[1] + part * BLOCKS[1]) // NORMED[0]
    if NORMED[1] == 1:
        scale, taken = norm_of_tokens(norm, walk, first, SIZES, BLOCKS, NORMED)
        scale, taken = scale[:, None], taken[:, None]
    else:
        scale, taken = tl.zeros_like(gated), tl.zeros_like(gated)
        for touched in tl.range(NORMED[1]):
            own = (column // NORMED[0] == first + touched)[None, :]
            own_scale, own_taken = norm_of_tokens(norm, walk, first + touched, SIZES, BLOCKS, NORMED)
            scale = tl.where(own, own_scale[:, None], scale)
            taken = tl.where(own, own_taken[:, None], taken)
    of_weight = tl.sum(of_out * gated * scale, axis=0)
    of_gated = scale * (of_out * weight[None, :] - gated * taken)
    return of_gated * before * opened, of_gated * mixed * silu_slope(before, opened), of_weight
