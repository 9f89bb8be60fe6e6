"""The gradient of `path_scan` of sequences longer than a tile: a program takes one back, block by block.

The three rounds of tile_backward_kernels.py, each over the blocks of a sequence; what one block does to another is a
product of its own, as in sequence_kernels.py, whose scratch this shares. Within a block, and from it to later ones,
decays are counted from the blocks' starts.

    tensors, parameters, sums   as in tile_backward_kernels.py; place, square, held: as in sequence_kernels.py
    y         (programs, MOST, E), later d(y), in a float type of the host's choice
    numbers   (programs, rows, MOST) float32, rows: those named below and in sequence_kernels.py; of each head the sums
              of u^2 and of u * d(norm's result); for each block, what its pairs give to the tokens before; then one
              gradient, (MOST, numbers of the state or channels at a time)
    pairs     (programs, MOST, MOST) float32: d(scores)
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.scan.sequence_kernels import (
    STEP,
    TOTAL,
    head_output,
    keep_head,
    keep_scores,
    numbers_of,
    pair_addresses,
    pair_decays,
    path_of_sequence,
    projection_addresses,
    turned_pair_addresses,
    walk_of_block,
    whole_decay,
    x_addresses,
)
from medsora_ops.scan.tile_backward_kernels import channels_back, filters_back, rows_of_path
from medsora_ops.scan.tile_kernels import group_channels, group_projection, head_channels, head_steps, norm_sum
from medsora_ops.scan.walk_kernels import (
    add_number,
    add_to_column,
    convolved,
    pick_rows,
    rows_before,
)
from medsora_ops.triton_math import anew, causal_decays, matmul, pick, settled, sigmoid, silu_slope

OF_STEP = tl.constexpr(2)
OF_TOTAL = tl.constexpr(3)
NAMED = tl.constexpr(4)


@triton.jit
def y_addresses(y, block, first, channel, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """Of channels of the scratch y, counted from `first`: [tokens, channels]"""
    row = tl.arange(0, BLOCKS[0])
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    return anew(y) + (first + block * BLOCKS[0] * WIDTH) + (row[:, None] * WIDTH + channel[None, :])


@triton.jit
def gradient_addresses(numbers, block, COLUMNS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """Of the gradient that goes through the convolution: [tokens, columns]"""
    BEFORE: tl.constexpr = NAMED + 2 * SIZES[0] + BLOCKS[5] // BLOCKS[0]
    row = tl.arange(0, BLOCKS[0])
    at = anew(numbers) + (BEFORE * BLOCKS[5] + block * BLOCKS[0] * COLUMNS)
    return at + (row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def given_to_before(numbers, block, before, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """Addresses of what the pairs of a block give to the tokens of one before: [tokens]"""
    return numbers_of(numbers, NAMED + 2 * SIZES[0] + block, before, BLOCKS)


@triton.jit
def y_and_norm_sums(tensors, parameters, place, blocks, scratch, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """The first round: y, and of each head the sums of u^2 and of u * d(norm's result)."""
    PER_GROUP: tl.constexpr = SIZES[0] // SIZES[2]
    given, _, of_results = tensors
    filters, dt_bias, A, D, norm_weight = parameters
    y_kept, numbers, square, held, _ = scratch
    for group in tl.range(SIZES[2], disable_licm=True):
        keep_scores(given, filters, place, group, blocks, square, held, SIZES, BLOCKS)
        for head in tl.range(group * PER_GROUP, (group + 1) * PER_GROUP, disable_licm=True):
            keep_head(given, filters, dt_bias, A, place, head, blocks, numbers, held, SIZES, BLOCKS)
            skip = tl.load(D + head).to(tl.float32)
            for block in tl.range(blocks, disable_licm=True):
                y = head_output(block, skip, numbers, square, held, SIZES, BLOCKS)
                walk = walk_of_block(place, block, BLOCKS)
                channel, wanted = head_channels(head, 0, SIZES, BLOCKS[1])
                at_y = y_addresses(y_kept, block, 0, channel, SIZES, BLOCKS)
                tl.store(at_y, y.to(y_kept.dtype.element_ty), mask=wanted[None, :])
                z = rows_before(given, walk, channel, wanted, 0)
                u = y * z * sigmoid(z)
                of_norm = rows_before(of_results, walk, channel, wanted, 0)
                of_norm *= tl.load(norm_weight + channel, mask=wanted, other=0.0).to(tl.float32)[None, :]
                tl.store(numbers_of(numbers, NAMED + head, block, BLOCKS), tl.sum(u * u, axis=1))
                of_head = numbers_of(numbers, NAMED + SIZES[0] + head, block, BLOCKS)
                tl.store(of_head, tl.sum(u * of_norm, axis=1))
            tl.debug_barrier()  # the next head writes its numbers and x anew, and the next group the scores


@triton.jit
def norm_and_gate_back(
    tensors, parameters, place, blocks, scratch, sums, eps, SIZES: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """The second round: d(y), in place of y, d(z), and d(norm_weight)."""
    NORMED: tl.constexpr = SIZES[5] * SIZES[1]
    y_kept, numbers, _, _, _ = scratch
    of_parameters, visits, row_visits = sums
    for norm in tl.range(SIZES[0] // SIZES[5], disable_licm=True):
        for block in tl.range(blocks, disable_licm=True):
            squares = numbers + NAMED * BLOCKS[5] + block * BLOCKS[0]
            # out = u r w, r = (mean u^2 + eps)^(-1/2)
            r = tl.rsqrt(norm_sum(squares, norm * SIZES[5], BLOCKS[5], SIZES, BLOCKS) / NORMED + eps)
            products = norm_sum(squares + SIZES[0] * BLOCKS[5], norm * SIZES[5], BLOCKS[5], SIZES, BLOCKS)
            shared = products * r * r * r / NORMED
            for start in tl.range(0, NORMED, BLOCKS[4], disable_licm=True):
                walk = walk_of_block(place, block, BLOCKS)
                channel = tl.arange(0, BLOCKS[4])
                wanted = channel < NORMED - start
                first = norm * NORMED + start
                at_y = y_addresses(y_kept, block, first, channel, SIZES, BLOCKS)
                of_block = of_parameters, visits + block, row_visits
                channels_back(at_y, r, shared, tensors, parameters[4], walk, of_block, first, wanted)
            tl.debug_barrier()  # the next block adds to the same sums


@triton.jit
def turned_weights(numbers, square, block, later, between, BLOCKS: tl.constexpr):
    """[j, i]: scores times the decay from token j of `block` to i of a later one, or of the same, zero from later ones.
    between: of the blocks from `block` on and before `later`, log2."""
    row = tl.arange(0, BLOCKS[0])
    total = tl.load(numbers_of(numbers, TOTAL, block, BLOCKS))
    total_later = tl.load(numbers_of(numbers, TOTAL, later, BLOCKS))
    causal = anew(later - block) * BLOCKS[0] + row[None, :] >= row[:, None]
    weights = tl.load(turned_pair_addresses(square, later, block, BLOCKS)).to(tl.float32)
    return settled(weights * causal_decays(causal, total_later[None, :] - total[:, None] + between))


@triton.jit
def of_stepped_x(start, block, blocks, head, scratch, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """d(step * x) of a block, channels of a head from `start` on: [tokens, channels]"""
    BLOCK_T: tl.constexpr = BLOCKS[0]
    AT_ONCE: tl.constexpr = BLOCKS[4]
    y_kept, numbers, square, held, _ = scratch
    channel = tl.arange(0, AT_ONCE)
    found = tl.zeros([BLOCK_T, AT_ONCE], tl.float32)
    between = 0.0
    for later in tl.range(block, blocks, disable_licm=True):
        between += whole_decay(numbers, later - 1, later > block, BLOCKS)
        weights = turned_weights(numbers, square, block, later, between, BLOCKS)
        at_y = y_addresses(y_kept, later, head * SIZES[1] + start, channel, SIZES, BLOCKS)
        of_y = tl.load(at_y, mask=(channel < SIZES[1] - start)[None, :], other=0.0)
        found += matmul(weights, of_y, held.dtype.element_ty)
    return found


@triton.jit
def head_back_to_x(
    head, tensors, parameters, place, blocks, scratch, sums, SIZES: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """d(x) of a head, through the convolution, d(D), and what of d(step) the sum over x gives; keeps x and the steps.

    y = (scores * decays * step) x + D x
    """
    given = tensors[0]
    filters, dt_bias, A, D, _ = parameters
    y_kept, numbers, _, held, _ = scratch
    of_parameters, visits, row_visits = sums
    keep_head(given, filters, dt_bias, A, place, head, blocks, numbers, held, SIZES, BLOCKS)
    skip = tl.load(D + head).to(tl.float32)
    of_skip = 0.0
    channel = tl.arange(0, BLOCKS[4])
    for start in tl.range(0, SIZES[1], BLOCKS[4], disable_licm=True):
        wanted = channel < SIZES[1] - start
        first = head * SIZES[1] + start
        for block in tl.range(blocks, disable_licm=True):
            of_stepped = of_stepped_x(start, block, blocks, head, scratch, SIZES, BLOCKS)
            x = tl.load(x_addresses(held, block, start, channel, SIZES, BLOCKS)).to(tl.float32)
            of_y = tl.load(y_addresses(y_kept, block, first, channel, SIZES, BLOCKS), mask=wanted[None, :], other=0.0)
            of_y = of_y.to(tl.float32)
            of_skip += tl.sum(of_y * x)
            of_step = tl.sum(of_stepped * x, axis=1)
            at_step = numbers_of(numbers, OF_STEP, block, BLOCKS)
            tl.store(at_step, of_step + tl.load(at_step, mask=tl.full(of_step.shape, start, tl.int32) > 0, other=0.0))
            of_x = skip * of_y + tl.load(numbers_of(numbers, STEP, block, BLOCKS))[:, None] * of_stepped
            walk = walk_of_block(place, block, BLOCKS)
            before = convolved(given, walk, filters, first, channel, wanted, SIZES[0] * SIZES[1], SIZES[4])
            of_x = tl.where(walk[4][:, None], of_x * silu_slope(before, sigmoid(before)), 0.0)
            tl.store(gradient_addresses(numbers, block, BLOCKS[4], SIZES, BLOCKS), of_x)
        gradient_back(first, wanted, tensors, parameters, place, blocks, numbers, sums, SIZES, BLOCKS)
    add_number(of_parameters[4] + head, of_skip, visits)


@triton.jit
def gradient_back(
    first, wanted, tensors, parameters, place, blocks, numbers, sums, SIZES: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """The kept gradient through the convolution, channels counted from `first` of (x, B, C)."""
    of_parameters, visits, row_visits = sums
    tl.debug_barrier()
    for block in tl.range(blocks, disable_licm=True):
        tile = gradient_addresses(numbers, block, wanted.shape[0], SIZES, BLOCKS)
        walk = walk_of_block(place, block, BLOCKS)
        of_block = of_parameters, visits + block, row_visits
        filters_back(tl.load(tile), tile, tensors, parameters, walk, of_block, first, wanted, SIZES)
        tl.debug_barrier()  # the next block adds to the same sums; what follows the last writes the gradient anew


@triton.jit
def head_back_to_scores(head, blocks, visited, scratch, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """Adds a head's d(scores), after `head_back_to_x`; keeps what of d(sums of rate * step) pairs of tokens give."""
    OPERANDS: tl.constexpr = scratch[3].dtype.element_ty
    BLOCK_T: tl.constexpr = BLOCKS[0]
    y_kept, numbers, square, held, pairs = scratch
    for block in tl.range(blocks, disable_licm=True):
        of_total = tl.zeros([BLOCK_T], tl.float32)
        between = 0.0
        for back in tl.range(block + 1, disable_licm=True):
            before = block - back
            between += whole_decay(numbers, before, back > 0, BLOCKS)
            of_products = tl.zeros([BLOCK_T, BLOCK_T], tl.float32)
            for start in tl.range(0, SIZES[1], BLOCKS[4], disable_licm=True):
                channel = tl.arange(0, BLOCKS[4])
                at_y = y_addresses(y_kept, block, head * SIZES[1] + start, channel, SIZES, BLOCKS)
                of_y = tl.load(at_y, mask=(channel < SIZES[1] - start)[None, :], other=0.0)
                x = tl.load(x_addresses(held, before, start, channel, SIZES, BLOCKS))
                of_products += settled(matmul(of_y, tl.trans(x), OPERANDS))
            of_products *= tl.load(numbers_of(numbers, STEP, before, BLOCKS))[None, :]
            of_products *= pair_decays(numbers, block, before, between, BLOCKS)
            at = pair_addresses(pairs, block, before, BLOCKS)
            seen = tl.full(of_products.shape, visited, tl.int32) > 0
            tl.store(at, of_products + tl.load(at, mask=seen, other=0.0))
            # What a pair of tokens adds for i and takes for j is one number: rounded apart, their difference would be
            # noise.
            of_products *= tl.load(pair_addresses(square, block, before, BLOCKS)).to(tl.float32)
            of_total += tl.sum(of_products, axis=1)
            tl.store(given_to_before(numbers, block, before, SIZES, BLOCKS), tl.sum(of_products, axis=0))
        tl.store(numbers_of(numbers, OF_TOTAL, block, BLOCKS), of_total)
    tl.debug_barrier()


@triton.jit
def head_back_to_steps(
    head, tensors, parameters, place, blocks, scratch, sums, SIZES: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """d(dt), d(dt_bias) and d(A) of a head, after `head_back_to_scores`."""
    DT: tl.constexpr = 2 * SIZES[0] * SIZES[1] + 2 * SIZES[2] * SIZES[3]
    BLOCK_T: tl.constexpr = BLOCKS[0]
    given, to_rows, _ = tensors
    _, dt_bias, A, _, _ = parameters
    numbers = scratch[1]
    of_parameters, visits, row_visits = sums
    rate = tl.load(A + head).to(tl.float32)
    of_rate, of_bias = 0.0, 0.0
    for block in tl.range(blocks, disable_licm=True):
        # rate * step of a token is in the decays of all pairs that it lies between; what cancels is not summed.
        of_total = tl.load(numbers_of(numbers, OF_TOTAL, block, BLOCKS))
        of_total -= tl.load(given_to_before(numbers, block, block, SIZES, BLOCKS))
        of_until = tl.zeros([BLOCK_T], tl.float32)
        of_whole = 0.0
        for later in tl.range(block + 1, blocks, disable_licm=True):
            of_until += tl.load(given_to_before(numbers, later, block, SIZES, BLOCKS))
            for before in tl.range(block, disable_licm=True):
                of_whole += tl.sum(tl.load(given_to_before(numbers, later, before, SIZES, BLOCKS)))
        of_sum = tl.cumsum(of_total, axis=0, reverse=True) + tl.cumsum(of_until, axis=0) - of_until + of_whole
        walk = walk_of_block(place, block, BLOCKS)
        of_rate += tl.sum(of_sum * tl.load(numbers_of(numbers, STEP, block, BLOCKS)))
        of_step = tl.load(numbers_of(numbers, OF_STEP, block, BLOCKS)) + rate * of_sum
        of_step *= sigmoid(head_steps(given, walk, dt_bias, head, SIZES))
        of_bias += tl.sum(tl.where(walk[4], of_step, 0.0))
        add_to_column(to_rows, walk, DT + head, of_step, row_visits)
    add_number(of_parameters[3] + head, of_rate, visits)
    add_number(of_parameters[2] + head, of_bias, visits)


@triton.jit
def projections_back(
    which, group, tensors, parameters, place, blocks, scratch, sums, SIZES: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """d(B) (which 0) or d(C) (1) of a group, through the convolution: scores = C B^T."""
    OPERANDS: tl.constexpr = scratch[3].dtype.element_ty
    BLOCK_T: tl.constexpr = BLOCKS[0]
    AT_ONCE: tl.constexpr = BLOCKS[2]
    _, numbers, _, held, pairs = scratch
    of_b, of_c = group_channels(group, SIZES)
    number = tl.arange(0, BLOCKS[2])
    for start in tl.range(0, SIZES[3], BLOCKS[2], disable_licm=True):
        wanted = number < SIZES[3] - start
        first = start + (of_b if which == 0 else of_c)
        for block in tl.range(blocks, disable_licm=True):
            grad = tl.zeros([BLOCK_T, AT_ONCE], tl.float32)
            if which == 0:
                for later in tl.range(block, blocks, disable_licm=True):
                    of_scores = tl.load(turned_pair_addresses(pairs, later, block, BLOCKS))
                    c = tl.load(projection_addresses(held, 1, later, start, SIZES, BLOCKS))
                    grad += matmul(of_scores, c, OPERANDS)
            else:
                for before in tl.range(block + 1, disable_licm=True):
                    of_scores = tl.load(pair_addresses(pairs, block, before, BLOCKS))
                    b = tl.load(projection_addresses(held, 0, before, start, SIZES, BLOCKS))
                    grad += matmul(of_scores, b, OPERANDS)
            walk = walk_of_block(place, block, BLOCKS)
            value = group_projection(tensors[0], walk, parameters[0], first, number, wanted, SIZES)
            grad = tl.where(walk[4][:, None], grad * silu_slope(value, sigmoid(value)), 0.0)
            tl.store(gradient_addresses(numbers, block, BLOCKS[2], SIZES, BLOCKS), grad)
        gradient_back(first, wanted, tensors, parameters, place, blocks, numbers, sums, SIZES, BLOCKS)


@triton.jit
def scan_back(tensors, parameters, place, blocks, scratch, sums, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """The third round: from d(y) to everything before it."""
    PER_GROUP: tl.constexpr = SIZES[0] // SIZES[2]
    for group in tl.range(SIZES[2], disable_licm=True):
        if SIZES[2] > 1:  # else they are there from the first round
            _, _, square, held, _ = scratch
            keep_scores(tensors[0], parameters[0], place, group, blocks, square, held, SIZES, BLOCKS)
        for head in tl.range(group * PER_GROUP, (group + 1) * PER_GROUP, disable_licm=True):
            head_back_to_x(head, tensors, parameters, place, blocks, scratch, sums, SIZES, BLOCKS)
            head_back_to_scores(head, blocks, head - group * PER_GROUP, scratch, SIZES, BLOCKS)
            head_back_to_steps(head, tensors, parameters, place, blocks, scratch, sums, SIZES, BLOCKS)
            tl.debug_barrier()  # the next head writes its numbers and x anew
        for which in tl.static_range(2):
            projections_back(which, group, tensors, parameters, place, blocks, scratch, sums, SIZES, BLOCKS)


@triton.jit(do_not_specialize=["all_sequences", "videos"])
def path_scan_sequence_bwd_kernel(
    rows, video_stride, token_stride, conv_weight, conv_bias, dt_bias, A, D, norm_weight, eps,
    of_outs, grad_rows, of_others, tables, lengths, sequences, strides, all_sequences, videos,
    y, numbers, square, held, pairs, found, found_width,
    SEGMENTS: tl.constexpr, DIRECTIONS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """All paths: their sequences, one path's behind the other's. Arguments as path_scan_tile_bwd_kernel's."""
    MOST: tl.constexpr = BLOCKS[5]
    AT_A_TIME: tl.constexpr = max(BLOCKS[2], BLOCKS[4])
    NUMBERS: tl.constexpr = NAMED + 2 * SIZES[0] + MOST // BLOCKS[0] + AT_A_TIME
    COLUMNS: tl.constexpr = 2 * SIZES[0] * SIZES[1] + 2 * SIZES[2] * SIZES[3] + SIZES[0]
    PATHS: tl.constexpr = len(lengths)
    parameters = ((conv_weight, conv_bias), dt_bias, A, D, norm_weight)
    program = tl.program_id(0).to(tl.int64)
    scratch = (
        y + program * MOST * (SIZES[0] * SIZES[1]),
        numbers + program * MOST * NUMBERS,
        square + program * MOST * MOST,
        held + program * MOST * (2 * BLOCKS[6] + BLOCKS[1]),
        pairs + program * MOST * MOST,
    )
    found += program * found_width
    of_parameters = (found + SEGMENTS[0], found + SEGMENTS[1], found + SEGMENTS[2], found + SEGMENTS[3])
    of_parameters += (found + SEGMENTS[4], found + SEGMENTS[5])
    for sequence in tl.range(tl.program_id(0), all_sequences, tl.num_programs(0), disable_licm=True):
        # As the turns of one loop, none keeps what another computes, such as addresses, in registers.
        for turn in tl.range(3 * DIRECTIONS, disable_licm=True):
            direction, stage = turn // 3, turn % 3
            sums = (of_parameters, sequence - tl.program_id(0) + direction, direction)
            number, first = path_of_sequence(anew(sequence) if PATHS > 1 else sequence, sequences, videos)
            table, length, per_video = pick(number, tables), pick(number, lengths), pick(number, sequences)
            place = (sequence - first, table, length, per_video, pick(number, strides), direction == 1)
            blocks = tl.cdiv(length, BLOCKS[0])
            tensors = (
                (rows, video_stride, token_stride),
                rows_of_path(number, grad_rows, of_others, videos, per_video * length, PATHS, COLUMNS),
                pick_rows(number, of_outs),
            )
            if stage == 0:
                y_and_norm_sums(tensors, parameters, place, blocks, scratch, SIZES, BLOCKS)
            elif stage == 1:
                norm_and_gate_back(tensors, parameters, place, blocks, scratch, sums, eps, SIZES, BLOCKS)
            else:
                scan_back(tensors, parameters, place, blocks, scratch, sums, SIZES, BLOCKS)
            # The next turn reads the scratch, or writes it anew and adds to the same sums.
            tl.debug_barrier()
