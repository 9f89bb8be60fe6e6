"""The sums that end a way back: one launch for the gradients of all parameters, and what paths found for one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medsora_ops.launch import launch

SUMMED = 64  # columns that one program sums
_ROWS = 64  # at a time


def sum_rows(
    sources: Sequence[Tensor | None], outs: Sequence[Tensor | None], planes: Tensor | None = None, onto=None
) -> None:
    """Each out becomes the sum over its source's first dimension, where it is not None: six at most.

    sources: float32, (rows, ...), as many numbers in a row as its out has, side by side; rows may lie further apart.
    planes: (n, videos, tokens, columns), contiguous, are added to onto, (videos, tokens, columns), columns contiguous.
    """
    from medsora_ops.scan.sum_kernels import MOST, scan_sum_rows_kernel

    sources, outs = zip(*((s, out) for s, out in zip(sources, outs, strict=True) if out is not None), strict=True)
    counts, widths = [s.shape[0] for s in sources], tuple(out.numel() for out in outs)
    programs = [-(-width // SUMMED) for width in widths]
    first_programs = tuple(sum(programs[:k]) for k in range(len(programs)))
    adders, adding = 0, (None, 0, 0, None, 0, 0, 0)
    if planes is not None:
        videos, tokens, columns = onto.shape
        adders = -(-videos * tokens // _ROWS) * -(-columns // SUMMED)
        adding = onto, *onto.stride()[:2], planes, sum(programs), videos * tokens, tokens
    launch(
        scan_sum_rows_kernel,
        sum(programs) + adders,
        *(sources, tuple(s.stride(0) for s in sources), outs, widths, first_programs),
        *(*counts, *[0] * (MOST - len(counts)), *adding),
        PLANES=None if planes is None else (planes.shape[0], planes.shape[-1]),
        BLOCK_ROWS=_ROWS,
        BLOCK=SUMMED,
        num_warps=8,
        enable_fp_fusion=True,
    )


def planes(rows: Tensor, grad_rows: Tensor, paths: int, accumulate: bool):
    """Where the first path and where the others write their gradient of the rows; and what of it is then to be added.

    The first writes grad_rows, unless something is there.
    """
    own = paths if accumulate else paths - 1
    added = rows.new_empty(own, *rows.shape) if own else None
    if not accumulate:
        return grad_rows, added, added
    return added[0], added[1:] if paths > 1 else None, added


def shares(rows: Tensor, parameters: Sequence[Tensor | None], programs: int) -> tuple[tuple[int, ...], Tensor]:
    """Where each program sums the gradients of all parameters, a row a program, and where in it each one's begins."""
    # At a multiple of what one program sums: at a whole line of the cache.
    sizes = [0 if p is None else -(-p.numel() // SUMMED) * SUMMED for p in parameters]
    segments = tuple(sum(sizes[:k]) for k in range(len(sizes)))
    return segments, rows.new_empty(programs, sum(sizes), dtype=torch.float32)


def sum_shares(parameters, segments, found: Tensor, kept, added: Tensor | None, grad_rows: Tensor) -> list[Tensor]:
    """The gradients of the parameters that are not None, of type `kept` or their own; adds `added` to grad_rows."""
    sums = [None if p is None else torch.empty_like(p, dtype=kept) for p in parameters]
    sum_rows([found[:, start:] for start in segments], sums, added, grad_rows)
    return [total for total in sums if total is not None]
