"""`gather` and `merge` on a CPU by the native extension: one pass over the rows, no index tensors, torch's threads."""

from __future__ import annotations

import torch

from medsora_ops import native
from medsora_ops.backends import register

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def gather(x: torch.Tensor, offsets: torch.Tensor, stride: int) -> torch.Tensor:
    """x (B, T, C), offsets int32 (L) -> (B, 2, S, L, C): each sequence in visiting order, and reversed.

    Raises ValueError for offsets that leave the T tokens.
    """
    videos, tokens, channels = x.shape
    length, sequences = _walk(offsets, tokens)
    x = with_whole_rows(x)
    size, (video, token, _) = x.element_size(), x.stride()
    y = native.new_empty(x, videos, 2, sequences, length, channels)
    native.extension().gather(
        x.data_ptr(),
        y.data_ptr(),
        offsets.data_ptr(),
        sequences=sequences,
        length=length,
        stride=stride,
        videos=videos,
        row_bytes=channels * size,
        x_strides=(video * size, token * size),
        threads=native.threads(),
    )
    return y


def merge(y: torch.Tensor, offsets: torch.Tensor, stride: int) -> torch.Tensor:
    """y (B, 2, S, L, C), offsets int32 (L) -> (B, T, C): both directions added back at their tokens.

    bfloat16 and float16 are added in float32 and rounded once. The same bits for any number of threads.
    Raises ValueError for offsets that leave the T tokens.
    """
    videos, _, sequences, length, channels = y.shape
    _walk(offsets, sequences * length)
    y = with_whole_rows(y)
    size, (video, direction, sequence, step, _) = y.element_size(), y.stride()
    x = native.new_empty(y, videos, sequences * length, channels)
    native.extension().merge(
        y.data_ptr(),
        x.data_ptr(),
        offsets.data_ptr(),
        sequences=sequences,
        length=length,
        stride=stride,
        videos=videos,
        channels=channels,
        y_strides=(video * size, direction * size, sequence * size, step * size),
        dtype=DTYPES[y.dtype],
        threads=native.threads(),
    )
    return x


def _walk(offsets: torch.Tensor, tokens: int) -> tuple[int, int]:
    """Length and number of the sequences; the extension reads `offsets` by its address, so it must be what it seems."""
    if offsets.dtype is not torch.int32 or offsets.device.type != "cpu" or not offsets.is_contiguous():
        raise ValueError(
            f"offsets: got {offsets.dtype} on {offsets.device} with strides {offsets.stride()},"
            " wants contiguous int32 on cpu"
        )
    length = offsets.shape[0]
    if length == 0 or tokens % length:
        raise ValueError(f"offsets: got {length} steps, wants a divisor of the {tokens} tokens")
    return length, tokens // length


def with_whole_rows(x: torch.Tensor) -> torch.Tensor:
    """Any strides are read in place, except over channels: an expanded gradient (stride 0 there) is copied."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _supports(x: torch.Tensor, *_) -> str | None:
    return None if x.dtype in DTYPES else f"serves float32, float64, bfloat16 and float16, not {x.dtype}"


for _operator, _forward in (("gather", gather), ("merge", merge)):
    register(
        _operator,
        "native",
        _forward,
        devices=("cpu",),
        priority=10,
        unavailable=native.unavailable,
        supports=_supports,
    )
