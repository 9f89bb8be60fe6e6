"""How a kernel walks along a path: which rows of the grid a tile of tokens visits, and the convolution on the way.

A tile holds BLOCK_T tokens: short sequences, whole, one behind the other and numbered over all videos, or a piece of a
long one. A reverse scan is the same walk with the table of offsets read from its end; nothing else knows directions.

    walk = (table, video, start, place, inside, length, reverse)    the tokens of a tile; the middle three are vectors
    rows = (pointer, video stride, token stride)                    a tensor (videos, tokens, channels) in grid order
    filters = (weights (channels, taps), biases or None)            of the convolution
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.triton_math import pick, settled


@triton.jit
def path_of_program(PATHS: tl.constexpr):
    """The paths of one launch lie along the grid's third axis."""
    if PATHS == 1:
        return 0
    else:
        return tl.program_id(2)


@triton.jit
def pick_rows(path, rows):
    """One path's rows; rows: pointers, video strides and token strides of all of them."""
    pointers, video_strides, token_strides = rows
    return pick(path, pointers), pick(path, video_strides), pick(path, token_strides)


@triton.jit
def sequences_before(path, lengths, positions, PATHS: tl.constexpr):
    """Of all videos: how many sequences the paths before this one have. positions: videos * tokens."""
    before = 0
    for p in tl.static_range(PATHS - 1):
        before += tl.where(path > p, positions // lengths[p], 0)
    return before


@triton.jit
def row_starts(rows, walk, back):
    """Addresses of the rows `back` steps before each token, and whether there is one. 64-bit: batches pass 2^31."""
    pointer, video_stride, token_stride = rows
    table, video, start, place, inside, length, reverse = walk
    place = place - back
    inside = inside & (place >= 0)
    token = start + tl.load(table + tl.where(reverse, length - 1 - place, place), mask=inside, other=0)
    return pointer + video.to(tl.int64) * video_stride + token.to(tl.int64) * token_stride, inside


@triton.jit
def rows_before(rows, walk, column, wanted, back):
    """Columns of the rows `back` steps before each token, zero before a sequence's first: [tokens, columns] float32."""
    at, inside = row_starts(rows, walk, back)
    return tl.load(
        at[:, None] + column[None, :], mask=inside[:, None] & wanted[None, :], other=0.0
    ).to(tl.float32)  # fmt: skip


@triton.jit
def column_of(rows, walk, column):
    """One column of each token's row: [tokens] float32."""
    at, inside = row_starts(rows, walk, 0)
    return tl.load(at + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def rows_of_tile(tile, rows, tokens, ROWS: tl.constexpr):
    """Number over all videos, video and token of each row of a tile, as columns, and which are real."""
    row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    return row, row // tokens, row % tokens, row < rows


@triton.jit
def load_rows(tensor, video, token, channel, mask):
    pointer, video_stride, token_stride = tensor
    at = pointer + video * video_stride + token * token_stride + channel[None, :]
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def visited(mask, visits):
    return mask.to(tl.int32) * visits > 0  # the interpreter cannot `and` a mask with one truth


@triton.jit
def add_to_rows(rows, walk, column, wanted, value, visits):
    """Add to columns of each token's own row; write them if `visits` is 0, as nothing is there yet."""
    at, inside = row_starts(rows, walk, 0)
    at, mask = at[:, None] + column[None, :], inside[:, None] & wanted[None, :]
    value += tl.load(at, mask=visited(mask, visits), other=0.0).to(tl.float32)
    tl.store(at, value.to(rows[0].dtype.element_ty), mask=mask)


@triton.jit
def add_to_column(rows, walk, column, value, visits):
    at, inside = row_starts(rows, walk, 0)
    value += tl.load(at + column, mask=visited(inside, visits), other=0.0).to(tl.float32)
    tl.store(at + column, value.to(rows[0].dtype.element_ty), mask=inside)


@triton.jit
def add_to(address, value, mask, visits):
    """Add to float32 numbers that this program alone sums; write them if `visits` is 0. Settled as weights_of_tap."""
    before = settled(tl.load(address, mask=visited(mask, visits), other=0.0))
    tl.store(address, value + before, mask=mask)


@triton.jit
def add_number(address, value, visits):
    tl.store(address, value + tl.load(address, mask=visits > 0, other=0.0))


@triton.jit
def from_channel(rows, first):
    """rows with channels counted from `first`.

    A thread's addresses then lie at distances that the compiler knows, so that one register pair serves them all.
    """
    pointer, video_stride, token_stride = rows
    return pointer + first, video_stride, token_stride


@triton.jit
def weights_of_tap(weights, channel, wanted, tap, TAPS: tl.constexpr, SETTLED: tl.constexpr = True):
    """[channels] float32. Settled: a channel's taps lie side by side, so that a warp reads 32 channels from a few lines
    of the cache; in the layout of the rows each thread would read all of its channels, 4 bytes and a line at a time."""
    weight = tl.load(weights + channel * TAPS + tap, mask=wanted, other=0.0).to(tl.float32)
    if SETTLED:
        weight = settled(weight)
    return weight


@triton.jit
def convolved(rows, walk, filters, first, channel, wanted, WIDTH: tl.constexpr, TAPS: tl.constexpr):
    """The causal convolution, before its SiLU, of channels of (x, B, C) from `first` on: [tokens, channels] float32."""
    weights, biases = filters
    rows = from_channel(rows, first)
    weights += first * TAPS
    place = walk[3]
    total = tl.zeros([place.shape[0], channel.shape[0]], tl.float32)
    AT_ONCE: tl.constexpr = 2 - TAPS % 2  # more take too many registers, and so does what an odd number leaves over
    # Of float32 rows a thread has half as many channels, and no registers to spare.
    SETTLED: tl.constexpr = rows[0].dtype.element_ty != tl.float32
    for back in tl.range(TAPS, loop_unroll_factor=AT_ONCE, disable_licm=True):
        weight = weights_of_tap(weights, channel, wanted, TAPS - 1 - back, TAPS, SETTLED)
        total += weight[None, :] * rows_before(rows, walk, WIDTH + channel, wanted, back)
    if biases is not None:
        total += tl.load(biases + first + channel, mask=wanted, other=0.0).to(tl.float32)[None, :]
    return total
