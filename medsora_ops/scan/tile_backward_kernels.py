"""The gradient of `path_scan` of short sequences: a program takes a tile of whole sequences back through everything.

Nothing was kept from the pass forward. A first round over the heads computes y again and finds what RMSNorm needs of
all heads, for each token the sums of u^2 and of u * d(norm's result), with u = y * silu(z); a second goes back through
norm and gate to d(y), a third through the scan and the convolution. The directions, and several paths one launch after
another, add to the same rows of d(zxbcdt), always in one order. What is needed transposed, or a second time after a
loop over channels, goes through memory: registers are short, and see `matmul`.

Scratch of a program: y, later d(y), (BLOCK_T, E); sums (2, heads, BLOCK_T) float32; in the operands' type `square`, the
scores or their gradient, (2, BLOCK_T, BLOCK_T), and behind it one head's x, (BLOCK_T, BLOCK_P).
Gradients of parameters: one row a program, `found`, summed by `sum_rows_kernel`. SIZES and BLOCKS: tile_kernels.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.scan.tile_kernels import (
    decays,
    group_channels,
    group_projection,
    group_scores,
    head_steps,
    norm_sum,
    not_after,
    packed_walk,
    summed_decay,
)
from medsora_ops.scan.walk_kernels import (
    add_number,
    add_to,
    add_to_column,
    add_to_rows,
    convolve_back,
    convolved,
    from_channel,
    rows_before,
)
from medsora_ops.triton_math import matmul, settled, sigmoid, silu_slope, softplus


@triton.jit
def turned_decays(total, place, length):
    """[j, i]: the decay from token j to i, zero unless i is of j's sequence and not before it."""
    row = tl.arange(0, place.shape[0])
    causal = (row[None, :] >= row[:, None]) & (row[None, :] < (row - place + length)[:, None])
    return tl.exp2(tl.where(causal, total[None, :] - total[:, None], float("-inf")))


@triton.jit
def store_square(square, x):
    """Keep a square matrix (second) and its transpose (first)."""
    SIZE: tl.constexpr = x.shape[0]
    row = tl.arange(0, SIZE)
    x = x.to(square.dtype.element_ty)
    tl.store(square + row[None, :] * SIZE + row[:, None], x)
    tl.store(square + (SIZE + row[:, None]) * SIZE + row[None, :], x)


@triton.jit
def load_square(square, which, SIZE: tl.constexpr):
    row = tl.arange(0, SIZE)
    return tl.load(square + (which * SIZE + row[:, None]) * SIZE + row[None, :])


@triton.jit(do_not_specialize=["length", "sequences", "stride", "tiles", "videos", "earlier_paths"])
def path_scan_tile_bwd_kernel(
    rows, video_stride, token_stride, conv_weight, conv_bias, dt_bias, A, D, norm_weight, eps,
    grad, grad_video_stride, grad_token_stride, grad_rows, grad_rows_video_stride, grad_rows_token_stride,
    table, length, sequences, stride, tiles, videos, earlier_paths, kept_y, sums, square, found, segments, found_width,
    DIRECTIONS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One path. earlier_paths: add to grad_rows, which an earlier path has written.

    segments: where the gradients of conv_weight, conv_bias, dt_bias, A, D, norm_weight begin in a row of `found`.
    """
    HEADS: tl.constexpr = SIZES[0]
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    PER_GROUP: tl.constexpr = SIZES[0] // SIZES[2]
    NORMED: tl.constexpr = SIZES[5] * SIZES[1]
    TAPS: tl.constexpr = SIZES[4]
    DT: tl.constexpr = 2 * WIDTH + 2 * SIZES[2] * SIZES[3]
    BLOCK_T: tl.constexpr = BLOCKS[0]
    BLOCK_P: tl.constexpr = BLOCKS[1]
    OPERANDS: tl.constexpr = rows.dtype.element_ty
    given = (rows, video_stride, token_stride)
    given_grad = (grad, grad_video_stride, grad_token_stride)
    to_rows = (grad_rows, grad_rows_video_stride, grad_rows_token_stride)
    filters = (conv_weight, conv_bias)
    program = tl.program_id(0).to(tl.int64)
    kept_y += program * BLOCK_T * WIDTH
    sums += program * 2 * HEADS * BLOCK_T
    products = sums + HEADS * BLOCK_T
    square += program * BLOCK_T * (2 * BLOCK_T + BLOCK_P)
    kept_x = square + 2 * BLOCK_T * BLOCK_T
    found += program * found_width
    if conv_bias is not None:
        to_filters = (found + segments[0], found + segments[1])
    else:
        to_filters = (found + segments[0], None)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        for direction in tl.range(DIRECTIONS, disable_licm=True):
            walk = packed_walk(tile, table, length, sequences, stride, videos, direction == 1, BLOCK_T)
            # How often this program has added to its row of `found`, and how often anyone to the tile's rows.
            visits = tile - tl.program_id(0) + direction
            row_visits = direction + earlier_paths
            for group in tl.range(SIZES[2], disable_licm=True):
                scores = group_scores(given, walk, filters, group, OPERANDS, SIZES, BLOCKS)
                for head in tl.range(group * PER_GROUP, (group + 1) * PER_GROUP, disable_licm=True):
                    rate, skip = tl.load(A + head).to(tl.float32), tl.load(D + head).to(tl.float32)
                    step = softplus(head_steps(given, walk, dt_bias, head, SIZES))
                    weights = scores * decays(summed_decay(step, rate, walk[3]), walk[3]) * step[None, :]
                    channel = tl.arange(0, BLOCK_P)
                    wanted = channel < SIZES[1]
                    from_first = head * SIZES[1]
                    given_x, filters_x = from_channel(given, filters, from_first, TAPS)
                    given_grad_x, _ = from_channel(given_grad, filters, from_first, TAPS)
                    before = convolved(given_x, walk, filters_x, channel, wanted, WIDTH, TAPS)
                    x = settled(before * sigmoid(before))
                    y = matmul(weights, x, OPERANDS) + skip * x
                    row = tl.arange(0, BLOCK_T)
                    tl.store(
                        kept_y + from_first + row[:, None] * WIDTH + channel[None, :],
                        y.to(kept_y.dtype.element_ty),
                        mask=wanted[None, :],
                    )
                    z = rows_before(given_x, walk, channel, wanted, 0)
                    u = y * z * sigmoid(z)
                    of_norm = rows_before(given_grad_x, walk, channel, wanted, 0)
                    weight = tl.load(norm_weight + from_first + channel, mask=wanted, other=0.0).to(tl.float32)
                    of_norm *= weight[None, :]
                    tl.store(sums + head * BLOCK_T + row, tl.sum(u * u, axis=1))
                    tl.store(products + head * BLOCK_T + row, tl.sum(u * of_norm, axis=1))
            tl.debug_barrier()  # what follows reads what other threads of this program have written
            for head in tl.range(HEADS, disable_licm=True):
                channel = tl.arange(0, BLOCK_P)
                wanted = channel < SIZES[1]
                from_first = head * SIZES[1]
                given_x, _ = from_channel(given, filters, from_first, TAPS)
                given_grad_x, _ = from_channel(given_grad, filters, from_first, TAPS)
                to_rows_x, _ = from_channel(to_rows, filters, from_first, TAPS)
                # RMSNorm: out = u r w, r = (mean u^2 + eps)^(-1/2).
                row = tl.arange(0, BLOCK_T)
                at_y = kept_y + from_first + row[:, None] * WIDTH + channel[None, :]
                y = tl.load(at_y, mask=wanted[None, :], other=0.0).to(tl.float32)
                z = rows_before(given_x, walk, channel, wanted, 0)
                gate = sigmoid(z)
                u = y * z * gate
                r = tl.rsqrt(norm_sum(sums, head, SIZES, BLOCKS) / NORMED + eps)
                of_out = rows_before(given_grad_x, walk, channel, wanted, 0)
                of_weight = tl.sum(of_out * u * r[:, None], axis=0)
                add_to(found + segments[5] + from_first + channel, of_weight, wanted, visits)
                weight = tl.load(norm_weight + from_first + channel, mask=wanted, other=0.0).to(tl.float32)
                shared = norm_sum(products, head, SIZES, BLOCKS) * r * r * r / NORMED
                of_u = of_out * weight[None, :] * r[:, None] - u * shared[:, None]
                # The gate: u = y silu(z).
                add_to_rows(to_rows_x, walk, channel, wanted, of_u * y * silu_slope(z, gate), row_visits)
                tl.store(at_y, (of_u * z * gate).to(kept_y.dtype.element_ty), mask=wanted[None, :])
            tl.debug_barrier()
            for group in tl.range(SIZES[2], disable_licm=True):
                scores = group_scores(given, walk, filters, group, OPERANDS, SIZES, BLOCKS)
                store_square(square, scores)
                tl.debug_barrier()
                of_scores = tl.zeros([BLOCK_T, BLOCK_T], tl.float32)
                for head in tl.range(group * PER_GROUP, (group + 1) * PER_GROUP, disable_licm=True):
                    rate, skip = tl.load(A + head).to(tl.float32), tl.load(D + head).to(tl.float32)
                    before_step = head_steps(given, walk, dt_bias, head, SIZES)
                    step = settled(softplus(before_step))
                    total = settled(summed_decay(step, rate, walk[3]))
                    turned_scores = load_square(square, 0, BLOCK_T).to(tl.float32)
                    weights = settled(turned_scores * turned_decays(total, walk[3], length)).to(OPERANDS)
                    of_skip = tl.zeros([BLOCK_T], tl.float32)
                    of_step = tl.zeros([BLOCK_T], tl.float32)
                    for first in tl.range(0, SIZES[1], BLOCKS[4], disable_licm=True):
                        channel = tl.arange(0, BLOCKS[4])
                        wanted = channel < SIZES[1] - first
                        from_first = head * SIZES[1] + first
                        row = tl.arange(0, BLOCK_T)
                        at_y = kept_y + from_first + row[:, None] * WIDTH + channel[None, :]
                        kept = tl.load(at_y, mask=wanted[None, :], other=0.0)
                        of_y = kept.to(tl.float32)
                        given_x, filters_x = from_channel(given, filters, from_first, TAPS)
                        to_rows_x, to_filters_x = from_channel(to_rows, to_filters, from_first, TAPS)
                        before = convolved(given_x, walk, filters_x, channel, wanted, WIDTH, TAPS)
                        gate = sigmoid(before)
                        x = settled(before * gate)
                        tl.store(kept_x + row[:, None] * BLOCK_P + first + channel[None, :], x.to(OPERANDS))
                        # y = (scores * decays * step) x + skip x
                        of_kept = matmul(weights, kept, OPERANDS)
                        of_skip += tl.sum(of_y * x, axis=1)
                        of_step += tl.sum(of_kept * x, axis=1)
                        of_x = skip * of_y + step[:, None] * of_kept
                        convolve_back(
                            of_x * silu_slope(before, gate), given_x, to_rows_x, walk, filters_x, to_filters_x, channel,
                            wanted, row_visits, visits, WIDTH, TAPS,
                        )  # fmt: skip
                    add_number(found + segments[4] + head, tl.sum(of_skip), visits)
                    # A loop of its own: beside the other product it would keep two more matrices in registers, and on
                    # Ampere the compiler would have half the warps repeat what the others do.
                    tl.debug_barrier()
                    of_products = tl.zeros([BLOCK_T, BLOCK_T], tl.float32)
                    for first in tl.range(0, SIZES[1], BLOCKS[4], disable_licm=True):
                        channel = tl.arange(0, BLOCKS[4])
                        wanted = channel < SIZES[1] - first
                        from_first = head * SIZES[1] + first
                        row = tl.arange(0, BLOCK_T)
                        at_y = kept_y + from_first + row[:, None] * WIDTH + channel[None, :]
                        of_y = tl.load(at_y, mask=wanted[None, :], other=0.0)
                        x = tl.load(kept_x + row[None, :] * BLOCK_P + first + channel[:, None])
                        of_products += matmul(of_y, x, OPERANDS)
                    of_products *= decays(total, walk[3]) * step[None, :]
                    of_scores += of_products
                    # total_i - total_j stands in the exponent, where total_i is the sum of rate * step up to i.
                    of_products *= load_square(square, 1, BLOCK_T).to(tl.float32)  # times the scores
                    of_total = tl.sum(of_products, axis=1) - tl.sum(of_products, axis=0)
                    of_sum = tl.sum(tl.where(not_after(walk[3]), of_total[:, None], 0.0), axis=0)
                    add_number(found + segments[3] + head, tl.sum(of_sum * step), visits)
                    of_step = (of_step + rate * of_sum) * sigmoid(before_step)
                    add_number(found + segments[2] + head, tl.sum(of_step), visits)
                    add_to_column(to_rows, walk, DT + head, of_step, row_visits)
                    tl.debug_barrier()  # the next head writes x anew, and what follows `square`
                store_square(square, of_scores)
                tl.debug_barrier()
                of_b, of_c = group_channels(group, SIZES)
                for first in tl.range(0, SIZES[3], BLOCKS[2], disable_licm=True):
                    which = tl.arange(0, BLOCKS[2])
                    wanted = which < SIZES[3] - first
                    b = group_projection(given, walk, filters, of_b + first, which, wanted, SIZES)
                    c = group_projection(given, walk, filters, of_c + first, which, wanted, SIZES)
                    gate_b, gate_c = sigmoid(b), sigmoid(c)
                    grad_b = matmul(load_square(square, 0, BLOCK_T), settled(c * gate_c), OPERANDS)
                    grad_c = matmul(of_scores, settled(b * gate_b), OPERANDS)
                    given_b, filters_b = from_channel(given, filters, of_b + first, TAPS)
                    to_rows_b, to_filters_b = from_channel(to_rows, to_filters, of_b + first, TAPS)
                    convolve_back(
                        grad_b * silu_slope(b, gate_b), given_b, to_rows_b, walk, filters_b, to_filters_b, which,
                        wanted, row_visits, visits, WIDTH, TAPS,
                    )  # fmt: skip
                    given_c, filters_c = from_channel(given, filters, of_c + first, TAPS)
                    to_rows_c, to_filters_c = from_channel(to_rows, to_filters, of_c + first, TAPS)
                    convolve_back(
                        grad_c * silu_slope(c, gate_c), given_c, to_rows_c, walk, filters_c, to_filters_c, which,
                        wanted, row_visits, visits, WIDTH, TAPS,
                    )  # fmt: skip
                tl.debug_barrier()  # the next group writes `square` anew
            tl.debug_barrier()  # the next direction or tile adds to the same rows and writes the scratch anew


@triton.jit(do_not_specialize=["count"])
def sum_rows_kernel(found, count, found_width, outs, segments, sizes, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum rows of numbers in a fixed order; columns from segments[i] on are the sizes[i] numbers of outs[i]."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, BLOCK_ROWS)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK_ROWS):
        at = (first + row).to(tl.int64)[:, None] * found_width + column[None, :]
        mask = (first + row < count)[:, None] & (column < found_width)[None, :]
        total += tl.sum(tl.load(found + at, mask=mask, other=0.0), axis=0)
    for i in tl.static_range(len(outs)):
        within = column - segments[i]
        mask = (within >= 0) & (within < sizes[i])
        tl.store(outs[i] + within, total.to(outs[i].dtype.element_ty), mask=mask)
