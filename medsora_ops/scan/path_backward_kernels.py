"""The way back along paths of long sequences: through the scans, chunk by chunk, and through the convolution.

    y       (paths, directions, videos, tokens, E): the scans; path_scan_chunk_bwd_kernel puts the gradient of x there
    of_z    (paths * directions - 1, videos, tokens, E), in y's type: shares of dz; the first of all is in grad_rows
    of_BC   (paths, heads of a group * parts, directions, videos, tokens, 2 groups * state), in y's type: shares of dB
            and dC
    of_dt   (paths, parts, directions, videos, tokens, heads) float32
All in grid order, and those of x, B and C before SiLU's slope: the convolution takes that once, not once a head.
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.scan.chunk_backward_kernels import chunk_back, end_of_run, keep_chunk, turned_state_after
from medsora_ops.scan.chunk_kernels import activated, chunk_decay, place_of_program, walk_of, walk_steps
from medsora_ops.scan.norm_kernels import load_gate, sums_along, through_norm
from medsora_ops.scan.walk_kernels import (
    convolved,
    path_of_program,
    pick_rows,
    row_starts,
    rows_before,
    sequences_before,
    weights_of_tap,
)
from medsora_ops.triton_math import anew, pick, sigmoid, silu_slope


@triton.jit(do_not_specialize=["positions", "run_segments"])
def path_scan_chunk_bwd_kernel(
    rows, video_stride, token_stride, conv_weight, conv_bias, dt_bias, A, D, y, positions, norm, of_outs, grad_rows,
    states, boundaries, held, kept, stash, of_z, of_BC, of_dt, of_A, of_D, of_bias, of_norm,
    tables, lengths, sequences, strides, segments, run_segments,
    PATHS: tl.constexpr, DIRECTIONS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr, SEGMENT: tl.constexpr,
    CUT: tl.constexpr, NORMED: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Programs, norm and of_outs as in path_scan_chunk_fwd_kernel. of_A, of_D, of_bias: (sequences, directions, parts,
    runs, heads) float32; of_norm, of the norm's weights: (sequences, directions, runs, E) float32; the sequences of one
    path behind those of the other, in scratch too. boundaries: as in ssd_scan_bwd_kernel. grad_rows: (pointer, video
    stride, token stride); z there is written, or with ACCUMULATE added to.

    stash: (programs, tokens * 2 (channels + state)) in the rows' type. What a chunk's x, B and C are after convolution
    and SiLU, and the gradient of its y, lie there, so that each product finds them in memory, by addresses that take
    up few registers; otherwise each would compute them again.
    """
    BLOCK_T: tl.constexpr = BLOCKS[0]
    BLOCK_P: tl.constexpr = BLOCKS[1]
    BLOCK_N: tl.constexpr = BLOCKS[2]
    HEADS: tl.constexpr = SIZES[0]
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    STATES: tl.constexpr = SIZES[2] * SIZES[3]
    TAPS: tl.constexpr = SIZES[4]
    PARTS: tl.constexpr = (SIZES[1] + BLOCK_P - 1) // BLOCK_P
    OPERANDS: tl.constexpr = rows.dtype.element_ty
    given = (rows, video_stride, token_stride)
    filters = (conv_weight, conv_bias)
    path = path_of_program(PATHS)
    length = pick(path, lengths)
    sequence, head, group, part, channel, wanted = place_of_program(tl.program_id(0), SIZES, BLOCKS)
    if PATHS > 1:
        if sequence >= positions // length * DIRECTIONS:
            return
    program = tl.program_id(0).to(tl.int64)
    worker = program + sequences_before(path, lengths, positions, PATHS) * (DIRECTIONS * HEADS * PARTS)
    first_segment, behind = 0, pick(path, segments)
    if CUT is not None:
        worker = program * tl.num_programs(1) + tl.program_id(1)
        first_segment = tl.program_id(1) * run_segments
        behind = tl.minimum(first_segment + run_segments, behind)
    n = tl.arange(0, BLOCK_N)
    p = tl.arange(0, BLOCK_P)
    real = n < SIZES[3]
    rate = tl.load(A + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32)
    skip = tl.load(D + head).to(tl.float32)
    of_x = head * SIZES[1] + channel
    of_b = WIDTH + group * SIZES[3] + n
    dt_column = 2 * WIDTH + 2 * STATES + head
    held += worker * (SEGMENT * BLOCK_P * BLOCK_N)
    kept += worker * (SEGMENT * 2 * BLOCK_T)
    stash += worker * (BLOCK_T * (2 * BLOCK_P + 2 * BLOCK_N))
    within = p[:, None] * BLOCK_N + n[None, :]
    after = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    if CUT is not None:
        after = end_of_run(boundaries, after, BLOCKS)
    sum_rate = tl.zeros([BLOCK_T], tl.float32)
    sum_bias = tl.zeros([BLOCK_T], tl.float32)
    sum_skip = tl.zeros([BLOCK_T], tl.float32)
    sum_norm = tl.zeros([BLOCK_P], tl.float32)
    for back in tl.range(0, behind - first_segment, disable_licm=True):
        segment = behind - 1 - back
        start = segment * (SEGMENT * BLOCK_T)
        chunks = tl.minimum(tl.cdiv(length - start, BLOCK_T), SEGMENT)
        state = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
        if states is not None:
            here = anew(path) if PATHS > 1 else path
            number = anew(tl.program_id(0)).to(tl.int64) * pick(here, segments) + segment
            state = tl.load(pick(here, states) + number * (BLOCK_P * BLOCK_N) + within)
        for chunk in tl.range(0, chunks, disable_licm=True):
            first = start + chunk * BLOCK_T
            here, now = anew(path) if PATHS > 1 else path, anew(sequence)
            along = pick(here, sequences), pick(here, strides), now % DIRECTIONS == 1
            walk = walk_of(now // DIRECTIONS, pick(here, tables), first, length, *along, BLOCK_T)
            _, step = walk_steps(given, walk, bias, dt_column)
            total, whole = chunk_decay(step, rate)
            keep_chunk(held, kept, chunk, state, step, total, SEGMENT, BLOCKS)
            values = activated(given, walk, filters, of_x, wanted, WIDTH, TAPS)
            b = activated(given, walk, filters, of_b, real, WIDTH, TAPS)
            state = turned_state_after(values.to(OPERANDS), step, total, whole, b, state, OPERANDS)
        tl.debug_barrier()  # what follows reads what other threads of this program have written
        for later in tl.range(0, chunks, disable_licm=True):
            chunk = chunks - 1 - later
            first = start + chunk * BLOCK_T
            # What follows from where the program is, is found again for each chunk: kept, it would take up registers.
            here, now = anew(path) if PATHS > 1 else path, anew(sequence)
            direction = now % DIRECTIONS
            plane = here * DIRECTIONS + direction
            tokens = tl.cast(pick(here, sequences) * length, tl.int64)
            mixed = (y + plane.to(tl.int64) * positions * WIDTH, tokens * WIDTH, WIDTH)
            along = pick(here, sequences), pick(here, strides), direction == 1
            walk = walk_of(now // DIRECTIONS, pick(here, tables), first, length, *along, BLOCK_T)
            token = tl.arange(0, BLOCK_T)
            chunk_stash = anew(stash)
            x_stash = chunk_stash + token * BLOCK_P
            b_stash = chunk_stash + BLOCK_T * BLOCK_P + token * BLOCK_N
            c_stash = b_stash + BLOCK_T * BLOCK_N
            values = activated(given, walk, filters, of_x, wanted, WIDTH, TAPS)
            tl.store(x_stash[:, None] + p[None, :], values.to(OPERANDS))
            b = activated(given, walk, filters, of_b, real, WIDTH, TAPS)
            tl.store(b_stash[:, None] + n[None, :], b.to(OPERANDS))
            c = activated(given, walk, filters, of_b + STATES, real, WIDTH, TAPS)
            tl.store(c_stash[:, None] + n[None, :], c.to(OPERANDS))
            of_out = pick_rows(here, of_outs)
            norm_along = sums_along(norm, plane, positions, tokens, SIZES, BLOCKS, NORMED)
            gate = load_gate(given, of_out, norm_along, walk, of_x, wanted)
            values = rows_before(mixed, walk, of_x, wanted, 0)
            dy, dz, of_weight = through_norm(values, gate, norm_along, walk, head, part, of_x, SIZES, BLOCKS, NORMED)
            sum_norm += of_weight
            if plane == 0:
                store_rows(grad_rows, walk, of_x, wanted, dz, ACCUMULATE)
            elif of_z is not None:
                other = of_z
                if PATHS * DIRECTIONS > 2:
                    other = of_z + (plane - 1).to(tl.int64) * positions * WIDTH
                store_rows((other, tokens * WIDTH, WIDTH), walk, of_x, wanted, dz, False)
            y_stash = chunk_stash + BLOCK_T * (BLOCK_P + 2 * BLOCK_N) + token * BLOCK_P
            tl.store(y_stash[:, None] + p[None, :], dy.to(OPERANDS))
            inside = walk[4]
            share = here * (HEADS // SIZES[2] * PARTS) + head % (HEADS // SIZES[2]) * PARTS + part
            share = (share * DIRECTIONS + direction).to(tl.int64) * positions
            shares = (of_BC + share * (2 * STATES), tokens * (2 * STATES), 2 * STATES)
            tl.debug_barrier()
            after, of_step, of_decay, of_skip = chunk_back(
                *(x_stash, b_stash, c_stash, y_stash, mixed, shares, shares, walk),
                (p, p, of_x, n, of_b - WIDTH, of_b - WIDTH + STATES, wanted, real),
                *(inside, skip, held, kept, chunk, after, OPERANDS, SEGMENT, BLOCKS, False),
            )
            raw, step = walk_steps(given, walk, bias, dt_column)
            sum_rate += of_decay * step
            sum_skip += of_skip
            of_step = tl.where(inside, (of_step + of_decay * rate) * sigmoid(raw), 0.0)
            sum_bias += of_step
            step_plane = ((here * PARTS + part) * DIRECTIONS + direction).to(tl.int64) * positions
            at, _ = row_starts((of_dt + step_plane * HEADS, tokens * HEADS, HEADS), walk, 0)
            tl.store(at + head, of_step, mask=inside)
            tl.debug_barrier()  # before the next chunk, or segment, writes the scratch anew
    here = anew(path) if PATHS > 1 else path
    norm_row = anew(sequence).to(tl.int64) + sequences_before(here, lengths, positions, PATHS) * DIRECTIONS
    row = norm_row * PARTS + part
    if CUT is not None:
        row = row * tl.num_programs(1) + tl.program_id(1)
        norm_row = norm_row * tl.num_programs(1) + tl.program_id(1)
    row = row * HEADS + head
    tl.store(of_norm + norm_row * WIDTH + of_x, sum_norm, mask=wanted)
    tl.store(of_A + row, tl.sum(sum_rate, axis=0))
    tl.store(of_D + row, tl.sum(sum_skip, axis=0))
    tl.store(of_bias + row, tl.sum(sum_bias, axis=0))


@triton.jit
def tile_walk(
    number, table, first, length, sequences, stride, OWN: tl.constexpr, BLOCK_T: tl.constexpr, REVERSE: tl.constexpr
):
    """The walk, either way, over the OWN tokens from `first` on, and over those that it goes to from there."""
    place = tl.arange(0, BLOCK_T)
    place += length - first - OWN if REVERSE else first
    inside = (place >= 0) & (place < length)
    return (table, number // sequences, number % sequences * stride, place, inside, length, REVERSE)


@triton.jit(do_not_specialize=["positions", "videos", "workers"])
def path_scan_conv_bwd_kernel(
    rows, video_stride, token_stride, conv_weight, conv_bias, y, positions, of_z, of_BC, of_dt,
    grad_rows, grad_video_stride, grad_token_stride, of_others, of_weight, of_bias,
    tables, lengths, sequences, strides, videos, workers,
    PATHS: tl.constexpr, DIRECTIONS: tl.constexpr, SIZES: tl.constexpr, PARTS: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """x, B, C and dt of grad_rows, written or added to, and each program's share of the gradients of the filters; to z
    of grad_rows the shares in of_z are added.

    A program takes a path, a block of channels and every workers-th tile of tokens, with both directions. A token's
    gradient is gathered from those up to TAPS - 1 after it, so tiles overlap by that. Paths after the first have x, B
    and C of their own, of_others (paths - 1, videos, tokens, channels of the convolution) in y's type, or None; dt and
    z, where no token needs another, are all the first path's.
    of_weight: (paths * workers, channels of the convolution, taps); of_bias: (paths * workers, channels).
    """
    HEADS: tl.constexpr = SIZES[0]
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    STATES: tl.constexpr = SIZES[2] * SIZES[3]
    MIXED: tl.constexpr = WIDTH + 2 * STATES
    TAPS: tl.constexpr = SIZES[4]
    OWN: tl.constexpr = BLOCK_T - TAPS + 1
    CONVOLVED: tl.constexpr = (MIXED + BLOCK_C - 1) // BLOCK_C
    STEPS: tl.constexpr = (HEADS + BLOCK_C - 1) // BLOCK_C
    Z_SHARES: tl.constexpr = PATHS * DIRECTIONS - 1
    BLOCKS: tl.constexpr = CONVOLVED + STEPS + ((WIDTH + BLOCK_C - 1) // BLOCK_C if Z_SHARES > 0 else 0)
    SHARES: tl.constexpr = HEADS // SIZES[2] * PARTS
    path = path_of_program(PATHS)
    table, length = pick(path, tables), pick(path, lengths)
    of_video = sequences  # of each path
    sequences, stride = pick(path, sequences), pick(path, strides)
    given = (rows, video_stride, token_stride)
    given_grad = (grad_rows, grad_video_stride, grad_token_stride)
    filters = (conv_weight, conv_bias)
    block = tl.program_id(0) % BLOCKS
    worker = tl.program_id(0) // BLOCKS
    row = tl.arange(0, BLOCK_T)
    tokens = tl.cast(sequences * length, tl.int64)
    per_sequence = tl.cdiv(length, OWN)
    if block < CONVOLVED:
        channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
        wanted = channel < MIXED
        sum_weight = tl.zeros([triton.next_power_of_2(TAPS + 1), BLOCK_C], tl.float32)
        tap = tl.arange(0, triton.next_power_of_2(TAPS + 1))[:, None]  # steps back; the last one stands for the bias
        for tile in tl.range(worker, videos * sequences * per_sequence, workers, disable_licm=True):
            # What follows from where the program is, is found again for each tile: kept, it would take up registers.
            here = anew(path) if PATHS > 1 else path
            its_table, its_length = pick(here, tables), pick(here, lengths)
            its_sequences, its_stride = pick(here, of_video), pick(here, strides)
            per = tl.cdiv(its_length, OWN)
            shares = tl.where(anew(block) * BLOCK_C + BLOCK_C > WIDTH, SHARES, 0)
            count = tl.cast(its_sequences * its_length, tl.int64)
            number = tl.cast(tile // per, tl.int32)
            first = tile % per * OWN
            total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
            for direction in tl.static_range(DIRECTIONS):
                reverse = direction == 1
                walk = tile_walk(number, its_table, first, its_length, its_sequences, its_stride, OWN, BLOCK_T, reverse)
                path_plane = here * DIRECTIONS + direction
                of_x = (anew(y) + tl.cast(positions, tl.int64) * path_plane * WIDTH, count * WIDTH, WIDTH)
                grad = rows_before(of_x, walk, channel, channel < WIDTH, 0)
                for share in tl.range(0, shares, disable_licm=True):
                    plane = tl.cast((here * SHARES + share) * DIRECTIONS + direction, tl.int64) * positions
                    of_share = (anew(of_BC) + plane * (2 * STATES), count * (2 * STATES), 2 * STATES)
                    grad += rows_before(of_share, walk, channel - WIDTH, wanted & (channel >= WIDTH), 0)
                before = convolved(given, walk, filters, 0, channel, wanted, WIDTH, TAPS)
                grad = tl.where(walk[4][:, None], grad * silu_slope(before, sigmoid(before)), 0.0)
                own = tl.where((row < OWN)[:, None], grad, 0.0)
                sum_weight += tl.where(tap == TAPS, tl.sum(own, axis=0)[None, :], 0.0)
                for back in tl.static_range(TAPS):
                    of_tap = tl.sum(own * rows_before(given, walk, WIDTH + channel, wanted, back), axis=0)
                    sum_weight += tl.where(tap == back, of_tap[None, :], 0.0)
                    index = OWN - 1 - row + back if direction == 1 else row + back
                    index = tl.minimum(tl.maximum(index, 0), BLOCK_T - 1)
                    later = tl.gather(grad, tl.broadcast_to(index[:, None], [BLOCK_T, BLOCK_C]), 0)
                    total += weights_of_tap(conv_weight, channel, wanted, TAPS - 1 - back, TAPS)[None, :] * later
            walk = tile_walk(number, its_table, first, its_length, its_sequences, its_stride, OWN, BLOCK_T, False)
            if here == 0:
                store_own(given_grad, walk, WIDTH + channel, wanted, total, OWN, ACCUMULATE)
            elif of_others is not None:
                other = anew(of_others) + tl.cast(positions, tl.int64) * (here - 1) * MIXED
                store_own((other, count * MIXED, MIXED), walk, channel, wanted, total, OWN, False)
        share = path_of_program(PATHS) * workers + anew(tl.program_id(0)) // BLOCKS
        at = (tl.cast(share, tl.int64) * MIXED + channel)[None, :]
        tl.store(of_weight + at * TAPS + (TAPS - 1 - tap), sum_weight, mask=(tap < TAPS) & wanted[None, :])
        if conv_bias is not None:
            tl.store(of_bias + at + tap * 0, sum_weight, mask=(tap == TAPS) & wanted[None, :])
    elif path > 0:
        pass
    elif block < CONVOLVED + STEPS:
        head = (block - CONVOLVED) * BLOCK_C + tl.arange(0, BLOCK_C)
        for tile in tl.range(worker, videos * sequences * per_sequence, workers, disable_licm=True):
            number, first = tl.cast(tile // per_sequence, tl.int32), tile % per_sequence * OWN
            walk = tile_walk(number, table, first, length, sequences, stride, OWN, BLOCK_T, False)
            total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
            for plane in tl.static_range(PATHS * PARTS * DIRECTIONS):
                of_plane = (of_dt + tl.cast(positions, tl.int64) * (plane * HEADS), tokens * HEADS, HEADS)
                total += rows_before(of_plane, walk, head, head < HEADS, 0)
            store_own(given_grad, walk, WIDTH + MIXED + head, head < HEADS, total, OWN, ACCUMULATE)
    elif Z_SHARES > 0:
        channel = (block - CONVOLVED - STEPS) * BLOCK_C + tl.arange(0, BLOCK_C)
        for tile in tl.range(worker, videos * sequences * per_sequence, workers, disable_licm=True):
            number, first = tl.cast(tile // per_sequence, tl.int32), tile % per_sequence * OWN
            walk = tile_walk(number, table, first, length, sequences, stride, OWN, BLOCK_T, False)
            total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
            for plane in tl.static_range(Z_SHARES):
                of_plane = (of_z + tl.cast(positions, tl.int64) * (plane * WIDTH), tokens * WIDTH, WIDTH)
                total += rows_before(of_plane, walk, channel, channel < WIDTH, 0)
            store_own(given_grad, walk, channel, channel < WIDTH, total, OWN, True)


@triton.jit
def store_own(rows, walk, column, wanted, value, OWN: tl.constexpr, ACCUMULATE: tl.constexpr):
    """Rows of the tile's own tokens alone, not of those behind."""
    table, video, start, place, inside, length, reverse = walk
    own = inside & (tl.arange(0, value.shape[0]) < OWN)
    store_rows(rows, (table, video, start, place, own, length, reverse), column, wanted, value, ACCUMULATE)


@triton.jit
def store_rows(rows, walk, column, wanted, value, ACCUMULATE: tl.constexpr):
    at, inside = row_starts(rows, walk, 0)
    at, mask = at[:, None] + column[None, :], inside[:, None] & wanted[None, :]
    if ACCUMULATE:
        value += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, value.to(at.dtype.element_ty), mask=mask)
