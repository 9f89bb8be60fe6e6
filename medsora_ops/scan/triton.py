"""`path_scan` and `ssd_scan` by Triton kernels, on GPUs: which kernels serve which paths.

Sequences of up to LONGEST_TILE tokens are taken whole, all such paths in one launch; longer ones chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medsora_ops import launch
from medsora_ops.backends import register
from medsora_ops.configs import choose
from medsora_ops.scan import chunk_launch, chunk_path_launch, tile_launch
from medsora_ops.scan.chunk_config import BACKWARD, FORWARD, ChunkConfig, fitting
from medsora_ops.scan.tile_launch import LONGEST_TILE, Mixer, TileConfig

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_STATE = _MOST_HEAD_DIM = 256


def path_scan(zxbcdt: Tensor, *arguments) -> list[Tensor]:
    """Arguments and results as the definition's in reference.py."""
    *parameters, offsets, strides, head_dim, groups, bidirectional, eps, norm_group_size = arguments
    settings = (head_dim, groups, bidirectional, eps, norm_group_size)
    rows, parameters = _whole_rows(zxbcdt), [None if p is None else p.contiguous() for p in parameters]
    outputs: list[Tensor | None] = [None] * len(offsets)
    short, long = _by_length(offsets, settings)
    if short:
        tables, steps = [offsets[i] for i in short], [strides[i] for i in short]
        mixer = Mixer.of(parameters[0], parameters[2], parameters[5], *settings)
        config = _config("path_scan_tile_fwd", tile_launch.FORWARD, rows, tables, mixer)
        for i, out in zip(short, tile_launch.forward(rows, parameters, tables, steps, mixer, config), strict=True):
            outputs[i] = out
    for config, paths in _by_config("path_scan_chunk_fwd", FORWARD, rows, parameters, offsets, long, settings):
        along = [offsets[i] for i in paths], [strides[i] for i in paths], *settings
        found = chunk_path_launch.path_scan_chunked(rows, *parameters, *along, config=config)
        for i, out in zip(paths, found, strict=True):
            outputs[i] = out
    return outputs


def path_scan_backward(grads: Sequence[Tensor], zxbcdt: Tensor, *arguments) -> list[Tensor]:
    """Gradients of the tensors among the arguments, in their order; only the inputs were kept."""
    *parameters, offsets, strides, head_dim, groups, bidirectional, eps, norm_group_size = arguments
    settings = (head_dim, groups, bidirectional, eps, norm_group_size)
    rows, parameters = _whole_rows(zxbcdt), [None if p is None else p.contiguous() for p in parameters]
    grads = [_whole_rows(grad) for grad in grads]
    grad_rows, totals = rows.new_empty(rows.shape), None
    short, long = _by_length(offsets, settings)
    of_long = _by_config("path_scan_chunk_bwd", BACKWARD, rows, parameters, offsets, long, settings)
    kept = torch.float32 if bool(short) + len(of_long) > 1 else None  # where gradients of parameters are added
    if short:
        tables, steps = [offsets[i] for i in short], [strides[i] for i in short]
        mixer = Mixer.of(parameters[0], parameters[2], parameters[5], *settings)
        config = _config("path_scan_tile_bwd", tile_launch.BACKWARD, rows, tables, mixer)
        of_paths = [grads[i] for i in short]
        totals = tile_launch.backward(of_paths, grad_rows, rows, parameters, tables, steps, mixer, config, kept)
    for config, paths in of_long:
        of_paths = [grads[i] for i in paths]
        along = [offsets[i] for i in paths], [strides[i] for i in paths], *settings
        found = chunk_path_launch.path_scan_chunked_backward(
            of_paths, grad_rows, rows, *parameters, *along, accumulate=totals is not None, config=config, kept=kept
        )
        totals = found if totals is None else [a + b for a, b in zip(totals, found, strict=True)]
    return [grad_rows, *(t.to(p.dtype) for t, p in zip(totals, (p for p in parameters if p is not None), strict=True))]


def _by_length(offsets, settings) -> tuple[list[int], list[int]]:
    head_dim, *_, norm_group_size = settings
    whole = [table.shape[0] <= LONGEST_TILE and norm_group_size % head_dim == 0 for table in offsets]
    return [i for i, fits in enumerate(whole) if fits], [i for i, fits in enumerate(whole) if not fits]


def _config(kernel: str, default: TileConfig, rows: Tensor, tables, mixer: Mixer) -> TileConfig:
    return choose(kernel, default, rows, max(t.shape[0] for t in tables), mixer.head_dim, mixer.state)


def _by_config(kernel: str, default: ChunkConfig, rows: Tensor, parameters, offsets, long: Sequence[int], settings):
    """Pairs of how long paths are cut, and which are cut so."""
    head_dim, groups, *_ = settings
    state = _state(parameters[0], parameters[5], groups)
    default, found = _default(default, rows, state), {}
    for i in long:
        config = choose(kernel, default, rows, offsets[i].shape[0], head_dim, state)
        found.setdefault(config, []).append(i)
    return found.items()


def _default(config: ChunkConfig, x: Tensor, state: int) -> ChunkConfig:
    return fitting(config, x.dtype, state, launch.architecture(x.device))


def _state(conv_weight: Tensor, norm_weight: Tensor, groups: int) -> int:
    return (conv_weight.shape[0] - norm_weight.shape[0]) // (2 * groups)


def ssd_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *others) -> list[Tensor]:
    """Arguments and results as the definition's in reference.py."""
    default = _default(FORWARD, x, B.shape[3])
    config = choose("ssd_scan_fwd", default, x, x.shape[1], x.shape[3], B.shape[3])
    return chunk_launch.ssd_scan(x, dt, A, B, *others, config=config)


def ssd_scan_backward(grads: Sequence[Tensor], x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *others) -> list[Tensor]:
    """Gradients of the tensors among the arguments, in their order; only the inputs were kept."""
    default = _default(BACKWARD, x, B.shape[3])
    config = choose("ssd_scan_bwd", default, x, x.shape[1], x.shape[3], B.shape[3])
    return chunk_launch.ssd_scan_backward(grads, x, dt, A, B, *others, config=config)


def _whole_rows(x: Tensor) -> Tensor:
    """Any strides are read in place, except over channels: an expanded gradient (stride 0 there) is copied."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _supports_path_scan(zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight, offsets, strides, head_dim,
                        groups, *_) -> str | None:  # fmt: skip
    return _supports(zxbcdt, head_dim, _state(conv_weight, norm_weight, groups))


def _supports_ssd_scan(x, dt, A, B, *_) -> str | None:
    return _supports(x, x.shape[3], B.shape[3])


def _supports(x: Tensor, head_dim: int, state: int) -> str | None:
    if x.dtype not in _DTYPES:
        return f"serves float32, bfloat16 and float16, not {x.dtype}"
    if head_dim > _MOST_HEAD_DIM:
        return f"serves heads of at most {_MOST_HEAD_DIM} channels, not {head_dim}"
    return None if 0 < state <= _MOST_STATE else f"serves states of 1 to {_MOST_STATE} numbers, not {state}"


_DEVICES = ("cuda", "cpu") if launch.INTERPRETED else ("cuda",)

register(
    "path_scan",
    "triton",
    path_scan,
    path_scan_backward,
    devices=_DEVICES,
    priority=5,
    unavailable=launch.unavailable,
    supports=_supports_path_scan,
)
register(
    "ssd_scan",
    "triton",
    ssd_scan,
    ssd_scan_backward,
    devices=_DEVICES,
    priority=5,
    unavailable=launch.unavailable,
    supports=_supports_ssd_scan,
)
