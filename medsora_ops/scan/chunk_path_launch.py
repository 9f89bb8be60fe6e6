"""Launches of the kernels that walk chunk by chunk, for `path_scan` along paths of long sequences.

Two launches for all paths, back four. Of those back, each needs all of the one before: the scans again, with the sums
that the norms are made of; the way back through norm, gate and scans; through the convolution; and the sums, of the
gradients of parameters, and of what paths find for the same rows. Paths go alone where their sequences are cut into
runs, as in chunk_launch.py, and where they are so much work that a launch does not show but scratch does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medsora_ops.launch import at_most, launch, multiprocessors, on_device, registers_of_one, sparing
from medsora_ops.scan.chunk_config import (
    BACKWARD,
    FORWARD,
    ChunkConfig,
    ceil_div,
    contiguous,
    fitting,
    whole_rows,
)
from medsora_ops.scan.runs import Runs, runs_of
from medsora_ops.scan.sums import sum_rows

TOGETHER = 32  # programs for each multiprocessor, of all paths, at most


def path_scan_chunked(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    tables: Sequence[Tensor],
    strides: Sequence[int],
    head_dim: int,
    groups: int,
    bidirectional: bool,
    eps: float,
    norm_group_size: int,
    config: ChunkConfig | None = None,
) -> list[Tensor]:
    """Arguments and results as the definition's in reference.py.

    Two launches for paths that go together, without a cut. Scratch: what their scans give before the gate, (paths,
    directions, B, T, E).
    """
    parameters = (conv_weight, conv_bias, dt_bias, A, D, norm_weight)
    settings = (head_dim, groups, bidirectional, eps, norm_group_size)
    mixer = PathMixer.of(zxbcdt, parameters, tables, strides, *settings)
    config = config or fitting(FORWARD, zxbcdt.dtype, mixer.sizes[3])
    outputs: list[Tensor] = []
    with on_device(mixer.rows):
        for part in mixer.parts(config):
            outputs += _forward(part, config)
    return outputs


def _forward(mixer: PathMixer, config: ChunkConfig) -> tuple[Tensor, ...]:
    outputs = tuple(mixer.rows.new_empty(*mixer.rows.shape[:2], mixer.width) for _ in mixer.tables)
    y = mixer.scan(config, mixer.runs(config))
    tile, normed, _ = division = mixer.division(config)
    launch(
        _norm_kernels().path_scan_norm_fwd_kernel,
        (ceil_div(mixer.positions, tile) * (mixer.width // normed), 1, mixer.paths),
        *(y, mixer.rows, *mixer.rows.stride()[:2], mixer.parameters[-1]),
        *(outputs, mixer.eps, mixer.positions, mixer.rows.shape[1]),
        PATHS=mixer.paths,
        DIRECTIONS=mixer.directions,
        WIDTH=mixer.width,
        DIVISION=division,
        **config.row_options(),
    )
    return outputs


def path_scan_chunked_backward(
    grads: Sequence[Tensor],
    grad_rows: Tensor,
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    tables: Sequence[Tensor],
    strides: Sequence[int],
    *settings,
    accumulate: bool = False,
    config: ChunkConfig | None = None,
    kept: torch.dtype | None = None,
) -> list[Tensor]:
    """Gradients of the parameters (those not None), in their order; only the inputs were kept.

    kept: their type; None: each parameter's, or float32 where several launches' are added.
    grad_rows: becomes the gradient of zxbcdt, or with `accumulate` has it added; its channels are contiguous.
    Four launches for paths that go together, without a cut. Scratch, for each of these, token and direction, in the
    type of y (bfloat16 rows: theirs, else float32): y (E), and 2 heads state for the heads' shares of dB and dC; E more
    but for the first, a share of dz; and 3 heads float32 for the norms and the steps. For each path but the first, and
    token, in y's type: the channels of the convolution. For each of the sequences * directions * heads programs length
    / (tokens * segment) states in float32, and a segment of states, in the type of the rows, for each of its runs.
    Where a head is cut into parts, shares, norms and steps are each part's.
    """
    parameters = (conv_weight, conv_bias, dt_bias, A, D, norm_weight)
    mixer = PathMixer.of(zxbcdt, parameters, tables, strides, *settings)
    config = config or fitting(BACKWARD, zxbcdt.dtype, mixer.sizes[3])
    total, done, parts = None, 0, mixer.parts(config)
    kept = torch.float32 if len(parts) > 1 else kept
    with on_device(mixer.rows):
        for part in parts:
            of_paths = grads[done : done + part.paths]
            found = _backward(part, config, of_paths, _strided(grad_rows), accumulate or done > 0, kept)
            total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
            done += part.paths
    return total


def _backward(mixer: PathMixer, config: ChunkConfig, grads, to_rows, accumulate: bool, kept) -> list[Tensor]:
    """kept: the type of what is returned; None: each parameter's."""
    runs, states = mixer.runs(config), mixer.states(config)
    norm = (mixer.parameters[-1], mixer.norm_sums(config), mixer.eps)
    after = norm, tuple(zip(*(_strided(whole_rows(grad)) for grad in grads), strict=True))
    y = mixer.scan(config, runs, states, after)
    of_rows, of_heads = _through_scan(mixer, config, runs, y, after, states, to_rows, accumulate)
    of_others, of_filters = _through_convolution(mixer, config, y, of_rows, to_rows, accumulate)
    found = [None if p is None else torch.empty_like(p, dtype=kept) for p in mixer.parameters]
    convolved = to_rows[0][..., mixer.width : mixer.width + mixer.parameters[0].shape[0]]
    sum_rows([*of_filters, *of_heads], found, of_others, convolved)
    return [p for p in found if p is not None]


def _through_scan(mixer: PathMixer, config: ChunkConfig, runs: Runs, y, after, states, to_rows, accumulate: bool):
    """y becomes the gradient of x, and z of to_rows, the first path's and direction's share, is written.

    Returns shares of the gradients of z (all others), of B and C, of dt; of dt_bias, A, D and norm_weight.
    """
    (heads, head_dim, groups, state, _), blocks, counts = mixer.sizes, mixer.blocks(config), mixer.programs_of(config)
    parts, workers = ceil_div(head_dim, blocks[1]), sum(counts) * runs.count
    planes = (mixer.directions, *mixer.rows.shape[:2])
    others = mixer.paths * mixer.directions - 1
    of_rows = (
        y.new_empty(others, *planes[1:], mixer.width) if others else None,
        y.new_empty(mixer.paths, heads // groups * parts, *planes, 2 * groups * state),
        mixer.scratch(mixer.paths, parts, *planes, heads),
    )
    of_A, of_D, of_bias = (mixer.scratch(workers // heads, heads) for _ in range(3))
    of_norm = mixer.scratch(workers // (heads * parts), mixer.width)
    if runs.cut:
        norm, of_outs = after
        launch(
            _run_kernels().path_scan_run_bwd_kernel,
            (counts[0], runs.count - 1),
            *(*mixer.given(4), y, mixer.positions, norm, tuple(each[0] for each in of_outs)),
            *(runs.boundaries, runs.decays, *mixer.place(0), runs.segments),
            NORMED=mixer.normed(config),
            **mixer.constants(config),
        )
        runs.chain(config)
    launch(
        _path_backward_kernels().path_scan_chunk_bwd_kernel,
        mixer.grid(config, runs.count),
        *(*mixer.given(5), y, mixer.positions, *after, to_rows),
        *(states, runs.boundaries, *config.kept(workers, blocks, mixer.rows)),
        *(mixer.rows.new_empty(workers, _stashed(blocks)), *of_rows, of_A, of_D, of_bias, of_norm),
        *(*mixer.places, mixer.segments(config), runs.segments),
        PATHS=mixer.paths,
        CUT=runs.cut,
        NORMED=mixer.normed(config),
        ACCUMULATE=accumulate,
        **mixer.constants(config),
        **sparing(mixer.rows.device),
    )
    return of_rows, (of_bias, of_A, of_D, of_norm)


def _through_convolution(mixer: PathMixer, config: ChunkConfig, y, of_rows, to_rows, accumulate: bool):
    """x, B, C and dt of to_rows are written, z is completed.

    Returns what other paths than the first add to x, B and C; programs' shares of the filters' gradients.
    """
    mixed, taps = mixer.parameters[0].shape
    heads, head_dim, *_ = mixer.sizes
    videos, tokens, _ = mixer.rows.shape
    tiles = [
        videos * count * ceil_div(length, config.conv_tokens - taps + 1)
        for length, count in zip(mixer.lengths, mixer.sequences, strict=True)
    ]
    workers = min(max(tiles), config.row_programs)
    columns = (mixed, heads, mixer.width if mixer.paths * mixer.directions > 1 else 0)
    of_others = y.new_empty(mixer.paths - 1, videos, tokens, mixed) if mixer.paths > 1 else None
    of_weight = mixer.scratch(mixer.paths * workers, mixed, taps)
    of_bias = None if mixer.parameters[1] is None else mixer.scratch(mixer.paths * workers, mixed)
    launch(
        _path_backward_kernels().path_scan_conv_bwd_kernel,
        (workers * sum(ceil_div(width, config.conv_channels) for width in columns), 1, mixer.paths),
        *(*mixer.given(2), y, mixer.positions, *of_rows, *to_rows, of_others, of_weight, of_bias),
        *(*mixer.places, videos, workers),
        PATHS=mixer.paths,
        DIRECTIONS=mixer.directions,
        SIZES=mixer.sizes,
        PARTS=ceil_div(head_dim, mixer.blocks(config)[1]),
        BLOCK_T=config.conv_tokens,
        BLOCK_C=config.conv_channels,
        ACCUMULATE=accumulate,
        **config.row_options(),
        # All that there are: left alone, the assembler may keep to half of them and spill.
        **at_most(mixer.rows.device, registers_of_one(config.row_warps)),
    )
    return of_others, (of_weight, of_bias)


def _strided(rows: Tensor) -> tuple[Tensor, int, int]:
    return rows, *rows.stride()[:2]


def _stashed(blocks) -> int:
    """Numbers of a chunk's x, B and C, and of the gradient of its y."""
    tokens, channels, state = blocks
    return tokens * 2 * (channels + state)


@dataclass(frozen=True)
class PathMixer:
    """One call of `path_scan`, or the part of it along some of its paths: its tensors and sizes."""

    rows: Tensor
    parameters: tuple[Tensor | None, ...]
    tables: tuple[Tensor, ...]
    strides: tuple[int, ...]
    lengths: tuple[int, ...]
    sequences: tuple[int, ...]  # of one video
    sizes: tuple[int, ...]  # heads, head_dim, groups, state, taps
    directions: int
    eps: float
    norm_group_size: int

    @classmethod
    def of(cls, rows, parameters, tables, strides, head_dim, groups, bidirectional, eps, norm_group_size) -> PathMixer:
        rows, parameters = whole_rows(rows), tuple(contiguous(p) for p in parameters)
        mixed, taps = parameters[0].shape
        state = (mixed - parameters[-1].shape[0]) // (2 * groups)
        sizes, directions = (parameters[2].shape[0], head_dim, groups, state, taps), 2 if bidirectional else 1
        lengths = tuple(table.shape[0] for table in tables)
        along = tuple(tables), tuple(strides), lengths, tuple(rows.shape[1] // length for length in lengths)
        return cls(rows, parameters, *along, sizes, directions, eps, norm_group_size)

    def parts(self, config: ChunkConfig) -> list[PathMixer]:
        """Of the paths that are launched together: all of them, or each alone."""
        programs, device = sum(self.programs_of(config)), self.rows.device
        if self.paths == 1 or programs <= TOGETHER * multiprocessors(device) and all(
            runs_of(config, programs, length, device)[0] == 1 for length in self.lengths
        ):  # fmt: skip
            return [self]
        along = zip(self.tables, self.strides, self.lengths, self.sequences, strict=True)
        return [
            replace(self, tables=(table,), strides=(stride,), lengths=(length,), sequences=(sequences,))
            for table, stride, length, sequences in along
        ]

    @property
    def paths(self) -> int:
        return len(self.tables)

    @property
    def width(self) -> int:
        return self.parameters[-1].shape[0]

    @property
    def positions(self) -> int:
        """Tokens of all videos."""
        return self.rows.shape[0] * self.rows.shape[1]

    @property
    def places(self) -> tuple[tuple, ...]:
        """Where the paths go, as the kernels take it."""
        return self.tables, self.lengths, self.sequences, self.strides

    def place(self, path: int) -> tuple:
        return tuple(each[path] for each in self.places)

    def given(self, parameters: int) -> tuple:
        """The rows and the first of the parameters, as the kernels take them."""
        return self.rows, *self.rows.stride()[:2], *self.parameters[:parameters]

    def scratch(self, *shape) -> Tensor:
        return self.rows.new_empty(shape, dtype=torch.float32)

    def blocks(self, config: ChunkConfig) -> tuple[int, int, int]:
        return config.blocks(self.sizes[1], self.sizes[3])

    def programs_of(self, config: ChunkConfig) -> tuple[int, ...]:
        """Of each path, without a cut."""
        heads, head_dim, *_ = self.sizes
        each = self.rows.shape[0] * self.directions * heads * ceil_div(head_dim, self.blocks(config)[1])
        return tuple(count * each for count in self.sequences)

    def grid(self, config: ChunkConfig, runs: int) -> tuple[int, ...]:
        return (max(self.programs_of(config)), runs, self.paths)

    def segments(self, config: ChunkConfig) -> tuple[int, ...]:
        return tuple(config.segments(length) for length in self.lengths)

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
        return self.scratch(self.paths, self.directions, *self.rows.shape[:2], 2, self.sizes[0] * parts * touched)

    def states(self, config: ChunkConfig) -> tuple[Tensor, ...] | None:
        """For the way back, at the start of each segment of each path; None if no path has two."""
        segments = self.segments(config)
        if max(segments) < 2:
            return None
        counts, state = self.programs_of(config), self.blocks(config)[1:]
        return tuple(self.scratch(count, each, *state) for count, each in zip(counts, segments, strict=True))

    def runs(self, config: ChunkConfig) -> Runs:
        """Of a path that goes alone; others are not cut."""
        if self.paths > 1:
            return Runs(1, 0, None, None)
        return Runs.of(config, self.blocks(config), self.programs_of(config)[0], self.lengths[0], self.rows)

    def scan(self, config: ChunkConfig, runs: Runs, states=None, after=(None, None)) -> Tensor:
        """What the scans give before their gate: (paths, directions, B, T, E). after: the kernel's norm and of_outs."""
        kept = torch.bfloat16 if self.rows.dtype == torch.bfloat16 else torch.float32
        y = self.rows.new_empty(self.paths, self.directions, *self.rows.shape[:2], self.width, dtype=kept)
        if runs.cut:
            self._over_runs(config, runs, "ends", runs.count - 1, runs.decays, None, None, (None, None))
            runs.chain(config)
        self._over_runs(config, runs, runs.cut, runs.count, None, y, states, after)
        return y

    def _over_runs(self, config: ChunkConfig, runs: Runs, cut: str | None, count: int, decays, y, states, after):
        launch(
            _forward_kernels().path_scan_chunk_fwd_kernel,
            self.grid(config, count),
            *(*self.given(5), y, self.positions, *after, states, runs.boundaries, decays, *self.places),
            *(self.segments(config), runs.segments),
            PATHS=self.paths,
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
