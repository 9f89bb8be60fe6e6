"""Copying rows of tokens along a path: each program a block of steps by a block of channels.

Steps are numbered through all sequences of a video. Sizes and strides over channels come in units of PIECE elements, up
to 16 bytes, so that the compiler sees that whole pieces lie together; addresses are 64-bit, batches pass 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _block(offsets, sequences, length, step, pieces, PIECE: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr):
    """Of this program: its video, sequences, places in them, tokens and channels, and which of all these exist."""
    channels = pieces * PIECE
    total = sequences * length
    across = tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0)
    block = program // across
    blocks = tl.cdiv(total, STEPS)
    number = block % blocks * STEPS + tl.arange(0, STEPS)
    channel = program % across * CHANNELS + tl.arange(0, CHANNELS)
    exists = number < total
    sequence, place = number // length, number % length
    token = sequence * step + tl.load(offsets + place, mask=exists, other=0)
    mask = exists[:, None] & (channel < channels)[None, :]
    return (block // blocks).to(tl.int64), sequence.to(tl.int64), place, token.to(tl.int64), channel, mask


@triton.jit(do_not_specialize=["sequences", "length", "step"])
def gather_kernel(
    x, x_video, x_token, y, offsets, sequences, length, step, pieces,
    PIECE: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """x (videos, tokens, channels) -> y (videos, 2, sequences, length, channels), contiguous."""
    video, sequence, place, token, channel, mask = _block(
        offsets, sequences, length, step, pieces, PIECE, STEPS, CHANNELS
    )
    rows = tl.load(
        x + (video * x_video + token * x_token)[:, None] * PIECE + channel[None, :], mask=mask
    )  # fmt: skip
    ahead = 2 * video * sequences * length + sequence * length + place
    back = ahead + sequences * length + length - 1 - 2 * place
    tl.store(y + (ahead * pieces)[:, None] * PIECE + channel[None, :], rows, mask=mask)
    tl.store(y + (back * pieces)[:, None] * PIECE + channel[None, :], rows, mask=mask)


@triton.jit(do_not_specialize=["sequences", "length", "step"])
def merge_kernel(
    y, y_video, y_direction, y_sequence, y_step, x, offsets, sequences, length, step, pieces,
    PIECE: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """y (videos, 2, sequences, length, channels) -> x (videos, tokens, channels), contiguous; sums in type SUMS."""
    video, sequence, place, token, channel, mask = _block(
        offsets, sequences, length, step, pieces, PIECE, STEPS, CHANNELS
    )
    first = video * y_video + sequence * y_sequence
    ahead = first + place.to(tl.int64) * y_step
    back = first + y_direction + (length - 1 - place).to(tl.int64) * y_step
    one = tl.load(y + ahead[:, None] * PIECE + channel[None, :], mask=mask).to(SUMS)
    other = tl.load(y + back[:, None] * PIECE + channel[None, :], mask=mask).to(SUMS)
    row = video * sequences * length + token
    at = x + (row * pieces)[:, None] * PIECE + channel[None, :]
    tl.store(at, (one + other).to(x.dtype.element_ty), mask=mask)
