"""`path_scan` of short sequences, forward: a program takes a tile of whole sequences through everything, both ways.

Sequences of up to BLOCK_T tokens need no state. With scores S = C B^T, shared by the heads of a group, and the decays
M between tokens, y = (S * M * step) x (Dao and Gu, arXiv 2405.21060, the quadratic form). RMSNorm runs over many heads,
so a program keeps what its heads gave until the last of them is done, in scratch that belongs to the program and not to
the tile, so that much of it stays in the second-level cache.

    SIZES      heads, head_dim, groups, state, taps, heads that a norm runs over
    BLOCKS     tokens, channels of a head, numbers of the state at a time, heads of a norm, channels at a time;
               powers of two
    gated      y * silu(z), (programs, directions, BLOCK_T, E) in a float type of the host's choice
    squares    sums of its squares, (programs, directions, heads, BLOCK_T) float32
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.scan.walk_kernels import column_of, convolved, row_starts, rows_before
from medsora_ops.triton_math import LOG2E, anew, causal_decays, matmul, pick, settled, sigmoid, softplus


@triton.jit
def packed_walk(tile, table, length, sequences, stride, videos, reverse, BLOCK_T: tl.constexpr):
    """The walk over a tile of whole sequences."""
    row = tl.arange(0, BLOCK_T)
    packed = BLOCK_T // length
    local = row // length
    number = tile * packed + local
    inside = (local < packed) & (number < videos * sequences)
    return (table, number // sequences, number % sequences * stride, row - local * length, inside, length, reverse)


@triton.jit
def path_of_tile(tile, lengths, sequences, videos, BLOCK_T: tl.constexpr):
    """The path that a tile is of, one path's lying behind the other's, and the first of that path's."""
    path, first, end = 0, 0, 0
    for p in tl.static_range(1, len(lengths)):
        end += tl.cdiv(videos * sequences[p - 1], BLOCK_T // lengths[p - 1])
        path += (tile >= end).to(tl.int32)
        first = tl.where(tile >= end, end, first)
    return path, first


@triton.jit
def walk_of_tile(tile, tables, lengths, sequences, strides, videos, reverse, BLOCK_T: tl.constexpr):
    """The path that a tile is of, and the walk over it, found again for each tile and direction, for registers."""
    tile = anew(tile)
    path, first = path_of_tile(tile, lengths, sequences, videos, BLOCK_T)
    length = anew(tl.cast(pick(path, lengths), tl.int32))
    place = tile - first, pick(path, tables), length, pick(path, sequences), pick(path, strides), videos
    return path, packed_walk(*place, reverse, BLOCK_T)


@triton.jit
def not_after(place):
    """[i, j]: token j is of i's sequence and not after it. Columns give only their numbers, which take no registers."""
    row = tl.arange(0, place.shape[0])
    return (row[None, :] <= row[:, None]) & (row[None, :] >= (row - place)[:, None])


@triton.jit
def summed_decay(step, rate, place):
    """log2 of the decay since a sequence's start: [tokens]. Summed within sequences: another's NaN stays there."""
    return tl.sum(tl.where(not_after(place), (rate * LOG2E * step)[None, :], 0.0), axis=1)


@triton.jit
def tile_decays(total, place):
    """[i, j]: the decay from token j to i, zero unless j is of i's sequence and not after it."""
    return causal_decays(not_after(place), total[:, None] - total[None, :])


@triton.jit
def group_projection(rows, walk, filters, first, which, wanted, SIZES: tl.constexpr):
    """Numbers of a group's B or C before SiLU, from channel `first` on: [tokens, numbers]."""
    return convolved(rows, walk, filters, first, which, wanted, SIZES[0] * SIZES[1], SIZES[4])


@triton.jit
def group_channels(group, SIZES: tl.constexpr):
    """The first of the convolution's channels that hold a group's B, and its C."""
    of_b = SIZES[0] * SIZES[1] + group * SIZES[3]
    return of_b, of_b + SIZES[2] * SIZES[3]


@triton.jit
def group_scores(rows, walk, filters, group, OPERANDS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """C B^T of a group: [tokens, tokens]."""
    BLOCK_T: tl.constexpr = BLOCKS[0]
    scores = tl.zeros([BLOCK_T, BLOCK_T], tl.float32)
    of_b, of_c = group_channels(group, SIZES)
    for first in tl.range(0, SIZES[3], BLOCKS[2], disable_licm=True):
        which = tl.arange(0, BLOCKS[2])
        wanted = which < SIZES[3] - first
        b = group_projection(rows, walk, filters, of_b + first, which, wanted, SIZES)
        c = group_projection(rows, walk, filters, of_c + first, which, wanted, SIZES)
        # Settled: where the loop has one turn, Triton 3.6 and 3.9 fail on sm_100 over a product added to zeros.
        scores += settled(matmul(settled(c * sigmoid(c)), tl.trans(settled(b * sigmoid(b))), OPERANDS))
    return scores


@triton.jit
def head_steps(rows, walk, dt_bias, head, SIZES: tl.constexpr):
    """dt before softplus: [tokens]."""
    column = 2 * SIZES[0] * SIZES[1] + 2 * SIZES[2] * SIZES[3] + head
    return column_of(rows, walk, column) + tl.load(dt_bias + head).to(tl.float32)


@triton.jit
def head_channels(head, start, SIZES: tl.constexpr, COUNT: tl.constexpr):
    """COUNT channels of a head from its channel `start` on, and which are real."""
    within = start + tl.arange(0, COUNT)
    return head * SIZES[1] + within, within < SIZES[1]


@triton.jit
def norm_sum(sums, head, TOKENS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """sums (heads, TOKENS), of the first tokens, added up over the heads that share this head's norm: [tokens]."""
    which = tl.arange(0, BLOCKS[3])
    row = tl.arange(0, BLOCKS[0])
    first = head // SIZES[5] * SIZES[5]
    kept = sums + (first + which)[:, None] * TOKENS + row[None, :]
    return tl.sum(tl.load(kept, mask=(which < SIZES[5])[:, None], other=0.0), axis=0)


@triton.jit(do_not_specialize=["tiles", "videos"])
def path_scan_tile_fwd_kernel(
    rows, video_stride, token_stride, conv_weight, conv_bias, dt_bias, A, D, norm_weight, eps,
    outs, out_video_stride, tables, lengths, sequences, strides, tiles, videos, gated, squares,
    DIRECTIONS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One launch for all paths: their tiles, one path's behind the other's."""
    HEADS: tl.constexpr = SIZES[0]
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    PER_GROUP: tl.constexpr = SIZES[0] // SIZES[2]
    TAPS: tl.constexpr = SIZES[4]
    BLOCK_T: tl.constexpr = BLOCKS[0]
    AT_ONCE: tl.constexpr = BLOCKS[4]
    PARTS: tl.constexpr = (SIZES[1] + AT_ONCE - 1) // AT_ONCE
    OPERANDS: tl.constexpr = rows.dtype.element_ty
    given = (rows, video_stride, token_stride)
    filters = (conv_weight, conv_bias)
    places = (tables, lengths, sequences, strides, videos)
    row = tl.arange(0, BLOCK_T)
    program = tl.program_id(0).to(tl.int64)
    gated += program * DIRECTIONS * BLOCK_T * WIDTH
    squares += program * DIRECTIONS * HEADS * BLOCK_T
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        for direction in tl.range(DIRECTIONS, disable_licm=True):
            _, walk = walk_of_tile(tile, *places, direction == 1, BLOCK_T)
            # Walking back, the token at place p of its sequence is the one at length - 1 - p of the grid's order.
            turned = tl.where(walk[4], direction * (walk[5] - 1 - 2 * walk[3]), 0) + row
            for group in tl.range(SIZES[2], disable_licm=True):
                scores = group_scores(given, walk, filters, group, OPERANDS, SIZES, BLOCKS)
                for head in tl.range(group * PER_GROUP, (group + 1) * PER_GROUP, disable_licm=True):
                    rate, skip = tl.load(A + head).to(tl.float32), tl.load(D + head).to(tl.float32)
                    step = softplus(head_steps(given, walk, dt_bias, head, SIZES))
                    weights = scores * tile_decays(summed_decay(step, rate, walk[3]), walk[3]) * step[None, :]
                    weights = settled(weights).to(OPERANDS)
                    square = tl.zeros([BLOCK_T], tl.float32)
                    for start in tl.range(0, SIZES[1], AT_ONCE, disable_licm=True):
                        channel, wanted = head_channels(head, start, SIZES, AT_ONCE)
                        x = convolved(given, walk, filters, 0, channel, wanted, WIDTH, TAPS)
                        x = settled(x * sigmoid(x))
                        y = matmul(weights, x, OPERANDS) + skip * x
                        z = rows_before(given, walk, channel, wanted, 0)
                        u = y * z * sigmoid(z)
                        kept = anew(gated) + (direction * BLOCK_T + turned)[:, None] * WIDTH + channel[None, :]
                        tl.store(kept, u.to(gated.dtype.element_ty), mask=wanted[None, :])
                        square += tl.sum(u * u, axis=1)
                    tl.store(squares + (direction * HEADS + head) * BLOCK_T + turned, square)
        tl.debug_barrier()  # what follows reads what other threads of this program have written
        path, walk = walk_of_tile(tile, *places, False, BLOCK_T)
        out = (pick(path, outs), out_video_stride, WIDTH)
        for part in tl.range(HEADS * PARTS, disable_licm=True):
            head, start = part // PARTS, part % PARTS * AT_ONCE
            channel, wanted = head_channels(head, start, SIZES, AT_ONCE)
            normed = tl.zeros([BLOCK_T, AT_ONCE], tl.float32)
            mask = walk[4][:, None] & wanted[None, :]
            for direction in tl.range(DIRECTIONS, disable_licm=True):
                square = norm_sum(squares + direction * HEADS * BLOCK_T, head, BLOCK_T, SIZES, BLOCKS)
                kept = anew(gated) + (direction * BLOCK_T + row)[:, None] * WIDTH + channel[None, :]
                u = tl.load(kept, mask=mask, other=0.0).to(tl.float32)
                normed += u * tl.rsqrt(square / (SIZES[5] * SIZES[1]) + eps)[:, None]
            normed *= tl.load(norm_weight + channel, mask=wanted, other=0.0).to(tl.float32)[None, :]
            at, _inside = row_starts(out, walk, 0)
            tl.store(at[:, None] + channel[None, :], normed.to(out[0].dtype.element_ty), mask=mask)
        tl.debug_barrier()  # before the next tile writes the scratch anew
