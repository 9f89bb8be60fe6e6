"""The definition of `ssd_scan` and `path_scan`: the Mamba-2 recurrence in plain PyTorch, linear in the length.

Sums are taken in float32 at least, whatever the input type.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medsora_ops.reorder.reference import permute_tokens, token_table
from medsora_ops.scan.chunked import chunked_scan
from medsora_ops.scan.convolution import causal_convolution


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
    """Arguments as in the public `ssd_scan`. Returns [y] in x's type, and final states in the type of the sums."""
    accumulate = sum_type(x)
    with _no_autocast(x):
        values, step, A, B, C = (t.to(accumulate) for t in (x, dt, A, B, C))
        if dt_bias is not None:
            step = step + dt_bias.to(accumulate)
        if dt_softplus:
            step = F.softplus(step)
        if initial_states is not None:
            initial_states = initial_states.to(accumulate)
        y, *final = chunked_scan(values, step, A, B, C, initial_states, return_final_states)
        if D is not None:
            D = D.to(accumulate)
            y = y + values * (D[:, None] if D.dim() == 1 else D)
        if z is not None:
            y = y * F.silu(z.to(accumulate))
        return [y.to(x.dtype).contiguous(), *final]


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
    """Arguments as in the public `path_scan`, each path as its table of offsets (L int32) and its stride."""
    accumulate = sum_type(zxbcdt)
    parameters = (conv_weight, conv_bias, dt_bias, A, D, norm_weight)
    settings = (head_dim, groups, bidirectional, eps, norm_group_size)
    with _no_autocast(zxbcdt):
        rows, *parameters = (None if t is None else t.to(accumulate) for t in (zxbcdt, *parameters))
        outputs = []
        for table, stride in zip(offsets, strides, strict=True):
            tokens, inverse = token_table(table, stride, zxbcdt.shape[1])
            sequences = permute_tokens(rows, tokens.flatten(), inverse).unflatten(1, tokens.shape).flatten(0, 1)
            y = _mix(sequences, *parameters, *settings).to(zxbcdt.dtype)
            y = y.unflatten(0, (zxbcdt.shape[0], tokens.shape[0])).flatten(1, 2)
            outputs.append(permute_tokens(y, inverse, tokens.flatten()))
        return outputs


def path_scan_backward(grads: Sequence[Tensor], *arguments) -> list[Tensor]:
    """Gradients of `path_scan` with respect to its first seven tensors (those not None), in their order."""
    return _gradients(path_scan, grads, arguments[:7], arguments[7:])


def ssd_scan_backward(grads: Sequence[Tensor], *arguments) -> list[Tensor]:
    """Gradients of `ssd_scan` with respect to its nine tensors (those not None), in their order."""
    return _gradients(ssd_scan, grads, arguments[:9], arguments[9:])


def _gradients(forward, grads, tensors, settings):
    """Compute forward again, recorded this time, and go back through it."""
    with _recording_inside_operators():
        tensors = [None if t is None else t.detach().requires_grad_() for t in tensors]
        outputs = forward(*tensors, *settings)
        found = torch.autograd.grad(outputs, [t for t in tensors if t is not None], list(grads))
    return list(found)


@contextlib.contextmanager
def _recording_inside_operators():
    """Inside a registered operator torch passes autograd by, whatever enable_grad says; let it back in.

    torch.func would do without torch._C, but cannot run here under a dispatch mode (a profiler's, opcheck's).
    """
    keys = (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView)
    excluded = [torch._C._dispatch_tls_is_dispatch_key_excluded(key) for key in keys]
    try:
        for key in keys:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
        with torch.enable_grad():
            yield
    finally:
        for key, was in zip(keys, excluded, strict=True):
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, was)


def _mix(rows, conv_weight, conv_bias, dt_bias, A, D, norm_weight, head_dim, groups, bidirectional, eps, norm_group):
    """The mixer on plain sequences: rows (n, L, 2E + 2GN + nh) -> (n, L, E), the directions summed."""
    width, mixed, heads = norm_weight.shape[0], conv_weight.shape[0], dt_bias.shape[0]
    state_width = (mixed - width) // 2
    z, xbc, dt = rows.split((width, mixed, heads), dim=-1)
    gate, step, total = F.silu(z), F.softplus(dt + dt_bias), None
    for reverse in (False, True) if bidirectional else (False,):
        convolved = causal_convolution(xbc.flip(1) if reverse else xbc, conv_weight)
        convolved = F.silu(convolved if conv_bias is None else convolved + conv_bias)
        x, B, C = convolved.split((width, state_width, state_width), dim=-1)
        x, B, C = x.unflatten(-1, (heads, head_dim)), B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1))
        (y,) = chunked_scan(x, step.flip(1) if reverse else step, A, B, C)
        y = (y + x * D[:, None]).flatten(-2)
        y = _rms_norm((y.flip(1) if reverse else y) * gate, norm_weight, eps, norm_group)
        total = y if total is None else total + y
    return total


def _rms_norm(y, weight, eps, group_size):
    grouped = y.unflatten(-1, (-1, group_size))
    return (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)).flatten(-2) * weight


def sum_type(x: Tensor) -> torch.dtype:
    """The type in which sums over x are taken."""
    return x.dtype if x.dtype == torch.float64 else torch.float32


def _no_autocast(x: Tensor):
    known = torch.amp.is_autocast_available(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if known else contextlib.nullcontext()
