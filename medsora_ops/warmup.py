"""Compile the Triton kernels that a model will need, before its first step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medsora_ops import checks, launch
from medsora_ops.paths import ScanPath


def warmup(
    paths: Sequence[ScanPath],
    *,
    width: int,
    head_dim: int = 64,
    state: int = 128,
    groups: int = 1,
    taps: int = 4,
    bidirectional: bool = True,
    norm_group_size: int | None = None,
    conv_bias: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    parameters: torch.dtype = torch.float32,
    backward: bool = True,
    device: torch.device | str = "cuda",
) -> int:
    """Compile what `path_scan` launches for these paths, taken together in one call, and its gradient. Nothing runs.

    How sequences are launched depends on how far they fill the device, so all ways are compiled.

    paths: over one grid. width: E. head_dim, groups, bidirectional, norm_group_size: as in `path_scan`. state: N.
    taps: of the convolution. dtype: of zxbcdt. parameters: of the parameters, but A, which `GridMamba2` computes in
    float32.
    Returns how many kernels were compiled or found compiled; 0 where no Triton kernel serves the device.
    Raises ValueError for sizes that do not divide and for an empty list of paths.
    """
    if not paths:
        raise ValueError("paths: got none, wants at least one ScanPath")
    checks.divisor("head_dim", head_dim, width, "the width")
    checks.divisor("groups", groups, width // head_dim, "the number of heads")
    device = torch.device(device)
    if launch.INTERPRETED or device.type != "cuda" or launch.unavailable():
        return 0
    device, compiled = _indexed(device), []
    processors = launch.multiprocessors(device)
    while processors:  # from a call that leaves most of the device empty to one that fills it many times over
        with torch.cuda.device(device), launch.compiling(launch.architecture(device), processors) as found:
            describe(
                tuple(paths), width, head_dim, state, groups, taps, bidirectional, norm_group_size, conv_bias, dtype,
                parameters, backward,
            )  # fmt: skip
        compiled += found
        processors //= 2
    return len(launch.distinct(compiled))


def _indexed(device: torch.device) -> torch.device:
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())


def describe(
    paths, width, head_dim, state, groups, taps, bidirectional, norm_group_size, conv_bias, dtype, parameters, backward
):
    """One call of `path_scan` on tensors without memory; within `compiling()` its launches are compiled."""
    from medsora_ops.scan import triton

    heads, mixed = width // head_dim, width + 2 * groups * state
    tokens = paths[0].sequences * paths[0].length

    def of_parameter(*shape):
        return torch.empty(shape, dtype=parameters, device="meta")

    arguments = (
        torch.empty(1, tokens, width + mixed + heads, dtype=dtype, device="meta"),
        of_parameter(mixed, taps),
        of_parameter(mixed) if conv_bias else None,
        of_parameter(heads),
        torch.empty(heads, dtype=torch.float32, device="meta"),
        of_parameter(heads),
        of_parameter(width),
        [torch.empty(path.length, dtype=torch.int32, device="meta") for path in paths],
        [path.stride for path in paths],
        *(head_dim, groups, bidirectional, 1e-5, norm_group_size or width),
    )
    outputs = triton.path_scan(*arguments)
    if backward:
        triton.path_scan_backward([torch.empty_like(out) for out in outputs], *arguments)
