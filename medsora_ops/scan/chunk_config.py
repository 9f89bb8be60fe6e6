"""How the chunk kernels' work is cut, and what their launches share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChunkConfig:
    """How the work is cut. tokens: of a chunk; channels: of a head that one program takes at most.

    segment: chunks from one kept state to the next, on the way back. splits: runs of whole segments that a sequence is
    cut into, at most; 0 decides that from the sizes and the chip, 1 never cuts. Where work goes row by row, row_numbers
    are those of a tile and row_programs the most shares of which gradients of parameters are the sums; conv_tokens and
    conv_channels are a tile's on the way back through the convolution. registers: the most of a thread that takes a
    chunk; None leaves it to the compiler, which may stop at half of them and spill.
    """

    tokens: int = 64
    channels: int = 64
    num_warps: int = 8
    num_stages: int = 1
    segment: int = 8
    splits: int = 0
    row_numbers: int = 4096
    row_warps: int = 4
    row_programs: int = 256
    conv_tokens: int = 64
    conv_channels: int = 64
    registers: int | None = None

    def blocks(self, head_dim: int, state: int) -> tuple[int, int, int]:
        return self.tokens, min(self.channels, block(head_dim)), block(state)

    def segments(self, length: int) -> int:
        return ceil_div(length, self.tokens * self.segment)

    def kept(self, workers: int, blocks, like: Tensor) -> tuple[Tensor, Tensor]:
        """What each program keeps of a segment on the way back: states in like's type; steps and sums of decays."""
        tokens, channels, state = blocks
        states = like.new_empty(workers, self.segment * channels * state)
        return states, like.new_empty(workers, self.segment * 2 * tokens, dtype=torch.float32)

    def options(self) -> dict:
        limit = {} if self.registers is None else dict(maxnreg=self.registers)  # not every backend knows the name
        return dict(num_warps=self.num_warps, num_stages=self.num_stages, enable_fp_fusion=True, **limit)

    def row_options(self) -> dict:
        return dict(num_warps=self.row_warps, num_stages=1, enable_fp_fusion=True)


FORWARD, BACKWARD = ChunkConfig(), ChunkConfig(tokens=32, row_warps=8)  # on the way back more tiles are alive at a time


def fitting(config: ChunkConfig, dtype: torch.dtype, state: int, architecture: str = "") -> ChunkConfig:
    """FORWARD or BACKWARD, cut smaller where its tiles would not fit shared memory or registers. Measured nowhere.

    architecture: as `launch.architecture` tells it.
    """
    way, ampere = config, architecture.startswith("sm_8")
    if ampere:
        # Products take all their operands in registers there. Loads ahead of time go to shared memory instead; and on
        # the way back half as many channels, which costs B and C being read, and convolved, twice; through the
        # convolution half as many too, rather than tokens, of which a tile shares some with the next.
        config = replace(config, num_stages=2) if way == FORWARD else replace(config, channels=32, conv_channels=32)
    if architecture.startswith("sm_10") and way == FORWARD:
        config = replace(config, registers=255)
    if dtype == torch.float32:  # a product takes three
        return replace(config, tokens=32, channels=32)
    if state <= 128:
        return config
    if way == FORWARD:
        return replace(config, tokens=16, channels=32) if ampere else replace(config, tokens=16)
    return replace(config, tokens=16, channels=32, segment=16, conv_tokens=32)


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def whole_rows(x: Tensor | None) -> Tensor | None:
    """Any strides are read in place, except over channels: an expanded gradient (stride 0 there) is copied."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def ceil_div(size: int, by: int) -> int:
    return -(-size // by)


def block(size: int) -> int:
    """The matrix units want 16 at least."""
    return max(16, 1 << (size - 1).bit_length())
