"""What a program of the tile kernels' gradient keeps in memory of its own, instead of in registers.

Registers are what it lacks. What a loop needs only at times is stored before it and read again, in whatever layout it
is wanted then, also what is wanted transposed. A barrier stands between: threads read what others have written.

    numbers    rows of BLOCK_T float32: those named below, then of each head the sums of u^2 and of u * d(norm's
               result), then one tile of a gradient, (BLOCK_T, numbers of the state or channels at a time)
    square     in the operands' type: a square matrix's transpose and the matrix itself, (2, BLOCK_T, BLOCK_T), and
               behind them one head's x, (BLOCK_T, BLOCK_P)
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.triton_math import anew

VIDEO = tl.constexpr(0)  # of the walk, with START and PLACE; -1 for tokens that are not there
START = tl.constexpr(1)
PLACE = tl.constexpr(2)
STEP = tl.constexpr(3)
TOTAL = tl.constexpr(4)  # log2 of the decay since the sequence's start
OF_STEP = tl.constexpr(5)
OF_SUM = tl.constexpr(6)  # gradient of the sum of rate * step
NAMED = tl.constexpr(7)


@triton.jit
def keep(numbers, which, value):
    tl.store(anew(numbers) + which * value.shape[0] + tl.arange(0, value.shape[0]), value)


@triton.jit
def kept(numbers, which, SIZE: tl.constexpr):
    return tl.load(anew(numbers) + which * SIZE + tl.arange(0, SIZE))


@triton.jit
def keep_walk(numbers, walk):
    _, video, start, place, inside, _, _ = walk
    keep(numbers, VIDEO, tl.where(inside, video, -1).to(tl.int32).to(tl.float32, bitcast=True))
    keep(numbers, START, start.to(tl.int32).to(tl.float32, bitcast=True))
    keep(numbers, PLACE, place.to(tl.int32).to(tl.float32, bitcast=True))


@triton.jit
def kept_walk(numbers, path, SIZE: tl.constexpr):
    """path: the table of offsets, the length, and whether it is walked back."""
    table, length, reverse = path
    video = kept(numbers, VIDEO, SIZE).to(tl.int32, bitcast=True)
    start = kept(numbers, START, SIZE).to(tl.int32, bitcast=True)
    place = kept(numbers, PLACE, SIZE).to(tl.int32, bitcast=True)
    return (table, video, start, place, video >= 0, length, reverse)


@triton.jit
def keep_square(square, x):
    """Keep a square matrix (second) and its transpose (first)."""
    SIZE: tl.constexpr = x.shape[0]
    row = tl.arange(0, SIZE)
    x = x.to(square.dtype.element_ty)
    tl.store(square + row[None, :] * SIZE + row[:, None], x)
    tl.store(square + (SIZE + row[:, None]) * SIZE + row[None, :], x)


@triton.jit
def kept_square(square, which, SIZE: tl.constexpr):
    row = tl.arange(0, SIZE)
    return tl.load(square + (which * SIZE + row[:, None]) * SIZE + row[None, :])
