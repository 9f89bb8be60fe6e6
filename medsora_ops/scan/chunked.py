"""The recurrence of Mamba-2 without a loop over time: matrix products within chunks, a state carried between them.

h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T, y_t = C_t h_t (Dao and Gu, arXiv 2405.21060, section 6).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def chunked_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_states: Tensor | None = None,
    final_states: bool = False,
) -> list[Tensor]:
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
