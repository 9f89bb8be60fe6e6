"""`path_scan` and `ssd_scan` by Triton kernels, on GPUs: which kernels serve which paths.

Sequences of up to LONGEST tokens are taken whole, all such paths in one launch: packed into tiles, or longer ones block
by block. Others go chunk by chunk, heads apart, and so do whole ones that are too few to occupy the chip.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from medsora_ops import launch
from medsora_ops.backends import register
from medsora_ops.configs import choose
from medsora_ops.scan import chunk_launch, chunk_path_launch, sequence_launch, tile_launch
from medsora_ops.scan.chunk_config import BACKWARD, FORWARD, ChunkConfig, ceil_div, fitting, whole_rows
from medsora_ops.scan.sequence_launch import LONGEST
from medsora_ops.scan.tile_launch import LONGEST_TILE, Mixer

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_STATE = _MOST_HEAD_DIM = 256
# How much longer a chunk of one head takes than a tile's, B and C being convolved for each head: counted, not measured.
_HEADS_APART = 4


def path_scan(zxbcdt: Tensor, *arguments) -> list[Tensor]:
    """Arguments and results as the definition's in reference.py."""
    *parameters, offsets, strides, head_dim, groups, bidirectional, eps, norm_group_size = arguments
    settings = (head_dim, groups, bidirectional, eps, norm_group_size)
    rows, parameters = whole_rows(zxbcdt), [None if p is None else p.contiguous() for p in parameters]
    mixer = Mixer.of(parameters[0], parameters[2], parameters[5], *settings)
    outputs: list[Tensor | None] = [None] * len(offsets)
    whole, long = _routes(rows, offsets, mixer)
    for room, kernel, paths in whole:
        tables, steps = [offsets[i] for i in paths], [strides[i] for i in paths]
        config = _whole_config(room, kernel, "fwd", rows, tables, mixer)
        for i, out in zip(paths, room.forward(rows, parameters, tables, steps, mixer, config), strict=True):
            outputs[i] = out
    for config, paths in _by_config("path_scan_chunk_fwd", FORWARD, rows, offsets, long, mixer):
        along = [offsets[i] for i in paths], [strides[i] for i in paths], *settings
        found = chunk_path_launch.path_scan_chunked(rows, *parameters, *along, config=config)
        for i, out in zip(paths, found, strict=True):
            outputs[i] = out
    return outputs


def path_scan_backward(grads: Sequence[Tensor], zxbcdt: Tensor, *arguments) -> list[Tensor]:
    """Gradients of the tensors among the arguments, in their order; only the inputs were kept."""
    *parameters, offsets, strides, head_dim, groups, bidirectional, eps, norm_group_size = arguments
    settings = (head_dim, groups, bidirectional, eps, norm_group_size)
    rows, parameters = whole_rows(zxbcdt), [None if p is None else p.contiguous() for p in parameters]
    mixer = Mixer.of(parameters[0], parameters[2], parameters[5], *settings)
    grads = [whole_rows(grad) for grad in grads]
    grad_rows, totals = rows.new_empty(rows.shape), None
    whole, long = _routes(rows, offsets, mixer)
    of_long = _by_config("path_scan_chunk_bwd", BACKWARD, rows, offsets, long, mixer)
    kept = torch.float32 if len(whole) + len(of_long) > 1 else None  # where gradients of parameters are added
    for room, kernel, paths in whole:
        tables, steps, of_paths = ([each[i] for i in paths] for each in (offsets, strides, grads))
        config = _whole_config(room, kernel, "bwd", rows, tables, mixer)
        along = (tables, steps, mixer, config)
        found = room.backward(of_paths, grad_rows, rows, parameters, *along, accumulate=totals is not None, kept=kept)
        totals = _added(totals, found)
    for config, paths in of_long:
        tables, steps, of_paths = ([each[i] for i in paths] for each in (offsets, strides, grads))
        along = (tables, steps, *settings)
        found = chunk_path_launch.path_scan_chunked_backward(
            of_paths, grad_rows, rows, *parameters, *along, accumulate=totals is not None, config=config, kept=kept
        )
        totals = _added(totals, found)
    return [grad_rows, *(t.to(p.dtype) for t, p in zip(totals, (p for p in parameters if p is not None), strict=True))]


def _added(totals: list[Tensor] | None, found: list[Tensor]) -> list[Tensor]:
    return found if totals is None else [a + b for a, b in zip(totals, found, strict=True)]


def _routes(rows: Tensor, offsets, mixer: Mixer):
    """Which paths are taken whole, with their launches and the kernels' name; and which go chunk by chunk."""
    lengths, processors = tuple(table.shape[0] for table in offsets), launch.multiprocessors(rows.device)
    return _routed(*rows.shape[:2], lengths, mixer, processors, LONGEST, _HEADS_APART)


# Asked at every call, of few sizes. The last two are given so that who changes them is not told what was true before.
@functools.lru_cache(maxsize=1024)
def _routed(videos: int, tokens: int, lengths, mixer: Mixer, processors: int, longest: int, heads_apart: int):
    fit = [i for i, length in enumerate(lengths) if length <= longest and mixer.norm_group_size % mixer.head_dim == 0]
    # Beside longer ones, those that fill most of a block go with them in one launch.
    blocked = max((lengths[i] for i in fit), default=0) > LONGEST_TILE
    in_blocks = [i for i in fit if blocked and lengths[i] > LONGEST_TILE // 2]
    in_tiles = [i for i in fit if i not in in_blocks]
    whole = tuple(
        (room, kernel, tuple(paths))
        for room, kernel, paths in (
            (tile_launch, "path_scan_tile", in_tiles),
            (sequence_launch, "path_scan_sequence", in_blocks),
        )
        if paths and _occupy(videos * tokens, [lengths[i] for i in paths], mixer, processors, heads_apart)
    )
    taken = [i for _, _, paths in whole for i in paths]
    return whole, tuple(i for i in range(len(lengths)) if i not in taken)


def _occupy(tokens: int, lengths: Sequence[int], mixer: Mixer, processors: int, heads_apart: int) -> bool:
    """Whether whole sequences are enough, or going chunk by chunk, heads apart, would take longer all the same.

    Both are so many turns, one after the other, of a head in one direction, on multiprocessors that take one at a time.
    tokens: of all videos.
    """
    sequences = [tokens // length for length in lengths]
    tiles = sum(
        ceil_div(count, max(1, LONGEST_TILE // length)) for count, length in zip(sequences, lengths, strict=True)
    )
    turns = mixer.heads * mixer.directions
    apart = ceil_div(sum(sequences) * turns, processors) * heads_apart
    return ceil_div(tiles, processors) * turns <= apart


def _whole_config(room, kernel: str, way: str, rows: Tensor, tables: Sequence[Tensor], mixer: Mixer):
    longest, sizes = max(table.shape[0] for table in tables), (mixer.head_dim, mixer.state)
    return choose(f"{kernel}_{way}", room.default(way, rows.dtype, mixer.state), rows, longest, *sizes)


def _by_config(kernel: str, default: ChunkConfig, rows: Tensor, offsets, long: Sequence[int], mixer: Mixer):
    """Pairs of how long paths are cut, and which are cut so."""
    default, found = _default(default, rows, mixer.state), {}
    for i in long:
        config = choose(kernel, default, rows, offsets[i].shape[0], mixer.head_dim, mixer.state)
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
