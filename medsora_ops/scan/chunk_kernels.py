"""Long scans, forward: a program walks along one sequence and head, chunk by chunk, and carries the state in registers.

Within a chunk the scan is products of matrices (Dao and Gu, arXiv 2405.21060, section 6). With scores S = C B^T and the
decays M between the tokens of a chunk, which begins with the state H:

    y = (S * M * step) x + since * (C H)                since: the decay from the chunk's start through a token
    H after = whole * H + B^T (step * until * x)        until: from a token to the chunk's end; whole: over the chunk

A head's channels are independent given the scores, so a wide head is cut among programs.

    SIZES    heads, head_dim, groups, state, taps (0 where there is no convolution)
    BLOCKS   tokens of a chunk, channels of a program, numbers of the state; powers of two, 16 at least
    states   (programs, segments, channels, state) float32, at the start of every SEGMENT-th chunk, for the way back

One launch takes PATHS paths, along the grid's third axis; tuples hold what differs from one to the other. Those of
longer sequences have fewer of them than the grid has room for.

Where that would be too few programs, each sequence is cut into runs of run_segments segments, each taken by a program,
in two launches of the same kernel with one of run_kernels.py between them. The grid's second axis counts runs: numbers
from a division would no longer be seen to be the same for all threads. CUT tells the launches apart:

    None      whole sequences
    "ends"    all runs but the last, each from zero: the state that it ends with, and its decay, nothing else
    "starts"  all runs, each from the state that it begins with

    boundaries   (programs of whole sequences, runs - 1, channels, state) float32, at the ends of all runs but the last
    decays       (programs of whole sequences, runs - 1) float32
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.scan.norm_kernels import keep_sums, load_gate, sums_along
from medsora_ops.scan.walk_kernels import column_of, convolved, path_of_program, pick_rows, row_starts
from medsora_ops.triton_math import LOG2E, anew, causal_decays, matmul, pick, settled, sigmoid, silu_slope, softplus


@triton.jit
def run_of_program(run_segments, length, SEGMENT: tl.constexpr, BLOCKS: tl.constexpr, CUT: tl.constexpr):
    """The first token of the program's run, seen to be a whole number of chunks, and the one behind the run."""
    if CUT is None:
        return 0, length
    else:
        begin = tl.program_id(1) * run_segments * (SEGMENT * BLOCKS[0])
        return begin, tl.minimum(length, begin + run_segments * (SEGMENT * BLOCKS[0]))


@triton.jit
def place_of_program(program, SIZES: tl.constexpr, BLOCKS: tl.constexpr):
    """A sequence, a head, its group and part, the channels of that part and which are real."""
    PARTS: tl.constexpr = (SIZES[1] + BLOCKS[1] - 1) // BLOCKS[1]
    part = program % PARTS
    head = program // PARTS % SIZES[0]
    channel = part * BLOCKS[1] + tl.arange(0, BLOCKS[1])
    group = head // (SIZES[0] // SIZES[2])
    return program // PARTS // SIZES[0], head, group, part, channel, channel < SIZES[1]


@triton.jit
def sequence_of(tensor, batch, head):
    """Where the rows of one head begin, and the way to the next token. The tensor is (batch, token, head, column)."""
    pointer, batch_stride, token_stride, head_stride = tensor
    return pointer + batch.to(tl.int64) * batch_stride + head.to(tl.int64) * head_stride, token_stride


@triton.jit
def addresses(sequence, first, column, BLOCK_T: tl.constexpr):
    """Of the tile that begins with token `first`: [tokens, columns]."""
    start, token_stride = sequence
    place = (first + tl.arange(0, BLOCK_T)).to(tl.int64)
    return start + place[:, None] * token_stride + column[None, :]


@triton.jit
def tile_of(sequence, first, inside, column, wanted):
    at = addresses(sequence, first, column, inside.shape[0])
    return tl.load(at, mask=inside[:, None] & wanted[None, :], other=0.0)


@triton.jit
def store_tile(sequence, first, inside, column, wanted, value):
    at = addresses(sequence, first, column, inside.shape[0])
    tl.store(at, value.to(at.dtype.element_ty), mask=inside[:, None] & wanted[None, :])


@triton.jit
def sequence_steps(sequence, first, inside, bias, SOFTPLUS: tl.constexpr):
    """dt with its bias, and after softplus, zero behind the end: [tokens] each."""
    start, token_stride = sequence
    place = first + tl.arange(0, inside.shape[0])
    before = tl.load(start + place.to(tl.int64) * token_stride, mask=inside, other=0.0).to(tl.float32) + bias
    if SOFTPLUS:
        step = softplus(before)
    else:
        step = before
    return before, tl.where(inside, step, 0.0)


@triton.jit
def walk_steps(rows, walk, bias, column):
    before = column_of(rows, walk, column) + bias
    return before, tl.where(walk[4], softplus(before), 0.0)


@triton.jit
def activated(rows, walk, filters, channel, wanted, WIDTH: tl.constexpr, TAPS: tl.constexpr):
    before = convolved(rows, walk, filters, 0, channel, wanted, WIDTH, TAPS)
    return before * sigmoid(before)


@triton.jit
def chunk_decay(step, rate):
    """log2 of the decay from the chunk's start through each token, [tokens], and through the last."""
    total = tl.cumsum(rate * LOG2E * step, axis=0)
    row = tl.arange(0, step.shape[0])
    return total, tl.sum(tl.where(row == step.shape[0] - 1, total, 0.0), axis=0)


@triton.jit
def chunk_decays(total):
    """[i, j]: the decay from token j to i, zero from later ones."""
    row = tl.arange(0, total.shape[0])
    return causal_decays(row[:, None] >= row[None, :], total[:, None] - total[None, :])


@triton.jit
def chunk_weights(total, b, c, state, OPERANDS: tl.constexpr):
    """What the rows of step * x are weighted by for y, [tokens, tokens], and what y has from the state before."""
    # Settled: else both products are under way at once, with the operands of both in registers.
    weights = settled(matmul(c, tl.trans(b), OPERANDS) * chunk_decays(total)).to(OPERANDS)
    return weights, tl.exp2(total)[:, None] * matmul(c, state, OPERANDS)


@triton.jit
def chunk_output(x, step, weights, carried, OPERANDS: tl.constexpr):
    """y without D x: [tokens, channels]. The step scales rows of x: along columns of S a thread needs all of it."""
    return carried + matmul(weights, x.to(tl.float32) * step[:, None], OPERANDS)


@triton.jit
def state_after(x, step, total, whole, b, state, OPERANDS: tl.constexpr):
    """[state, channels]"""
    reaching = x.to(tl.float32) * (step * tl.exp2(whole - total))[:, None]
    return tl.exp2(whole) * state + matmul(tl.trans(b), reaching, OPERANDS)


@triton.jit
def state_addresses(states, number, BLOCKS: tl.constexpr):
    """Of the number-th state of a tensor (..., channels, state): [state, channels]"""
    n = tl.arange(0, BLOCKS[2])
    channel = tl.arange(0, BLOCKS[1])
    return states + number * (BLOCKS[1] * BLOCKS[2]) + channel[None, :] * BLOCKS[2] + n[:, None]


@triton.jit
def start_of_run(boundaries, state, BLOCKS: tl.constexpr, CUT: tl.constexpr):
    """The state that the program begins with, given that of its sequence."""
    run = tl.program_id(1)
    if CUT == "ends":
        state = tl.where(run == 0, state, 0.0)
    if CUT == "starts":
        number = tl.program_id(0).to(tl.int64) * (tl.num_programs(1) - 1) + run - 1
        later = tl.full(state.shape, 0, tl.int32) + run > 0  # a branch instead takes registers for the whole loop
        state = tl.load(state_addresses(boundaries, number, BLOCKS), mask=later, other=state)
    return state


@triton.jit
def store_end(boundaries, decays, state, total, BLOCKS: tl.constexpr):
    number = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(state_addresses(boundaries, number, BLOCKS), state)
    tl.store(decays + number, tl.exp2(total))


@triton.jit
def store_state(states, program, first, segments, state, SEGMENT: tl.constexpr, BLOCKS: tl.constexpr):
    """Keep the state before token `first`, if a segment begins there, as going back reads it: [channels, state]."""
    if first % (SEGMENT * BLOCKS[0]) == 0:
        number = program.to(tl.int64) * segments + first // (SEGMENT * BLOCKS[0])
        tl.store(state_addresses(states, number, BLOCKS), state)


@triton.jit(do_not_specialize=["length", "segments", "run_segments"])
def ssd_scan_fwd_kernel(
    x, dt, B, C, z, y, grad_y, grad_z, grad_mixed, A, D, dt_bias, initial, final, states,
    boundaries, decays, length, segments, run_segments,
    SIZES: tl.constexpr, BLOCKS: tl.constexpr, SEGMENT: tl.constexpr, CUT: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """One program a sequence or run, head and part of its channels. Writes what is not None of y, the final states, the
    states on the way, and, from grad_y, both gradients of the gate: of z, and of what it lets through (grad_mixed).

    x, dt, B, C, z, y, grad_y, grad_z, grad_mixed: (pointer, batch stride, token stride, head or group stride)
    D: (pointer, head stride, channel stride). initial, final: (batch, heads, head_dim, state), contiguous.
    """
    OPERANDS: tl.constexpr = x[0].dtype.element_ty
    BLOCK_T: tl.constexpr = BLOCKS[0]
    BLOCK_P: tl.constexpr = BLOCKS[1]
    BLOCK_N: tl.constexpr = BLOCKS[2]
    begin, end = run_of_program(run_segments, length, SEGMENT, BLOCKS, CUT)
    batch, head, group, part, channel, wanted = place_of_program(tl.program_id(0), SIZES, BLOCKS)
    n = tl.arange(0, BLOCK_N)
    real = n < SIZES[3]
    rate = tl.load(A + head).to(tl.float32)
    bias = 0.0
    if dt_bias is not None:
        bias = tl.load(dt_bias + head).to(tl.float32)
    states_of = (batch.to(tl.int64) * SIZES[0] + head) * (SIZES[1] * SIZES[3])
    if initial is not None:
        at = initial + states_of + (channel[None, :] * SIZES[3] + n[:, None])
        state = tl.load(at, mask=real[:, None] & wanted[None, :], other=0.0).to(tl.float32)
    else:
        state = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    state = start_of_run(boundaries, state, BLOCKS, CUT)
    run_total = 0.0  # log2 of the decay over the run
    # Unless told not to, the compiler computes all addresses in shared memory before the loop, and spills them.
    for first in tl.range(begin, end, BLOCK_T, disable_licm=True):
        inside = first + tl.arange(0, BLOCK_T) < length
        if states is not None:
            store_state(states, tl.program_id(0), first, segments, state, SEGMENT, BLOCKS)
        _, step = sequence_steps(sequence_of(dt, batch, head), first, inside, bias, SOFTPLUS)
        total, whole = chunk_decay(step, rate)
        if (y is not None) or (grad_z is not None):
            c = tile_of(sequence_of(C, batch, group), first, inside, n, real).to(OPERANDS)
            b = tile_of(sequence_of(B, batch, group), first, inside, n, real).to(OPERANDS)
            weights, carried = chunk_weights(total, b, c, state, OPERANDS)
            values = tile_of(sequence_of(x, batch, head), first, inside, channel, wanted)
            mixed = chunk_output(values, step, weights, carried, OPERANDS)
            if D is not None:
                skip = tl.load(D[0] + head * D[1] + channel * D[2], mask=wanted, other=0.0).to(tl.float32)
                mixed += skip[None, :] * values.to(tl.float32)
            if z is not None:
                gate = tile_of(sequence_of(z, batch, head), first, inside, channel, wanted).to(tl.float32)
                opened = sigmoid(gate)
                if grad_z is not None:
                    grad = tile_of(sequence_of(grad_y, batch, head), first, inside, channel, wanted).to(tl.float32)
                    of_mixed = grad * gate * opened
                    store_tile(sequence_of(grad_mixed, batch, head), first, inside, channel, wanted, of_mixed)
                    of_gate = grad * mixed * silu_slope(gate, opened)
                    store_tile(sequence_of(grad_z, batch, head), first, inside, channel, wanted, of_gate)
                mixed *= gate * opened
            if y is not None:
                store_tile(sequence_of(y, batch, head), first, inside, channel, wanted, mixed)
        values = tile_of(sequence_of(x, batch, head), first, inside, channel, wanted)
        b = tile_of(sequence_of(B, batch, group), first, inside, n, real).to(OPERANDS)
        state = state_after(values, step, total, whole, b, state, OPERANDS)
        if CUT == "ends":
            run_total += whole
    if CUT == "ends":
        store_end(boundaries, decays, state, run_total, BLOCKS)
    if final is not None:
        if end == length:
            at = final + states_of + (channel[None, :] * SIZES[3] + n[:, None])
            tl.store(at, state, mask=real[:, None] & wanted[None, :])


@triton.jit
def walk_of(number, table, first, length, sequences, stride, reverse, BLOCK_T: tl.constexpr):
    """The walk over one chunk of a sequence, numbered over all videos."""
    place = first + tl.arange(0, BLOCK_T)
    return (table, number // sequences, number % sequences * stride, place, place < length, length, reverse)


@triton.jit(do_not_specialize=["positions", "run_segments"])
def path_scan_chunk_fwd_kernel(
    rows, video_stride, token_stride, conv_weight, conv_bias, dt_bias, A, D, y, positions, norm, of_outs,
    states, boundaries, decays, tables, lengths, sequences, strides, segments, run_segments,
    PATHS: tl.constexpr, DIRECTIONS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr, SEGMENT: tl.constexpr,
    CUT: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """One program a path, sequence of a video or run of it, direction, head and part of its channels.

    y: before its gate, (paths, directions, videos, tokens, E) in grid order: both directions of a token meet there. Its
    strides are not arguments, for the compiler must see that rows are aligned; None: not written. positions: videos *
    tokens. norm (as in norm_kernels.py) and of_outs, rows of the gradients of the results, make it leave there what the
    way back needs of y; both may be None.
    """
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    STATE: tl.constexpr = SIZES[3]
    BLOCK_T: tl.constexpr = BLOCKS[0]
    BLOCK_P: tl.constexpr = BLOCKS[1]
    BLOCK_N: tl.constexpr = BLOCKS[2]
    OPERANDS: tl.constexpr = rows.dtype.element_ty
    given = (rows, video_stride, token_stride)
    filters = (conv_weight, conv_bias)
    path = path_of_program(PATHS)
    length = pick(path, lengths)
    begin, end = run_of_program(run_segments, length, SEGMENT, BLOCKS, CUT)
    if PATHS > 1:
        place = place_of_program(tl.program_id(0), SIZES, BLOCKS)
        end = tl.where(place[0] < positions // length * DIRECTIONS, end, 0)
    n = tl.arange(0, BLOCK_N)
    real = n < STATE
    state = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    state = start_of_run(boundaries, state, BLOCKS, CUT)
    run_total = 0.0
    for first in tl.range(begin, end, BLOCK_T, disable_licm=True):
        # What follows from where the program is, is found again for each chunk: kept, it would take up registers.
        here = anew(path) if PATHS > 1 else path
        now, head, group, part, channel, wanted = place_of_program(anew(tl.program_id(0)), SIZES, BLOCKS)
        column = head * SIZES[1] + channel
        of_b = WIDTH + group * STATE + n
        of_c = of_b + SIZES[2] * STATE
        along = pick(here, sequences), pick(here, strides), now % DIRECTIONS == 1
        walk = walk_of(now // DIRECTIONS, pick(here, tables), first, pick(here, lengths), *along, BLOCK_T)
        if states is not None:
            kept = pick(here, states)
            store_state(kept, tl.program_id(0), first, pick(here, segments), state, SEGMENT, BLOCKS)
        bias, rate = tl.load(dt_bias + head).to(tl.float32), tl.load(A + head).to(tl.float32)
        _, step = walk_steps(given, walk, bias, 2 * WIDTH + 2 * SIZES[2] * STATE + head)
        total, whole = chunk_decay(step, rate)
        x = activated(given, walk, filters, column, wanted, WIDTH, SIZES[4])  # beside products it would take registers
        b = activated(given, walk, filters, of_b, real, WIDTH, SIZES[4]).to(OPERANDS)
        if y is not None:
            c = activated(given, walk, filters, of_c, real, WIDTH, SIZES[4]).to(OPERANDS)
            weights, carried = chunk_weights(total, b, c, state, OPERANDS)
            mixed = chunk_output(x, step, weights, carried, OPERANDS) + tl.load(D + head).to(tl.float32) * x
            plane = here * DIRECTIONS + now % DIRECTIONS
            tokens = tl.cast(pick(here, sequences) * walk[5], tl.int64)
            out = (y + plane.to(tl.int64) * positions * WIDTH, tokens * WIDTH, WIDTH)
            at, inside = row_starts(out, walk, 0)
            at = at[:, None] + column[None, :]
            mixed = mixed.to(at.dtype.element_ty)
            tl.store(at, mixed, mask=inside[:, None] & wanted[None, :])
            if norm is not None:
                norm_along = sums_along(norm, plane, positions, tokens, SIZES, BLOCKS, NORMED)
                gate = load_gate(given, pick_rows(here, of_outs), norm_along, walk, column, wanted)
                keep_sums(mixed.to(tl.float32), gate, norm_along, walk, head, part, column, SIZES, BLOCKS, NORMED)
        state = state_after(x, step, total, whole, b, state, OPERANDS)
        if CUT == "ends":
            run_total += whole
    if CUT == "ends":
        store_end(boundaries, decays, state, run_total, BLOCKS)
