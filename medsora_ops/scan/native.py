"""`path_scan` and `ssd_scan` on a CPU by the native extension: rows are read where they lie, nothing is permuted."""

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
    parameters = _as_float32(conv_weight, conv_bias, dt_bias, A, D, norm_weight)
    rows = _whole_rows(zxbcdt)
    outputs = [native.new_empty(rows, *rows.shape[:2], norm_weight.shape[0]) for _ in offsets]
    native.extension().path_scan(
        _addresses(parameters),
        rows.data_ptr(),
        rows.stride()[:2],
        _addresses(outputs),
        [out.stride()[:2] for out in outputs],
        _addresses(offsets),
        **_walk(rows, conv_weight, dt_bias, offsets, strides, head_dim, groups, bidirectional, eps, norm_group_size),
    )
    return outputs


def path_scan_backward(grads: Sequence[Tensor], zxbcdt: Tensor, *arguments) -> list[Tensor]:
    """Gradients of the tensors among the arguments, in their order; only the inputs were kept."""
    *given, offsets, strides, head_dim, groups, bidirectional, eps, norm_group_size = arguments
    parameters = _as_float32(*given)
    rows = _whole_rows(zxbcdt)
    grads = [_whole_rows(grad) for grad in grads]
    grad_rows = native.new_empty(rows, *rows.shape)
    found = [None if p is None else torch.empty(p.shape) for p in parameters]
    conv_weight, _, dt_bias, *_ = parameters
    native.extension().path_scan_backward(
        _addresses(parameters),
        rows.data_ptr(),
        rows.stride()[:2],
        _addresses(grads),
        [grad.stride()[:2] for grad in grads],
        grad_rows.data_ptr(),
        grad_rows.stride()[:2],
        _addresses(found),
        _addresses(offsets),
        **_walk(rows, conv_weight, dt_bias, offsets, strides, head_dim, groups, bidirectional, eps, norm_group_size),
    )
    return [grad_rows, *(g.to(t.dtype) for g, t in zip(found, given, strict=True) if t is not None)]


def _as_float32(*parameters: Tensor | None) -> list[Tensor | None]:
    return [None if p is None else p.to(torch.float32).contiguous() for p in parameters]


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


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


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    dt_softplus: bool,
    return_final_states: bool,
) -> list[Tensor]:
    """Arguments and results as the definition's in reference.py, for float32 and bfloat16 x."""
    tensors, parameters = _ssd_inputs(x, dt, A, B, C, D, z, dt_bias, initial_states)
    outputs = [native.new_empty(x, *x.shape)]
    if return_final_states:
        outputs.append(x.new_empty((x.shape[0], *x.shape[2:], B.shape[3]), dtype=torch.float32))
    y, final_states = outputs[0], outputs[1] if return_final_states else None
    native.extension().ssd_scan(
        [_strided(t) for t in tensors],
        [_address(p) for p in parameters],
        _strided(y),
        _strided(final_states),
        **_ssd_settings(x, B, dt_softplus),
    )
    return outputs


def ssd_scan_backward(grads: Sequence[Tensor], *arguments) -> list[Tensor]:
    """Gradients of the tensors among the arguments, in their order; only the inputs were kept."""
    x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, return_final_states = arguments
    tensors, parameters = _ssd_inputs(x, dt, A, B, C, D, z, dt_bias, initial_states)
    grad_y = _whole_rows(grads[0])
    grad_final_states = _whole_rows(grads[1]) if return_final_states else None
    found = [None if t is None else native.new_empty(t, *t.shape) for t in tensors]
    sums = [None if p is None else torch.empty(p.shape) for p in parameters]
    native.extension().ssd_scan_backward(
        [_strided(t) for t in tensors],
        [_address(p) for p in parameters],
        _strided(grad_y),
        _strided(grad_final_states),
        [_strided(t) for t in found],
        [_address(s) for s in sums],
        **_ssd_settings(x, B, dt_softplus),
    )
    of_A, of_D, of_dt_bias = sums
    if D is not None and D.dim() == 1:
        of_D = of_D.sum(-1)
    of_x, of_dt, of_B, of_C, of_z, of_states = found
    in_order = (of_x, of_dt, of_A, of_B, of_C, of_D, of_z, of_dt_bias, of_states)
    return [g.to(t.dtype) for g, t in zip(in_order, arguments[:9], strict=True) if t is not None]


def _ssd_inputs(x, dt, A, B, C, D, z, dt_bias, initial_states):
    """What lies along the sequences and what does not, as the extension reads them: D for each channel."""
    along = [None if t is None else _whole_rows(t) for t in (x, B, C, z, initial_states)]
    if D is not None and D.dim() == 1:
        D = D[:, None].expand(x.shape[2:])
    parameters = [None if p is None else p.detach().to(torch.float32).contiguous() for p in (A, D, dt_bias)]
    return [along[0], dt, *along[1:]], parameters


def _ssd_settings(x, B, dt_softplus) -> dict:
    return dict(sizes=(*x.shape, *B.shape[2:]), dt_softplus=dt_softplus, threads=native.threads())


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _strided(x: Tensor | None) -> tuple[int, str, tuple[int, ...]]:
    """Address, type, and strides of the three dimensions in front of the row."""
    return (0, "float32", (0, 0, 0)) if x is None else (x.data_ptr(), _DTYPES[x.dtype], x.stride()[:3])


def _supports_path_scan(zxbcdt: Tensor, conv_weight: Tensor, *_) -> str | None:
    if zxbcdt.dtype not in _DTYPES:
        return f"serves float32 and bfloat16, not {zxbcdt.dtype}"
    return None if conv_weight.shape[1] <= MOST_TAPS else f"serves at most {MOST_TAPS} taps, not {conv_weight.shape[1]}"


def _supports_ssd_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *_) -> str | None:
    if x.dtype not in _DTYPES:
        return f"serves float32 and bfloat16, not {x.dtype}"
    return None if B.shape[3] > 0 else "serves states of at least one number, not 0"


register(
    "path_scan",
    "native",
    path_scan,
    path_scan_backward,
    devices=("cpu",),
    priority=10,
    unavailable=native.unavailable,
    supports=_supports_path_scan,
)
register(
    "ssd_scan",
    "native",
    ssd_scan,
    ssd_scan_backward,
    devices=("cpu",),
    priority=10,
    unavailable=native.unavailable,
    supports=_supports_ssd_scan,
)
