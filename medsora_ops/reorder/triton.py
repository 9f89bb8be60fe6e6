"""`gather` and `merge` by Triton kernels, on GPUs: one launch each, a row read once, a result written once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medsora_ops import launch
from medsora_ops.backends import register

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_TILE_BYTES = 8192  # a program's: four pieces of 16 bytes for each of its threads
_WIDEST = 512  # bytes of a row that a program takes


def gather(x: Tensor, offsets: Tensor, stride: int) -> Tensor:
    """x (B, T, C), offsets int32 (L) -> (B, 2, S, L, C): each sequence in visiting order, and reversed."""
    videos, tokens, channels = x.shape
    length = offsets.shape[0]
    sequences = tokens // length
    x = _with_whole_rows(x)
    y = x.new_empty(videos, 2, sequences, length, channels)
    steps = _strides(x)
    piece = _piece(x, channels, steps)
    blocks = _blocks(x, channels)
    with launch.on_device(x):
        launch.launch(
            _kernels().gather_kernel,
            _programs(videos, tokens, channels, blocks),
            *(x, *(step // piece for step in steps), y),
            *(offsets, sequences, length, stride, channels // piece),
            PIECE=piece,
            **blocks,
            enable_fp_fusion=True,
        )
    return y


def merge(y: Tensor, offsets: Tensor, stride: int) -> Tensor:
    """y (B, 2, S, L, C), offsets int32 (L) -> (B, T, C): both directions added back at their tokens.

    bfloat16 and float16 are added in float32 and rounded once.
    """
    videos, _, sequences, length, channels = y.shape
    y = _with_whole_rows(y)
    x = y.new_empty(videos, sequences * length, channels)
    steps = _strides(y)
    piece = _piece(y, channels, steps)
    blocks = _blocks(y, channels)
    with launch.on_device(y):
        launch.launch(
            _kernels().merge_kernel,
            _programs(videos, sequences * length, channels, blocks),
            *(y, *(step // piece for step in steps), x),
            *(offsets, sequences, length, stride, channels // piece),
            PIECE=piece,
            SUMS=_sums(y.dtype),
            **blocks,
            enable_fp_fusion=True,
        )
    return x


def _with_whole_rows(x: Tensor) -> Tensor:
    """Any strides are read in place, except over channels: an expanded gradient (stride 0 there) is copied."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _strides(x: Tensor) -> list[int]:
    """Those of all dimensions but the channels; that of a dimension of one entry means nothing."""
    return [0 if size == 1 else step for size, step in zip(x.shape[:-1], x.stride()[:-1], strict=True)]


def _piece(x: Tensor, channels: int, strides: list[int]) -> int:
    """How many elements, up to 16 bytes, lie together in every row; how x itself is aligned, Triton sees."""
    return max(1, math.gcd(16 // x.element_size(), channels, *strides))


def _blocks(x: Tensor, channels: int) -> dict[str, int]:
    width = min(_WIDEST // x.element_size(), 1 << max(0, channels - 1).bit_length())
    return dict(STEPS=_TILE_BYTES // x.element_size() // width, CHANNELS=width)


def _programs(videos: int, tokens: int, channels: int, blocks: dict[str, int]) -> int:
    return videos * -(-tokens // blocks["STEPS"]) * -(-channels // blocks["CHANNELS"])


def _sums(dtype: torch.dtype):
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _kernels():
    from medsora_ops.reorder import reorder_kernels

    return reorder_kernels


def _supports(x: Tensor, *_) -> str | None:
    return None if x.dtype in _DTYPES else f"serves float32, float64, bfloat16 and float16, not {x.dtype}"


for _operator, _forward in (("gather", gather), ("merge", merge)):
    register(
        _operator,
        "triton",
        _forward,
        devices=("cuda", "cpu") if launch.INTERPRETED else ("cuda",),
        priority=5,
        unavailable=launch.unavailable,
        supports=_supports,
    )
