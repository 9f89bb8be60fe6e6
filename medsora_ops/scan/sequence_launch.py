"""Launches of the kernels that take a whole sequence block by block: one forward, back two, as in tile_launch.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medsora_ops.launch import launch, multiprocessors, on_device, sparing
from medsora_ops.scan.sums import planes, shares, sum_shares
from medsora_ops.scan.tile_launch import Mixer, TileConfig, along, registers, scratch_type

LONGEST = 256  # tokens of a sequence
_NAMED = 4  # rows of numbers that the kernels have names for
FORWARD = TileConfig(programs=2)
BACKWARD = TileConfig(channels=64)
_FORWARD_FLOAT32 = replace(FORWARD, programs=1)  # of twice the registers
_BACKWARD_FLOAT16 = replace(BACKWARD, channels=32)  # as its scratch is float32


def default(way: str, dtype: torch.dtype, state: int) -> TileConfig:
    """way: "fwd" or "bwd"."""
    if way == "fwd":
        return _FORWARD_FLOAT32 if dtype == torch.float32 else FORWARD
    config = _BACKWARD_FLOAT16 if dtype == torch.float16 else BACKWARD
    return replace(config, tokens=32) if state > 128 else config  # which else takes more registers than there are


def forward(rows: Tensor, parameters: Sequence[Tensor | None], offsets, strides, mixer: Mixer, config: TileConfig):
    """rows (B, T, channels), channels contiguous -> one (B, T, E) a path."""
    videos, tokens, _ = rows.shape
    outputs = [rows.new_empty(videos, tokens, mixer.width) for _ in offsets]
    lengths, sequences = along(rows, offsets)
    programs = min(videos * sum(sequences), config.programs * multiprocessors(rows.device))
    constants, most = _constants(mixer, config, lengths)
    kept, found = programs * most, scratch_type(rows)
    with on_device(rows):
        launch(
            _kernels().path_scan_sequence_fwd_kernel,
            programs,
            *(rows, *rows.stride()[:2], *parameters, mixer.eps),
            *(tuple(outputs), tokens * mixer.width, tuple(offsets), lengths, sequences, tuple(strides)),
            *(videos * sum(sequences), videos),
            rows.new_empty(kept * mixer.directions * mixer.width, dtype=found),
            rows.new_empty(kept * mixer.directions * mixer.heads, dtype=torch.float32),
            rows.new_empty(kept * 2, dtype=torch.float32),
            rows.new_empty(kept * most, dtype=found),
            rows.new_empty(kept * _held(constants)),
            **constants,
            **config.options(),
            **sparing(rows.device),
            **registers(config, constants["BLOCKS"][1], rows.device),
        )
    return outputs


def backward(
    grads, grad_rows: Tensor, rows: Tensor, parameters, offsets, strides, mixer: Mixer, config: TileConfig,
    accumulate: bool = False, kept: torch.dtype | None = None,
) -> list[Tensor]:  # fmt: skip
    """As tile_launch.backward."""
    videos = rows.shape[0]
    lengths, sequences = along(rows, offsets)
    programs = min(videos * sum(sequences), config.programs * multiprocessors(rows.device))
    constants, most = _constants(mixer, config, lengths)
    tokens, _, state, _, channels, *_ = constants["BLOCKS"]
    kept_tokens, kind = programs * most, scratch_type(rows)
    segments, found = shares(rows, parameters, programs)
    first_rows, of_others, added = planes(rows, grad_rows, len(offsets), accumulate)
    of_outs = tuple(zip(*((grad, *grad.stride()[:2]) for grad in grads), strict=True))
    numbers = _NAMED + 2 * mixer.heads + most // tokens + max(state, channels)
    with on_device(rows):
        launch(
            _backward_kernels().path_scan_sequence_bwd_kernel,
            programs,
            *(rows, *rows.stride()[:2], *parameters, mixer.eps),
            *(of_outs, first_rows, of_others, tuple(offsets), lengths, sequences, tuple(strides)),
            *(videos * sum(sequences), videos),
            rows.new_empty(kept_tokens * mixer.width, dtype=kind),
            rows.new_empty(kept_tokens * numbers, dtype=torch.float32),
            rows.new_empty(kept_tokens * most, dtype=kind),
            rows.new_empty(kept_tokens * _held(constants)),
            rows.new_empty(kept_tokens * most, dtype=torch.float32),
            *(found, found.shape[1]),
            SEGMENTS=segments,
            **constants,
            **config.options(),
            **sparing(rows.device),
            **registers(config, constants["BLOCKS"][1], rows.device),
        )
        return sum_shares(parameters, segments, found, kept, added, grad_rows)


def _constants(mixer: Mixer, config: TileConfig, lengths) -> tuple[dict, int]:
    """What the kernels are specialised by, and for how many tokens a program has scratch."""
    constants = mixer.constants(config)
    most, state = _up(max(lengths), config.tokens), _up(mixer.state, constants["BLOCKS"][2])
    return {**constants, "BLOCKS": (*constants["BLOCKS"], most, state)}, most


def _held(constants: dict) -> int:
    """Numbers that are held of a token: B, C, and x of one head."""
    _, channels, *_, state = constants["BLOCKS"]
    return 2 * state + channels


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _kernels():
    from medsora_ops.scan import sequence_kernels

    return sequence_kernels


def _backward_kernels():
    from medsora_ops.scan import sequence_backward_kernels

    return sequence_backward_kernels
