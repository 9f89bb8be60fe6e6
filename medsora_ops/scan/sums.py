"""The sums that end a way back: one launch for the gradients of all parameters, and what paths found for one tensor."""

from __future__ import annotations

from collections.abc import Sequence

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
