"""The kernels of the chain's way back; layouts as in chain_kernels.py, which has what both ways use."""

from __future__ import annotations

import triton
import triton.language as tl

from benchmarks.gpu.chain_kernels import (
    convolution,
    exponential,
    load_column,
    load_tile,
    load_turned,
    multiply,
    weight_of,
)
from medsora_ops.triton_math import sigmoid, silu_slope


@triton.jit
def chain_norm_bwd_kernel(y, rows, row_stride, norm_weight, grad, grad_y, grad_rows, of_weight, eps, tokens, workers,
                          WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Gradients of y and z, and of norm_weight one sum a program, (workers, E), which takes every workers-th token."""
    channel = tl.arange(0, BLOCK)
    wanted = channel < WIDTH
    weight = tl.load(norm_weight + channel, mask=wanted, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for token in tl.range(tl.program_id(0), tokens, workers):
        own = tl.cast(token, tl.int64)
        z = tl.load(rows + own * row_stride + channel, mask=wanted, other=0.0).to(tl.float32)
        before = tl.load(y + own * WIDTH + channel, mask=wanted, other=0.0).to(tl.float32)
        of_out = tl.load(grad + own * WIDTH + channel, mask=wanted, other=0.0).to(tl.float32)
        opened = sigmoid(z)
        gated = before * z * opened
        scale = tl.rsqrt(tl.sum(gated * gated, axis=0) / WIDTH + eps)
        normed = gated * scale
        total += of_out * normed
        scaled = of_out * weight
        of_gated = scale * (scaled - normed * (tl.sum(scaled * normed, axis=0) / WIDTH))
        of_y, of_z = of_gated * z * opened, of_gated * before * silu_slope(z, opened)
        tl.store(grad_y + own * WIDTH + channel, of_y.to(grad_y.dtype.element_ty), mask=wanted)
        tl.store(grad_rows + own * row_stride + channel, of_z.to(grad_rows.dtype.element_ty), mask=wanted)
    tl.store(of_weight + tl.program_id(0) * WIDTH + channel, total, mask=wanted)


@triton.jit
def chain_scores_bwd_kernel(grad_y, mixed, mixed_stride, scores, dt, cum, grad_scores, of_rows, of_columns, chunk,
                            tokens, SIZES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """The gradient of the scores, summed over heads; for dt and cum the sums of gradient * weight over each row and
    each column of a chunk, (blocks, tokens, heads). A program a chunk and a block of BLOCK_T x BLOCK_T pairs.
    """
    HEADS: tl.constexpr = SIZES[0]
    HEAD_DIM: tl.constexpr = SIZES[1]
    WIDTH: tl.constexpr = HEADS * HEAD_DIM
    blocks = tl.cdiv(chunk, BLOCK_T)
    number = tl.program_id(0).to(tl.int64)
    first = number * chunk
    row_block, column_block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    row = row_block * BLOCK_T + tl.arange(0, BLOCK_T)
    other = column_block * BLOCK_T + tl.arange(0, BLOCK_T)
    p = tl.arange(0, BLOCK_P)
    score = load_tile(scores + number * chunk * chunk, chunk, row, chunk, other, chunk)
    seen = (row[:, None] >= other[None, :]) & (row < chunk)[:, None]
    total = tl.zeros([BLOCK_T, BLOCK_T], tl.float32)
    for head in tl.range(HEADS):
        of_y = load_tile(grad_y + first * WIDTH + head * HEAD_DIM, WIDTH, row, chunk, p, HEAD_DIM)
        x = load_turned(mixed + first * mixed_stride + head * HEAD_DIM, mixed_stride, other, chunk, p, HEAD_DIM)
        at = first * HEADS + head
        reached = load_column(cum + at, HEADS, row, chunk)
        distance = tl.minimum(reached[:, None] - load_column(cum + at, HEADS, other, chunk)[None, :], 0.0)
        weight = exponential(distance) * load_column(dt + at, HEADS, other, chunk)[None, :]
        found = multiply(of_y, x, mixed.dtype.element_ty) * tl.where(seen, weight, 0.0)
        total += found
        found *= score
        in_rows, in_columns = (first + row) * HEADS + head, (first + other) * HEADS + head
        tl.store(of_rows + column_block * tokens * HEADS + in_rows, tl.sum(found, axis=1), mask=row < chunk)
        tl.store(of_columns + row_block * tokens * HEADS + in_columns, tl.sum(found, axis=0), mask=other < chunk)
    mask = (row < chunk)[:, None] & (other < chunk)[None, :]
    at = grad_scores + number * chunk * chunk + row[:, None] * chunk + other[None, :]
    tl.store(at, total.to(grad_scores.dtype.element_ty), mask=mask)


@triton.jit
def chain_keys_bwd_kernel(values, value_stride, states, keys, key_stride, dt, cum, out, of_weights, chunk,
                          SIZES: tl.constexpr, TO_END: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
                          BLOCK_S: tl.constexpr):  # fmt: skip
    """What the products with states give to C (of dy and the states before) or to B (of x and the gradients of states).

    out: (tokens, state), the sum of weight * value state over heads. of_weights: (tokens, heads), weight times its own
    gradient. A program a chunk and BLOCK_T of its tokens.
    """
    HEADS: tl.constexpr = SIZES[0]
    HEAD_DIM: tl.constexpr = SIZES[1]
    STATE: tl.constexpr = SIZES[2]
    number = tl.program_id(0).to(tl.int64)
    first = number * chunk
    row = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    p, s = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_S)
    key = load_tile(keys + first * key_stride, key_stride, row, chunk, s, STATE)
    total = tl.zeros([BLOCK_T, BLOCK_S], tl.float32)
    for head in tl.range(HEADS):
        value = load_tile(values + first * value_stride + head * HEAD_DIM, value_stride, row, chunk, p, HEAD_DIM)
        state = load_tile(states + (number * HEADS + head) * (HEAD_DIM * STATE), STATE, p, HEAD_DIM, s, STATE)
        weight = weight_of(dt + first * HEADS + head, cum + first * HEADS + head, chunk, row, HEADS, TO_END)
        found = multiply(value, state, values.dtype.element_ty) * weight[:, None]
        total += found
        tl.store(of_weights + (first + row) * HEADS + head, tl.sum(found * key, axis=1), mask=row < chunk)
    at = out + first * STATE + row[:, None] * STATE + s[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(row < chunk)[:, None] & (s < STATE)[None, :])


@triton.jit
def chain_pass_bwd_kernel(grad_before, before, cum, grad_states, of_last, chunk, chunks, sequences,
                          HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """From the gradients of the states before each chunk to those of what chunks add; of_last: (blocks, chunks, heads),
    shares of the gradient of cum at each chunk's end.
    """
    head = tl.program_id(0) % HEADS
    sequence = (tl.program_id(0) // HEADS).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    carried = tl.zeros([BLOCK], tl.float32)
    for back in tl.range(chunks):
        whole = sequence * chunks + chunks - 1 - back
        at = (whole * HEADS + head) * SIZE + column
        tl.store(grad_states + at, carried.to(grad_states.dtype.element_ty), mask=column < SIZE)
        kept = exponential(tl.load(cum + (whole * chunk + chunk - 1) * HEADS + head))
        state = tl.load(before + at, mask=column < SIZE, other=0.0).to(tl.float32)
        share = tl.sum(carried * state, axis=0) * kept
        tl.store(of_last + (tl.program_id(1) * sequences * chunks + whole) * HEADS + head, share)
        carried = carried * kept + tl.load(grad_before + at, mask=column < SIZE, other=0.0).to(tl.float32)


@triton.jit
def chain_values_bwd_kernel(grad_y, mixed, mixed_stride, scores, dt, cum, grad_states, D, grad_mixed, of_D, chunk,
                            SIZES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
                            BLOCK_S: tl.constexpr):  # fmt: skip
    """The gradient of x, and shares of that of D: (chunks * blocks, heads). Programs as in the scan."""
    HEADS: tl.constexpr = SIZES[0]
    HEAD_DIM: tl.constexpr = SIZES[1]
    STATE: tl.constexpr = SIZES[2]
    WIDTH: tl.constexpr = HEADS * HEAD_DIM
    head = tl.program_id(0) % HEADS
    number = (tl.program_id(0) // HEADS).to(tl.int64)
    first = number * chunk
    p, s = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_S)
    row = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    mixed += first * mixed_stride
    grad_y += first * WIDTH + head * HEAD_DIM
    dt += first * HEADS + head
    cum += first * HEADS + head
    of_state = load_turned(
        grad_states + tl.program_id(0).to(tl.int64) * (HEAD_DIM * STATE), STATE, p, HEAD_DIM, s, STATE
    )  # fmt: skip
    keys = load_tile(mixed + WIDTH, mixed_stride, row, chunk, s, STATE)
    weight = weight_of(dt, cum, chunk, row, HEADS, True)
    total = multiply(keys, of_state, mixed.dtype.element_ty) * weight[:, None]
    reached, step = load_column(cum, HEADS, row, chunk), load_column(dt, HEADS, row, chunk)
    for begin in tl.range(tl.program_id(1) * BLOCK_T, chunk, BLOCK_T):
        later = begin + tl.arange(0, BLOCK_T)
        score = load_turned(scores + number * chunk * chunk, chunk, later, chunk, row, chunk)
        distance = tl.minimum(load_column(cum, HEADS, later, chunk)[None, :] - reached[:, None], 0.0)
        pairs = score * exponential(distance) * step[:, None]
        pairs = tl.where((later[None, :] >= row[:, None]) & (later < chunk)[None, :], pairs, 0.0)
        total += multiply(pairs, load_tile(grad_y, WIDTH, later, chunk, p, HEAD_DIM), mixed.dtype.element_ty)
    own = load_tile(grad_y, WIDTH, row, chunk, p, HEAD_DIM)
    total += own * tl.load(D + head).to(tl.float32)
    x = load_tile(mixed + head * HEAD_DIM, mixed_stride, row, chunk, p, HEAD_DIM)
    tl.store(of_D + (number * tl.num_programs(1) + tl.program_id(1)) * HEADS + head, tl.sum(tl.sum(own * x, 1), 0))
    at = grad_mixed + (first + row)[:, None] * mixed_stride + head * HEAD_DIM + p[None, :]
    tl.store(at, total.to(grad_mixed.dtype.element_ty), mask=(row < chunk)[:, None] & (p < HEAD_DIM)[None, :])


@triton.jit
def chain_cumsum_bwd_kernel(dt, A, of_rows, of_columns, of_queries, of_keys, of_last, grad_raw, row_stride, of_A,
                            of_bias, chunk, tokens, blocks, HEADS: tl.constexpr, BLOCK_T: tl.constexpr,
                            BLOCK_H: tl.constexpr):  # fmt: skip
    """The gradient of the raw time steps, and shares of those of A and dt_bias: (chunks, heads). A program a chunk."""
    row, head = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H)
    number = tl.program_id(0).to(tl.int64)
    start = number * chunk * HEADS
    rate = tl.load(A + head, mask=head < HEADS, other=0.0).to(tl.float32)
    step = load_tile(dt + start, HEADS, row, chunk, head, HEADS)
    to_keys = load_tile(of_keys + start, HEADS, row, chunk, head, HEADS)
    of_cum = load_tile(of_queries + start, HEADS, row, chunk, head, HEADS)
    for block in tl.range(blocks):
        of_cum += load_tile(of_rows + block * tokens * HEADS + start, HEADS, row, chunk, head, HEADS)
        to_keys += load_tile(of_columns + block * tokens * HEADS + start, HEADS, row, chunk, head, HEADS)
    from_states = load_tile(of_keys + start, HEADS, row, chunk, head, HEADS)
    last = tl.sum(from_states, axis=0) + tl.load(of_last + number * HEADS + head, mask=head < HEADS, other=0.0)
    of_cum += tl.where((row == chunk - 1)[:, None], last[None, :], 0.0) - to_keys
    of_decay = tl.sum(of_cum, axis=0)[None, :] - tl.cumsum(of_cum, axis=0) + of_cum
    of_step = to_keys / tl.maximum(step, 1e-30) + of_decay * rate[None, :]
    # The slope of softplus is 1 - exp(-softplus).
    of_raw = of_step * (1.0 - exponential(-step))
    mask = (row < chunk)[:, None] & (head < HEADS)[None, :]
    of_raw = tl.where(mask, of_raw, 0.0)
    at = grad_raw + (number * chunk + row)[:, None] * row_stride + head[None, :]
    tl.store(at, of_raw.to(grad_raw.dtype.element_ty), mask=mask)
    of_rate = tl.sum(tl.where(mask, of_decay * step, 0.0), axis=0)
    tl.store(of_A + number * HEADS + head, of_rate, mask=head < HEADS)
    tl.store(of_bias + number * HEADS + head, tl.sum(of_raw, axis=0), mask=head < HEADS)


@triton.jit
def chain_silu_bwd_kernel(grad, rows, row_stride, weights, biases, of_weights, of_biases, tokens, length, workers,
                          WIDTH: tl.constexpr, MIXED: tl.constexpr, TAPS: tl.constexpr, BLOCK_TAPS: tl.constexpr,
                          BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """grad becomes the gradient before the SiLU; weights' and biases' gradients, one sum a program: (workers, ...)."""
    channel, tap = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_TAPS)
    wanted = channel < MIXED
    of_weight = tl.zeros([BLOCK_C, BLOCK_TAPS], tl.float32)
    of_bias = tl.zeros([BLOCK_C], tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(tokens, BLOCK_T), workers):
        token = tl.cast(tile, tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
        before = convolution(rows, row_stride, weights, biases, token, tokens, length, channel, WIDTH, MIXED, TAPS)
        mask = (token < tokens)[:, None] & wanted[None, :]
        at = grad + token[:, None] * MIXED + channel[None, :]
        of_conv = tl.load(at, mask=mask, other=0.0).to(tl.float32) * silu_slope(before, sigmoid(before))
        tl.store(at, of_conv.to(grad.dtype.element_ty), mask=mask)
        of_bias += tl.sum(of_conv, axis=0)
        for back in tl.static_range(TAPS):
            seen = mask & (token % length >= back)[:, None]
            x = tl.load(rows + (token - back)[:, None] * row_stride + WIDTH + channel[None, :], mask=seen, other=0.0)
            share = tl.sum(of_conv * x.to(tl.float32), axis=0)
            of_weight += tl.where((tap == TAPS - 1 - back)[None, :], share[:, None], 0.0)
    start = tl.program_id(0).to(tl.int64) * MIXED
    at = of_weights + (start + channel)[:, None] * TAPS + tap[None, :]
    tl.store(at, of_weight, mask=wanted[:, None] & (tap < TAPS)[None, :])
    tl.store(of_biases + start + channel, of_bias, mask=wanted)


@triton.jit
def chain_conv_bwd_kernel(grad, weights, grad_rows, row_stride, tokens, length,
                          WIDTH: tl.constexpr, MIXED: tl.constexpr, TAPS: tl.constexpr,
                          BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """The gradient of the rows' (x, B, C) from that of the convolution's result."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    wanted = channel < MIXED
    total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for ahead in tl.static_range(TAPS):
        mask = ((token % length + ahead < length) & (token < tokens))[:, None] & wanted[None, :]
        weight = tl.load(weights + channel * TAPS + TAPS - 1 - ahead, mask=wanted, other=0.0).to(tl.float32)
        later = tl.load(grad + (token + ahead)[:, None] * MIXED + channel[None, :], mask=mask, other=0.0)
        total += later.to(tl.float32) * weight[None, :]
    mask = (token < tokens)[:, None] & wanted[None, :]
    at = grad_rows + token[:, None] * row_stride + WIDTH + channel[None, :]
    tl.store(at, total.to(grad_rows.dtype.element_ty), mask=mask)
