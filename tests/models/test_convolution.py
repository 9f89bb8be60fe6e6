"""One small video is convolved as two halves, with the results of one."""

import copy

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSafeConv3d
from torch import nn

from medsora.models.convolution import SMALL, Conv3d, take_small_videos


def pair(channels=6, kernel=(3, 3, 3), dtype=torch.float64, **settings):
    """The backbone's convolution, and that of above with its weights."""
    torch.manual_seed(0)
    theirs = CogVideoXSafeConv3d(channels, 5, kernel, padding=(0, 1, 1), dtype=dtype, **settings)
    ours = nn.Sequential(copy.deepcopy(theirs))
    take_small_videos(ours)
    assert type(ours[0]) is Conv3d
    return theirs, ours[0]


def halved(ours, x, monkeypatch):
    """Whether the backbone's convolution was given something else than x."""
    given = []
    convolve = CogVideoXSafeConv3d.forward
    monkeypatch.setattr(CogVideoXSafeConv3d, "forward", lambda self, x: given.append(x) or convolve(self, x))
    ours(x)
    assert len(given) == 1
    return given[0] is not x


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7])
def test_values_and_gradients_are_those_of_one(frames, kernel, monkeypatch):
    theirs, ours = pair(kernel=kernel, dtype=torch.float32)
    x = torch.randn(1, 6, frames + kernel[0] - 1, 5, 8)
    assert halved(ours, x, monkeypatch)
    found = []
    for convolution in (ours, theirs):
        given = x.clone().requires_grad_()
        out = convolution(given)
        of_out = torch.linspace(-1, 1, out.numel()).view(out.shape).sin()
        found.append((out, *torch.autograd.grad(out, [given, *convolution.parameters()], of_out)))
    for got, wanted in zip(*found, strict=True):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_torch_would_unfold_one_small_video_and_gives_two_to_its_library():
    """Where this fails for one, the module is not needed any more."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without oneDNN")
    weight = torch.zeros(16, 16, 3, 3, 3)

    def chosen(*shape):
        ones = [1, 1, 1]
        return torch._C._select_conv_backend(
            torch.zeros(shape), weight, None, ones, [0, 1, 1], ones, False, [0, 0, 0], 1
        ).name

    tall = SMALL // (16 * 10)
    assert chosen(1, 16, 10, tall, 4) == "Slow3d"
    assert chosen(1, 16, 10, tall + 1, 4) == chosen(2, 16, 6, tall, 4) == "Mkldnn"


def test_what_torch_convolves_well_is_left_to_it(monkeypatch):
    x = torch.randn(1, 6, 4, 6, 6)
    for settings, given in (
        (dict(dtype=torch.float32), x.expand(2, -1, -1, -1, -1)),
        (dict(dtype=torch.float32), torch.randn(1, 6, 4, SMALL // 24 + 1, 6)),
        (dict(dtype=torch.float64), x.double()),
        (dict(dtype=torch.float32, stride=(2, 1, 1)), x),
    ):
        with monkeypatch.context() as patched:
            assert not halved(pair(**settings)[1], given, patched), settings
