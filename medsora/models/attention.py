"""Local attention inside a frame: each token sees the tokens at most `window` places away in raster order.

Cost grows linearly with the number of tokens: queries are cut into blocks, and each block meets only the keys of its
own block and `window` more on either side. A few tokens all meet one another, which takes less.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsora.models.tables import Tables

QUERY_BLOCK = 32


class LocalAttention(nn.Module):
    """Softmax attention over |i - j| <= window with rotary positions i + window for queries and j for keys.

    hidden_size: width D of the tokens. heads: number of heads, a divisor of D with an even quotient.
    window: reach on either side, in tokens. output_projection: a linear map after the heads (none in the released form,
    which also has one head of width D). q, k and v carry no bias; scores are scaled by (D / heads) ** -0.5.
    Raises ValueError where heads does not divide D into even parts.
    """

    def __init__(self, hidden_size: int, heads: int, window: int = 8, output_projection: bool = True):
        super().__init__()
        if heads < 1 or hidden_size % heads or (hidden_size // heads) % 2:
            raise ValueError(f"attention_heads: got {heads}, wants a divisor of {hidden_size} with an even quotient")
        if window < 1:
            raise ValueError(f"attention_window: got {window}, wants 1 or more")
        self.heads = heads
        self.window = window
        self._tables = Tables()
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, hidden_size, bias=False)
        self.output = nn.Linear(hidden_size, hidden_size, bias=False) if output_projection else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: (sequences, tokens, D) -> (sequences, tokens, D). Any number of tokens from 1."""
        n, tokens, width = x.shape
        q, k, v = (
            linear(x).view(n, tokens, self.heads, -1).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        q = rotate(q, self._turns(q, first_position=self.window))
        k = rotate(k, self._turns(k, first_position=0))
        y = banded_attention(q, k, v, self.window)
        return self.output(y.transpose(1, 2).reshape(n, tokens, width))

    def _turns(self, x: Tensor, first_position: int) -> Tensor:
        tokens, width = x.shape[-2:]
        return self._tables.get(
            (first_position, tokens, x.dtype, x.device),
            lambda: turns(first_position, tokens, width, x.dtype, x.device),
        )


def turns(first_position: int, tokens: int, width: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Rotary positions (RoFormer, Su et al. 2021): cosines and sines of (first_position + i) * 10000^(-2k / width).

    Returns (2, tokens, width), width even, computed in float32 at least: for each half of the channels, the sines of
    the first half negative.
    """
    angle_type = torch.promote_types(dtype, torch.float32)
    k = torch.arange(0, width, 2, device=device, dtype=angle_type)
    position = torch.arange(first_position, first_position + tokens, device=device, dtype=angle_type)
    angle = torch.outer(position, 10000.0 ** (-k / width))
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)]).to(dtype)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turns each token of x (..., tokens, width): the first half of its channels with the second half."""
    cos, sin = turns
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int, block: int = QUERY_BLOCK) -> Tensor:
    """Softmax attention restricted to |i - j| <= window, in time and memory linear in the number of tokens.

    q, k, v: (sequences, heads, tokens, width), one dtype. Returns the same shape.
    """
    n, heads, tokens, width = q.shape
    if tokens <= 2 * block:
        return _attended(q, k, v, within(window, tokens, q.device))
    block = max(block, 2 * window)  # a block and the beginning of the next then hold all that a query may see
    blocks = -(-tokens // block)
    q = F.pad(q, (0, 0, 0, blocks * block - tokens)).reshape(n * heads, blocks, block, width)
    k, v = (_met(t.flatten(0, 1), window, block, blocks) for t in (k, v))
    y = _attended(q, k, v, band_mask(tokens, block, window, q.device))
    return y.reshape(n, heads, blocks * block, width)[:, :, :tokens]


def _met(t: Tensor, window: int, block: int, blocks: int) -> Tensor:
    """(sequences, tokens, width) -> (sequences, blocks, block + 2 window, width): the keys each block of queries meets.

    Block b meets positions b * block - window ... (b + 1) * block + window - 1; where there are none, zeros. Slices,
    as the gradient of `unfold` adds up one row at a time.
    """
    rows = F.pad(t, (0, 0, window, (blocks + 1) * block - window - t.shape[1])).unflatten(1, (blocks + 1, block))
    return torch.cat([rows[:, :-1], rows[:, 1:, : 2 * window]], dim=2)


def _attended(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """softmax(q k' / sqrt(width)) v over the keys that are seen. seen: bool, broadcast to (..., queries, keys)."""
    # Plain products: for such small blocks, the fused attention's backward pass takes over twice as long on a CPU.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).to(v.dtype) @ v


def within(window: int, tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """Which tokens each token may see where all meet all: bool (tokens, tokens), True where |i - j| <= window."""
    i = torch.arange(tokens, device=device)
    return (i[:, None] - i).abs() <= window


def band_mask(tokens: int, block: int, window: int, device: torch.device | str = "cpu") -> Tensor:
    """Which keys each query may see: bool (1, blocks, block, block + 2 window), True where it may."""
    blocks = -(-tokens // block)
    i = torch.arange(blocks * block, device=device).view(blocks, block, 1)
    start = torch.arange(blocks, device=device).view(blocks, 1, 1) * block - window
    j = start + torch.arange(block + 2 * window, device=device)
    real_key = (j >= 0) & (j < tokens)
    # Padding queries see themselves: a row without any key would be NaN, and NaN spreads through the gradient.
    return (((i - j).abs() <= window) & (real_key | (i == j))).unsqueeze(0)
