"""Sequences cut into runs, where whole ones would be too few programs: what lies between the launches over the runs.

chunk_kernels.py says how they are cut. The way back is the same from the end: each run but the first walks back from
zero, with the gradient of the state that it begins with and its decay as the results; these are chained; then all runs
go back at once, each from the gradient of the state that it ends with.
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.scan.chunk_kernels import (
    activated,
    chunk_decay,
    place_of_program,
    sequence_of,
    sequence_steps,
    tile_of,
    walk_of,
    walk_steps,
)
from medsora_ops.scan.norm_kernels import load_gate, sums_along, through_norm
from medsora_ops.scan.walk_kernels import rows_before
from medsora_ops.triton_math import matmul


@triton.jit(do_not_specialize=["count"])
def scan_chain_runs_kernel(boundaries, decays, count, HELD: tl.constexpr, BLOCK: tl.constexpr):
    """To each state of (programs, count, HELD), in order, comes what its run's decay leaves of the one before.

    One program a BLOCK numbers of a state.
    """
    PIECES: tl.constexpr = HELD // BLOCK
    program = (tl.program_id(0) // PIECES).to(tl.int64)
    at = boundaries + program * count * HELD + tl.program_id(0) % PIECES * BLOCK + tl.arange(0, BLOCK)
    decays += program * count
    state = tl.load(at)
    for run in range(1, count):
        at += HELD
        state = tl.load(at) + tl.load(decays + run) * state
        tl.store(at, state)


@triton.jit
def run_from_end(run_segments, length, SEGMENT: tl.constexpr, BLOCKS: tl.constexpr):
    """The first token of the program's run, which is the program_id(1)-th from the end, and how many chunks it has."""
    chunks = run_segments * SEGMENT
    begin = (tl.num_programs(1) - tl.program_id(1)) * chunks * BLOCKS[0]
    return begin, tl.minimum(tl.cdiv(length - begin, BLOCKS[0]), chunks)


@triton.jit
def turned_state_before(dy, total, whole, c, after, OPERANDS: tl.constexpr):
    """The gradient of the state before a chunk, of what comes through that: [channels, state]"""
    since = c.to(tl.float32) * tl.exp2(total)[:, None]
    return tl.exp2(whole) * after + matmul(tl.trans(dy.to(OPERANDS)), since, OPERANDS)


@triton.jit
def store_start(boundaries, decays, after, total, BLOCKS: tl.constexpr):
    within = tl.arange(0, BLOCKS[1])[:, None] * BLOCKS[2] + tl.arange(0, BLOCKS[2])[None, :]
    number = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(boundaries + number * (BLOCKS[1] * BLOCKS[2]) + within, after)
    tl.store(decays + number, tl.exp2(total))


@triton.jit(do_not_specialize=["length", "run_segments"])
def ssd_scan_run_bwd_kernel(
    dt, C, grad_y, A, dt_bias, grad_final, boundaries, decays, length, run_segments,
    SIZES: tl.constexpr, BLOCKS: tl.constexpr, SEGMENT: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """One program a run but the first, the last runs first. Tensors as in ssd_scan_bwd_kernel."""
    BLOCK_T: tl.constexpr = BLOCKS[0]
    BLOCK_P: tl.constexpr = BLOCKS[1]
    BLOCK_N: tl.constexpr = BLOCKS[2]
    OPERANDS: tl.constexpr = grad_y[0].dtype.element_ty
    begin, chunks = run_from_end(run_segments, length, SEGMENT, BLOCKS)
    batch, head, group, part, channel, wanted = place_of_program(tl.program_id(0), SIZES, BLOCKS)
    n = tl.arange(0, BLOCK_N)
    real = n < SIZES[3]
    rate = tl.load(A + head).to(tl.float32)
    bias = 0.0
    if dt_bias is not None:
        bias = tl.load(dt_bias + head).to(tl.float32)
    after = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    if grad_final is not None:
        if tl.program_id(1) == 0:
            of_state = (batch.to(tl.int64) * SIZES[0] + head) * (SIZES[1] * SIZES[3])
            at = grad_final + of_state + (channel[:, None] * SIZES[3] + n[None, :])
            after = tl.load(at, mask=wanted[:, None] & real[None, :], other=0.0).to(tl.float32)
    run_total = 0.0
    for later in tl.range(0, chunks, disable_licm=True):
        first = begin + (chunks - 1 - later) * BLOCK_T
        inside = first + tl.arange(0, BLOCK_T) < length
        _, step = sequence_steps(sequence_of(dt, batch, head), first, inside, bias, SOFTPLUS)
        total, whole = chunk_decay(step, rate)
        dy = tile_of(sequence_of(grad_y, batch, head), first, inside, channel, wanted)
        c = tile_of(sequence_of(C, batch, group), first, inside, n, real)
        after = turned_state_before(dy, total, whole, c, after, OPERANDS)
        run_total += whole
    store_start(boundaries, decays, after, run_total, BLOCKS)


@triton.jit(do_not_specialize=["positions", "length", "sequences", "stride", "run_segments"])
def path_scan_run_bwd_kernel(
    rows, video_stride, token_stride, conv_weight, conv_bias, dt_bias, A, y, positions, norm, of_out,
    boundaries, decays, table, length, sequences, stride, run_segments,
    DIRECTIONS: tl.constexpr, SIZES: tl.constexpr, BLOCKS: tl.constexpr, SEGMENT: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """Programs as in ssd_scan_run_bwd_kernel, tensors as in path_scan_chunk_bwd_kernel."""
    BLOCK_T: tl.constexpr = BLOCKS[0]
    BLOCK_P: tl.constexpr = BLOCKS[1]
    BLOCK_N: tl.constexpr = BLOCKS[2]
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    STATES: tl.constexpr = SIZES[2] * SIZES[3]
    OPERANDS: tl.constexpr = rows.dtype.element_ty
    given = (rows, video_stride, token_stride)
    filters = (conv_weight, conv_bias)
    begin, chunks = run_from_end(run_segments, length, SEGMENT, BLOCKS)
    sequence, head, group, part, channel, wanted = place_of_program(tl.program_id(0), SIZES, BLOCKS)
    direction = sequence % DIRECTIONS
    tokens = tl.cast(sequences * length, tl.int64)
    mixed = (y + direction.to(tl.int64) * positions * WIDTH, tokens * WIDTH, WIDTH)
    norm = sums_along(norm, direction, positions, tokens, SIZES, BLOCKS, NORMED)
    n = tl.arange(0, BLOCK_N)
    real = n < SIZES[3]
    rate = tl.load(A + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32)
    of_x = head * SIZES[1] + channel
    of_c = WIDTH + STATES + group * SIZES[3] + n
    after = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    run_total = 0.0
    for later in tl.range(0, chunks, disable_licm=True):
        first = begin + (chunks - 1 - later) * BLOCK_T
        walk = walk_of(sequence // DIRECTIONS, table, first, length, sequences, stride, direction == 1, BLOCK_T)
        _, step = walk_steps(given, walk, bias, 2 * WIDTH + 2 * STATES + head)
        total, whole = chunk_decay(step, rate)
        gate = load_gate(given, of_out, norm, walk, of_x, wanted)
        values = rows_before(mixed, walk, of_x, wanted, 0)
        dy, _, _ = through_norm(values, gate, norm, walk, head, part, of_x, SIZES, BLOCKS, NORMED)
        c = activated(given, walk, filters, of_c, real, WIDTH, SIZES[4])
        after = turned_state_before(dy, total, whole, c, after, OPERANDS)
        run_total += whole
    store_start(boundaries, decays, after, run_total, BLOCKS)
