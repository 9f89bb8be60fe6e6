"""The spectral filter by dense Fourier matrices: a program takes whole images through both transforms and back.

Up to 128 points a side a transform is cheap as a matrix product, and needs no power of two. Real arithmetic only: a
complex matrix is its cosines and its sines. Images lie below each other in a pack of ROWS rows, all of one channel; the
matrix along columns is block-diagonal, so that each keeps to itself (but a NaN or infinity reaches the whole pack).
Between products numbers lie in scratch that belongs to the program, small enough to stay in the caches.

    images    (pointer, steps of batch, channel, depth and row, depth, images of a channel, height, width), a tensor
              (batch, channels, depth, height, width); steps and width in units of PIECE elements, up to 16 bytes, so
              that the compiler sees that whole pieces lie together
    tables    of tables.py: [2, ROWS, ROWS] along columns, [2, WIDTH, COLUMNS] along rows, [2, COLUMNS, WIDTH] back
    ROWS, WIDTH, COLUMNS       of a pack and its half spectra, padded
    BLOCK_H, BLOCK_K, TERMS    rows and columns of the spectra and terms of their sums in one product
"""

from __future__ import annotations

import triton
import triton.language as tl

from medsora_ops.triton_math import product


@triton.jit
def row_starts(images, channel, pack, row, PIECE: tl.constexpr, ROWS: tl.constexpr):
    """Addresses of rows of a pack, and which exist. 64-bit: batches pass 2^31."""
    pointer, batch_step, channel_step, depth_step, row_step, depth, count, height, _width = images
    packed = ROWS // height
    image = pack * packed + row // height
    exists = (row < packed * height) & (image < count)
    outer = (image // depth).to(tl.int64) * batch_step + channel.to(tl.int64) * channel_step
    inner = (image % depth).to(tl.int64) * depth_step + (row % height).to(tl.int64) * row_step
    return pointer + (outer + inner) * PIECE, exists


@triton.jit
def transform_rows(
    images, minus, channel, pack, tables, first, scratch, PIECE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """BLOCK_K columns, from `first` on, of the transforms of a pack's rows, to scratch [2, ROWS, BLOCK_K].

    minus: None, or images of the same sizes that are subtracted.
    """
    column = tl.arange(0, BLOCK_K)
    for top in tl.range(0, ROWS, BLOCK_H, disable_licm=True):
        row = top + tl.arange(0, BLOCK_H)
        at, exists = row_starts(images, channel, pack, row, PIECE, ROWS)
        if minus is not None:
            less, _ = row_starts(minus, channel, pack, row, PIECE, ROWS)
        real = tl.zeros([BLOCK_H, BLOCK_K], tl.float32)
        imaginary = tl.zeros([BLOCK_H, BLOCK_K], tl.float32)
        for left in tl.range(0, WIDTH, TERMS, disable_licm=True):
            place = left + tl.arange(0, TERMS)
            mask = exists[:, None] & (place < images[8] * PIECE)[None, :]
            points = tl.load(at[:, None] + place[None, :], mask=mask, other=0.0).to(tl.float32)
            if minus is not None:
                points -= tl.load(less[:, None] + place[None, :], mask=mask, other=0.0).to(tl.float32)
            entry = tables + 2 * ROWS * ROWS + place[:, None] * COLUMNS + (first + column)[None, :]
            real += product(points, tl.load(entry))
            imaginary += product(points, tl.load(entry + WIDTH * COLUMNS))
        kept = scratch + row[:, None] * BLOCK_K + column[None, :]
        tl.store(kept, real)
        tl.store(kept + ROWS * BLOCK_K, imaginary)


@triton.jit
def transform_columns(
    scratch, tables, top, INVERSE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """BLOCK_H rows, from `top` on, of the transforms or their inverses of the columns in scratch [2, ROWS, BLOCK_K]."""
    real = tl.zeros([BLOCK_H, BLOCK_K], tl.float32)
    imaginary = tl.zeros([BLOCK_H, BLOCK_K], tl.float32)
    row = top + tl.arange(0, BLOCK_H)
    for start in tl.range(0, ROWS, TERMS, disable_licm=True):
        term = start + tl.arange(0, TERMS)
        entry = tables + row[:, None] * ROWS + term[None, :]
        cosine, sine = tl.load(entry), tl.load(entry + ROWS * ROWS)
        kept = scratch + term[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
        a, b = tl.load(kept), tl.load(kept + ROWS * BLOCK_K)
        real += product(cosine, a)
        imaginary += product(cosine, b)
        if INVERSE:
            real += product(sine, -b)
            imaginary += product(sine, a)
        else:
            real += product(sine, b)
            imaginary += product(sine, -a)
    return real, imaginary


@triton.jit
def invert_columns(
    spectra, columns, tables, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Spectra [2, ROWS, BLOCK_K] back along columns, to the columns `first` on of [2, ROWS, COLUMNS]."""
    for top in tl.range(0, ROWS, BLOCK_H, disable_licm=True):
        real, imaginary = transform_columns(spectra, tables, top, True, ROWS, BLOCK_H, BLOCK_K, TERMS)
        row, column = top + tl.arange(0, BLOCK_H), first + tl.arange(0, BLOCK_K)
        kept = columns + row[:, None] * COLUMNS + column[None, :]
        tl.store(kept, real)
        tl.store(kept + ROWS * COLUMNS, imaginary)


@triton.jit
def inverted_rows(
    columns, tables, row, place,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A block of the images whose half spectra along rows are [2, ROWS, COLUMNS]."""
    total = tl.zeros([row.shape[0], place.shape[0]], tl.float32)
    for first in tl.range(0, COLUMNS, BLOCK_K, disable_licm=True):
        column = first + tl.arange(0, BLOCK_K)
        kept = columns + row[:, None] * COLUMNS + column[None, :]
        entry = tables + 2 * ROWS * ROWS + 2 * WIDTH * COLUMNS + column[:, None] * WIDTH + place[None, :]
        total += product(tl.load(kept), tl.load(entry))
        total += product(tl.load(kept + ROWS * COLUMNS), tl.load(entry + COLUMNS * WIDTH))
    return total


@triton.jit
def weighted(
    real, imaginary, weight, channel, row, column, height, half,
    ROWS: tl.constexpr, COMPLEX: tl.constexpr, CONJUGATE: tl.constexpr,
):  # fmt: skip
    """A block of spectra times the weight (channels, height, half), or its conjugate."""
    mask = (row < ROWS // height * height)[:, None] & (column < half)[None, :]
    at = (channel.to(tl.int64) * height + row % height)[:, None] * half + column[None, :]
    if COMPLEX:
        a = tl.load(weight + 2 * at, mask=mask, other=0.0)
        b = tl.load(weight + 2 * at + 1, mask=mask, other=0.0)
        if CONJUGATE:
            b = -b
        return a * real - b * imaginary, a * imaginary + b * real
    else:
        a = tl.load(weight + at, mask=mask, other=0.0)
        return a * real, a * imaginary


@triton.jit(do_not_specialize=["channels", "depth", "count", "height", "packs"])
def spectral_filter_kernel(
    x, batch_step, channel_step, depth_step, row_step, y, weight, tables, scratch,
    channels, depth, count, height, pieces, half, packs,
    PIECE: tl.constexpr, COMPLEX: tl.constexpr, CONJUGATE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """y = x + the filtered x; y is contiguous, of x's sizes. scratch: 4 ROWS BLOCK_K + 2 ROWS COLUMNS a program."""
    images = (x, batch_step, channel_step, depth_step, row_step, depth, count, height, pieces)
    plane = height * pieces
    found = (y, channels * depth * plane, depth * plane, plane, pieces, depth, count, height, pieces)
    scratch += tl.program_id(0).to(tl.int64) * (4 * ROWS * BLOCK_K + 2 * ROWS * COLUMNS)
    spectra = scratch + 2 * ROWS * BLOCK_K
    columns = spectra + 2 * ROWS * BLOCK_K
    for number in tl.range(tl.program_id(0), channels * packs, tl.num_programs(0), disable_licm=True):
        channel, pack = number // packs, number % packs
        for first in tl.range(0, COLUMNS, BLOCK_K, disable_licm=True):
            transform_rows(
                images, None, channel, pack, tables, first, scratch,
                PIECE, ROWS, WIDTH, COLUMNS, BLOCK_H, BLOCK_K, TERMS,
            )  # fmt: skip
            tl.debug_barrier()  # what follows reads what other threads of this program have written
            column = tl.arange(0, BLOCK_K)
            for top in tl.range(0, ROWS, BLOCK_H, disable_licm=True):
                row = top + tl.arange(0, BLOCK_H)
                real, imaginary = transform_columns(scratch, tables, top, False, ROWS, BLOCK_H, BLOCK_K, TERMS)
                real, imaginary = weighted(
                    real, imaginary, weight, channel, row, first + column, height, half, ROWS, COMPLEX, CONJUGATE
                )
                kept = spectra + row[:, None] * BLOCK_K + column[None, :]
                tl.store(kept, real)
                tl.store(kept + ROWS * BLOCK_K, imaginary)
            tl.debug_barrier()
            invert_columns(spectra, columns, tables, first, ROWS, COLUMNS, BLOCK_H, BLOCK_K, TERMS)
        tl.debug_barrier()
        for top in tl.range(0, ROWS, BLOCK_H, disable_licm=True):
            row = top + tl.arange(0, BLOCK_H)
            at, exists = row_starts(images, channel, pack, row, PIECE, ROWS)
            to, _ = row_starts(found, channel, pack, row, PIECE, ROWS)
            for left in tl.range(0, WIDTH, BLOCK_W, disable_licm=True):
                place = left + tl.arange(0, BLOCK_W)
                mask = exists[:, None] & (place < pieces * PIECE)[None, :]
                total = inverted_rows(columns, tables, row, place, ROWS, WIDTH, COLUMNS, BLOCK_K)
                # The image is added last: a weight of zero leaves every bit of it.
                total += tl.load(at[:, None] + place[None, :], mask=mask, other=0.0).to(tl.float32)
                tl.store(to[:, None] + place[None, :], total.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["channels", "depth", "count", "height", "packs", "parts"])
def spectral_weight_grad_kernel(
    x, x_batch, x_channel, x_depth, x_row, grad, grad_batch, grad_channel, grad_depth, grad_row,
    found, tables, scratch, channels, depth, count, height, pieces, packs, parts,
    PIECE: tl.constexpr, COMPLEX: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """found (parts, channels, 2, ROWS, COLUMNS) = conj(spectra of x) * spectra of grad, summed over part of the packs.

    Of a real weight's gradient there is no imaginary part. scratch: 4 ROWS BLOCK_K a program.
    """
    images = (x, x_batch, x_channel, x_depth, x_row, depth, count, height, pieces)
    grads = (grad, grad_batch, grad_channel, grad_depth, grad_row, depth, count, height, pieces)
    scratch += tl.program_id(0).to(tl.int64) * 4 * ROWS * BLOCK_K
    other = scratch + 2 * ROWS * BLOCK_K
    ACROSS: tl.constexpr = COLUMNS // BLOCK_K
    BLOCKS: tl.constexpr = ACROSS * (ROWS // BLOCK_H)
    units = parts * channels * BLOCKS
    for unit in tl.range(tl.program_id(0), units, tl.num_programs(0), disable_licm=True):
        first, top = unit % ACROSS * BLOCK_K, unit % BLOCKS // ACROSS * BLOCK_H
        channel, part = unit // BLOCKS % channels, unit // BLOCKS // channels
        real = tl.zeros([BLOCK_H, BLOCK_K], tl.float32)
        imaginary = tl.zeros([BLOCK_H, BLOCK_K], tl.float32)
        for pack in tl.range(part, packs, parts, disable_licm=True):
            transform_rows(
                images, None, channel, pack, tables, first, scratch,
                PIECE, ROWS, WIDTH, COLUMNS, BLOCK_H, BLOCK_K, TERMS,
            )  # fmt: skip
            transform_rows(
                grads, None, channel, pack, tables, first, other,
                PIECE, ROWS, WIDTH, COLUMNS, BLOCK_H, BLOCK_K, TERMS,
            )  # fmt: skip
            tl.debug_barrier()  # what follows reads what other threads of this program have written
            a, b = transform_columns(scratch, tables, top, False, ROWS, BLOCK_H, BLOCK_K, TERMS)
            c, d = transform_columns(other, tables, top, False, ROWS, BLOCK_H, BLOCK_K, TERMS)
            real += a * c + b * d
            imaginary += a * d - b * c
            tl.debug_barrier()  # before the next pack writes the scratch anew
        row, column = top + tl.arange(0, BLOCK_H), first + tl.arange(0, BLOCK_K)
        start = found + (part * channels + channel).to(tl.int64) * 2 * ROWS * COLUMNS
        at = start + row[:, None] * COLUMNS + column[None, :]
        tl.store(at, real)
        if COMPLEX:
            tl.store(at + ROWS * COLUMNS, imaginary)


@triton.jit(do_not_specialize=["channels", "parts", "height", "width"])
def spectral_weight_sum_kernel(
    found, out, channels, parts, height, width, COMPLEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """found (parts, channels, 2, ROWS, COLUMNS) -> out (channels, height, width // 2 + 1), complex or real.

    The images of a pack are summed too, all in one order. The half spectrum stands for the whole one: its columns
    count twice, except 0 and, for even widths, width / 2.
    """
    half = width // 2 + 1
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = entry < channels.to(tl.int64) * height * half
    column, row, channel = entry % half, entry // half % height, entry // half // height
    times = tl.where((column == 0) | (2 * column == width), 1.0, 2.0)
    for component in tl.static_range(2 if COMPLEX else 1):
        total = tl.zeros([BLOCK], tl.float32)
        for part in tl.range(0, parts):
            start = ((part * channels + channel) * 2 + component) * ROWS + row
            for image in tl.range(0, ROWS // height):
                at = found + (start + image * height) * COLUMNS + column
                total += tl.load(at, mask=mask, other=0.0)
        to = out + (2 * entry + component if COMPLEX else entry)
        tl.store(to, total * times, mask=mask)
