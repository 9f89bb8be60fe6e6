"""The terms of the VAE's loss, each against its formula, and LPIPS on weights made up for the purpose."""

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from medsora.training.lpips import STAGES
from medsora.training.vae_loss import VAELoss
from medsora_ops import focal_frequency_loss


def frames(seed, *shape, dtype=torch.float32):
    shape = shape or (2, 3, 4, 16, 16)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def posterior(seed=5):
    return DiagonalGaussianDistribution(torch.randn(2, 8, 2, 3, 3, generator=torch.Generator().manual_seed(seed)))


def perceptual_weights(seed=3):
    """State dictionaries of a VGG16 and of LPIPS linear layers under their usual names."""
    generator = torch.Generator().manual_seed(seed)
    vgg, channels, layer = {"classifier.0.weight": torch.zeros(2, 2)}, 3, 0
    for stage in STAGES:
        for width in stage:
            weight = torch.randn(width, channels, 3, 3, generator=generator) * (2 / (9 * channels)) ** 0.5
            vgg |= {f"features.{layer}.weight": weight, f"features.{layer}.bias": torch.zeros(width)}
            channels, layer = width, layer + 2
        layer += 1
    linear = {
        f"lin{i}.model.1.weight": torch.rand(1, stage[-1], 1, 1, generator=generator) for i, stage in enumerate(STAGES)
    }
    return vgg, linear


@pytest.fixture(scope="module")
def weight_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("perception")
    vgg, linear = perceptual_weights()
    torch.save(vgg, folder / "vgg16.pth")
    save_file(linear, folder / "linear.safetensors")
    return folder


def test_terms_and_their_sum():
    one, other, latents = frames(0), frames(1), posterior()
    loss, terms = VAELoss(l1=2.0, focal=0.5, kl=0.25)(one, other, latents)
    spectrum = torch.stack([focal_frequency_loss(one[:, :, t], other[:, :, t]) for t in range(4)]).mean()
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(latents.mean, latents.std), torch.distributions.Normal(0.0, 1.0)
    ).mean()
    torch.testing.assert_close(terms["l1"], (one - other).abs().mean())
    torch.testing.assert_close(terms["focal"], spectrum)
    torch.testing.assert_close(terms["kl"], divergence)
    torch.testing.assert_close(loss, 2.0 * terms["l1"] + 0.5 * terms["focal"] + 0.25 * terms["kl"])
    torch.testing.assert_close(terms["loss"], loss)
    assert not any(term.requires_grad for term in terms.values())


def test_terms_of_weight_zero_are_left_out():
    one, other = frames(0), frames(1)
    loss, terms = VAELoss(focal=0.0, kl=0.0)(one, other, posterior())
    assert set(terms) == {"loss", "l1"} and loss == (one - other).abs().mean()
    assert set(VAELoss()(one, other)[1]) == {"loss", "l1", "focal"}


def test_gradients_reach_reconstruction_and_posterior():
    one, parameters = frames(0).requires_grad_(), torch.randn(2, 8, 2, 3, 3, requires_grad=True)
    VAELoss()(one, frames(1), DiagonalGaussianDistribution(parameters))[0].backward()
    assert one.grad.abs().max() > 0 and parameters.grad.abs().max() > 0


def test_low_precision_is_judged_in_float32():
    one, other = frames(0).bfloat16(), frames(1)
    loss, _ = VAELoss()(one, other)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, VAELoss()(one.float(), other)[0])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"l1": -1.0}, "l1: got -1.0"),
        ({"kl": float("nan")}, "kl: got nan"),
        ({"lpips": 0.1}, "lpips_weights: got None, wants the path"),
        ({"lpips": 0.1, "lpips_weights": "/nowhere/vgg.pth"}, "lpips_weights: cannot load '/nowhere/vgg.pth'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VAELoss(**settings)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"reconstruction: got shape \(2, 3, 4, 16, 16\) for a target of"):
        VAELoss()(frames(0), frames(0, 2, 3, 1, 16, 16))


def lpips_by_hand(one, other):
    """The distance of two images written out with functional calls on the state dictionaries."""
    vgg, linear = perceptual_weights()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = (((image.movedim(0, -1) - shift) / scale).movedim(-1, 0)[None] for image in (one, other))
    total, layer = 0.0, 0
    for number, stage in enumerate(STAGES):
        for _ in stage:
            a, b = (
                functional.conv2d(x, vgg[f"features.{layer}.weight"], vgg[f"features.{layer}.bias"], padding=1).relu()
                for x in (a, b)
            )
            layer += 2
        near = functional.normalize(a, dim=1) - functional.normalize(b, dim=1)
        total += functional.conv2d(near.square(), linear[f"lin{number}.model.1.weight"]).mean()
        if number < len(STAGES) - 1:
            a, b, layer = functional.max_pool2d(a, 2), functional.max_pool2d(b, 2), layer + 1
    return total


def test_lpips(weight_folder):
    loss = VAELoss(l1=0.0, focal=0.0, lpips=1.0, kl=0.0, lpips_weights=weight_folder)
    one, other = frames(0, 1, 3, 2, 16, 20).requires_grad_(), frames(1, 1, 3, 2, 16, 20)
    value, terms = loss(one, other)
    wanted = torch.stack([lpips_by_hand(one[0, :, t], other[0, :, t]) for t in range(2)]).mean()
    torch.testing.assert_close(terms["lpips"], wanted.detach(), rtol=1e-4, atol=1e-6)
    value.backward()
    assert one.grad.isfinite().all() and one.grad.abs().max() > 0
    assert loss(other, other)[1]["lpips"] == 0.0
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    black = torch.full((1, 3, 1, 16, 16), -1.0, requires_grad=True)
    loss(black, -torch.ones(1, 3, 1, 16, 16))[0].backward()
    assert black.grad.isfinite().all()


def test_lpips_refuses_small_frames(weight_folder):
    loss = VAELoss(lpips=1.0, lpips_weights=weight_folder)
    with pytest.raises(ValueError, match="sides of at least 16"):
        loss(frames(0, 1, 3, 1, 8, 16), frames(0, 1, 3, 1, 8, 16))


class Anything(nn.Module):
    pass


def test_lpips_refuses_weights_that_do_not_fit(tmp_path):
    file = tmp_path / "weights.pth"
    linear = perceptual_weights()[1]
    cases = {
        "lacks features.0.bias": linear,
        "has unknown head.weight": every_weight_small() | {"head.weight": torch.zeros(1)},
        "has another shape of features.0.weight": every_weight_small(),
    }
    for message, content in cases.items():
        torch.save(content, file)
        with pytest.raises(ValueError, match=f"lpips_weights: .* {message}"):
            VAELoss(lpips=1.0, lpips_weights=file)
    for content in (Anything(), [torch.zeros(1)]):  # a pickled object is not even read
        torch.save(content, file)
        with pytest.raises(ValueError, match="lpips_weights: "):
            VAELoss(lpips=1.0, lpips_weights=file)
    file.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="lpips_weights: cannot read"):
        VAELoss(lpips=1.0, lpips_weights=file)


def every_weight_small():
    """All names LPIPS wants, the first convolution in a shape it does not have."""
    names, layer = {f"lin{i}.model.1.weight": torch.zeros(1, s[-1], 1, 1) for i, s in enumerate(STAGES)}, 0
    channels = 3
    for stage in STAGES:
        for width in stage:
            names |= {
                f"features.{layer}.weight": torch.zeros(()).expand(width, channels, 3, 3),
                f"features.{layer}.bias": torch.zeros(width),
            }
            channels, layer = width, layer + 2
        layer += 1
    return names | {"features.0.weight": torch.zeros(64, 1, 3, 3)}
