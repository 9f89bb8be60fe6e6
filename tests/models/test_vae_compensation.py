"""The compensation blocks: identity at first, what learns when, resampling of gains, agreement of chunks."""

import pytest
import torch

from medsora.models.compensation import (
    ConvDetailCompensation,
    ConvLatentCompensation,
    SpectralDetailCompensation,
    SpectralLatentCompensation,
    half_spectrum_interpolation,
    periodic_interpolation,
    radial_bands,
)
from medsora_ops import spectral_filter

BLOCKS = {
    "spectral latent": lambda: SpectralLatentCompensation(4, (6, 7)),
    "spectral detail": lambda: SpectralDetailCompensation(4, 5),
    "conv latent": lambda: ConvLatentCompensation(4),
    "conv latent, two frames folded": lambda: ConvLatentCompensation(4, 2),
    "conv detail": lambda: ConvDetailCompensation(4),
}
EVERY_BLOCK = pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS.keys())


def features(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def disturbed(block, dtype=torch.float64):
    """The block in `eval()` with every parameter away from zero, as after training."""
    block = block.to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return block


@EVERY_BLOCK
@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_block_changes_no_bit(make, frames, dtype):
    x = features(2, 4, frames, 6, 9, dtype=dtype)
    y, _ = make().to(dtype)(x)
    assert y.dtype == dtype and torch.equal(y, x)


@pytest.mark.parametrize("make", [BLOCKS["spectral latent"], BLOCKS["spectral detail"]])
def test_mix_learns_at_the_first_step_and_the_gain_after_it(make):
    torch.manual_seed(0)
    block, x = make(), features(2, 4, 3, 6, 9)
    wanted = x.flip(-1) + 0.3
    mix = getattr(block.mix, "conv", block.mix)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    (block(x)[0] - wanted).square().mean().backward()
    assert mix.weight.grad.abs().max() > 1e-4 and mix.bias.grad.abs().max() > 1e-4
    assert torch.equal(block.gain.grad, torch.zeros_like(block.gain))
    optimizer.step()
    optimizer.zero_grad()
    (block(x)[0] - wanted).square().mean().backward()
    assert block.gain.grad.abs().amax(dim=tuple(range(1, block.gain.ndim))).min() > 1e-6


@pytest.mark.parametrize("make", [BLOCKS["conv latent"], BLOCKS["conv detail"]])
def test_convolutions_learn_from_zero(make):
    torch.manual_seed(0)
    block, x = make(), features(2, 4, 3, 6, 9)
    optimizer = torch.optim.SGD(block.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        block(x)[0].square().mean().backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in block.parameters() if p.ndim > 1)


@EVERY_BLOCK
def test_one_call_and_chunk_by_chunk_agree(make):
    block, x = disturbed(make()), features(1, 4, 6, 5, 8, dtype=torch.float64)
    whole, _ = block(x)
    cache, parts = None, []
    for chunk in x.split((2, 2, 2) if "folded" not in repr(block) else (2, 4), dim=2):
        part, cache = block(chunk, cache)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole)
    assert not torch.equal(whole, x)


@EVERY_BLOCK
def test_frames_do_not_see_later_ones(make):
    block, x = disturbed(make()), features(1, 4, 6, 5, 8, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 4:] += 1.0
    torch.testing.assert_close(block(changed)[0][:, :, :4], block(x)[0][:, :, :4], rtol=0, atol=0)


def test_latent_gain_acts_on_the_spectrum_it_names():
    block, x = SpectralLatentCompensation(4, (6, 8)).double(), features(2, 4, 2, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        block.gain.copy_(features(*block.gain.shape, dtype=torch.float64))
        block.mix.weight.copy_(torch.eye(4).reshape(4, 4, 1, 1, 1))
    wanted = x + spectral_filter(x, torch.view_as_complex(block.gain.detach()))
    torch.testing.assert_close(block(x)[0], wanted)


@pytest.mark.parametrize("grid", [(6, 7), (5, 8), (2, 2)])
@pytest.mark.parametrize("size", [(6, 7), (9, 12), (3, 4), (1, 1)])
def test_a_gain_constant_in_frequency_stays_constant_at_any_size(grid, size):
    like = torch.zeros((), dtype=torch.float64)
    rows = periodic_interpolation(size[0], grid[0], like=like)
    columns = half_spectrum_interpolation(size[1], grid[1], like=like)
    for matrix in (rows, columns):
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(len(matrix), dtype=torch.float64))
        assert matrix.min() >= 0
    if size == grid:
        torch.testing.assert_close(rows, torch.eye(grid[0], dtype=torch.float64))
        torch.testing.assert_close(columns, torch.eye(grid[1] // 2 + 1, dtype=torch.float64))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (7, 12), (31, 5)])
def test_radial_bands_share_every_frequency(size):
    bands = radial_bands(*size, 5, like=torch.zeros((), dtype=torch.float64))
    assert bands.shape == (5, size[0], size[1] // 2 + 1) and bands.min() >= 0
    torch.testing.assert_close(bands.sum(dim=0), torch.ones(bands.shape[1:], dtype=torch.float64))
    assert bands[0, 0, 0] == 1.0


def test_detail_bands_lift_what_they_name():
    block = SpectralDetailCompensation(1, 4).double()
    with torch.no_grad():
        block.gain[0] = torch.tensor([0.0, 0.0, 0.0, 2.0])
        block.mix.conv.weight[0, 0, 2, 1, 1] = 1.0  # the present frame, unchanged
    flat = torch.ones(1, 1, 1, 8, 8, dtype=torch.float64)
    checks = flat * (-1.0) ** (torch.arange(8)[:, None] + torch.arange(8))
    torch.testing.assert_close(block(flat)[0], 2 * flat)  # x + filter, and the filter adds nothing at frequency zero
    torch.testing.assert_close(block(checks)[0], 4 * checks)


def test_folded_frames_fill_an_incomplete_group():
    block, x = disturbed(ConvLatentCompensation(4, 2)), features(1, 4, 3, 5, 8, dtype=torch.float64)
    filled = torch.cat([x, x[:, :, -1:]], dim=2)
    torch.testing.assert_close(block(x)[0], block(filled)[0][:, :, :3])


def test_bfloat16_keeps_the_complex_gain():
    block = SpectralLatentCompensation(2, (4, 4))
    with torch.no_grad():
        block.gain[..., 1] = 0.5
        block.mix.weight.copy_(torch.eye(2).reshape(2, 2, 1, 1, 1))
    x = features(1, 2, 1, 4, 4)
    wanted, _ = block(x)
    got, _ = block.to(torch.bfloat16)(x.bfloat16())
    assert (got.float() - wanted).norm() < 1e-2 * wanted.norm()
