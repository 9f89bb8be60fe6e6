"""Launches of the kernels that walk chunk by chunk, for `path_scan` along a path of long sequences: two, back four.

Of the four back, each needs all of the one before: the scans again, with the sums that the norms are made of; the way
back through norm, gate and scans; through the convolution; and the sums of the gradients of parameters. Cut into runs:
as in chunk_launch.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medsora_ops.launch import launch, on_device, sparing
from medsora_ops.scan.chunk_config import (
    BACKWARD,
    FORWARD,
    ChunkConfig,
    ceil_div,
    contiguous,
    fitting,
    whole_rows,
)
from medsora_ops.scan.runs import Runs
from medsora_ops.scan.sums import sum_rows


def path_scan_chunked(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    table: Tensor,
    stride: int,
    head_dim: int,
    groups: int,
    bidirectional: bool,
    eps: float,
    norm_group_size: int,
    config: ChunkConfig | None = None,
) -> Tensor:
    """Arguments as the definition's in reference.py but for one path: its table of offsets and its stride.

    Returns (B, T, E). Two launches without a cut. Scratch: what the scans give before their gate, (directions, B, T,
    E).
    """
    parameters = tuple(contiguous(p) for p in (conv_weight, conv_bias, dt_bias, A, D, norm_weight))
    settings = (head_dim, groups, bidirectional, eps, norm_group_size)
    mixer = PathMixer.of(whole_rows(zxbcdt), parameters, table, stride, *settings)
    config = config or fitting(FORWARD, zxbcdt.dtype, mixer.sizes[3])
    out = mixer.rows.new_empty(*mixer.rows.shape[:2], mixer.width)
    with on_device(out):
        y = mixer.scan(config, mixer.runs(config))
        tile, normed, _ = division = mixer.division(config)
        launch(
            _norm_kernels().path_scan_norm_fwd_kernel,
            ceil_div(out.shape[0] * out.shape[1], tile) * (mixer.width // normed),
            *(y, mixer.rows, *mixer.rows.stride()[:2], mixer.parameters[-1]),
            *(out, eps, out.shape[0] * out.shape[1], out.shape[1]),
            DIRECTIONS=mixer.directions,
            WIDTH=mixer.width,
            DIVISION=division,
            **config.row_options(),
        )
    return out


def path_scan_chunked_backward(
    grad: Tensor,
    grad_rows: Tensor,
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    table: Tensor,
    stride: int,
    *settings,
    accumulate: bool = False,
    config: ChunkConfig | None = None,
) -> list[Tensor]:
    """Gradients of the parameters (those not None) in float32, in their order; only the inputs were kept.

    grad_rows: becomes the gradient of zxbcdt, or with `accumulate` has it added; its channels are contiguous.
    Four launches without a cut. Scratch, for each token and direction, in the type of y (bfloat16 rows: theirs, else
    float32): y (E), and 2 heads state for the heads' shares of dB and dC; for each token E more, the second direction's
    share of dz, and for each direction 2 heads float32 for the norms; for each of the sequences * directions * heads
    programs length / (tokens * segment) states in float32, and a segment of states, in the type of the rows, for each
    of its runs.
    """
    parameters = tuple(contiguous(p) for p in (conv_weight, conv_bias, dt_bias, A, D, norm_weight))
    mixer = PathMixer.of(whole_rows(zxbcdt), parameters, table, stride, *settings)
    config = config or fitting(BACKWARD, zxbcdt.dtype, mixer.sizes[3])
    runs, segments = mixer.runs(config), config.segments(mixer.length)
    with on_device(mixer.rows):
        states = mixer.scratch(mixer.programs(config), segments, *mixer.blocks(config)[1:]) if segments > 1 else None
        norm = (parameters[-1], mixer.norm_sums(config), mixer.eps)
        after, to_rows = (norm, _strided(whole_rows(grad))), _strided(grad_rows)
        y = mixer.scan(config, runs, states, after)
        of_rows, of_heads = _through_scan(mixer, config, runs, y, after, states, to_rows, accumulate)
        of_filters = _through_convolution(mixer, config, y, of_rows, to_rows, accumulate)
        found = [None if p is None else mixer.scratch(*p.shape) for p in parameters]
        sum_rows([*of_filters, *of_heads], found)
    return [p for p in found if p is not None]


def _through_scan(mixer: PathMixer, config: ChunkConfig, runs: Runs, y, after, states, to_rows, accumulate: bool):
    """y becomes the gradient of x, and z of to_rows, the first direction's share, is written.

    Returns shares of the gradients of z (the second direction's), of B and C, of dt; of dt_bias, A, D and norm_weight.
    """
    (heads, head_dim, groups, state, _), blocks, programs = mixer.sizes, mixer.blocks(config), mixer.programs(config)
    parts, workers = ceil_div(head_dim, blocks[1]), programs * runs.count
    planes = (mixer.directions, *mixer.rows.shape[:2])
    of_z = y.new_empty(*planes[1:], mixer.width) if mixer.directions == 2 else None
    of_rows = (
        of_z,
        y.new_empty(heads // groups * parts, *planes, 2 * groups * state),
        mixer.scratch(parts, *planes, heads),
    )
    of_A, of_D, of_bias = (mixer.scratch(workers // heads, heads) for _ in range(3))
    of_norm = mixer.scratch(workers // (heads * parts), mixer.width)
    if runs.cut:
        launch(
            _run_kernels().path_scan_run_bwd_kernel,
            (programs, runs.count - 1),
            *(*mixer.given(4), y, mixer.positions, *after, runs.boundaries, runs.decays, *mixer.place, runs.segments),
            NORMED=mixer.normed(config),
            **mixer.constants(config),
        )
        runs.chain(config)
    launch(
        _path_backward_kernels().path_scan_chunk_bwd_kernel,
        (programs, runs.count),
        *(*mixer.given(5), y, mixer.positions, *after, to_rows),
        *(states, runs.boundaries, *config.kept(workers, blocks, mixer.rows)),
        *(mixer.rows.new_empty(workers, _stashed(blocks)), *of_rows, of_A, of_D, of_bias, of_norm),
        *(*mixer.place, config.segments(mixer.length), runs.segments),
        CUT=runs.cut,
        NORMED=mixer.normed(config),
        ACCUMULATE=accumulate,
        **mixer.constants(config),
        **sparing(mixer.rows.device),
    )
    return of_rows, (of_bias, of_A, of_D, of_norm)


def _through_convolution(mixer: PathMixer, config: ChunkConfig, y, of_rows, to_rows, accumulate: bool):
    """x, B, C and dt of to_rows are written. Returns each program's share of the gradients of weights and biases."""
    mixed, taps = mixer.parameters[0].shape
    heads, head_dim, *_ = mixer.sizes
    videos = mixer.rows.shape[0]
    tiles = videos * mixer.sequences * ceil_div(mixer.length, config.conv_tokens - taps + 1)
    workers = min(tiles, config.row_programs)
    columns = (mixed, heads, mixer.width if mixer.directions == 2 else 0)
    of_weight = mixer.scratch(workers, mixed, taps)
    of_bias = None if mixer.parameters[1] is None else mixer.scratch(workers, mixed)
    launch(
        _path_backward_kernels().path_scan_conv_bwd_kernel,
        workers * sum(ceil_div(width, config.conv_channels) for width in columns),
        *(*mixer.given(2), y, mixer.positions, *of_rows),
        *(*to_rows, of_weight, of_bias, *mixer.place, videos, workers),
        DIRECTIONS=mixer.directions,
        SIZES=mixer.sizes,
        PARTS=ceil_div(head_dim, mixer.blocks(config)[1]),
        BLOCK_T=config.conv_tokens,
        BLOCK_C=config.conv_channels,
        ACCUMULATE=accumulate,
        **config.row_options(),
    )
    return of_weight, of_bias


def _strided(rows: Tensor) -> tuple[Tensor, int, int]:
    return rows, *rows.stride()[:2]


def _stashed(blocks) -> int:
    """Numbers of a chunk's x, B and C, and of the gradient of its y."""
    tokens, channels, state = blocks
    return tokens * 2 * (channels + state)


@dataclass(frozen=True)
class PathMixer:
    """One call of `path_scan` along one path: its tensors and sizes."""

    rows: Tensor
    parameters: tuple[Tensor | None, ...]
    table: Tensor
    stride: int
    sizes: tuple[int, ...]  # heads, head_dim, groups, state, taps
    directions: int
    eps: float
    norm_group_size: int

    @classmethod
    def of(cls, rows, parameters, table, stride, head_dim, groups, bidirectional, eps, norm_group_size) -> PathMixer:
        mixed, taps = parameters[0].shape
        state = (mixed - parameters[-1].shape[0]) // (2 * groups)
        sizes = (parameters[2].shape[0], head_dim, groups, state, taps)
        return cls(rows, parameters, table, stride, sizes, 2 if bidirectional else 1, eps, norm_group_size)

    @property
    def width(self) -> int:
        return self.parameters[-1].shape[0]

    @property
    def length(self) -> int:
        return self.table.shape[0]

    @property
    def sequences(self) -> int:
        """Of one video."""
        return self.rows.shape[1] // self.length

    @property
    def positions(self) -> int:
        """Tokens of all videos."""
        return self.rows.shape[0] * self.rows.shape[1]

    @property
    def place(self) -> tuple[Tensor, int, int, int]:
        """Where the path goes, as the kernels take it."""
        return self.table, self.length, self.sequences, self.stride

    def given(self, parameters: int) -> tuple:
        """The rows and the first of the parameters, as the kernels take them."""
        return self.rows, *self.rows.stride()[:2], *self.parameters[:parameters]

    def scratch(self, *shape) -> Tensor:
        return self.rows.new_empty(shape, dtype=torch.float32)

    def blocks(self, config: ChunkConfig) -> tuple[int, int, int]:
        return config.blocks(self.sizes[1], self.sizes[3])

    def programs(self, config: ChunkConfig) -> int:
        heads, head_dim, *_ = self.sizes
        parts = ceil_div(head_dim, self.blocks(config)[1])
        return self.rows.shape[0] * self.sequences * self.directions * heads * parts

    def constants(self, config: ChunkConfig) -> dict:
        """What the kernels that take a chunk are specialised by."""
        cut = dict(DIRECTIONS=self.directions, SIZES=self.sizes, BLOCKS=self.blocks(config), SEGMENT=config.segment)
        return {**cut, **config.options()}

    def division(self, config) -> tuple[int, int, int]:
        """DIVISION of the kernels that go row by row."""
        block = 1 << (self.norm_group_size - 1).bit_length()
        return max(1, config.row_numbers // block), self.norm_group_size, block

    def normed(self, config: ChunkConfig) -> tuple[int, int, int]:
        """NORMED of the kernels that take a chunk."""
        normed, head_dim = self.norm_group_size, self.sizes[1]
        if normed % head_dim == 0:
            return normed, 1, normed // head_dim
        channels = min(head_dim, self.blocks(config)[1])
        return normed, (channels + normed - 2) // normed + 1, (normed + head_dim - 2) // head_dim + 1

    def norm_sums(self, config: ChunkConfig) -> Tensor:
        parts, touched = ceil_div(self.sizes[1], self.blocks(config)[1]), self.normed(config)[1]
        return self.scratch(self.directions, *self.rows.shape[:2], 2, self.sizes[0] * parts * touched)

    def runs(self, config: ChunkConfig) -> Runs:
        return Runs.of(config, self.blocks(config), self.programs(config), self.length, self.rows)

    def scan(self, config: ChunkConfig, runs: Runs, states: Tensor | None = None, after=(None, None)) -> Tensor:
        """What the scans give before their gate: (directions, B, T, E). after: norm and of_out of the kernel."""
        kept = torch.bfloat16 if self.rows.dtype == torch.bfloat16 else torch.float32
        y = self.rows.new_empty(self.directions, *self.rows.shape[:2], self.width, dtype=kept)
        if runs.cut:
            self._over_runs(config, runs, "ends", runs.count - 1, runs.decays, None, None, (None, None))
            runs.chain(config)
        self._over_runs(config, runs, runs.cut, runs.count, None, y, states, after)
        return y

    def _over_runs(self, config: ChunkConfig, runs: Runs, cut: str | None, count: int, decays, y, states, after):
        launch(
            _forward_kernels().path_scan_chunk_fwd_kernel,
            (self.programs(config), count),
            *(*self.given(5), y, self.positions, *after, states, runs.boundaries, decays, *self.place),
            *(1 if states is None else states.shape[1], runs.segments),
            CUT=cut,
            NORMED=self.normed(config),
            **self.constants(config),
        )


def _forward_kernels():
    from medsora_ops.scan import chunk_kernels

    return chunk_kernels


def _norm_kernels():
    from medsora_ops.scan import norm_kernels

    return norm_kernels


def _run_kernels():
    from medsora_ops.scan import run_kernels

    return run_kernels


def _path_backward_kernels():
    from medsora_ops.scan import path_backward_kernels

    return path_backward_kernels
