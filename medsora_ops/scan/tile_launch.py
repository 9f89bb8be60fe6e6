"""Launches of the tile kernels: what of `path_scan` they need to know, scratch, and gradients of parameters.

One launch forward, back two, whatever the number of paths: the second sums the gradients of parameters, and what paths
find for the same rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsora_ops.launch import at_most, launch, multiprocessors, on_device, registers_of_one, sparing
from medsora_ops.scan.sums import planes, shares, sum_shares

LONGEST_TILE = 64  # tokens of a sequence that a tile can hold
_NAMED = 7  # rows of numbers that tile_scratch_kernels.py has names for


@dataclass(frozen=True)
class TileConfig:
    """How the work is cut: tokens of a tile, numbers of the state and channels at a time, programs a multiprocessor.

    Programs of 8 warps that take more than 128 registers a thread have a multiprocessor each.
    """

    tokens: int = 64
    state: int = 64
    channels: int = 32
    programs: int = 1
    num_warps: int = 8
    num_stages: int = 1

    def options(self) -> dict:
        return dict(num_warps=self.num_warps, num_stages=self.num_stages, enable_fp_fusion=True)


FORWARD = TileConfig(channels=64)
BACKWARD = TileConfig(state=32)


def default(way: str, dtype: torch.dtype, state: int) -> TileConfig:
    """way: "fwd" or "bwd"; the same for every dtype and state."""
    return FORWARD if way == "fwd" else BACKWARD


@dataclass(frozen=True)
class Mixer:
    """The sizes of one call."""

    heads: int
    head_dim: int
    groups: int
    state: int
    taps: int
    directions: int
    eps: float
    norm_group_size: int

    @classmethod
    def of(cls, conv_weight, dt_bias, norm_weight, head_dim, groups, bidirectional, eps, norm_group_size):
        mixed, taps = conv_weight.shape
        state = (mixed - norm_weight.shape[0]) // (2 * groups)
        return cls(dt_bias.shape[0], head_dim, groups, state, taps, 2 if bidirectional else 1, eps, norm_group_size)

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @functools.lru_cache(maxsize=1024)  # noqa: B019  asked at every call, of few mixers, which are values
    def constants(self, config: TileConfig) -> dict:
        norm_heads = self.norm_group_size // self.head_dim
        blocks = (config.tokens, _block(self.head_dim), min(config.state, _block(self.state)), _power(norm_heads))
        blocks += (min(config.channels, blocks[1]),)
        sizes = (self.heads, self.head_dim, self.groups, self.state, self.taps, norm_heads)
        return dict(DIRECTIONS=self.directions, SIZES=sizes, BLOCKS=blocks)


def forward(rows: Tensor, parameters: Sequence[Tensor | None], offsets, strides, mixer: Mixer, config: TileConfig):
    """rows (B, T, channels), channels contiguous -> one (B, T, E) a path."""
    videos, tokens, _ = rows.shape
    outputs = [rows.new_empty(videos, tokens, mixer.width) for _ in offsets]
    lengths, sequences, tiles = _cut(rows, offsets, config)
    programs = min(sum(tiles), config.programs * multiprocessors(rows.device))
    gated = rows.new_empty(programs * mixer.directions * config.tokens * mixer.width, dtype=scratch_type(rows))
    squares = rows.new_empty(programs * mixer.directions * config.tokens * mixer.heads, dtype=torch.float32)
    constants = mixer.constants(config)
    with on_device(rows):
        launch(
            _tile_kernels().path_scan_tile_fwd_kernel,
            programs,
            *(rows, *rows.stride()[:2], *parameters, mixer.eps),
            *(tuple(outputs), tokens * mixer.width, tuple(offsets), lengths, sequences, tuple(strides)),
            *(sum(tiles), videos, gated, squares),
            **constants,
            **config.options(),
            **sparing(rows.device),
            **registers(config, constants["BLOCKS"][4], rows.device),
        )
    return outputs


def backward(
    grads, grad_rows: Tensor, rows: Tensor, parameters, offsets, strides, mixer: Mixer, config: TileConfig,
    accumulate: bool = False, kept: torch.dtype | None = None,
) -> list[Tensor]:  # fmt: skip
    """Write grad_rows, contiguous, all of it, or add to it. Returns the gradients of the parameters that are not None.

    kept: their type; None: each parameter's. Scratch, beside that of the programs: for each path that does not write
    grad_rows its gradient of the rows.
    """
    videos = rows.shape[0]
    lengths, sequences, tiles = _cut(rows, offsets, config)
    programs = min(sum(tiles), config.programs * multiprocessors(rows.device))
    constants = mixer.constants(config)
    y = rows.new_empty(programs * config.tokens * mixer.width, dtype=scratch_type(rows))
    blocks = constants["BLOCKS"]
    numbers = _NAMED + 2 * mixer.heads + max(blocks[2], blocks[4])
    numbers = rows.new_empty(programs * numbers * config.tokens, dtype=torch.float32)
    square = rows.new_empty(programs * config.tokens * (2 * config.tokens + blocks[1]))  # and x
    segments, found = shares(rows, parameters, programs)
    first_rows, of_others, added = planes(rows, grad_rows, len(offsets), accumulate)
    of_outs = tuple(zip(*((grad, *grad.stride()[:2]) for grad in grads), strict=True))
    with on_device(rows):
        launch(
            _backward_kernels().path_scan_tile_bwd_kernel,
            programs,
            *(rows, *rows.stride()[:2], *parameters, mixer.eps),
            *(of_outs, first_rows, of_others, tuple(offsets), lengths, sequences, tuple(strides), sum(tiles), videos),
            *(y, numbers, square, found, found.shape[1]),
            SEGMENTS=segments,
            **constants,
            **config.options(),
            **sparing(rows.device),
            **registers(config, blocks[4], rows.device),
        )
        return sum_shares(parameters, segments, found, kept, added, grad_rows)


def along(rows: Tensor, offsets) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each path its length, and its sequences in one video."""
    lengths = tuple(table.shape[0] for table in offsets)
    return lengths, tuple(rows.shape[1] // length for length in lengths)


def _cut(rows: Tensor, offsets, config: TileConfig):
    """For each path its length, its sequences in one video, and the tiles that they fill."""
    lengths, sequences = along(rows, offsets)
    return lengths, sequences, [
        -(-rows.shape[0] * count // (config.tokens // length)) for length, count in zip(lengths, sequences, strict=True)
    ]  # fmt: skip


def registers(config: TileConfig, channels: int, device: torch.device) -> dict:
    """As many as leave room for the programs of a multiprocessor, if these are enough for the channels held at a time.

    Left alone, the assembler may keep so few that a third program fits, and spill.
    """
    all_of_one = registers_of_one(config.num_warps)
    return at_most(device, min(all_of_one, max(64, 2 * channels, all_of_one // config.programs)))


def scratch_type(rows: Tensor) -> torch.dtype:
    return torch.bfloat16 if rows.dtype == torch.bfloat16 else torch.float32


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _block(size: int) -> int:
    """The matrix units want 16 at least."""
    return max(16, _power(size))


def _tile_kernels():
    from medsora_ops.scan import tile_kernels

    return tile_kernels


def _backward_kernels():
    from medsora_ops.scan import tile_backward_kernels

    return tile_backward_kernels
