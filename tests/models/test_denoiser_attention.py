"""Local attention against a dense oracle written with explicit loops over positions."""

import math

import pytest
import torch
from sampling import sampled

from medsora.models.attention import LocalAttention, band_mask, banded_attention, rotate, turns

CASES = [
    (tokens, block, window)
    for tokens in (1, 2, 7, 8, 9, 16, 31, 32, 33, 64, 65, 100, 257)
    for block in (4, 16, 32)
    for window in (1, 3, 8)
]


def dense(q, k, v, window):
    tokens = q.shape[2]
    i, j = torch.arange(tokens)[:, None], torch.arange(tokens)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return scores.masked_fill((i - j).abs() > window, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("tokens, block, window", sampled(CASES, 30))
def test_banded_attention_equals_dense_attention_under_the_band(tokens, block, window):
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(2, 3, tokens, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    weight = torch.randn(2, 3, tokens, 6, generator=generator, dtype=torch.float64)
    ours, expected = banded_attention(*inputs, window, block=block), dense(*inputs, window)
    torch.testing.assert_close(ours, expected)
    gradients = torch.autograd.grad((ours * weight).sum(), inputs)
    for gradient, wanted in zip(gradients, torch.autograd.grad((expected * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_the_mask_grows_linearly_with_the_tokens():
    assert band_mask(64_000, 32, 8).numel() == 64_000 * 48


def test_rotation_turns_the_first_half_with_the_second():
    x = torch.randn(5, 6, dtype=torch.float64)
    turned = rotate(x, turns(3, 5, 6, x.dtype, x.device))
    for i in range(5):
        for k in range(3):
            angle = (3 + i) * 10000 ** (-2 * k / 6)
            a, b = x[i, k].item(), x[i, k + 3].item()
            assert turned[i, k].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle))
            assert turned[i, k + 3].item() == pytest.approx(b * math.cos(angle) + a * math.sin(angle))


def test_scores_depend_on_the_distance_alone():
    """The point of rotary positions: shifting queries and keys together changes nothing."""
    q, k = torch.randn(2, 1, 8, dtype=torch.float64)

    def at(x, position):
        return rotate(x, turns(position, 1, 8, x.dtype, x.device))

    near = at(q, 8) @ at(k, 3).T
    far = at(q, 108) @ at(k, 103).T
    torch.testing.assert_close(near, far)


@pytest.mark.parametrize("heads, projection", [(1, False), (2, True), (8, True)])
def test_a_token_sees_its_window_and_nothing_else(heads, projection):
    torch.manual_seed(0)
    attention = LocalAttention(32, heads, window=8, output_projection=projection).double()
    x = torch.randn(1, 40, 32, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(attention(x)[0, 20].sum(), x)
    seen = gradient[0].abs().sum(-1).nonzero().flatten().tolist()
    assert seen == list(range(12, 29))


def test_frames_do_not_see_each_other():
    torch.manual_seed(0)
    attention = LocalAttention(16, 1)
    x = torch.randn(3, 10, 16)
    torch.testing.assert_close(attention(x)[1:2], attention(x[1:2]))


@pytest.mark.parametrize("heads", [0, 3, 32])
def test_head_counts_that_do_not_divide_are_refused(heads):
    with pytest.raises(ValueError, match="attention_heads: got"):
        LocalAttention(32, heads)
