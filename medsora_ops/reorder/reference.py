"""The definition of `gather` and `merge`: tokens in visiting order, and back."""

from __future__ import annotations

import torch


def gather(x: torch.Tensor, offsets: torch.Tensor, stride: int) -> torch.Tensor:
    """x (B, T, C), offsets int32 (L) -> (B, 2, S, L, C): each sequence in visiting order, and reversed."""
    tokens, inverse = token_table(offsets, stride, x.shape[1])
    forward = permute_tokens(x, tokens.flatten(), inverse).unflatten(1, tokens.shape)
    return torch.stack((forward, forward.flip(2)), dim=1)


def merge(y: torch.Tensor, offsets: torch.Tensor, stride: int) -> torch.Tensor:
    """y (B, 2, S, L, C), offsets int32 (L) -> (B, T, C): both directions added back at their tokens."""
    both = y[:, 0] + y[:, 1].flip(2)
    tokens, inverse = token_table(offsets, stride, both.shape[1] * both.shape[2])
    return permute_tokens(both.flatten(1, 2), inverse, tokens.flatten())


def token_table(offsets: torch.Tensor, stride: int, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers in visiting order, int64 (S, L), and the inverse permutation, int64 (S * L)."""
    first = torch.arange(0, total // offsets.shape[0], device=offsets.device)[:, None] * stride
    tokens = first + offsets
    inverse = torch.empty(total, dtype=torch.int64, device=offsets.device)
    inverse[tokens.flatten()] = torch.arange(total, device=offsets.device)
    return tokens, inverse


def permute_tokens(x: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """x (B, T, C) -> x[:, index], differentiable. index, inverse: int64 (T), permutations inverse to each other."""
    return _PermuteTokens.apply(x, index, inverse)


class _PermuteTokens(torch.autograd.Function):
    """Its gradient is a gather too. The one PyTorch derives adds row by row into zeros, which is slow."""

    @staticmethod
    def forward(x, index, inverse):
        return x.index_select(1, index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, grad):
        index, inverse = ctx.saved_tensors
        return permute_tokens(grad, inverse, index), None, None
