"""Launches of the kernels that walk chunk by chunk: `ssd_scan`, and `path_scan` along a path of long sequences.

Launches a call: ssd_scan 1, back 2 or 3. Scratch: see the host functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsora_ops.launch import launch, on_device


@dataclass(frozen=True)
class ChunkConfig:
    """How the work is cut. tokens: of a chunk; channels: of a head that one program takes at most; warps: of a program."""

    tokens: int = 64
    channels: int = 64
    num_warps: int = 4
    num_stages: int = 1

    def blocks(self, head_dim: int, state: int) -> tuple[int, int, int]:
        return self.tokens, min(self.channels, _block(head_dim)), _block(state)

    def options(self) -> dict:
        return dict(num_warps=self.num_warps, num_stages=self.num_stages, enable_fp_fusion=True)


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
