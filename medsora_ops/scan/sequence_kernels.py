"""`path_scan` of sequences longer than a tile, forward: a program takes a whole sequence, block by block, both ways.

The quadratic form of tile_kernels.py, cut into blocks of BLOCK_T tokens: what the tokens of a block have from those of
an earlier one is a product of its own, and needs no state either. A program does all heads of a sequence, so that B, C
and their scores are computed once a group and not once a head, and RMSNorm needs no launch of its own. What blocks
have in common lies in memory of the program's own. Scores, B, C and x fit the second-level cache; `gated` goes to
memory and back on a large chip, as between the launches of a scan and its norm.

    SIZES, BLOCKS   as in tile_kernels.py; BLOCKS has two more at the end, what scratch has room for: MOST, tokens in
                    whole blocks, and numbers of the state
    place           number of the sequence, over all videos, and its path: table of offsets, length, sequences of a
                    video, stride, whether it is walked back
    gated, squares  as in tile_kernels.py, of MOST tokens
    numbers         (programs, 2, MOST) float32: steps, and log2 of the decay since the block's start
    square          (programs, MOST, MOST), scores, in a float type of the host's choice
    held            (programs, MOST, ...) in the operands' type: B, C and one head's x, after convolution and SiLU

The addresses named below are a pointer, moved by numbers that the whole program has, plus small numbers of the thread's
own: added in another order, the compiler finds no distances in common and keeps an address for each number.
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.scan.chunk_kernels import chunk_decay, walk_of
from medsora_ops.scan.tile_kernels import group_channels, group_projection, head_channels, head_steps, norm_sum
from medsora_ops.scan.walk_kernels import convolved, row_starts, rows_before
from medsora_ops.triton_math import anew, causal_decays, matmul, pick, settled, sigmoid, softplus

STEP = tl.constexpr(0)  # rows of `numbers`
TOTAL = tl.constexpr(1)


@triton.jit
def path_of_sequence(number, sequences, videos):
    """The path that a sequence is of, one path's lying behind the other's, and the first of that path's."""
    path, first, end = 0, 0, 0
    for p in tl.static_range(1, len(sequences)):
        end += videos * sequences[p - 1]
        path += (number >= end).to(tl.int32)
        first = tl.where(number >= end, end, first)
    return path, first


@triton.jit
def walk_of_block(place, block, BLOCKS: tl.constexpr):
    number, table, length, sequences, stride, reverse = place
    return walk_of(number, table, block * BLOCKS[0], length, sequences, stride, reverse, BLOCKS[0])


@triton.jit
def numbers_of(numbers, which, block, BLOCKS: tl.constexpr):
    """Addresses of a block's part of a row of `numbers`: [tokens]"""
    return anew(numbers) + which * BLOCKS[5] + block * BLOCKS[0] + tl.arange(0, BLOCKS[0])


@triton.jit
def pair_addresses(square, block, before, BLOCKS: tl.constexpr):
    """Of a block's tokens and those of an earlier one, or of the same: [tokens, tokens before]"""
    row = tl.arange(0, BLOCKS[0])
    first = block * BLOCKS[0] * BLOCKS[5] + before * BLOCKS[0]
    return anew(square) + first + (row[:, None] * BLOCKS[5] + row[None, :])


@triton.jit
def turned_pair_addresses(square, block, before, BLOCKS: tl.constexpr):
    """The same, [tokens before, tokens]."""
    row = tl.arange(0, BLOCKS[0])
    first = block * BLOCKS[0] * BLOCKS[5] + before * BLOCKS[0]
    return anew(square) + first + (row[None, :] * BLOCKS[5] + row[:, None])


@triton.jit
def projection_addresses(held, which, block, first, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """Of BLOCKS[2] numbers of B (which 0) or C (1) from `first` on: [tokens, numbers]"""
    row = tl.arange(0, BLOCKS[0])
    first += (which * BLOCKS[5] + block * BLOCKS[0]) * BLOCKS[6]
    return anew(held) + first + (row[:, None] * BLOCKS[6] + tl.arange(0, BLOCKS[2])[None, :])


@triton.jit
def held_x(held, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """Where one head's x begins, (MOST, BLOCK_P)."""
    return held + 2 * BLOCKS[5] * BLOCKS[6]


@triton.jit
def x_addresses(held, block, first, channel, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """Of channels of x, counted from `first`: [tokens, channels]"""
    row = tl.arange(0, BLOCKS[0])
    first += block * BLOCKS[0] * BLOCKS[1]
    return anew(held_x(held, SIZES, BLOCKS)) + first + (row[:, None] * BLOCKS[1] + channel[None, :])


@triton.jit
def keep_scores(given, filters, place, group, blocks, square, held, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """B and C of a group, and C B^T for each block and those before it."""
    OPERANDS: tl.constexpr = given[0].dtype.element_ty
    BLOCK_T: tl.constexpr = BLOCKS[0]
    which = tl.arange(0, BLOCKS[2])
    for turn in tl.range(2 * blocks, disable_licm=True):
        walk = walk_of_block(place, turn // 2, BLOCKS)
        of_b, of_c = group_channels(group, SIZES)
        first_channel = tl.where(turn % 2 == 0, of_b, of_c)
        for first in tl.range(0, SIZES[3], BLOCKS[2], disable_licm=True):
            wanted = which < SIZES[3] - first
            value = group_projection(given, walk, filters, first_channel + first, which, wanted, SIZES)
            value = value * sigmoid(value)
            tl.store(projection_addresses(held, turn % 2, turn // 2, first, SIZES, BLOCKS), value.to(OPERANDS))
    tl.debug_barrier()  # what follows reads what other threads of this program have written, here and below
    for block in tl.range(blocks, disable_licm=True):
        for before in tl.range(block + 1, disable_licm=True):
            scores = tl.zeros([BLOCK_T, BLOCK_T], tl.float32)
            for first in tl.range(0, SIZES[3], BLOCKS[2], disable_licm=True):
                b = tl.load(projection_addresses(held, 0, before, first, SIZES, BLOCKS))
                c = tl.load(projection_addresses(held, 1, block, first, SIZES, BLOCKS))
                scores += settled(matmul(c, tl.trans(b), OPERANDS))
            tl.store(pair_addresses(square, block, before, BLOCKS), scores.to(square.dtype.element_ty))
    tl.debug_barrier()


@triton.jit
def keep_head(
    given, filters, dt_bias, A, place, head, blocks, numbers, held, SIZES: tl.constexpr, BLOCKS: tl.constexpr
):
    """Steps, decays and x of a head."""
    rate = tl.load(A + head).to(tl.float32)
    for block in tl.range(blocks, disable_licm=True):
        walk = walk_of_block(place, block, BLOCKS)
        step = tl.where(walk[4], softplus(head_steps(given, walk, dt_bias, head, SIZES)), 0.0)
        total, _ = chunk_decay(step, rate)
        tl.store(numbers_of(numbers, STEP, block, BLOCKS), step)
        tl.store(numbers_of(numbers, TOTAL, block, BLOCKS), total)
        channel, wanted = head_channels(head, 0, SIZES, BLOCKS[1])
        x = convolved(given, walk, filters, 0, channel, wanted, SIZES[0] * SIZES[1], SIZES[4])
        x = x * sigmoid(x)
        at = x_addresses(held, block, 0, tl.arange(0, BLOCKS[1]), SIZES, BLOCKS)
        tl.store(at, x.to(held.dtype.element_ty))
    tl.debug_barrier()


@triton.jit
def whole_decay(numbers, block, wanted, BLOCKS: tl.constexpr):
    """log2 of the decay over a block, or, unless wanted, zero."""
    return tl.load(numbers + TOTAL * BLOCKS[5] + block * BLOCKS[0] + (BLOCKS[0] - 1), mask=wanted, other=0.0)


@triton.jit
def pair_decays(numbers, block, before, between, BLOCKS: tl.constexpr):
    """[i, j]: the decay from token j of block `before` to i of `block`, zero from later ones. between: of the blocks
    from `before` on and before `block`, log2; sums from the sequence's start would lose digits."""
    row = tl.arange(0, BLOCKS[0])
    total = tl.load(numbers_of(numbers, TOTAL, block, BLOCKS))
    total_before = tl.load(numbers_of(numbers, TOTAL, before, BLOCKS))
    # A number that the compiler knows is compared in 64 bits, as it stands in addresses too.
    causal = anew(block - before) * BLOCKS[0] + row[:, None] >= row[None, :]
    return causal_decays(causal, total[:, None] - total_before[None, :] + between)


@triton.jit
def head_output(block, skip, numbers, square, held, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """y of a block, D x and all, and x: [tokens, channels]"""
    OPERANDS: tl.constexpr = held.dtype.element_ty
    BLOCK_T: tl.constexpr = BLOCKS[0]
    BLOCK_P: tl.constexpr = BLOCKS[1]
    channel = tl.arange(0, BLOCK_P)
    mixed = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
    between = 0.0
    for back in tl.range(block + 1, disable_licm=True):
        before = block - back
        between += whole_decay(numbers, before, back > 0, BLOCKS)
        weights = tl.load(pair_addresses(square, block, before, BLOCKS)).to(tl.float32)
        weights *= tl.load(numbers_of(numbers, STEP, before, BLOCKS))[None, :]
        weights = settled(weights * pair_decays(numbers, block, before, between, BLOCKS))
        x = tl.load(x_addresses(held, before, 0, channel, SIZES, BLOCKS))
        mixed += matmul(weights, x, OPERANDS)
    return mixed + skip * tl.load(x_addresses(held, block, 0, channel, SIZES, BLOCKS)).to(tl.float32)


@triton.jit
def scan_one_way(
    given, filters, dt_bias, A, D, place, direction, blocks, scratch, SIZES: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """y * silu(z) of all heads, and for each head the sums of its squares, in the order of the grid."""
    HEADS: tl.constexpr = SIZES[0]
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    PER_GROUP: tl.constexpr = SIZES[0] // SIZES[2]
    MOST: tl.constexpr = BLOCKS[5]
    gated, squares, numbers, square, held = scratch
    _, _, length, _, _, reverse = place
    for group in tl.range(SIZES[2], disable_licm=True):
        keep_scores(given, filters, place, group, blocks, square, held, SIZES, BLOCKS)
        for head in tl.range(group * PER_GROUP, (group + 1) * PER_GROUP, disable_licm=True):
            keep_head(given, filters, dt_bias, A, place, head, blocks, numbers, held, SIZES, BLOCKS)
            skip = tl.load(D + head).to(tl.float32)
            for block in tl.range(blocks, disable_licm=True):
                y = head_output(block, skip, numbers, square, held, SIZES, BLOCKS)
                walk = walk_of_block(place, block, BLOCKS)
                channel, wanted = head_channels(head, 0, SIZES, BLOCKS[1])
                z = rows_before(given, walk, channel, wanted, 0)
                u = y * z * sigmoid(z)
                # Walking back, the token at a place is the one at length - 1 - place of the grid's order.
                turned = tl.where(reverse, length - 1 - walk[3], walk[3])
                kept = gated + (direction * MOST + turned)[:, None] * WIDTH + channel[None, :]
                tl.store(kept, u.to(gated.dtype.element_ty), mask=walk[4][:, None] & wanted[None, :])
                tl.store(squares + (direction * HEADS + head) * MOST + turned, tl.sum(u * u, axis=1), mask=walk[4])
            tl.debug_barrier()  # the next head writes its numbers and x anew, and the next group the scores


@triton.jit
def norm_of_ways(
    out, norm_weight, place, blocks, scratch, eps, DIRECTIONS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """RMSNorm of what each direction has left, summed over them. place: not walked back."""
    HEADS: tl.constexpr = SIZES[0]
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    BLOCK_T: tl.constexpr = BLOCKS[0]
    BLOCK_P: tl.constexpr = BLOCKS[1]
    MOST: tl.constexpr = BLOCKS[5]
    gated, squares, _, _, _ = scratch
    row = tl.arange(0, BLOCK_T)
    for turn in tl.range(HEADS * blocks, disable_licm=True):
        head, block = turn // blocks, turn % blocks
        walk = walk_of_block(place, block, BLOCKS)
        channel, wanted = head_channels(head, 0, SIZES, BLOCK_P)
        normed = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
        mask = walk[4][:, None] & wanted[None, :]
        for direction in tl.range(DIRECTIONS, disable_licm=True):
            of_block = squares + direction * HEADS * MOST + block * BLOCK_T
            total = norm_sum(of_block, head, MOST, SIZES, BLOCKS)
            kept = gated + (direction * MOST + block * BLOCK_T) * WIDTH + (row[:, None] * WIDTH + channel[None, :])
            u = tl.load(kept, mask=mask, other=0.0).to(tl.float32)
            normed += u * tl.rsqrt(total / (SIZES[5] * SIZES[1]) + eps)[:, None]
        normed *= tl.load(norm_weight + channel, mask=wanted, other=0.0).to(tl.float32)[None, :]
        at, _inside = row_starts(out, walk, 0)
        tl.store(at[:, None] + channel[None, :], normed.to(out[0].dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["all_sequences", "videos"])
def path_scan_sequence_fwd_kernel(
    rows, video_stride, token_stride, conv_weight, conv_bias, dt_bias, A, D, norm_weight, eps,
    outs, out_video_stride, tables, lengths, sequences, strides, all_sequences, videos,
    gated, squares, numbers, square, held,
    DIRECTIONS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One launch for all paths: their sequences, one path's behind the other's."""
    HEADS: tl.constexpr = SIZES[0]
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    MOST: tl.constexpr = BLOCKS[5]
    PATHS: tl.constexpr = len(lengths)
    given = (rows, video_stride, token_stride)
    filters = (conv_weight, conv_bias)
    program = tl.program_id(0).to(tl.int64)
    scratch = (
        gated + program * DIRECTIONS * MOST * WIDTH,
        squares + program * DIRECTIONS * HEADS * MOST,
        numbers + program * 2 * MOST,
        square + program * MOST * MOST,
        held + program * MOST * (2 * BLOCKS[6] + BLOCKS[1]),
    )
    for sequence in tl.range(tl.program_id(0), all_sequences, tl.num_programs(0), disable_licm=True):
        # As the turns of one loop, none keeps what another computes, such as addresses, in registers.
        for turn in tl.range(DIRECTIONS + 1, disable_licm=True):
            path, first = path_of_sequence(anew(sequence) if PATHS > 1 else sequence, sequences, videos)
            length = pick(path, lengths)
            blocks = tl.cdiv(length, BLOCKS[0])
            place = sequence - first, pick(path, tables), length, pick(path, sequences), pick(path, strides)
            if turn < DIRECTIONS:
                place_of_way = place + (turn == 1,)
                scan_one_way(given, filters, dt_bias, A, D, place_of_way, turn, blocks, scratch, SIZES, BLOCKS)
            else:
                out = (pick(path, outs), out_video_stride, WIDTH)
                place_of_grid = place + (turn < 0,)
                norm_of_ways(out, norm_weight, place_of_grid, blocks, scratch, eps, DIRECTIONS, SIZES, BLOCKS)
            tl.debug_barrier()  # the next turn reads the scratch, or writes it anew
