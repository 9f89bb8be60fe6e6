"""Long scans, back: a program walks along one sequence and head from its end and carries the gradient of the state.

The states are not kept: `states` has that of every SEGMENT-th chunk; a program computes those of one segment again,
into scratch of its own, and then goes back through that segment. With M, since, until, whole from chunk_kernels.py,
the state H before a chunk, the gradient G of the state after it, and Q = dy x^T:

    dx = step * g with g = (S * M)^T dy + until * (B G)      dC = (Q * M * step) B + since * (dy H^T)
    dH = whole * G + C^T (since * dy)                        dB = step * ((Q * M)^T C + until * (x G^T))

States are [channels, state] here, and each product is computed in the orientation in which it is used: no product is
ever transposed for another. Operands are tiles as they lie in memory wherever that can be, for the matrix units read
those without a detour through registers; scales go to results instead. What two products far apart need is loaded for
each: it is in a cache still, and in between it would take up registers, which are what is short here.

    of_B, of_C   (heads of a group * parts, sequences, tokens, ...) float32: each program's share, summed later
    of_dt        (parts, sequences, tokens, heads) float32
    held         (programs, SEGMENT * channels * state), in the type of the rows: states, as products take them
    kept         (programs, SEGMENT * 2 * tokens) float32: steps and sums of decays

Sequences cut into runs (CUT "starts", as in chunk_kernels.py) are cut at segments: `boundaries` holds the gradients of
the states where runs meet, those of the last two first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.scan.chunk_kernels import (
    chunk_decay,
    chunk_decays,
    place_of_program,
    sequence_of,
    sequence_steps,
    tile_of,
)
from medsora_ops.scan.walk_kernels import row_starts
from medsora_ops.triton_math import causal_decays, matmul, sigmoid


@triton.jit
def turned_decays(row, column):
    """[j, i]: the decay from token j to i; the sums of decays as a row and as a column."""
    token = tl.arange(0, row.shape[0])
    return causal_decays(token[None, :] >= token[:, None], column[None, :] - row[:, None])


@triton.jit
def token_rows(sequence, first, BLOCK_T: tl.constexpr):
    """Where the rows of a chunk's tokens begin: [tokens]. Addresses of whole tiles would take up registers for long."""
    start, token_stride = sequence
    return start + (first + tl.arange(0, BLOCK_T)).to(tl.int64) * token_stride


@triton.jit
def from_rows(rows, column, inside, wanted):
    return tl.load(rows[:, None] + column[None, :], mask=inside[:, None] & wanted[None, :], other=0.0)


@triton.jit
def to_rows(rows, walk, column, inside, wanted, value):
    """rows: where they begin; with a walk, what row_starts takes, for addresses kept from before take up registers."""
    if walk is not None:
        rows, _ = row_starts(rows, walk, 0)
    at = rows[:, None] + column[None, :]
    tl.store(at, value.to(at.dtype.element_ty), mask=inside[:, None] & wanted[None, :])


@triton.jit
def keep_chunk(held, kept, chunk, state, step, total, SEGMENT: tl.constexpr, BLOCKS: tl.constexpr):
    """Into the program's scratch. What is read back later lies in whatever order of threads it is then wanted in."""
    HELD: tl.constexpr = BLOCKS[1] * BLOCKS[2]
    token = tl.arange(0, BLOCKS[0])
    within = tl.arange(0, BLOCKS[1])[:, None] * BLOCKS[2] + tl.arange(0, BLOCKS[2])[None, :]
    tl.store(held + chunk * HELD + within, state.to(held.dtype.element_ty))
    tl.store(kept + chunk * BLOCKS[0] + token, step)
    tl.store(kept + (SEGMENT + chunk) * BLOCKS[0] + token, total)


@triton.jit
def turned_state_after(x, step, total, whole, b, state, OPERANDS: tl.constexpr):
    """[channels, state]"""
    reached = b.to(tl.float32) * (step * tl.exp2(whole - total))[:, None]
    return tl.exp2(whole) * state + matmul(tl.trans(x), reached, OPERANDS)


@triton.jit
def chunk_back(
    x, b, c, grad, to_x, to_b, to_c, walk, columns, inside, skip, held, kept, chunk, after,
    OPERANDS: tl.constexpr, SEGMENT: tl.constexpr, BLOCKS: tl.constexpr, D_OF_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Back through a chunk. x, b, c, grad (of y), to_x, to_b, to_c: where their rows begin; the last three, if there is
    a walk, as row_starts takes them. columns: those of x, of grad, of to_x, of b and c, of to_b, of to_c, and which
    channels and which numbers of the state are real.

    Returns the gradient of the state before, and for each token those of the step where it scales x and of rate * step,
    and its part of D's; with D_OF_CHANNELS that is for each channel instead, as is skip.
    """
    HELD: tl.constexpr = BLOCKS[1] * BLOCKS[2]
    BLOCK_T: tl.constexpr = BLOCKS[0]
    of_x, of_y, to_x_columns, of_b, to_b_columns, to_c_columns, wanted, real = columns
    token = tl.arange(0, BLOCK_T)
    within = tl.arange(0, BLOCKS[1])[:, None] * BLOCKS[2] + tl.arange(0, BLOCKS[2])[None, :]
    steps = kept + chunk * BLOCK_T
    totals = steps + SEGMENT * BLOCK_T
    whole = tl.load(totals + BLOCK_T - 1)

    total = tl.load(totals + token)
    decays = chunk_decays(total)
    values = from_rows(x, of_x, inside, wanted).to(OPERANDS)
    dy = from_rows(grad, of_y, inside, wanted).to(OPERANDS)
    scores = matmul(dy, tl.trans(values), OPERANDS) * tl.load(steps + token)[None, :]
    keys = from_rows(b, of_b, inside, real).to(OPERANDS)
    queries = from_rows(c, of_b, inside, real).to(OPERANDS)
    weights = matmul(queries, tl.trans(keys), OPERANDS) * decays
    # What a pair of tokens adds for i and takes for j is one number: rounded apart, their difference would be noise.
    flow = weights * scores
    of_total = tl.sum(flow, axis=1)
    of_total -= tl.sum(flow, axis=0)
    of_scores = (scores * decays).to(OPERANDS)
    weights = weights.to(OPERANDS)
    if BLOCKS[2] < 64:  # of parts as short as these the assembler makes one, with what each of them needs in registers
        tl.debug_barrier()

    total = tl.load(totals + token)  # again, now and below: what is loaded late takes up no registers before
    before = tl.load(held + chunk * HELD + within)
    of_whole = tl.exp2(whole) * tl.sum(before.to(tl.float32) * after)
    dy = from_rows(grad, of_y, inside, wanted).to(OPERANDS)
    carried = matmul(dy, before, OPERANDS) * tl.exp2(total)[:, None]
    of_since = tl.sum(from_rows(c, of_b, inside, real).to(tl.float32) * carried, axis=1)
    keys = from_rows(b, of_b, inside, real).to(OPERANDS)
    carried += matmul(of_scores, keys, OPERANDS)
    to_rows(to_c, walk, to_c_columns, inside, real, carried)

    total = tl.load(totals + token)
    values = from_rows(x, of_x, inside, wanted).to(OPERANDS)
    dy = from_rows(grad, of_y, inside, wanted).to(OPERANDS)
    turned_scores = (matmul(values, tl.trans(dy), OPERANDS) * turned_decays(total, total)).to(OPERANDS)
    carried = matmul(values, after, OPERANDS) * tl.exp2(whole - total)[:, None]
    of_until = tl.sum(from_rows(b, of_b, inside, real).to(tl.float32) * carried, axis=1)
    queries = from_rows(c, of_b, inside, real).to(OPERANDS)
    carried += matmul(turned_scores, queries, OPERANDS)
    to_rows(to_b, walk, to_b_columns, inside, real, carried * tl.load(steps + token)[:, None])

    # rate * step of a token is in all decays since then, and in that of what came before until the chunk's end.
    of_until *= tl.load(steps + token)
    of_decay = tl.cumsum(of_total + of_since, axis=0, reverse=True) + tl.cumsum(of_until, axis=0) - of_until + of_whole
    total = tl.load(totals + token)
    keys = from_rows(b, of_b, inside, real).to(OPERANDS)
    dy = from_rows(grad, of_y, inside, wanted).to(OPERANDS)
    turned = matmul(after, tl.trans(keys), OPERANDS) * tl.exp2(whole - total)[None, :]
    turned += matmul(tl.trans(dy), weights, OPERANDS)
    of_stepped = tl.trans(turned)
    values_wide = from_rows(x, of_x, inside, wanted).to(tl.float32)
    dy_wide = dy.to(tl.float32)
    of_step = tl.sum(of_stepped * values_wide, axis=1)
    grad_x = of_stepped * tl.load(steps + token)[:, None]
    if D_OF_CHANNELS:
        of_skip = tl.sum(dy_wide * values_wide, axis=0)
        grad_x += skip[None, :] * dy_wide
    else:
        of_skip = tl.sum(dy_wide * values_wide, axis=1)
        grad_x += skip * dy_wide
    total = tl.load(totals + token)
    since = from_rows(c, of_b, inside, real).to(tl.float32) * tl.exp2(total)[:, None]
    after = tl.exp2(whole) * after + matmul(tl.trans(dy), since, OPERANDS)
    tl.debug_barrier()  # grad may be the same memory
    to_rows(to_x, walk, to_x_columns, inside, wanted, grad_x)
    return after, of_step, of_decay, of_skip


@triton.jit
def end_of_run(boundaries, after, BLOCKS: tl.constexpr):
    """The gradient of the state that the program's run ends with, given that of its sequence: [channels, state]"""
    before_last = tl.num_programs(1) - 2 - tl.program_id(1)
    if before_last >= 0:
        within = tl.arange(0, BLOCKS[1])[:, None] * BLOCKS[2] + tl.arange(0, BLOCKS[2])[None, :]
        number = tl.program_id(0).to(tl.int64) * (tl.num_programs(1) - 1) + before_last
        after = tl.load(boundaries + number * (BLOCKS[1] * BLOCKS[2]) + within)
    return after


@triton.jit(do_not_specialize=["length", "segments", "run_segments"])
def ssd_scan_bwd_kernel(
    x, dt, B, C, grad_y, grad_x, A, D, dt_bias, initial, grad_final, grad_initial, states, boundaries, held, kept,
    of_B, of_C, of_dt, of_A, of_D, of_bias, length, segments, run_segments,
    SIZES: tl.constexpr, BLOCKS: tl.constexpr, SEGMENT: tl.constexpr, CUT: tl.constexpr, SOFTPLUS: tl.constexpr,
    D_OF_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Programs and tensors as in ssd_scan_fwd_kernel. grad_y: of y before its gate; grad_x may be the same memory.

    of_A, of_bias, of_D: (batch, parts, runs, heads) float32, but with D_OF_CHANNELS of_D is (batch, runs, heads,
    head_dim).
    states may be None if there is one segment.
    """
    BLOCK_T: tl.constexpr = BLOCKS[0]
    BLOCK_P: tl.constexpr = BLOCKS[1]
    BLOCK_N: tl.constexpr = BLOCKS[2]
    HEADS: tl.constexpr = SIZES[0]
    STATE: tl.constexpr = SIZES[3]
    PARTS: tl.constexpr = (SIZES[1] + BLOCK_P - 1) // BLOCK_P
    OPERANDS: tl.constexpr = x[0].dtype.element_ty
    batch, head, group, part, channel, wanted = place_of_program(tl.program_id(0), SIZES, BLOCKS)
    batches = tl.num_programs(0) // (PARTS * HEADS)
    program = tl.program_id(0).to(tl.int64)
    worker = program
    first_segment, behind = 0, segments
    if CUT is not None:
        worker = program * tl.num_programs(1) + tl.program_id(1)
        first_segment = tl.program_id(1) * run_segments
        behind = tl.minimum(first_segment + run_segments, segments)
    n = tl.arange(0, BLOCK_N)
    real = n < STATE
    rate = tl.load(A + head).to(tl.float32)
    bias = 0.0
    if dt_bias is not None:
        bias = tl.load(dt_bias + head).to(tl.float32)
    skip = 0.0
    if D is not None:
        if D_OF_CHANNELS:
            skip = tl.load(D[0] + head * D[1] + channel * D[2], mask=wanted, other=0.0).to(tl.float32)
        else:
            skip = tl.load(D[0] + head * D[1]).to(tl.float32)
    of_state = (batch.to(tl.int64) * HEADS + head) * (SIZES[1] * STATE) + (channel[:, None] * STATE + n[None, :])
    there = wanted[:, None] & real[None, :]
    within = tl.arange(0, BLOCK_P)[:, None] * BLOCK_N + n[None, :]
    held += worker * (SEGMENT * BLOCK_P * BLOCK_N)
    kept += worker * (SEGMENT * 2 * BLOCK_T)
    share = (head % (HEADS // SIZES[2]) * PARTS + part).to(tl.int64) * batches + batch
    to_b = (of_B + share * length * (SIZES[2] * STATE) + group * STATE, SIZES[2] * STATE)
    to_c = (of_C + share * length * (SIZES[2] * STATE) + group * STATE, SIZES[2] * STATE)
    of_dt += (part.to(tl.int64) * batches + batch) * length * HEADS + head
    after = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    if grad_final is not None:
        after = tl.load(grad_final + of_state, mask=there, other=0.0).to(tl.float32)
    if CUT is not None:
        after = end_of_run(boundaries, after, BLOCKS)
    sum_rate = tl.zeros([BLOCK_T], tl.float32)
    sum_bias = tl.zeros([BLOCK_T], tl.float32)
    sum_skip = tl.zeros([BLOCK_P if D_OF_CHANNELS else BLOCK_T], tl.float32)
    for back in tl.range(0, behind - first_segment, disable_licm=True):
        segment = behind - 1 - back
        start = segment * (SEGMENT * BLOCK_T)
        chunks = tl.minimum(tl.cdiv(length - start, BLOCK_T), SEGMENT)
        state = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
        if states is not None:
            state = tl.load(states + (program * segments + segment) * (BLOCK_P * BLOCK_N) + within)
        elif initial is not None:
            state = tl.load(initial + of_state, mask=there, other=0.0).to(tl.float32)
        for chunk in tl.range(0, chunks, disable_licm=True):
            first = start + chunk * BLOCK_T
            inside = first + tl.arange(0, BLOCK_T) < length
            _, step = sequence_steps(sequence_of(dt, batch, head), first, inside, bias, SOFTPLUS)
            total, whole = chunk_decay(step, rate)
            keep_chunk(held, kept, chunk, state, step, total, SEGMENT, BLOCKS)
            values = tile_of(sequence_of(x, batch, head), first, inside, channel, wanted)
            b = tile_of(sequence_of(B, batch, group), first, inside, n, real)
            state = turned_state_after(values, step, total, whole, b, state, OPERANDS)
        tl.debug_barrier()  # what follows reads what other threads of this program have written
        for later in tl.range(0, chunks, disable_licm=True):
            chunk = chunks - 1 - later
            first = start + chunk * BLOCK_T
            inside = first + tl.arange(0, BLOCK_T) < length
            after, of_step, of_decay, of_skip = chunk_back(
                token_rows(sequence_of(x, batch, head), first, BLOCK_T),
                token_rows(sequence_of(B, batch, group), first, BLOCK_T),
                token_rows(sequence_of(C, batch, group), first, BLOCK_T),
                token_rows(sequence_of(grad_y, batch, head), first, BLOCK_T),
                token_rows(sequence_of(grad_x, batch, head), first, BLOCK_T),
                token_rows(to_b, first, BLOCK_T),
                token_rows(to_c, first, BLOCK_T),
                None,
                (channel, channel, channel, n, n, n, wanted, real),
                *(inside, skip, held, kept, chunk, after, OPERANDS, SEGMENT, BLOCKS, D_OF_CHANNELS),
            )
            raw, step = sequence_steps(sequence_of(dt, batch, head), first, inside, bias, SOFTPLUS)
            sum_rate += of_decay * step
            sum_skip += of_skip
            of_step += of_decay * rate
            if SOFTPLUS:
                of_step *= sigmoid(raw)
            of_step = tl.where(inside, of_step, 0.0)
            sum_bias += of_step
            tl.store(of_dt + (first + tl.arange(0, BLOCK_T)).to(tl.int64) * HEADS, of_step, mask=inside)
        tl.debug_barrier()  # before the next segment writes the scratch anew
    if grad_initial is not None:
        if first_segment == 0:
            tl.store(grad_initial + of_state, after.to(grad_initial.dtype.element_ty), mask=there)
    row = batch.to(tl.int64) * PARTS + part
    skip_row = batch.to(tl.int64)
    if CUT is not None:
        row = row * tl.num_programs(1) + tl.program_id(1)
        skip_row = skip_row * tl.num_programs(1) + tl.program_id(1)
    row = row * HEADS + head
    tl.store(of_A + row, tl.sum(sum_rate, axis=0))
    if dt_bias is not None:
        tl.store(of_bias + row, tl.sum(sum_bias, axis=0))
    if D is not None:
        if D_OF_CHANNELS:
            tl.store(of_D + (skip_row * HEADS + head) * SIZES[1] + channel, sum_skip, mask=wanted)
        else:
            tl.store(of_D + row, tl.sum(sum_skip, axis=0))
