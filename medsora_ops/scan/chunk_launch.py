"""Launches of the kernels that walk chunk by chunk: `ssd_scan`, and `path_scan` along a path of long sequences.

Launches a call: ssd_scan 1, back 2 or 3. Scratch: see the host functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medsora_ops.launch import launch, on_device


@dataclass(frozen=True)
class ChunkConfig:
    """How the work is cut. tokens: of a chunk; channels: of a head that one program takes at most."""

    tokens: int = 64
    channels: int = 64
    num_warps: int = 8
    num_stages: int = 1
    row_numbers: int = 4096  # of a tile of rows, where work goes row by row
    row_warps: int = 4

    def blocks(self, head_dim: int, state: int) -> tuple[int, int, int]:
        return self.tokens, min(self.channels, _block(head_dim)), _block(state)

    def options(self) -> dict:
        return dict(num_warps=self.num_warps, num_stages=self.num_stages, enable_fp_fusion=True)

    def row_options(self) -> dict:
        return dict(num_warps=self.row_warps, num_stages=1, enable_fp_fusion=True)


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
    """Arguments and results as the definition's in reference.py. One launch, no scratch."""
    config = config or ChunkConfig()
    x, dt, B, C, z, initial_states = _sequences(x, dt, B, C, z, initial_states)
    y, final = x.new_empty(x.shape), None
    if return_final_states:
        final = x.new_empty(x.shape[0], *x.shape[2:], B.shape[3], dtype=torch.float32)
    _ssd_forward(x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, config, y=y, final=final)
    return [y] if final is None else [y, final]


def _ssd_forward(
    x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, config,
    y=None, final=None, grad_y=None, grad_z=None, states=None, segment=1,
):  # fmt: skip
    sizes, blocks = _ssd_cut(x, B, config)
    with on_device(x):
        launch(
            _forward_kernels().ssd_scan_fwd_kernel,
            x.shape[0] * x.shape[2] * _parts(x.shape[3], blocks[1]),
            *(_strided(t) for t in (x, dt, B, C, z, y, grad_y, grad_z)),
            *(A.contiguous(), _skip(D), _contiguous(dt_bias), initial_states, final, states),
            *(x.shape[1], 1 if states is None else states.shape[1]),
            SIZES=sizes,
            BLOCKS=blocks,
            SEGMENT=segment,
            SOFTPLUS=dt_softplus,
            **config.options(),
        )


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

    Returns (B, T, E). Two launches. Scratch: what the scans give before their gate, (directions, B, T, E).
    """
    config = config or ChunkConfig()
    parameters = tuple(_contiguous(p) for p in (conv_weight, conv_bias, dt_bias, A, D, norm_weight))
    settings = (head_dim, groups, bidirectional, eps, norm_group_size)
    mixer = _Mixer.of(_whole_rows(zxbcdt), parameters, table, stride, *settings)
    out = mixer.rows.new_empty(*mixer.rows.shape[:2], mixer.width)
    with on_device(out):
        y = mixer.scan(config)
        tile, normed, _ = division = mixer.division(config)
        launch(
            _norm_kernels().path_scan_norm_fwd_kernel,
            _parts(out.shape[0] * out.shape[1], tile) * (mixer.width // normed),
            *(y, y.stride(0), mixer.rows, *mixer.rows.stride()[:2], mixer.parameters[-1]),
            *(out, eps, out.shape[0] * out.shape[1], out.shape[1]),
            DIRECTIONS=mixer.directions,
            WIDTH=mixer.width,
            DIVISION=division,
            **config.row_options(),
        )
    return out


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
        return self.rows.shape[0] * self.sequences * self.directions * heads * _parts(head_dim, blocks[1])

    def division(self, config) -> tuple[int, int, int]:
        """DIVISION of the kernels that go row by row."""
        block = 1 << (self.norm_group_size - 1).bit_length()
        return max(1, config.row_numbers // block), self.norm_group_size, block

    def scan(self, config, states: Tensor | None = None, segment: int = 1) -> Tensor:
        """What the scans give before their gate: (directions, B, T, E)."""
        kept = torch.bfloat16 if self.rows.dtype == torch.bfloat16 else torch.float32
        y = self.rows.new_empty(self.directions, *self.rows.shape[:2], self.width, dtype=kept)
        blocks = config.blocks(self.sizes[1], self.sizes[3])
        launch(
            _forward_kernels().path_scan_chunk_fwd_kernel,
            self.programs(blocks),
            *(self.rows, *self.rows.stride()[:2], *self.parameters[:5], y, y.stride(1), y.stride(0), states),
            *(self.table, self.length, self.sequences, self.stride, 1 if states is None else states.shape[1]),
            DIRECTIONS=self.directions,
            SIZES=self.sizes,
            BLOCKS=blocks,
            SEGMENT=segment,
            **config.options(),
        )
        return y


def _sequences(x, dt, B, C, z, initial_states):
    """What lies along the sequences, as the kernels read it."""
    return _whole_rows(x), dt, *(_whole_rows(t) for t in (B, C, z)), _contiguous(initial_states)


def _ssd_cut(x: Tensor, B: Tensor, config):
    """SIZES and BLOCKS of the kernels."""
    return (*x.shape[2:], *B.shape[2:], 0), config.blocks(x.shape[3], B.shape[3])


def _strided(x: Tensor | None):
    return None if x is None else (x, *x.stride()[:3])


def _skip(D: Tensor | None):
    return None if D is None else (D, D.stride(0), D.stride(1) if D.dim() == 2 else 0)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _whole_rows(x: Tensor | None) -> Tensor | None:
    """Any strides are read in place, except over channels: an expanded gradient (stride 0 there) is copied."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _parts(size: int, block: int) -> int:
    return -(-size // block)


def _block(size: int) -> int:
    """The matrix units want 16 at least."""
    return max(16, 1 << (size - 1).bit_length())


def _forward_kernels():
    from medsora_ops.scan import chunk_kernels

    return chunk_kernels


def _norm_kernels():
    from medsora_ops.scan import norm_kernels

    return norm_kernels
