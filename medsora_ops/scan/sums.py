"""The sums over programs that end a way back: one launch for the gradients of all parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from medsora_ops.launch import launch

SUMMED = 64  # columns that one program sums
_ROWS = 64  # at a time


def sum_rows(sources: Sequence[Tensor | None], outs: Sequence[Tensor | None]) -> None:
    """Each out becomes the sum over its source's first dimension, where it is not None: six at most.

    sources: float32, (rows, ...), as many numbers in a row as its out has, side by side; rows may lie further apart.
    """
    from medsora_ops.scan.sum_kernels import MOST, scan_sum_rows_kernel

    sources, outs = zip(*((s, out) for s, out in zip(sources, outs, strict=True) if out is not None), strict=True)
    counts, widths = [s.shape[0] for s in sources], tuple(out.numel() for out in outs)
    programs = [-(-width // SUMMED) for width in widths]
    first_programs = tuple(sum(programs[:k]) for k in range(len(programs)))
    launch(
        scan_sum_rows_kernel,
        sum(programs),
        *(sources, tuple(s.stride(0) for s in sources), outs, widths, first_programs),
        *(*counts, *[0] * (MOST - len(counts))),
        BLOCK_ROWS=_ROWS,
        BLOCK=SUMMED,
        enable_fp_fusion=True,
    )
