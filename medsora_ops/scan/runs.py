"""Cutting sequences into runs where whole ones are too few programs to fill a chip; chunk_kernels.py says how."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from medsora_ops.launch import launch, multiprocessors
from medsora_ops.scan.chunk_config import ChunkConfig, ceil_div

MOST = 32  # runs of a sequence: they are chained one after the other
CARRYING = 0.5  # of the time of a launch, when it only carries the state
LAUNCHES = 1.0  # what more launches take, in segments
WORTH = 0.8  # of the time without a cut; this is an estimate, and a cut takes more memory


@dataclass(frozen=True)
class Runs:
    """How each sequence of a call is cut, and the scratch for that: a state for each place where two runs meet."""

    count: int
    segments: int  # of a run
    boundaries: Tensor | None
    decays: Tensor | None

    @classmethod
    def of(cls, config: ChunkConfig, blocks, programs: int, length: int, like: Tensor) -> Runs:
        """programs: as many as there would be without a cut."""
        count, each = runs_of(config, programs, length, like.device)
        if count == 1:
            return cls(1, each, None, None)
        boundaries, decays = (
            like.new_empty(programs, count - 1, *shape, dtype=torch.float32) for shape in (blocks[1:], ())
        )
        return cls(count, each, boundaries, decays)

    @property
    def cut(self) -> str | None:
        """CUT of the launch that writes results."""
        return None if self.count == 1 else "starts"

    def chain(self, config: ChunkConfig) -> None:
        """From what each run ends with, begun with zero, to what it ends with. One launch, none for two runs."""
        if self.count < 3:
            return
        from medsora_ops.scan.run_kernels import scan_chain_runs_kernel

        programs, runs, channels, state = self.boundaries.shape
        held, block = channels * state, 256  # both at least 16
        launch(
            scan_chain_runs_kernel,
            programs * (held // block),
            *(self.boundaries, self.decays, runs),
            HELD=held,
            BLOCK=block,
            **config.row_options(),
        )


def runs_of(config: ChunkConfig, programs: int, length: int, device: torch.device) -> tuple[int, int]:
    """How many runs a sequence is cut into, and the segments of each. Depends on sizes and the chip alone."""
    segments = config.segments(length)
    if config.splits:
        each = max(1, ceil_div(segments, config.splits))
    else:
        each = segments_of_a_run(programs, segments, multiprocessors(device))
    count = max(1, ceil_div(segments, each))
    return count, segments if count == 1 else each


@functools.lru_cache(maxsize=1024)  # asked at every call, of few sizes
def segments_of_a_run(programs: int, segments: int, processors: int) -> int:
    """All segments where a cut is not worth it. A multiprocessor is taken to hold one program, as registers have it."""
    if not 0 < programs < 2 * processors:
        return max(1, segments)
    best, least = segments, WORTH * ceil_div(programs, processors) * segments
    for wanted in range(2, min(MOST, segments) + 1):
        each = ceil_div(segments, wanted)
        runs = ceil_div(segments, each)
        waves = ceil_div(programs * runs, processors) + CARRYING * ceil_div(programs * (runs - 1), processors)
        if each * waves + LAUNCHES < least:
            best, least = each, each * waves + LAUNCHES
    return max(1, best)
