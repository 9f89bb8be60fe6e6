"""`path_scan` on a CPU by the native extension: rows are read along the path where they lie, nothing is permuted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medsora_ops import native
from medsora_ops.backends import register

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
MOST_TAPS = 64


def path_scan(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    offsets: Sequence[Tensor],
    strides: Sequence[int],
    head_dim: int,
    groups: int,
    bidirectional: bool,
    eps: float,
    norm_group_size: int,
) -> list[Tensor]:
    """Arguments and results as the definition's in reference.py, for float32 and bfloat16 rows."""
    parameters = _prepared(conv_weight, conv_bias, dt_bias, A, D, norm_weight)
    rows = _whole_rows(zxbcdt)
    outputs = [rows.new_empty((*rows.shape[:2], norm_weight.shape[0])) for _ in offsets]
    native.extension().path_scan(
        [p.data_ptr() for p in parameters],
        rows.data_ptr(),
        rows.stride()[:2],
        [out.data_ptr() for out in outputs],
        [out.stride()[:2] for out in outputs],
        [table.data_ptr() for table in offsets],
        **_walk(rows, conv_weight, dt_bias, offsets, strides, head_dim, groups, bidirectional, eps, norm_group_size),
    )
    return outputs


def path_scan_backward(grads: Sequence[Tensor], zxbcdt: Tensor, *arguments) -> list[Tensor]:
    """Gradients of the tensors among the arguments, in their order; only the inputs were kept."""
    conv_weight, conv_bias, dt_bias, A, D, norm_weight, offsets, *settings = arguments
    parameters = _prepared(conv_weight, conv_bias, dt_bias, A, D, norm_weight)
    rows = _whole_rows(zxbcdt)
    grads = [_whole_rows(grad) for grad in grads]
    grad_rows = rows.new_empty(rows.shape)
    sums = torch.empty(sum(p.numel() for p in parameters))
    native.extension().path_scan_backward(
        [p.data_ptr() for p in parameters],
        rows.data_ptr(),
        rows.stride()[:2],
        [grad.data_ptr() for grad in grads],
        [grad.stride()[:2] for grad in grads],
        grad_rows.data_ptr(),
        grad_rows.stride()[:2],
        sums.data_ptr(),
        [table.data_ptr() for table in offsets],
        **_walk(rows, conv_weight, dt_bias, offsets, *settings),
    )
    taps, *others = sums.split([p.numel() for p in parameters])
    found = [taps.view(parameters[0].shape).t().contiguous(), *others]
    wanted = (conv_weight, conv_bias, dt_bias, A, D, norm_weight)
    return [
        grad_rows,
        *(g.to(t.dtype, copy=True) for g, t in zip(found, wanted, strict=True) if t is not None),
    ]


def _prepared(conv_weight, conv_bias, *others):
    """The parameters as the extension reads them: float32, contiguous, a row for each tap, zeros for no bias."""
    bias = conv_weight.new_zeros(conv_weight.shape[0]) if conv_bias is None else conv_bias
    return [t.detach().to(torch.float32).contiguous() for t in (conv_weight.t(), bias, *others)]


def _walk(rows, conv_weight, dt_bias, offsets, strides, head_dim, groups, bidirectional, eps, norm_group_size) -> dict:
    for table in offsets:
        if table.dtype is not torch.int32 or table.device.type != "cpu" or not table.is_contiguous():
            raise ValueError(f"offsets: got {table.dtype} on {table.device}, wants contiguous int32 on cpu")
    heads = dt_bias.shape[0]
    mixed, taps = conv_weight.shape
    return dict(
        lengths=[table.shape[0] for table in offsets],
        strides=list(strides),
        videos=rows.shape[0],
        tokens=rows.shape[1],
        sizes=(heads, head_dim, groups, (mixed - heads * head_dim) // (2 * groups), taps),
        bidirectional=bidirectional,
        eps=eps,
        norm_group_size=norm_group_size,
        dtype=_DTYPES[rows.dtype],
        threads=native.threads(),
    )


def _whole_rows(x: Tensor) -> Tensor:
    """Any strides are read in place, except over channels: an expanded gradient (stride 0 there) is copied."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _supports(zxbcdt: Tensor, conv_weight: Tensor, *_) -> str | None:
    if zxbcdt.dtype not in _DTYPES:
        return f"serves float32 and bfloat16, not {zxbcdt.dtype}"
    return None if conv_weight.shape[1] <= MOST_TAPS else f"serves at most {MOST_TAPS} taps, not {conv_weight.shape[1]}"


register(
    "path_scan",
    "native",
    path_scan,
    path_scan_backward,
    devices=("cpu",),
    priority=10,
    unavailable=native.unavailable,
    supports=_supports,
)
