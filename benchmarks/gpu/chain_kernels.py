"""The forward kernels of the chain in chain.py, one stage each, as a pipeline of Mamba-2 has them.

Tokens lie sequence after sequence, (sequences * length, channels); a chunk is `chunk` tokens of one sequence, and no
chunk goes over a sequence's end. One group: all heads share B and C.

cum    (tokens, heads) float32: sums of dt * A from the beginning of the chunk, the token itself included
SIZES  heads, head_dim, state
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.triton_math import LOG2E, matmul, product, sigmoid, softplus


@triton.jit
def multiply(a, b, OPERANDS: tl.constexpr):
    """As the library's `matmul`, but for its loop in float32, around which no loads would go ahead of time."""
    return product(a, b) if OPERANDS == tl.float32 else matmul(a, b, OPERANDS)


@triton.jit
def exponential(x):
    return tl.exp2(x * LOG2E)


@triton.jit
def load_tile(pointer, stride, row, rows, column, columns):
    """[rows, columns] float32, zero outside."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(pointer + row[:, None] * stride + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_turned(pointer, stride, row, rows, column, columns):
    """[columns, rows]: the same numbers read the other way round; no product's transpose is ever taken."""
    mask = (column < columns)[:, None] & (row < rows)[None, :]
    return tl.load(pointer + row[None, :] * stride + column[:, None], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_column(pointer, stride, row, rows):
    return tl.load(pointer + row * stride, mask=row < rows, other=0.0).to(tl.float32)


@triton.jit
def convolution(rows, row_stride, weights, biases, token, tokens, length, channel,
                WIDTH: tl.constexpr, MIXED: tl.constexpr, TAPS: tl.constexpr):  # fmt: skip
    """The causal convolution of (x, B, C) before its SiLU: [tokens, channels]."""
    wanted = channel < MIXED
    total = tl.zeros([token.shape[0], channel.shape[0]], tl.float32)
    for back in tl.static_range(TAPS):
        mask = ((token % length >= back) & (token < tokens))[:, None] & wanted[None, :]
        at = rows + (token - back)[:, None] * row_stride + WIDTH + channel[None, :]
        weight = tl.load(weights + channel * TAPS + TAPS - 1 - back, mask=wanted, other=0.0).to(tl.float32)
        total += tl.load(at, mask=mask, other=0.0).to(tl.float32) * weight[None, :]
    return total + tl.load(biases + channel, mask=wanted, other=0.0).to(tl.float32)[None, :]


@triton.jit
def chain_conv_fwd_kernel(rows, row_stride, weights, biases, out, tokens, length,
                          WIDTH: tl.constexpr, MIXED: tl.constexpr, TAPS: tl.constexpr,
                          BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """Stage 1: convolution and SiLU; out (tokens, MIXED)."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mixed = convolution(rows, row_stride, weights, biases, token, tokens, length, channel, WIDTH, MIXED, TAPS)
    mask = (token < tokens)[:, None] & (channel < MIXED)[None, :]
    mixed *= sigmoid(mixed)
    tl.store(out + token[:, None] * MIXED + channel[None, :], mixed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def chain_cumsum_fwd_kernel(raw, row_stride, dt_bias, A, dt, cum, chunk,
                            HEADS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr):  # fmt: skip
    """Stage 2: dt = softplus(raw + bias) and cum; one program a chunk."""
    row, head = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H)
    first = tl.program_id(0).to(tl.int64) * chunk
    mask = (row < chunk)[:, None] & (head < HEADS)[None, :]
    bias = tl.load(dt_bias + head, mask=head < HEADS, other=0.0).to(tl.float32)
    rate = tl.load(A + head, mask=head < HEADS, other=0.0).to(tl.float32)
    step = softplus(load_tile(raw + first * row_stride, row_stride, row, chunk, head, HEADS) + bias[None, :])
    step = tl.where(mask, step, 0.0)
    at = first * HEADS + row[:, None] * HEADS + head[None, :]
    tl.store(dt + at, step, mask=mask)
    tl.store(cum + at, tl.cumsum(step * rate[None, :], axis=0), mask=mask)


@triton.jit
def weight_of(dt, cum, chunk, row, HEADS: tl.constexpr, TO_END: tl.constexpr):
    """Of each token of a chunk: dt * exp(from it to the chunk's end), or exp(from the beginning to it)."""
    reached = load_column(cum, HEADS, row, chunk)
    if TO_END:
        last = tl.load(cum + (chunk - 1) * HEADS)
        return load_column(dt, HEADS, row, chunk) * exponential(tl.minimum(last - reached, 0.0))
    return exponential(reached)


@triton.jit
def chain_states_kernel(values, value_stride, keys, key_stride, dt, cum, out, chunk,
                        SIZES: tl.constexpr, TO_END: tl.constexpr,
                        BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """Stage 3: sum of weight * value key^T over a chunk, (chunks, heads, head_dim, state); a program a chunk and head.

    Forward of x and B, to the chunk's end; on the way back of dy and C, from its beginning.
    """
    HEADS: tl.constexpr = SIZES[0]
    HEAD_DIM: tl.constexpr = SIZES[1]
    STATE: tl.constexpr = SIZES[2]
    head = tl.program_id(0) % HEADS
    first = (tl.program_id(0) // HEADS).to(tl.int64) * chunk
    p, s = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_S)
    total = tl.zeros([BLOCK_P, BLOCK_S], tl.float32)
    for begin in tl.range(0, chunk, BLOCK_T):
        row = begin + tl.arange(0, BLOCK_T)
        weight = weight_of(dt + first * HEADS + head, cum + first * HEADS + head, chunk, row, HEADS, TO_END)
        value = load_turned(values + first * value_stride + head * HEAD_DIM, value_stride, row, chunk, p, HEAD_DIM)
        key = load_tile(keys + first * key_stride, key_stride, row, chunk, s, STATE)
        total += multiply(value * weight[None, :], key, values.dtype.element_ty)
    at = out + tl.program_id(0).to(tl.int64) * (HEAD_DIM * STATE) + p[:, None] * STATE + s[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(p < HEAD_DIM)[:, None] & (s < STATE)[None, :])


@triton.jit
def chain_pass_fwd_kernel(states, cum, before, chunk, chunks, HEADS: tl.constexpr, SIZE: tl.constexpr,
                          BLOCK: tl.constexpr):  # fmt: skip
    """Stage 4: the state before each chunk of a sequence, (sequences, chunks, heads, SIZE), from what chunks add."""
    head = tl.program_id(0) % HEADS
    sequence = (tl.program_id(0) // HEADS).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state = tl.zeros([BLOCK], tl.float32)
    for number in tl.range(chunks):
        whole = sequence * chunks + number
        at = (whole * HEADS + head) * SIZE + column
        tl.store(before + at, state.to(before.dtype.element_ty), mask=column < SIZE)
        last = tl.load(cum + (whole * chunk + chunk - 1) * HEADS + head)
        state = state * exponential(last) + tl.load(states + at, mask=column < SIZE, other=0.0).to(tl.float32)


@triton.jit
def chain_scan_fwd_kernel(mixed, mixed_stride, scores, dt, cum, before, D, out, chunk,
                          SIZES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
                          BLOCK_S: tl.constexpr):  # fmt: skip
    """Stage 5: y (tokens, E) from the scores C B^T of a chunk and the state before it.

    mixed: (x, B, C). One program a chunk and head, and BLOCK_T of the chunk's tokens.
    """
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
    dt += first * HEADS + head
    cum += first * HEADS + head
    reached = load_column(cum, HEADS, row, chunk)
    state = load_turned(
        before + tl.program_id(0).to(tl.int64) * (HEAD_DIM * STATE), STATE, p, HEAD_DIM, s, STATE
    )  # fmt: skip
    queries = load_tile(mixed + WIDTH + STATE, mixed_stride, row, chunk, s, STATE)
    y = multiply(queries, state, mixed.dtype.element_ty) * exponential(reached)[:, None]
    for begin in tl.range(0, (tl.program_id(1) + 1) * BLOCK_T, BLOCK_T):
        other = begin + tl.arange(0, BLOCK_T)
        score = load_tile(scores + number * chunk * chunk, chunk, row, chunk, other, chunk)
        distance = tl.minimum(reached[:, None] - load_column(cum, HEADS, other, chunk)[None, :], 0.0)
        weight = exponential(distance) * load_column(dt, HEADS, other, chunk)[None, :]
        weight = tl.where(row[:, None] >= other[None, :], score * weight, 0.0)
        x = load_tile(mixed + head * HEAD_DIM, mixed_stride, other, chunk, p, HEAD_DIM)
        y += multiply(weight, x, mixed.dtype.element_ty)
    own = load_tile(mixed + head * HEAD_DIM, mixed_stride, row, chunk, p, HEAD_DIM)
    y += own * tl.load(D + head).to(tl.float32)
    at = out + first * WIDTH + row[:, None] * WIDTH + head * HEAD_DIM + p[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=(row < chunk)[:, None] & (p < HEAD_DIM)[None, :])


@triton.jit
def chain_norm_fwd_kernel(y, rows, row_stride, norm_weight, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Last: RMSNorm(y * silu(z)) * norm_weight; one program a token."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    wanted = channel < WIDTH
    z = tl.load(rows + token * row_stride + channel, mask=wanted, other=0.0).to(tl.float32)
    gated = tl.load(y + token * WIDTH + channel, mask=wanted, other=0.0).to(tl.float32) * z * sigmoid(z)
    gated *= tl.rsqrt(tl.sum(gated * gated, axis=0) / WIDTH + eps)
    gated *= tl.load(norm_weight + channel, mask=wanted, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + channel, gated.to(out.dtype.element_ty), mask=wanted)
