"""Sums of what the programs of other kernels have each written for themselves, always in one order: no atomics."""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.scan.walk_kernels import load_rows, rows_of_tile

MOST = 6  # sources


@triton.jit
def add_planes(program, rows, planes, positions, tokens, PLANES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """To a tile of rows, as those of walk_kernels.py, the planes' of the same positions, in the planes' order."""
    COUNT: tl.constexpr = PLANES[0]
    COLUMNS: tl.constexpr = PLANES[1]
    column = program % tl.cdiv(COLUMNS, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    _, video, token, real = rows_of_tile(program // tl.cdiv(COLUMNS, BLOCK), positions, tokens, ROWS)
    mask = real & (column < COLUMNS)[None, :]
    total = load_rows(rows, video, token, column, mask)
    for plane in tl.static_range(COUNT):
        of_plane = planes + tl.cast(positions, tl.int64) * (plane * COLUMNS)
        total += load_rows((of_plane, tl.cast(tokens, tl.int64) * COLUMNS, COLUMNS), video, token, column, mask)
    pointer, video_stride, token_stride = rows
    at = pointer + video * video_stride + token * token_stride + column[None, :]
    tl.store(at, total.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["positions", "tokens", *(f"count_{k}" for k in range(MOST))])
def scan_sum_rows_kernel(
    sources, strides, outs, widths, first_programs, count_0, count_1, count_2, count_3, count_4, count_5,
    rows, video_stride, token_stride, planes, first_adder, positions, tokens,
    PLANES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """outs[k] (widths[k]) = sums, in float32, of count_k rows of widths[k] numbers, strides[k] apart in sources[k].

    Programs from first_programs[k] on take BLOCK columns each of sources[k]. The counts, which the batch decides, are
    no tuple, for Triton specialises the numbers of a tuple, whatever it is told.

    Programs from first_adder on add planes to rows, if there are any. PLANES: how many, and their columns.
    """
    if rows is not None:
        adder = tl.program_id(0) - first_adder
        if adder >= 0:
            add_planes(adder, (rows, video_stride, token_stride), planes, positions, tokens, PLANES, BLOCK_ROWS, BLOCK)
            return
    counts = (count_0, count_1, count_2, count_3, count_4, count_5)
    for k in tl.static_range(len(outs)):
        block = tl.program_id(0) - first_programs[k]
        width = widths[k]
        if (block >= 0) & (block < tl.cdiv(width, BLOCK)):
            column = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            total = tl.zeros([BLOCK], tl.float32)
            for first in tl.range(0, counts[k], BLOCK_ROWS, disable_licm=True):
                row = first + tl.arange(0, BLOCK_ROWS)
                mask = (row < counts[k])[:, None] & (column < width)[None, :]
                at = sources[k] + row.to(tl.int64)[:, None] * strides[k] + column[None, :]
                total += tl.sum(tl.load(at, mask=mask, other=0.0), axis=0)
            tl.store(outs[k] + column, total.to(outs[k].dtype.element_ty), mask=column < width)
