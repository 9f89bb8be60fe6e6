"""`path_scan` and `ssd_scan` by Triton kernels, on GPUs: the layout of launches, none of the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsora_ops import launch
from medsora_ops.backends import register

LONGEST_TILE = 64  # tokens of a sequence that one program takes whole


@dataclass(frozen=True)
class TileConfig:
    """How a tile kernel is cut. tokens: of a tile; state: numbers of the state at a time; programs: per multiprocessor."""

    tokens: int = 64
    state: int = 64
    num_warps: int = 8
    num_stages: int = 1
    programs: int = 2


def path_scan(zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight, offsets, strides, *settings) -> list[Tensor]:
    """Arguments and results as the definition's in reference.py. One launch for all paths of short sequences."""
    rows, config = _whole_rows(zxbcdt), TileConfig()
    shape = _Shape.of(rows, conv_weight, dt_bias, *settings)
    outputs = [rows.new_empty(*rows.shape[:2], shape.width) for _ in offsets]
    walks = [shape.walk(table, stride, config) for table, stride in zip(offsets, strides, strict=True)]
    tiles = [walk.tiles for walk in walks]
    programs = min(sum(tiles), _programs(rows, config))
    kept = torch.bfloat16 if rows.dtype == torch.bfloat16 else torch.float32
    gated = rows.new_empty(programs * shape.directions * config.tokens * shape.width, dtype=kept)
    squares = rows.new_empty(programs * shape.directions * shape.heads * config.tokens, dtype=torch.float32)
    kernels = _kernels()
    with launch.on_device(rows):
        launch.launch(
            kernels.path_scan_tile_fwd_kernel,
            programs,
            rows,
            *rows.stride()[:2],
            *(None if p is None else p.contiguous() for p in (conv_weight, conv_bias, dt_bias, A, D, norm_weight)),
            shape.eps,
            tuple(outputs),
            rows.shape[1] * shape.width,
            tuple(offsets),
            tuple(walk.length for walk in walks),
            tuple(walk.sequences for walk in walks),
            tuple(strides),
            tuple(sum(tiles[:i]) for i in range(len(tiles))),
            sum(tiles),
            rows.shape[0],
            gated,
            squares,
            DIRECTIONS=shape.directions,
            SIZES=shape.sizes,
            BLOCKS=shape.blocks(config),
            **_options(config),
        )
    return outputs
