"""Launches of the kernels that walk chunk by chunk, for `ssd_scan`: one a call, back two or three.

Sequences that are too few and long enough are cut into runs (runs.py): 2 more launches, back 4 more, or half of these
for two runs. Scratch: see the host functions; and for a cut a state for each program of whole sequences and each place
where two runs meet.
"""

from __future__ import annotations

from collections.abc import Sequence

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
            *(states, runs.boundaries, *config.kept(workers, blocks, x)),
            *(*shares, of_dt, of_A, of_D, of_bias, length, segments, runs.segments),
            SIZES=sizes,
            BLOCKS=blocks,
            SEGMENT=config.segment,
            CUT=runs.cut,
            SOFTPLUS=dt_softplus,
            D_OF_CHANNELS=D is not None and D.dim() == 2,
            **config.options(),
            **sparing(x.device),
        )
        grad_dt, grad_A, grad_B, grad_C, grad_D, grad_bias = (
            None if t is None else t.new_empty(t.shape) for t in (dt, A, B, C, D, dt_bias)
        )
        sum_rows([of_dt, of_A, *shares, of_D, of_bias], [grad_dt, grad_A, grad_B, grad_C, grad_D, grad_bias])
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
            **(sparing(x.device) if z is None else {}),  # with a gate the assembler does better by itself
        )

    with on_device(x):
        if runs.cut:
            over_runs("ends", runs.count - 1, runs.decays, *[None] * 7)
            runs.chain(config)
        over_runs(runs.cut, runs.count, None, z, y, grad_y, grad_z, grad_mixed, final, states)


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


def _backward_kernels():
    from medsora_ops.scan import chunk_backward_kernels

    return chunk_backward_kernels


def _run_kernels():
    from medsora_ops.scan import run_kernels

    return run_kernels
