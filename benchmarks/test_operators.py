"""Each operator against what a user could otherwise write, in one run: `pytest benchmarks/ --benchmark-only`.

A group is one operator at one shape on the CPU; its rows are the backends that serve it there and, where there is one,
the composition of plain PyTorch calls that a user would write without this library.
"""

import pytest
import torch

from medsora_ops import (
    ScanPath,
    backend_report,
    focal_frequency_loss,
    gather,
    merge,
    path_scan,
    spectral_filter,
    spiral_order,
    ssd_scan,
    use_backend,
)

GRID = (4, 8, 8)
PATH = ScanPath.plane("fw", GRID, spiral_order(4, 8))


def backends(operator):
    """The backends of `operator` that can run here; each of them serves the CPU so far."""
    return [row.backend for row in backend_report() if row.operator == operator and row.available]


def on(backend, call):
    """`call` as a variant without arguments that runs on `backend`."""

    def run():
        with use_backend(backend):
            return call()

    return run


@pytest.mark.parametrize("variant", [*backends("gather"), "torch"])
@pytest.mark.benchmark(group="gather 4 x (4, 8, 8) x 512")
def test_gather(checked, variant):
    x, tokens = torch.randn(4, 256, 512), PATH.tokens()

    def composed():
        return torch.stack((x[:, tokens], x[:, tokens.flip(1)]), dim=1)

    checked(composed if variant == "torch" else on(variant, lambda: gather(x, PATH)), composed(), tolerance=0)


@pytest.mark.parametrize("variant", [*backends("merge"), "torch"])
@pytest.mark.benchmark(group="merge 4 x (4, 8, 8) x 512")
def test_merge(checked, variant):
    y, tokens = torch.randn(4, 2, *PATH.tokens().shape, 512), PATH.tokens()

    def composed():
        both = (y[:, 0] + y[:, 1].flip(2)).flatten(1, 2)
        return torch.empty_like(both).index_copy_(1, tokens.flatten(), both)

    checked(composed if variant == "torch" else on(variant, lambda: merge(y, PATH)), composed())


@pytest.mark.parametrize("variant", backends("path_scan"))
@pytest.mark.benchmark(group="path_scan forward, 2 x (4, 8, 8), E 512, N 64, both directions")
def test_path_scan(checked, variant):
    width, state, heads = 512, 64, 8
    inputs = (torch.randn(2, 256, 2 * width + 2 * state + heads), torch.randn(width + 2 * state, 4) / 2)
    inputs += (torch.zeros(width + 2 * state), torch.randn(heads), -torch.rand(heads) - 0.5, torch.ones(heads))
    inputs += (torch.ones(width),)
    wide = [t.double() for t in inputs]
    checked(on(variant, lambda: path_scan(*inputs, PATH, head_dim=64)), path_scan(*wide, PATH, head_dim=64))


@pytest.mark.parametrize("variant", backends("ssd_scan"))
@pytest.mark.benchmark(group="ssd_scan forward, 4 x 256 tokens, 8 heads of 64, N 64")
def test_ssd_scan(checked, variant):
    inputs = (torch.randn(4, 256, 8, 64), torch.rand(4, 256, 8) / 10, -torch.rand(8) - 0.5)
    inputs += tuple(torch.randn(2, 4, 256, 1, 64))
    wide = [t.double() for t in inputs]
    checked(on(variant, lambda: ssd_scan(*inputs)), ssd_scan(*wide))


@pytest.mark.parametrize("side", [16, 64, 128])
@pytest.mark.parametrize("variant", [*backends("spectral_filter"), "torch.fft"])
@pytest.mark.benchmark(group="spectral_filter")
def test_spectral_filter(checked, benchmark, variant, side):
    benchmark.group = f"spectral_filter 4 x 64 x {side} x {side}"
    x, weight = torch.randn(4, 64, side, side), torch.randn(64, side, side // 2 + 1, dtype=torch.complex64)

    def composed():
        return x + torch.fft.irfft2(weight * torch.fft.rfft2(x, norm="ortho"), s=x.shape[-2:], norm="ortho")

    checked(composed if variant == "torch.fft" else on(variant, lambda: spectral_filter(x, weight)), composed())


@pytest.mark.parametrize("variant", [*backends("focal_frequency_loss"), "two full transforms"])
@pytest.mark.benchmark(group="focal_frequency_loss 16 x 3 x 128 x 128")
def test_focal_frequency_loss(checked, variant):
    pred, target = torch.randn(2, 16, 3, 128, 128).unbind(0)

    def composed():
        distance = (torch.fft.fft2(pred, norm="ortho") - torch.fft.fft2(target, norm="ortho")).abs()
        return (distance / distance.amax((-2, -1), keepdim=True) * distance.square()).mean()

    loss = on(variant, lambda: focal_frequency_loss(pred, target))
    checked(composed if variant == "two full transforms" else loss, composed())
