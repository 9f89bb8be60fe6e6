"""The gradient of `path_scan` of short sequences: a program takes a tile of whole sequences back through everything.

Nothing was kept from the pass forward. A first round over the heads computes y again and finds what RMSNorm needs of
all heads, for each token the sums of u^2 and of u * d(norm's result), with u = y * silu(z); a second goes back through
norm and gate to d(y), a third through the scan and the convolution. The directions add to the same rows of d(zxbcdt),
always in one order; each path but the first has rows of its own, added at the end.

    tensors       rows, their gradient, and the gradient of the results: each as `rows` of walk_kernels.py
    parameters    filters of the convolution, dt_bias, A, D, norm_weight
    path          table of offsets, length, whether it is walked back
    scratch       y, later d(y), (BLOCK_T, E) of a float type of the host's choice; numbers; square: see
                  tile_scratch_kernels.py
    sums          where this program sums the gradients of conv_weight, conv_bias, dt_bias, A, D, norm_weight; how often
                  it has added to them, and how often to the tile's rows

SIZES and BLOCKS: tile_kernels.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.scan.tile_kernels import (
    group_channels,
    group_projection,
    group_scores,
    head_steps,
    norm_sum,
    not_after,
    packed_walk,
    path_of_tile,
    summed_decay,
    tile_decays,
)
from medsora_ops.scan.tile_scratch_kernels import (
    NAMED,
    OF_STEP,
    OF_SUM,
    STEP,
    TOTAL,
    keep,
    keep_square,
    keep_walk,
    kept,
    kept_square,
    kept_walk,
)
from medsora_ops.scan.walk_kernels import (
    add_number,
    add_to,
    add_to_column,
    add_to_rows,
    convolved,
    from_channel,
    pick_rows,
    rows_before,
    weights_of_tap,
)
from medsora_ops.triton_math import anew, causal_decays, matmul, pick, settled, sigmoid, silu_slope, softplus


@triton.jit
def turned_decays(total, place, length):
    """[j, i]: the decay from token j to i, zero unless i is of j's sequence and not before it."""
    row = tl.arange(0, place.shape[0])
    causal = (row[None, :] >= row[:, None]) & (row[None, :] < (row - place + length)[:, None])
    return causal_decays(causal, total[None, :] - total[:, None])


@triton.jit
def channel_addresses(y, first, channel, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """Of channels of the scratch y, counted from `first`: [tokens, channels]."""
    row = tl.arange(0, BLOCKS[0])
    return y + first + row[:, None] * (SIZES[0] * SIZES[1]) + channel[None, :]


@triton.jit
def x_addresses(square, first, BLOCKS: tl.constexpr):
    """Of channels of the scratch x of one head, counted from `first`: [tokens, channels]."""
    row, channel = tl.arange(0, BLOCKS[0]), tl.arange(0, BLOCKS[4])
    return square + 2 * BLOCKS[0] * BLOCKS[0] + first + row[:, None] * BLOCKS[1] + channel[None, :]


@triton.jit
def turned_x_addresses(square, first, BLOCKS: tl.constexpr):
    """The same, [channels, tokens]. Not by tl.trans: Triton for AMD has none of addresses."""
    row, channel = tl.arange(0, BLOCKS[0]), tl.arange(0, BLOCKS[4])
    return square + 2 * BLOCKS[0] * BLOCKS[0] + first + row[None, :] * BLOCKS[1] + channel[:, None]


@triton.jit
def filters_back(grad, tile, tensors, parameters, walk, sums, first, wanted, SIZES: tl.constexpr):
    """From the gradient of the convolution's result to rows, weights and biases.

    tile: addresses of that gradient, float32, in memory, where the tokens after these follow. A row's gradient is
    gathered from them, so that they must be there.
    """
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    TAPS: tl.constexpr = SIZES[4]
    of_parameters, visits, row_visits = sums
    _, _, _, place, inside, length, _ = walk
    rows, to_rows = from_channel(tensors[0], first), from_channel(tensors[1], first)
    weights, biases = parameters[0]
    weights += first * TAPS
    of_weights, of_biases = of_parameters[0] + first * TAPS, of_parameters[1] + first
    channel = tl.arange(0, grad.shape[1])
    of_rows = tl.zeros(grad.shape, tl.float32)
    for back in tl.range(TAPS, disable_licm=True):
        follows = inside & (place + back < length)
        later = tl.load(tile + back * grad.shape[1], mask=follows[:, None], other=0.0)
        of_rows += weights_of_tap(weights, channel, wanted, TAPS - 1 - back, TAPS)[None, :] * later
        of_weight = tl.sum(grad * rows_before(rows, walk, WIDTH + channel, wanted, back), axis=0)
        add_to(of_weights + channel * TAPS + (TAPS - 1 - back), of_weight, wanted, visits)
    add_to_rows(to_rows, walk, WIDTH + channel, wanted, of_rows, row_visits)
    if biases is not None:
        add_to(of_biases + channel, tl.sum(grad, axis=0), wanted, visits)


@triton.jit
def convolution_back(
    grad, before, gate, tensors, parameters, walk, scratch, sums, first, wanted, SIZES: tl.constexpr,
):  # fmt: skip
    """From the gradient of SiLU's result, channels counted from `first` of (x, B, C), to rows, weights and biases.

    before, gate: the convolution's result and its sigmoid. A tile must hold whole sequences.
    """
    channel = tl.arange(0, grad.shape[1])
    grad = tl.where(walk[4][:, None], grad * silu_slope(before, gate), 0.0)
    row = tl.arange(0, grad.shape[0])
    tile = scratch[1] + (NAMED + 2 * SIZES[0]) * grad.shape[0] + row[:, None] * grad.shape[1] + channel[None, :]
    tl.store(tile, grad)
    tl.debug_barrier()
    filters_back(grad, tile, tensors, parameters, walk, sums, first, wanted, SIZES)
    tl.debug_barrier()  # the next one writes the tile anew


@triton.jit
def y_and_norm_sums(tensors, parameters, path, scratch, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """The first round: y, and of each head the sums of u^2 and of u * d(norm's result)."""
    PER_GROUP: tl.constexpr = SIZES[0] // SIZES[2]
    BLOCK_T: tl.constexpr = BLOCKS[0]
    given, _, of_results = tensors
    filters, dt_bias, A, D, norm_weight = parameters
    y_kept, numbers, square = scratch
    for group in tl.range(SIZES[2], disable_licm=True):
        walk = kept_walk(numbers, path, BLOCK_T)
        keep_square(square, group_scores(given, walk, filters, group, given[0].dtype.element_ty, SIZES, BLOCKS))
        tl.debug_barrier()
        for head in tl.range(group * PER_GROUP, (group + 1) * PER_GROUP, disable_licm=True):
            walk = kept_walk(numbers, path, BLOCK_T)
            rate, skip = tl.load(A + head).to(tl.float32), tl.load(D + head).to(tl.float32)
            step = softplus(head_steps(given, walk, dt_bias, head, SIZES))
            weights = kept_square(square, 1, BLOCK_T).to(tl.float32) * step[None, :]
            weights = settled(weights * tile_decays(summed_decay(step, rate, walk[3]), walk[3]))
            weights = weights.to(given[0].dtype.element_ty)
            squares_of_u = tl.zeros([BLOCK_T], tl.float32)
            products_of_u = tl.zeros([BLOCK_T], tl.float32)
            for start in tl.range(0, SIZES[1], BLOCKS[4], disable_licm=True):
                channel = tl.arange(0, BLOCKS[4])
                wanted = channel < SIZES[1] - start
                first = head * SIZES[1] + start
                given_x = from_channel(given, first)
                of_results_x = from_channel(of_results, first)
                before = convolved(given, walk, filters, first, channel, wanted, SIZES[0] * SIZES[1], SIZES[4])
                x = settled(before * sigmoid(before))
                y = matmul(weights, x, given[0].dtype.element_ty) + skip * x
                at_y = channel_addresses(y_kept, first, channel, SIZES, BLOCKS)
                tl.store(at_y, y.to(y_kept.dtype.element_ty), mask=wanted[None, :])
                z = rows_before(given_x, walk, channel, wanted, 0)
                u = y * z * sigmoid(z)
                of_norm = rows_before(of_results_x, walk, channel, wanted, 0)
                of_norm *= tl.load(norm_weight + first + channel, mask=wanted, other=0.0).to(tl.float32)[None, :]
                squares_of_u += tl.sum(u * u, axis=1)
                products_of_u += tl.sum(u * of_norm, axis=1)
            keep(numbers, NAMED + head, squares_of_u)
            keep(numbers, NAMED + SIZES[0] + head, products_of_u)
        if SIZES[2] > 1:
            tl.debug_barrier()  # the next group writes `square` anew


@triton.jit
def channels_back(at_y, r, shared, tensors, norm_weight, walk, sums, first, wanted):
    """Back through norm and gate, channels counted from `first`: d(y), in place of y, d(z), and d(norm_weight).

    at_y: addresses of y in scratch. r, shared: of each token, what the norm scales by, and how much of u it takes away.
    """
    given, to_rows, of_results = tensors
    of_parameters, visits, row_visits = sums
    channel = tl.arange(0, wanted.shape[0])
    y = tl.load(at_y, mask=wanted[None, :], other=0.0).to(tl.float32)
    z = rows_before(from_channel(given, first), walk, channel, wanted, 0)
    gate = sigmoid(z)
    u = y * z * gate
    of_out = rows_before(from_channel(of_results, first), walk, channel, wanted, 0)
    of_weight = tl.sum(tl.where(walk[4][:, None], of_out * u * r[:, None], 0.0), axis=0)
    add_to(of_parameters[5] + first + channel, of_weight, wanted, visits)
    weight = tl.load(norm_weight + first + channel, mask=wanted, other=0.0).to(tl.float32)
    of_u = of_out * weight[None, :] * r[:, None] - u * shared[:, None]
    of_u = tl.where(walk[4][:, None], of_u, 0.0)  # with an eps of zero r is infinite where there is no token
    # u = y silu(z)
    add_to_rows(from_channel(to_rows, first), walk, channel, wanted, of_u * y * silu_slope(z, gate), row_visits)
    tl.store(at_y, (of_u * z * gate).to(at_y.dtype.element_ty), mask=wanted[None, :])


@triton.jit
def norm_and_gate_back(tensors, parameters, path, scratch, sums, eps, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """The second round: d(y), in place of y, d(z), and d(norm_weight)."""
    NORMED: tl.constexpr = SIZES[5] * SIZES[1]
    BLOCK_T: tl.constexpr = BLOCKS[0]
    _, _, _, _, norm_weight = parameters
    y_kept, numbers, _ = scratch
    for norm in tl.range(SIZES[0] // SIZES[5], disable_licm=True):
        squares = numbers + NAMED * BLOCK_T
        # out = u r w, r = (mean u^2 + eps)^(-1/2)
        r = tl.rsqrt(norm_sum(squares, norm * SIZES[5], BLOCK_T, SIZES, BLOCKS) / NORMED + eps)
        shared = norm_sum(squares + SIZES[0] * BLOCK_T, norm * SIZES[5], BLOCK_T, SIZES, BLOCKS) * r * r * r / NORMED
        for start in tl.range(0, NORMED, BLOCKS[4], disable_licm=True):
            walk = kept_walk(numbers, path, BLOCK_T)
            channel = tl.arange(0, BLOCKS[4])
            wanted = channel < NORMED - start
            first = norm * NORMED + start
            at_y = channel_addresses(y_kept, first, channel, SIZES, BLOCKS)
            channels_back(at_y, r, shared, tensors, norm_weight, walk, sums, first, wanted)


@triton.jit
def head_back_to_x(head, tensors, parameters, path, scratch, sums, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """d(x) of a head, through the convolution, d(D), and what of d(step) the sum over x gives; keeps x and the steps.

    y = (scores * decays * step) x + D x
    """
    BLOCK_T: tl.constexpr = BLOCKS[0]
    given = tensors[0]
    filters, dt_bias, A, D, _ = parameters
    y_kept, numbers, square = scratch
    of_parameters, visits, _ = sums
    rate, skip = tl.load(A + head).to(tl.float32), tl.load(D + head).to(tl.float32)
    walk = kept_walk(numbers, path, BLOCK_T)
    step = softplus(head_steps(given, walk, dt_bias, head, SIZES))
    keep(numbers, STEP, step)
    keep(numbers, TOTAL, summed_decay(step, rate, walk[3]))
    tl.debug_barrier()
    turned_scores = kept_square(square, 0, BLOCK_T).to(tl.float32)
    weights = turned_scores * turned_decays(kept(numbers, TOTAL, BLOCK_T), walk[3], walk[5])
    weights = settled(weights).to(given[0].dtype.element_ty)
    of_skip = tl.zeros([BLOCK_T], tl.float32)
    of_step = tl.zeros([BLOCK_T], tl.float32)
    for start in tl.range(0, SIZES[1], BLOCKS[4], disable_licm=True):
        walk = kept_walk(numbers, path, BLOCK_T)
        channel = tl.arange(0, BLOCKS[4])
        wanted = channel < SIZES[1] - start
        first = head * SIZES[1] + start
        before = convolved(given, walk, filters, first, channel, wanted, SIZES[0] * SIZES[1], SIZES[4])
        x = settled(before * sigmoid(before))
        tl.store(x_addresses(square, start, BLOCKS), x.to(square.dtype.element_ty))
        at_y = channel_addresses(y_kept, first, channel, SIZES, BLOCKS)
        of_y = tl.load(at_y, mask=wanted[None, :], other=0.0)
        of_stepped = matmul(weights, of_y, given[0].dtype.element_ty)
        of_y = of_y.to(tl.float32)
        of_skip += tl.sum(of_y * x, axis=1)
        of_step += tl.sum(of_stepped * x, axis=1)
        of_x = skip * of_y + kept(numbers, STEP, BLOCK_T)[:, None] * of_stepped
        # Computed and read again: over the product they would take registers.
        before = settled(before)
        gate = sigmoid(before)
        walk = kept_walk(numbers, path, BLOCK_T)
        convolution_back(of_x, before, gate, tensors, parameters, walk, scratch, sums, first, wanted, SIZES)
    add_number(of_parameters[4] + head, tl.sum(of_skip), visits)
    keep(numbers, OF_STEP, of_step)
    tl.debug_barrier()


@triton.jit
def head_back_to_steps(head, tensors, parameters, path, scratch, sums, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """d(dt), d(dt_bias) and d(A) of a head, after `head_back_to_x`. Returns d(scores), [tokens, tokens].

    A product of its own: beside the other one it would keep two more matrices in registers, and on Ampere the compiler
    would have half the warps repeat what the others do.
    """
    DT: tl.constexpr = 2 * SIZES[0] * SIZES[1] + 2 * SIZES[2] * SIZES[3]
    BLOCK_T: tl.constexpr = BLOCKS[0]
    given, to_rows, _ = tensors
    _, dt_bias, A, _, _ = parameters
    y_kept, numbers, square = scratch
    of_parameters, visits, row_visits = sums
    of_products = tl.zeros([BLOCK_T, BLOCK_T], tl.float32)
    for start in tl.range(0, SIZES[1], BLOCKS[4], disable_licm=True):
        channel = tl.arange(0, BLOCKS[4])
        at_y = channel_addresses(y_kept, head * SIZES[1] + start, channel, SIZES, BLOCKS)
        of_y = tl.load(at_y, mask=(channel < SIZES[1] - start)[None, :], other=0.0)
        x = tl.load(turned_x_addresses(square, start, BLOCKS))
        of_products += matmul(of_y, x, given[0].dtype.element_ty)
    walk = kept_walk(numbers, path, BLOCK_T)
    step, total = kept(numbers, STEP, BLOCK_T), kept(numbers, TOTAL, BLOCK_T)
    of_products *= tile_decays(total, walk[3]) * step[None, :]
    of_scores = of_products
    # total_i - total_j stands in the exponent, where total_i is the sum of rate * step up to i.
    of_products *= kept_square(square, 1, BLOCK_T).to(tl.float32)  # times the scores
    of_total = tl.sum(of_products, axis=1) - tl.sum(of_products, axis=0)
    keep(numbers, OF_SUM, tl.sum(tl.where(not_after(walk[3]), of_total[:, None], 0.0), axis=0))
    tl.debug_barrier()
    walk = kept_walk(numbers, path, BLOCK_T)
    step, of_sum = kept(numbers, STEP, BLOCK_T), kept(numbers, OF_SUM, BLOCK_T)
    add_number(of_parameters[3] + head, tl.sum(of_sum * step), visits)
    of_step = kept(numbers, OF_STEP, BLOCK_T) + tl.load(A + head).to(tl.float32) * of_sum
    of_step *= sigmoid(head_steps(given, walk, dt_bias, head, SIZES))
    add_number(of_parameters[2] + head, tl.sum(of_step), visits)
    add_to_column(to_rows, walk, DT + head, of_step, row_visits)
    return of_scores


@triton.jit
def group_back(
    group, of_scores, tensors, parameters, path, scratch, sums, SIZES: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """d(B) and d(C) of a group, through the convolution: scores = C B^T."""
    BLOCK_T: tl.constexpr = BLOCKS[0]
    OPERANDS: tl.constexpr = tensors[0][0].dtype.element_ty
    given, _, _ = tensors
    _, numbers, square = scratch
    keep_square(square, of_scores)
    tl.debug_barrier()
    of_b, of_c = group_channels(group, SIZES)
    for start in tl.range(0, SIZES[3], BLOCKS[2], disable_licm=True):
        walk = kept_walk(numbers, path, BLOCK_T)
        which = tl.arange(0, BLOCKS[2])
        wanted = which < SIZES[3] - start
        b = group_projection(given, walk, parameters[0], of_b + start, which, wanted, SIZES)
        c = group_projection(given, walk, parameters[0], of_c + start, which, wanted, SIZES)
        gate_b, gate_c = sigmoid(b), sigmoid(c)
        grad_b = matmul(kept_square(square, 0, BLOCK_T), settled(c * gate_c), OPERANDS)
        grad_c = matmul(of_scores, settled(b * gate_b), OPERANDS)
        convolution_back(grad_b, b, gate_b, tensors, parameters, walk, scratch, sums, of_b + start, wanted, SIZES)
        convolution_back(grad_c, c, gate_c, tensors, parameters, walk, scratch, sums, of_c + start, wanted, SIZES)


@triton.jit
def scan_back(tensors, parameters, path, scratch, sums, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """The third round: from d(y) to everything before it."""
    PER_GROUP: tl.constexpr = SIZES[0] // SIZES[2]
    BLOCK_T: tl.constexpr = BLOCKS[0]
    given = tensors[0]
    _, numbers, square = scratch
    for group in tl.range(SIZES[2], disable_licm=True):
        if SIZES[2] > 1:  # else they are there from the first round
            walk = kept_walk(numbers, path, BLOCK_T)
            scores = group_scores(given, walk, parameters[0], group, given[0].dtype.element_ty, SIZES, BLOCKS)
            keep_square(square, scores)
            tl.debug_barrier()
        of_scores = tl.zeros([BLOCK_T, BLOCK_T], tl.float32)
        for head in tl.range(group * PER_GROUP, (group + 1) * PER_GROUP, disable_licm=True):
            head_back_to_x(head, tensors, parameters, path, scratch, sums, SIZES, BLOCKS)
            of_scores += head_back_to_steps(head, tensors, parameters, path, scratch, sums, SIZES, BLOCKS)
            tl.debug_barrier()  # the next head writes its numbers and x anew, and what follows `square`
        group_back(group, of_scores, tensors, parameters, path, scratch, sums, SIZES, BLOCKS)
        tl.debug_barrier()  # the next group writes `square` anew


@triton.jit
def rows_of_path(path, first, others, videos, tokens, PATHS: tl.constexpr, COLUMNS: tl.constexpr):
    """A path's own (videos, tokens, COLUMNS): `first`, or one of `others`, which lie one behind the other."""
    video_stride = tl.cast(tokens, tl.int64) * COLUMNS
    if PATHS == 1:
        return first, video_stride, COLUMNS
    else:
        return tl.where(path == 0, first, others + video_stride * videos * (path - 1)), video_stride, COLUMNS


@triton.jit(do_not_specialize=["tiles", "videos"])
def path_scan_tile_bwd_kernel(
    rows, video_stride, token_stride, conv_weight, conv_bias, dt_bias, A, D, norm_weight, eps,
    of_outs, grad_rows, of_others, tables, lengths, sequences, strides, tiles, videos,
    y, numbers, square, found, found_width,
    SEGMENTS: tl.constexpr, DIRECTIONS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """All paths: their tiles, one path's behind the other's.

    of_outs: rows of the gradients of the results. grad_rows, of_others: see `rows_of_path`. found: (programs,
    found_width), of the gradients of the parameters, each from one of SEGMENTS on.
    """
    BLOCK_T: tl.constexpr = BLOCKS[0]
    AT_A_TIME: tl.constexpr = max(BLOCKS[2], BLOCKS[4])
    NUMBERS: tl.constexpr = NAMED + 2 * SIZES[0] + AT_A_TIME
    COLUMNS: tl.constexpr = 2 * SIZES[0] * SIZES[1] + 2 * SIZES[2] * SIZES[3] + SIZES[0]
    PATHS: tl.constexpr = len(lengths)
    parameters = ((conv_weight, conv_bias), dt_bias, A, D, norm_weight)
    program = tl.program_id(0).to(tl.int64)
    scratch = (
        y + program * BLOCK_T * (SIZES[0] * SIZES[1]),
        numbers + program * BLOCK_T * NUMBERS,
        square + program * BLOCK_T * (2 * BLOCK_T + BLOCKS[1]),
    )
    found += program * found_width
    of_parameters = (found + SEGMENTS[0], found + SEGMENTS[1], found + SEGMENTS[2], found + SEGMENTS[3])
    of_parameters += (found + SEGMENTS[4], found + SEGMENTS[5])
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        for direction in tl.range(DIRECTIONS, disable_licm=True):
            reverse = direction == 1
            sums = (of_parameters, tile - tl.program_id(0) + direction, direction)
            # As the turns of one loop, none keeps what another computes, such as addresses, in registers. Each looks
            # up anew what belongs to the tile's path.
            for turn in tl.range(4, disable_licm=True):
                number, first = path_of_tile(anew(tile) if PATHS > 1 else tile, lengths, sequences, videos, BLOCK_T)
                table, length, per_video = pick(number, tables), pick(number, lengths), pick(number, sequences)
                path = (table, length, reverse)
                tensors = (
                    (rows, video_stride, token_stride),
                    rows_of_path(number, grad_rows, of_others, videos, per_video * length, PATHS, COLUMNS),
                    pick_rows(number, of_outs),
                )
                if turn == 0:
                    place = tile - first, table, length, per_video, pick(number, strides), videos
                    keep_walk(scratch[1], packed_walk(*place, reverse, BLOCK_T))
                elif turn == 1:
                    y_and_norm_sums(tensors, parameters, path, scratch, SIZES, BLOCKS)
                elif turn == 2:
                    norm_and_gate_back(tensors, parameters, path, scratch, sums, eps, SIZES, BLOCKS)
                else:
                    scan_back(tensors, parameters, path, scratch, sums, SIZES, BLOCKS)
                # The next turn reads the scratch; the next direction or tile writes it anew and adds to the same sums.
                tl.debug_barrier()
