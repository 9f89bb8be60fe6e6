"""The public `gather` and `merge`: argument checks, registration with torch, and the choice of an implementation.

Implementations in the backend table are called as
    gather   forward(x (B, T, C), offsets int32 (L), stride) -> (B, 2, S, L, C)
    merge    forward(y (B, 2, S, L, C), offsets int32 (L), stride) -> (B, T, C)
and each `supports` with the same arguments. x and y may have any strides. No backward is asked for: each operator is
the other's gradient. Results must not share memory with arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medsora_ops import backends, checks, dispatch
from medsora_ops.paths import ScanPath
from medsora_ops.reorder import reference

_LIBRARY = torch.library.Library("medsora_ops", "FRAGMENT")
_LIBRARY.define("gather(Tensor x, Tensor offsets, int stride, str backend) -> Tensor")
_LIBRARY.define("merge(Tensor y, Tensor offsets, int stride, str backend) -> Tensor")

backends.register("gather", "reference", reference.gather)
backends.register("merge", "reference", reference.merge)


def gather(x: Tensor, path: ScanPath) -> Tensor:
    """Copy tokens into the order in which `path` visits them, and into the reverse of it.

    x: (B, F*H*W, C), floating point.
    path: a ScanPath over the grid (F, H, W), with S sequences of L tokens.
    Returns (B, 2, S, L, C) of x's dtype: [:, 0] forward, [:, 1] the same sequences from their ends. Its gradient is
    `merge`. Raises ValueError for a wrong shape or dtype, or a path over another grid.
    """
    checks.tensor("x", x, "(batch, tokens, channels)")
    checks.path(path, "path", x.shape[1], "x")
    return dispatch.call("gather", x, path.offsets(x.device), path.stride)


def merge(y: Tensor, path: ScanPath) -> Tensor:
    """Bring sequences back to the grid and add the two directions: the adjoint of `gather`.

    y: (B, 2, S, L, C), floating point: [:, 0] in visiting order, [:, 1] reversed.
    path: the ScanPath whose S sequences of L tokens these are.
    Returns (B, F*H*W, C) of y's dtype. Its gradient is `gather`.
    Raises ValueError for a wrong shape or dtype, or a path with other sequences.
    """
    checks.tensor("y", y, "(batch, 2, sequences, length, channels)")
    checks.path(path, "path")
    wanted = (2, path.sequences, path.length)
    if tuple(y.shape[1:4]) != wanted:
        raise ValueError(
            f"y: got shape {tuple(y.shape)}, wants (batch, 2, {path.sequences}, {path.length}, channels)"
            f" for a path over the grid {path.grid}"
        )
    return dispatch.call("merge", y, path.offsets(y.device), path.stride)


for _operator in ("gather", "merge"):
    dispatch.implement(_LIBRARY, _operator, backward=False)


@torch.library.register_fake("medsora_ops::gather", lib=_LIBRARY)
def _(x, offsets, stride, backend):
    length = offsets.shape[0]
    return x.new_empty((x.shape[0], 2, x.shape[1] // length, length, x.shape[2]))


@torch.library.register_fake("medsora_ops::merge", lib=_LIBRARY)
def _(y, offsets, stride, backend):
    return y.new_empty((y.shape[0], y.shape[2] * y.shape[3], y.shape[4]))


def _keep_path(ctx, inputs, output):
    _, offsets, ctx.stride, ctx.backend = inputs
    ctx.save_for_backward(offsets)


def _gather_gradient(ctx, saved, grad):
    return dispatch.apply("merge", grad, *saved, ctx.stride, ctx.backend), None, None, None


def _merge_gradient(ctx, saved, grad):
    return dispatch.apply("gather", grad, *saved, ctx.stride, ctx.backend), None, None, None


dispatch.differentiate(_LIBRARY, "gather", _gather_gradient, _keep_path)
dispatch.differentiate(_LIBRARY, "merge", _merge_gradient, _keep_path)
