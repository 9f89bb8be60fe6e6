"""`gather` and `merge` by the CUDA kernels of the extension: one launch each, on the current stream, any strides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from medsora_ops import cuda, launch, native
from medsora_ops.backends import register
from medsora_ops.reorder.native import DTYPES, with_whole_rows

_MOST = 2**31 - 2048  # tokens of a video and channels: within a video rows are numbered by 32 bits


def gather(x: Tensor, offsets: Tensor, stride: int) -> Tensor:
    """x (B, T, C), offsets int32 (L) -> (B, 2, S, L, C): each sequence in visiting order, and reversed."""
    with launch.on_device(x):
        return run_gather(partial(native.extension().cuda_gather, stream=cuda.stream(x)), x, offsets, stride)


def merge(y: Tensor, offsets: Tensor, stride: int) -> Tensor:
    """y (B, 2, S, L, C), offsets int32 (L) -> (B, T, C): both directions added back at their tokens.

    bfloat16 and float16 are added in float32 and rounded once.
    """
    with launch.on_device(y):
        return run_merge(partial(native.extension().cuda_merge, stream=cuda.stream(y)), y, offsets, stride)


def run_gather(run: Callable[..., object], x: Tensor, offsets: Tensor, stride: int) -> Tensor:
    """`gather` by a function of the extension that is given addresses, sizes and strides.

    Raises ValueError for offsets that are not what the extension takes them for.
    """
    videos, tokens, channels = x.shape
    walk = _walk(x, offsets, stride, tokens)
    x = with_whole_rows(x)
    y = x.new_empty(videos, 2, walk["sequences"], walk["length"], channels)
    run(
        x.data_ptr(),
        y.data_ptr(),
        offsets.data_ptr(),
        videos=videos,
        row_bytes=channels * x.element_size(),
        x_strides=_strides(x),
        **walk,
    )
    return y


def run_merge(run: Callable[..., object], y: Tensor, offsets: Tensor, stride: int) -> Tensor:
    """`merge`, like `run_gather`."""
    videos, _, sequences, length, channels = y.shape
    walk = _walk(y, offsets, stride, sequences * length)
    y = with_whole_rows(y)
    x = y.new_empty(videos, sequences * length, channels)
    run(
        y.data_ptr(),
        x.data_ptr(),
        offsets.data_ptr(),
        videos=videos,
        channels=channels,
        y_strides=_strides(y),
        dtype=DTYPES[y.dtype],
        **walk,
    )
    return x


def _walk(x: Tensor, offsets: Tensor, stride: int, tokens: int) -> dict[str, int]:
    """Where the offsets lead is not checked: that would make the CPU wait for the GPU. ScanPath has checked it."""
    if offsets.dtype is not torch.int32 or offsets.device != x.device or not offsets.is_contiguous():
        raise ValueError(
            f"offsets: got {offsets.dtype} on {offsets.device} with strides {offsets.stride()},"
            f" wants contiguous int32 on {x.device}"
        )
    length = offsets.shape[0]
    if length == 0 or tokens % length:
        raise ValueError(f"offsets: got {length} steps, wants a divisor of the {tokens} tokens")
    return dict(sequences=tokens // length, length=length, stride=stride)


def _strides(x: Tensor) -> tuple[int, ...]:
    """In bytes, of all dimensions but the channels; that of a dimension of one entry means nothing."""
    size = x.element_size()
    return tuple(0 if n == 1 else step * size for n, step in zip(x.shape[:-1], x.stride()[:-1]))


def _supports(x: Tensor, *_) -> str | None:
    if x.dtype not in DTYPES:
        return f"serves float32, float64, bfloat16 and float16, not {x.dtype}"
    if max(x.shape[1:-1].numel(), x.shape[-1]) > _MOST:
        return f"serves up to {_MOST} tokens and channels"
    return cuda.not_compiled_for(x.device)


for _operator, _forward in (("gather", gather), ("merge", merge)):
    register(
        _operator,
        "cuda",
        _forward,
        devices=("cuda",),
        priority=10,
        unavailable=cuda.unavailable,
        supports=_supports,
    )
