"""The causal depthwise convolution before the scan, one pass a tap.

conv1d wants channels before length, and on a CPU its gradient for these sizes is several times slower.
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, L, c), weight (c, taps) -> (n, L, c): output s sees inputs s - taps + 1 to s. Differentiable."""
    return _CausalConvolution.apply(x, weight)


class _CausalConvolution(torch.autograd.Function):
    @staticmethod
    def forward(x, weight):
        taps, length = weight.shape[1], x.shape[1]
        out = x * weight[:, -1]
        for back in range(1, min(taps, length)):
            out[:, back:].addcmul_(x[:, : length - back], weight[:, taps - 1 - back])
        return out

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        taps, length = weight.shape[1], x.shape[1]
        grad_x = grad * weight[:, -1]
        of_taps = [(grad * x).sum((0, 1))]
        for back in range(1, taps):
            seen, later = x[:, : max(length - back, 0)], grad[:, back:]
            grad_x[:, : seen.shape[1]].addcmul_(later, weight[:, taps - 1 - back])
            of_taps.append((later * seen).sum((0, 1)))
        return grad_x, torch.stack(of_taps[::-1], dim=1)
