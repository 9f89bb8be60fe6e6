"""The focal frequency loss by dense Fourier matrices; images, packs, tables and blocks as in spectral_kernels.py.

The weight of a frequency is a power of its own magnitude, |d|^alpha, over the largest of its image or of all. So there
are two passes, one for the largest and one for what needs it. Spectra are made anew rather than kept in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.spectral.spectral_kernels import (
    invert_columns,
    inverted_rows,
    row_starts,
    transform_columns,
    transform_rows,
)


@triton.jit
def raised(squares, ALPHA: tl.constexpr, LOGARITHM: tl.constexpr):
    """|d|^alpha, or log(|d|^alpha + 1), from |d|^2; 0^0 is 1."""
    if ALPHA == 0:
        power = squares * 0 + 1.0
    elif ALPHA == 1:
        power = tl.sqrt(squares)
    else:
        some = tl.where(squares > 0, squares, 1.0)
        power = tl.where(squares > 0, tl.exp2(tl.log2(some) * (0.5 * ALPHA)), squares)
    if LOGARITHM:
        # log(1 + e) forgets a small e; there the series is exact to float32.
        series = power * (1.0 - power * (0.5 - power * (1.0 / 3 - power * (0.25 - power * 0.2))))
        power = tl.where(power < 0.03, series, tl.log(1.0 + power))
    return power


@triton.jit
def share_of(squares, largest, ALPHA: tl.constexpr, LOGARITHM: tl.constexpr):
    """The weights [rows, columns], from 0 to 1, for the largest of each row's image; 0 where that is 0 / 0."""
    share = raised(squares, ALPHA, LOGARITHM) / tl.where(largest > 0, largest, 1.0)[:, None]
    return tl.where(share > 0, tl.minimum(share, 1.0), 0.0)


@triton.jit(do_not_specialize=["channels", "depth", "count", "height", "packs"])
def focal_rows_kernel(
    pred, pred_batch, pred_channel, pred_depth, pred_row, target, target_batch, target_channel, target_depth,
    target_row, largest, found, tables, scratch, channels, depth, count, height, pieces, width, packs,
    PIECE: tl.constexpr, ALPHA: tl.constexpr, LOGARITHM: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """found (channels, count, height, COLUMNS // BLOCK_K), of the BLOCK_K columns of a row of a spectrum: the largest
    |d|^alpha, or, where `largest` (channels, count) of each image is given, the sum of weight * |d|^2, each as often as
    it stands in the full spectrum. scratch: 2 ROWS BLOCK_K a program.
    """
    images = (pred, pred_batch, pred_channel, pred_depth, pred_row, depth, count, height, pieces)
    minus = None
    if target is not None:
        minus = (target, target_batch, target_channel, target_depth, target_row, depth, count, height, pieces)
    scratch += tl.program_id(0).to(tl.int64) * (2 * ROWS * BLOCK_K)
    packed = ROWS // height
    for number in tl.range(tl.program_id(0), channels * packs, tl.num_programs(0), disable_licm=True):
        channel, pack = number // packs, number % packs
        for first in tl.range(0, COLUMNS, BLOCK_K, disable_licm=True):
            transform_rows(
                images, minus, channel, pack, tables, first, scratch,
                PIECE, ROWS, WIDTH, COLUMNS, BLOCK_H, BLOCK_K, TERMS,
            )  # fmt: skip
            tl.debug_barrier()  # what follows reads what other threads of this program have written
            for top in tl.range(0, ROWS, BLOCK_H, disable_licm=True):
                real, imaginary = transform_columns(scratch, tables, top, False, ROWS, BLOCK_H, BLOCK_K, TERMS)
                squares = real * real + imaginary * imaginary
                row, column = top + tl.arange(0, BLOCK_H), first + tl.arange(0, BLOCK_K)
                image = pack * packed + row // height
                exists = (row < packed * height) & (image < count)
                image = channel.to(tl.int64) * count + image
                if largest is None:
                    value = tl.max(raised(squares, ALPHA, LOGARITHM), axis=1)
                else:
                    times = tl.where((column == 0) | (2 * column == width), 1.0, 2.0)
                    bound = tl.load(largest + image, mask=exists, other=1.0)
                    value = tl.sum(share_of(squares, bound, ALPHA, LOGARITHM) * squares * times[None, :], axis=1)
                at = (image * height + row % height) * (COLUMNS // BLOCK_K) + first // BLOCK_K
                tl.store(found + at, value, mask=exists)
            tl.debug_barrier()  # before the next columns write the scratch anew


@triton.jit(do_not_specialize=["channels", "depth", "count", "height", "packs", "factor"])
def focal_gradient_kernel(
    pred, pred_batch, pred_channel, pred_depth, pred_row, target, target_batch, target_channel, target_depth,
    target_row, found, found_batch, found_channel, found_depth, found_row,
    largest, grad, factor, tables, scratch, channels, depth, count, height, pieces, packs,
    PIECE: tl.constexpr, ALPHA: tl.constexpr, LOGARITHM: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """found = factor * grad * images of the weighted spectra. scratch: 4 ROWS BLOCK_K + 2 ROWS COLUMNS a program."""
    images = (pred, pred_batch, pred_channel, pred_depth, pred_row, depth, count, height, pieces)
    results = (found, found_batch, found_channel, found_depth, found_row, depth, count, height, pieces)
    minus = None
    if target is not None:
        minus = (target, target_batch, target_channel, target_depth, target_row, depth, count, height, pieces)
    scratch += tl.program_id(0).to(tl.int64) * (4 * ROWS * BLOCK_K + 2 * ROWS * COLUMNS)
    spectra = scratch + 2 * ROWS * BLOCK_K
    columns = spectra + 2 * ROWS * BLOCK_K
    packed = ROWS // height
    scale = tl.load(grad).to(tl.float32) * factor
    for number in tl.range(tl.program_id(0), channels * packs, tl.num_programs(0), disable_licm=True):
        channel, pack = number // packs, number % packs
        for first in tl.range(0, COLUMNS, BLOCK_K, disable_licm=True):
            transform_rows(
                images, minus, channel, pack, tables, first, scratch,
                PIECE, ROWS, WIDTH, COLUMNS, BLOCK_H, BLOCK_K, TERMS,
            )  # fmt: skip
            tl.debug_barrier()  # what follows reads what other threads of this program have written
            for top in tl.range(0, ROWS, BLOCK_H, disable_licm=True):
                real, imaginary = transform_columns(scratch, tables, top, False, ROWS, BLOCK_H, BLOCK_K, TERMS)
                row = top + tl.arange(0, BLOCK_H)
                image = pack * packed + row // height
                exists = (row < packed * height) & (image < count)
                bound = tl.load(largest + (channel.to(tl.int64) * count + image), mask=exists, other=1.0)
                share = share_of(real * real + imaginary * imaginary, bound, ALPHA, LOGARITHM)
                kept = spectra + row[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
                tl.store(kept, real * share)
                tl.store(kept + ROWS * BLOCK_K, imaginary * share)
            tl.debug_barrier()
            invert_columns(spectra, columns, tables, first, ROWS, COLUMNS, BLOCK_H, BLOCK_K, TERMS)
        tl.debug_barrier()
        for top in tl.range(0, ROWS, BLOCK_H, disable_licm=True):
            row = top + tl.arange(0, BLOCK_H)
            to, exists = row_starts(results, channel, pack, row, PIECE, ROWS)
            for left in tl.range(0, WIDTH, BLOCK_W, disable_licm=True):
                place = left + tl.arange(0, BLOCK_W)
                mask = exists[:, None] & (place < pieces * PIECE)[None, :]
                total = inverted_rows(columns, tables, row, place, ROWS, WIDTH, COLUMNS, BLOCK_K) * scale
                tl.store(to[:, None] + place[None, :], total.to(found.dtype.element_ty), mask=mask)
