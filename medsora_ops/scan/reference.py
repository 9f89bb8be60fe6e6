"""The definition of `ssd_scan` and `path_scan`: the Mamba-2 recurrence in plain PyTorch, linear in the length.

The recurrence is h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T, y_t = C_t h_t (Dao and Gu, arXiv 2405.21060). Within a
chunk it is a masked matrix product (their equation 7), between chunks the state is carried. Sums are taken in float32
at least, whatever the input type.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from medsora_ops.reorder.reference import permute_tokens, token_table

CHUNK = 64


def ssd_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    initial_states: torch.Tensor | None,
    dt_softplus: bool,
    return_final_states: bool,
) -> list[torch.Tensor]:
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
        y, *final = _scan(values, step, A, B, C, initial_states, return_final_states)
        if D is not None:
            D = D.to(accumulate)
            y = y + values * (D[:, None] if D.dim() == 1 else D)
        if z is not None:
            y = y * F.silu(z.to(accumulate))
        return [y.to(x.dtype), *final]


def path_scan(
    zxbcdt: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    norm_weight: torch.Tensor,
    offsets: Sequence[torch.Tensor],
    strides: Sequence[int],
    head_dim: int,
    groups: int,
    bidirectional: bool,
    eps: float,
    norm_group_size: int,
) -> list[torch.Tensor]:
    """Arguments as in the public `path_scan`, each path as its table of offsets (L int32) and its stride."""
    accumulate = sum_type(zxbcdt)
    parameters = (conv_weight, conv_bias, dt_bias, A, D, norm_weight)
    with _no_autocast(zxbcdt):
        rows = zxbcdt.to(accumulate)
        parameters = tuple(None if p is None else p.to(accumulate) for p in parameters)
        outputs = []
        for table, stride in zip(offsets, strides, strict=True):
            tokens, inverse = token_table(table, stride, zxbcdt.shape[1])
            sequences = permute_tokens(rows, tokens.flatten(), inverse).unflatten(1, tokens.shape).flatten(0, 1)
            y = _mix_sequences(sequences, *parameters, head_dim, groups, bidirectional, eps, norm_group_size)
            y = y.to(zxbcdt.dtype).unflatten(0, (zxbcdt.shape[0], tokens.shape[0])).flatten(1, 2)
            outputs.append(permute_tokens(y, inverse, tokens.flatten()))
        return outputs


def ssd_scan_backward(grads: Sequence[torch.Tensor], *arguments) -> list[torch.Tensor]:
    """Gradients of `ssd_scan` with respect to its tensors (those not None), in their order."""
    return _gradients(ssd_scan, grads, arguments[:9], arguments[9:])


def path_scan_backward(grads: Sequence[torch.Tensor], *arguments) -> list[torch.Tensor]:
    """Gradients of `path_scan` with respect to its first seven tensors (those not None), in their order."""
    return _gradients(path_scan, grads, arguments[:7], arguments[7:])


def _gradients(forward, grads, tensors, settings):
    present = [t for t in tensors if t is not None]

    def of_present(*values):
        given = iter(values)
        return tuple(forward(*(None if t is None else next(given) for t in tensors), *settings))

    # torch.func, because inside a registered operator plain autograd is switched off.
    _, pull_back = torch.func.vjp(of_present, *present)
    return [gradient.contiguous() for gradient in pull_back(tuple(grads))]


def _mix_sequences(
    rows, conv_weight, conv_bias, dt_bias, A, D, norm_weight, head_dim, groups, bidirectional, eps, norm_group_size
):
    """rows (n, L, 2E + 2GN + nh) of plain sequences -> (n, L, E), the directions summed."""
    width, heads = norm_weight.shape[0], dt_bias.shape[0]
    z, xbc, dt = rows.split((width, conv_weight.shape[0], heads), dim=-1)
    gate, step = F.silu(z), F.softplus(dt + dt_bias)
    total = None
    for reverse in (False, True) if bidirectional else (False,):
        turn = (lambda t: t.flip(1)) if reverse else (lambda t: t)
        x, B, C = F.silu(_causal_conv(turn(xbc), conv_weight, conv_bias)).split(
            (width, *_state_widths(xbc, width)), dim=-1
        )
        x, B, C = x.unflatten(-1, (heads, head_dim)), B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1))
        (y,) = _scan(x, turn(step), A, B, C)
        y = (y + x * D[:, None]).flatten(-2)
        y = _rms_norm(turn(y) * gate, norm_weight, eps, norm_group_size)
        total = y if total is None else total + y
    return total


def _state_widths(xbc, width):
    return ((xbc.shape[-1] - width) // 2,) * 2


def _causal_conv(xbc, weight, bias):
    """Depthwise convolution: xbc (n, L, c), weight (c, taps); output s sees inputs s - taps + 1 to s."""
    out = _CausalConv.apply(xbc, weight)
    return out if bias is None else out + bias


class _CausalConv(torch.autograd.Function):
    """One pass a tap. conv1d wants channels before length, and its gradient for these sizes is several times slower."""

    @staticmethod
    def forward(xbc, weight):
        taps, length = weight.shape[1], xbc.shape[1]
        out = xbc * weight[:, -1]
        for back in range(1, min(taps, length)):
            out[:, back:].addcmul_(xbc[:, : length - back], weight[:, taps - 1 - back])
        return out

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        xbc, weight = ctx.saved_tensors
        taps, length = weight.shape[1], xbc.shape[1]
        grad_xbc = grad * weight[:, -1]
        of_taps = [(grad * xbc).sum((0, 1))]
        for back in range(1, taps):
            seen, later = xbc[:, : max(length - back, 0)], grad[:, back:]
            grad_xbc[:, : seen.shape[1]].addcmul_(later, weight[:, taps - 1 - back])
            of_taps.append((later * seen).sum((0, 1)))
        return grad_xbc, torch.stack(of_taps[::-1], dim=1)


def _rms_norm(y, weight, eps, group_size):
    grouped = y.unflatten(-1, (-1, group_size))
    return (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)).flatten(-2) * weight


def _scan(x, dt, A, B, C, initial_states=None, final_states=False):
    """x (n, l, h, p), dt (n, l, h), A (h), B and C (n, l, g, s) -> [y (n, l, h, p)] and final states (n, h, p, s)."""
    n, length, heads, _ = x.shape
    chunks = -(-length // CHUNK)
    size = -(-length // chunks)  # even chunks, so that a length of 65 does not cost as much as 128
    values, decay = x * dt[..., None], dt * A
    if chunks * size != length:
        pad = chunks * size - length
        values, decay = F.pad(values, (0, 0, 0, 0, 0, pad)), F.pad(decay, (0, 0, 0, pad))
        B, C = F.pad(B, (0, 0, 0, 0, 0, pad)), F.pad(C, (0, 0, 0, 0, 0, pad))
    # (n, chunks, heads or groups, size, ...)
    values, B, C = (t.unflatten(1, (chunks, size)).transpose(2, 3) for t in (values, B, C))
    reach = decay.unflatten(1, (chunks, size)).transpose(2, 3).cumsum(-1)
    y = _within_chunks(values, reach, C @ B.transpose(-1, -2))
    if chunks == 1 and initial_states is None and not final_states:
        return [y.transpose(2, 3).flatten(1, 2)]
    before, final = _carry(_chunk_states(values, reach, B), reach[..., -1].exp(), initial_states)
    carried = C @ before.unflatten(2, (C.shape[2], -1)).flatten(3, 4).transpose(-1, -2)
    carried = carried.unflatten(-1, (heads // C.shape[2], -1)).transpose(3, 4).flatten(2, 3)
    y = y + carried * reach.exp()[..., None]
    y = y.transpose(2, 3).flatten(1, 2)[:, :length]
    return [y, final] if final_states else [y]


def _within_chunks(values, reach, scores):
    """values (n, c, h, q, p), reach (n, c, h, q) summed decay, scores C B^T (n, c, g, q, q) -> (n, c, h, q, p)."""
    future = torch.ones(reach.shape[-1:] * 2, dtype=torch.bool, device=reach.device).triu(1)
    # Masked before exp: exp of a future difference may overflow, and 0 * inf would spoil the gradient.
    weights = (reach[..., :, None] - reach[..., None, :]).masked_fill_(future, -torch.inf).exp_()
    groups = scores.shape[2]
    return (weights.unflatten(2, (groups, -1)) * scores[:, :, :, None]).flatten(2, 3) @ values


def _chunk_states(values, reach, B):
    """The state each chunk would end with if it began at zero: (n, c, h, p, s)."""
    reaching = values * (reach[..., -1:] - reach).exp()[..., None]
    return (reaching.unflatten(2, (B.shape[2], -1)).transpose(-1, -2) @ B[:, :, :, None]).flatten(2, 3)


def _carry(states, decay, initial_states):
    """States (n, c, h, p, s) before each chunk and after the last; decay (n, c, h) over a whole chunk."""
    state = torch.zeros_like(states[:, 0]) if initial_states is None else initial_states
    before = []
    for own, kept in zip(states.unbind(1), decay.unbind(1), strict=True):
        before.append(state)
        state = state * kept[..., None, None] + own
    return torch.stack(before, dim=1), state


def sum_type(x):
    return x.dtype if x.dtype == torch.float64 else torch.float32


def _no_autocast(x):
    return torch.autocast(x.device.type, enabled=False)
