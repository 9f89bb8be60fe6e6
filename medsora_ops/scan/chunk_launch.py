"""Launches of the kernels that walk chunk by chunk: `ssd_scan`, and `path_scan` along a path of long sequences.

Launches a call: ssd_scan 1, back 2 or 3; path_scan 2, back 5. Sequences that are too few and long enough are cut into
runs (runs.py): 2 more launches, back 4 more, or half of these for two runs. Scratch: see the host functions; and for a
cut a state for each program of whole sequences and each place where two runs meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsora_ops.launch import launch, on_device
from medsora_ops.scan.chunk_config import (
    BACKWARD,
    FORWARD,
    ChunkConfig,
    ceil_div,
    contiguous,
    fitting,
    kept_numbers,
    sum_rows,
    whole_rows,
)
from medsora_ops.scan.runs import Runs


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    dt_softplus: bool,
    return_final_states: bool,
    config: ChunkConfig | None = None,
) -> list[Tensor]:
    """Arguments and results as the definition's in reference.py. One launch and no scratch without a cut."""
    config = config or fitting(FORWARD, x.dtype, B.shape[3])
    x, dt, B, C, z, initial_states = _sequences(x, dt, B, C, z, initial_states)
    y, final = x.new_empty(x.shape), None
    if return_final_states:
        final = x.new_empty(x.shape[0], *x.shape[2:], B.shape[3], dtype=torch.float32)
    runs = _ssd_runs(x, B, config)
    _ssd_forward(x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, config, runs, y=y, final=final)
    return [y] if final is None else [y, final]


def ssd_scan_backward(grads: Sequence[Tensor], *arguments, config: ChunkConfig | None = None) -> list[Tensor]:
    """Gradients of the tensors among the arguments, in their order; only the inputs were kept.

    Three launches, two if there is neither z nor a second segment. Scratch in float32, for a batch of b sequences of l
    tokens: 2 b l heads state for the heads' shares of dB and dC; for each of the b heads programs
    l / (tokens * segment) states, and a segment of states for each of its runs.
    """
    x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, return_final_states = arguments
    config = config or fitting(BACKWARD, x.dtype, B.shape[3])
    x, dt, B, C, z, initial_states = _sequences(x, dt, B, C, z, initial_states)
    grad_y, grad_final = whole_rows(grads[0]), grads[1].contiguous() if return_final_states else None
    sizes, blocks = _ssd_cut(x, B, config)
    (batch, length, heads, head_dim), (groups, state) = x.shape, B.shape[2:]
    parts = ceil_div(head_dim, blocks[1])
    segments, programs, runs = config.segments(length), batch * heads * parts, _ssd_runs(x, B, config)
    workers = programs * runs.count

    def scratch(*shape):
        return x.new_empty(shape, dtype=torch.float32)

    states = scratch(programs, segments, *blocks[1:]) if segments > 1 else None
    shares = [scratch(heads // groups * parts, batch, length, groups, state) for _ in "BC"]
    of_dt, of_A = scratch(parts, batch, length, heads), scratch(workers // heads, heads)
    of_D = None if D is None else torch.empty_like(of_A)
    if D is not None and D.dim() == 2:
        of_D = scratch(batch * runs.count, heads, head_dim)
    of_bias = None if dt_bias is None else torch.empty_like(of_A)
    grad_x, grad_z, grad_initial = (None if t is None else t.new_empty(t.shape) for t in (x, z, initial_states))
    if grad_z is not None or states is not None:
        _ssd_forward(
            *(x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, config, runs),
            **dict(grad_y=grad_y, grad_z=grad_z, grad_mixed=grad_x, states=states),
        )
    grad_mixed = grad_y if z is None else grad_x  # read before it is overwritten, by the same program
    with on_device(x):
        if runs.cut:
            launch(
                _run_kernels().ssd_scan_run_bwd_kernel,
                (programs, runs.count - 1),
                *(*(_strided(t) for t in (dt, C, grad_mixed)), A.contiguous(), contiguous(dt_bias), grad_final),
                *(runs.boundaries, runs.decays, length, runs.segments),
                SIZES=sizes,
                BLOCKS=blocks,
                SEGMENT=config.segment,
                SOFTPLUS=dt_softplus,
                **config.options(),
            )
            runs.chain(config)
        launch(
            _backward_kernels().ssd_scan_bwd_kernel,
            (programs, runs.count),
            *(_strided(t) for t in (x, dt, B, C, grad_mixed, grad_x)),
            *(A.contiguous(), _skip(D), contiguous(dt_bias), initial_states, grad_final, grad_initial),
            *(states, runs.boundaries, scratch(workers, kept_numbers(config, blocks))),
            *(*shares, of_dt, of_A, of_D, of_bias, length, segments, runs.segments),
            SIZES=sizes,
            BLOCKS=blocks,
            SEGMENT=config.segment,
            CUT=runs.cut,
            SOFTPLUS=dt_softplus,
            D_OF_CHANNELS=D is not None and D.dim() == 2,
            **config.options(),
        )
        grad_dt, grad_A, grad_B, grad_C, grad_D, grad_bias = (
            None if t is None else t.new_empty(t.shape) for t in (dt, A, B, C, D, dt_bias)
        )
        sum_rows([of_dt, of_A, *shares, of_D, of_bias], [grad_dt, grad_A, grad_B, grad_C, grad_D, grad_bias], config)
    in_order = (grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial)
    return [grad for grad in in_order if grad is not None]


def _ssd_forward(
    x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, config, runs,
    y=None, final=None, grad_y=None, grad_z=None, grad_mixed=None, states=None,
):  # fmt: skip
    sizes, blocks = _ssd_cut(x, B, config)
    programs = x.shape[0] * x.shape[2] * ceil_div(x.shape[3], blocks[1])

    def over_runs(cut, count, decays, z, y, grad_y, grad_z, grad_mixed, final, states):
        launch(
            _forward_kernels().ssd_scan_fwd_kernel,
            (programs, count),
            *(_strided(t) for t in (x, dt, B, C, z, y, grad_y, grad_z, grad_mixed)),
            *(A.contiguous(), _skip(D), contiguous(dt_bias), initial_states, final, states),
            *(runs.boundaries, decays, x.shape[1], 1 if states is None else states.shape[1], runs.segments),
            SIZES=sizes,
            BLOCKS=blocks,
            SEGMENT=config.segment,
            CUT=cut,
            SOFTPLUS=dt_softplus,
            **config.options(),
        )

    with on_device(x):
        if runs.cut:
            over_runs("ends", runs.count - 1, runs.decays, *[None] * 7)
            runs.chain(config)
        over_runs(runs.cut, runs.count, None, z, y, grad_y, grad_z, grad_mixed, final, states)


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
    mixer = _Mixer.of(whole_rows(zxbcdt), parameters, table, stride, *settings)
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
    Five launches without a cut. Scratch, for each token and direction: y (E), and in float32 2 heads state for the
    heads' shares of dB and dC; for each of the sequences * directions * heads programs length / (tokens * segment)
    states, and a segment of states for each of its runs.
    """
    parameters = tuple(contiguous(p) for p in (conv_weight, conv_bias, dt_bias, A, D, norm_weight))
    mixer = _Mixer.of(whole_rows(zxbcdt), parameters, table, stride, *settings)
    config = config or fitting(BACKWARD, zxbcdt.dtype, mixer.sizes[3])
    grad, rows, directions = whole_rows(grad), mixer.rows, mixer.directions
    (heads, head_dim, groups, state, taps), (videos, tokens, _) = mixer.sizes, rows.shape
    blocks, segments = config.blocks(head_dim, state), config.segments(mixer.length)
    parts, programs, runs = ceil_div(head_dim, blocks[1]), mixer.programs(blocks), mixer.runs(config)
    workers = programs * runs.count
    mixed, (tile, normed, _) = parameters[0].shape[0], mixer.division(config)

    def scratch(*shape):
        return rows.new_empty(shape, dtype=torch.float32)

    states = scratch(programs, segments, *blocks[1:]) if segments > 1 else None
    per_program = [scratch(workers // heads, heads) for _ in ("A", "D", "dt_bias")]
    shares = scratch(heads // groups * parts, directions, videos, tokens, 2 * groups * state)
    of_dt = scratch(parts, directions, videos, tokens, heads)
    norm_workers = min(ceil_div(videos * tokens, tile), config.row_programs)
    conv_tiles = videos * mixer.sequences * ceil_div(mixer.length, config.conv_tokens - taps + 1)
    conv_workers = min(conv_tiles, config.row_programs)
    of_norm, of_weight = scratch(norm_workers, mixer.width), scratch(conv_workers, mixed, taps)
    of_conv_bias = None if conv_bias is None else scratch(conv_workers, mixed)
    place = (mixer.table, mixer.length, mixer.sequences, mixer.stride)
    with on_device(rows):
        y = mixer.scan(config, runs, states)
        launch(
            _norm_kernels().path_scan_norm_bwd_kernel,
            norm_workers * (mixer.width // normed),
            *(y, rows, *rows.stride()[:2], parameters[-1], grad, *grad.stride()[:2]),
            *(grad_rows, *grad_rows.stride()[:2], of_norm, mixer.eps, videos * tokens, tokens, norm_workers),
            DIRECTIONS=directions,
            WIDTH=mixer.width,
            DIVISION=mixer.division(config),
            ACCUMULATE=accumulate,
            **config.row_options(),
        )
        if runs.cut:
            launch(
                _run_kernels().path_scan_run_bwd_kernel,
                (programs, runs.count - 1),
                *(rows, *rows.stride()[:2], *parameters[:4], y, videos * tokens, runs.boundaries, runs.decays),
                *(*place, runs.segments),
                DIRECTIONS=directions,
                SIZES=mixer.sizes,
                BLOCKS=blocks,
                SEGMENT=config.segment,
                **config.options(),
            )
            runs.chain(config)
        launch(
            _path_backward_kernels().path_scan_chunk_bwd_kernel,
            (programs, runs.count),
            *(rows, *rows.stride()[:2], *parameters[:5], y, videos * tokens, states, runs.boundaries),
            *(scratch(workers, kept_numbers(config, blocks)), rows.new_empty(workers, _stashed(blocks))),
            *(shares, of_dt, *per_program, *place, segments, runs.segments),
            DIRECTIONS=directions,
            SIZES=mixer.sizes,
            BLOCKS=blocks,
            SEGMENT=config.segment,
            CUT=runs.cut,
            **config.options(),
        )
        launch(
            _path_backward_kernels().path_scan_conv_bwd_kernel,
            conv_workers * (ceil_div(mixed, config.conv_channels) + ceil_div(heads, config.conv_channels)),
            *(rows, *rows.stride()[:2], *parameters[:2], y, videos * tokens, shares, of_dt),
            *(grad_rows, *grad_rows.stride()[:2], of_weight, of_conv_bias, *place, videos, conv_workers),
            DIRECTIONS=directions,
            SIZES=mixer.sizes,
            PARTS=parts,
            BLOCK_T=config.conv_tokens,
            BLOCK_C=config.conv_channels,
            ACCUMULATE=accumulate,
            **config.row_options(),
        )
        of_A, of_D, of_bias = per_program
        found = [None if p is None else scratch(*p.shape) for p in parameters]
        sum_rows([of_weight, of_conv_bias, of_bias, of_A, of_D, of_norm], found, config)
    return [p for p in found if p is not None]


def _stashed(blocks) -> int:
    """Numbers of a chunk's x, B and C."""
    tokens, channels, state = blocks
    return tokens * (channels + 2 * state)


@dataclass(frozen=True)
class _Mixer:
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
    def of(cls, rows, parameters, table, stride, head_dim, groups, bidirectional, eps, norm_group_size) -> _Mixer:
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

    def programs(self, blocks) -> int:
        heads, head_dim, *_ = self.sizes
        return self.rows.shape[0] * self.sequences * self.directions * heads * ceil_div(head_dim, blocks[1])

    def division(self, config) -> tuple[int, int, int]:
        """DIVISION of the kernels that go row by row."""
        block = 1 << (self.norm_group_size - 1).bit_length()
        return max(1, config.row_numbers // block), self.norm_group_size, block

    def runs(self, config: ChunkConfig) -> Runs:
        blocks = config.blocks(self.sizes[1], self.sizes[3])
        return Runs.of(config, blocks, self.programs(blocks), self.length, self.rows)

    def scan(self, config: ChunkConfig, runs: Runs, states: Tensor | None = None) -> Tensor:
        """What the scans give before their gate: (directions, B, T, E)."""
        kept = torch.bfloat16 if self.rows.dtype == torch.bfloat16 else torch.float32
        y = self.rows.new_empty(self.directions, *self.rows.shape[:2], self.width, dtype=kept)
        if runs.cut:
            self._over_runs(config, runs, "ends", runs.count - 1, runs.decays, None, None)
            runs.chain(config)
        self._over_runs(config, runs, runs.cut, runs.count, None, y, states)
        return y

    def _over_runs(self, config: ChunkConfig, runs: Runs, cut: str | None, count: int, decays, y, states) -> None:
        blocks = config.blocks(self.sizes[1], self.sizes[3])
        launch(
            _forward_kernels().path_scan_chunk_fwd_kernel,
            (self.programs(blocks), count),
            *(self.rows, *self.rows.stride()[:2], *self.parameters[:5], y, self.rows.shape[0] * self.rows.shape[1]),
            *(states, runs.boundaries, decays, self.table, self.length, self.sequences, self.stride),
            *(1 if states is None else states.shape[1], runs.segments),
            DIRECTIONS=self.directions,
            SIZES=self.sizes,
            BLOCKS=blocks,
            SEGMENT=config.segment,
            CUT=cut,
            **config.options(),
        )


def _sequences(x, dt, B, C, z, initial_states):
    """What lies along the sequences, as the kernels read it."""
    return whole_rows(x), dt, *(whole_rows(t) for t in (B, C, z)), contiguous(initial_states)


def _ssd_cut(x: Tensor, B: Tensor, config):
    """SIZES and BLOCKS of the kernels."""
    return (*x.shape[2:], *B.shape[2:], 0), config.blocks(x.shape[3], B.shape[3])


def _ssd_runs(x: Tensor, B: Tensor, config: ChunkConfig) -> Runs:
    blocks = _ssd_cut(x, B, config)[1]
    return Runs.of(config, blocks, x.shape[0] * x.shape[2] * ceil_div(x.shape[3], blocks[1]), x.shape[1], x)


def _strided(x: Tensor | None):
    return None if x is None else (x, *x.stride()[:3])


def _skip(D: Tensor | None):
    return None if D is None else (D, D.stride(0), D.stride(1) if D.dim() == 2 else 0)


def _forward_kernels():
    from medsora_ops.scan import chunk_kernels

    return chunk_kernels


def _norm_kernels():
    from medsora_ops.scan import norm_kernels

    return norm_kernels


def _backward_kernels():
    from medsora_ops.scan import chunk_backward_kernels

    return chunk_backward_kernels


def _run_kernels():
    from medsora_ops.scan import run_kernels

    return run_kernels


def _path_backward_kernels():
    from medsora_ops.scan import path_backward_kernels

    return path_backward_kernels
