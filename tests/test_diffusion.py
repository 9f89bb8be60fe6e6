"""The objective against diffusers and against formulas written out by hand with scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from medsora.diffusion import DiffusionObjective, DiffusionSettings, betas, make_scheduler


def draw(seed=0, batch=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, 4, 5, 6)
    clean, noise = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    output = torch.randn(batch, 3, 8, 5, 6, generator=generator, dtype=dtype)
    return clean, noise, output


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_betas_and_noise_agree_with_diffusers(schedule):
    settings = DiffusionSettings(beta_schedule=schedule)
    scheduler = make_scheduler("ddpm", settings)
    torch.testing.assert_close(betas(settings).float(), scheduler.betas, rtol=1e-5, atol=0)
    clean, noise, _ = draw(dtype=torch.float32)
    t = torch.tensor([0, 17, 500, 999])
    ours = DiffusionObjective(settings).add_noise(clean, noise, t)
    torch.testing.assert_close(ours, scheduler.add_noise(clean, noise, t), rtol=1e-4, atol=1e-4)


def written_out_vlb(clean, noisy, predicted, interpolation, t):
    """Bits a dimension of one sample, from the definitions of q and p alone (numpy float64)."""
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha = 1 - beta
    bar = np.cumprod(alpha)
    clean_guess = (noisy - math.sqrt(1 - bar[t]) * predicted) / math.sqrt(bar[t])
    if t == 0:
        # q has no width at t = 0: the released code takes the width of t = 1 as the smallest one.
        smallest = beta[1] * (1 - bar[0]) / (1 - bar[1])
        sigma = np.exp(0.5 * ((interpolation + 1) / 2 * np.log(beta[0]) + (1 - interpolation) / 2 * np.log(smallest)))
        mass = norm.cdf(clean + 1 / 255, clean_guess, sigma) - norm.cdf(clean - 1 / 255, clean_guess, sigma)
        return -np.log2(np.maximum(mass, 1e-12)).mean()
    # q(x_{t-1} | x_t, x_0) by completing the square: precisions of q(x_t | x_{t-1}) and q(x_{t-1} | x_0) add.
    precision = alpha[t] / beta[t] + 1 / (1 - bar[t - 1])

    def mean_given(x0):
        return (math.sqrt(alpha[t]) / beta[t] * noisy + math.sqrt(bar[t - 1]) / (1 - bar[t - 1]) * x0) / precision

    variance = np.exp((interpolation + 1) / 2 * np.log(beta[t]) + (1 - interpolation) / 2 * np.log(1 / precision))
    gap = (mean_given(clean) - mean_given(clean_guess)) ** 2
    kl = np.log(np.sqrt(variance) / np.sqrt(1 / precision)) + (1 / precision + gap) / (2 * variance) - 0.5
    return (kl / np.log(2)).mean()


@pytest.mark.parametrize("t", [0, 1, 2, 50, 700, 999])
def test_loss_agrees_with_the_written_out_formula(t):
    clean, noise, output = draw(seed=t)
    if t == 0:
        # Near the truth, where the likelihood is not merely its floor.
        output[:, :, :4] = noise + 0.3 * output[:, :, :4]
    times = torch.full((4,), t)
    objective = DiffusionObjective(DiffusionSettings(vlb_weight=0.7))
    noisy = objective.add_noise(clean, noise, times)
    losses = objective.loss(output, clean, noise, noisy, times)
    assert set(losses) == {"loss", "mse", "vlb"} and losses["loss"].shape == (4,)
    for i in range(4):
        expected = written_out_vlb(*(x[i].numpy() for x in (clean, noisy, output[:, :, :4], output[:, :, 4:])), t)
        assert losses["vlb"][i].item() == pytest.approx(expected, rel=1e-9)
        assert losses["mse"][i].item() == pytest.approx(((output[i, :, :4] - noise[i]) ** 2).mean().item())
    torch.testing.assert_close(losses["loss"], losses["mse"] + 0.7 * losses["vlb"])


def test_the_variational_term_holds_the_mean():
    clean, noise, output = draw()
    output.requires_grad_()
    objective = DiffusionObjective()
    t = torch.tensor([0, 3, 400, 999])
    noisy = objective.add_noise(clean, noise, t)
    losses = objective.loss(output, clean, noise, noisy, t)
    (from_vlb,) = torch.autograd.grad(losses["vlb"].sum(), output, retain_graph=True)
    (from_mse,) = torch.autograd.grad(losses["mse"].sum(), output)
    assert from_vlb[:, :, :4].abs().max() == 0 and from_vlb[1:, :, 4:].abs().min() > 0
    assert from_mse[:, :, 4:].abs().max() == 0 and from_mse[:, :, :4].abs().min() > 0


@pytest.mark.parametrize("t", [1, 40, 999])
def test_learned_variance_is_read_as_diffusers_ddpm_reads_it(t):
    """One DDPM step with a fixed noise gives mean + sigma noise; both parts equal ours."""
    clean, noise, output = draw(seed=3, batch=1)
    output[:, :, 4:].clamp_(-1, 1)
    objective = DiffusionObjective()
    times = torch.tensor([t])
    noisy = objective.add_noise(clean, noise, times)
    scheduler = make_scheduler("ddpm")
    scheduler.set_timesteps(1000)
    channels_first = output.transpose(1, 2)
    step = scheduler.step(
        channels_first, t, noisy.transpose(1, 2), generator=torch.Generator().manual_seed(5)
    ).prev_sample.transpose(1, 2)
    z = torch.randn(channels_first[:, :4].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    predicted, fraction = output[:, :, :4], (output[:, :, 4:] + 1) / 2
    guess = (noisy - objective._at("noise", times, noisy) * predicted) / objective._at("signal", times, noisy)
    mean = objective._posterior_mean(guess, noisy, times)
    log_variance = fraction * objective._at("log_largest", times, noisy) + (1 - fraction) * objective._at(
        "log_smallest", times, noisy
    )
    ours = mean + (0.5 * log_variance).exp() * z.transpose(1, 2)
    torch.testing.assert_close(ours, step, rtol=2e-4, atol=2e-5)


def test_bfloat16_outputs_are_scored_in_float32():
    clean, noise, output = draw(dtype=torch.float32)
    t = torch.tensor([1, 10, 100, 900])
    objective = DiffusionObjective()
    noisy = objective.add_noise(clean, noise, t)
    exact = objective.loss(output.bfloat16().float(), clean, noise, noisy, t)
    rounded = objective.loss(output.bfloat16(), clean, noise, noisy, t)
    assert rounded["loss"].dtype == torch.float32
    torch.testing.assert_close(rounded["loss"], exact["loss"])


@pytest.mark.parametrize("name, steps", [("ddpm", 1000), ("ddim", 50), ("dpm-solver++", 25)])
def test_each_scheduler_brings_noise_to_the_data_when_the_prediction_is_exact(name, steps):
    """Data at one point: the exact noise prediction is known, and each sampler must end at that point."""
    point = torch.full((1, 4, 3, 5, 6), 2.5)  # beyond [-1, 1]: clipping would show
    scheduler = make_scheduler(name)
    assert not scheduler.config.get("clip_sample", False) and not scheduler.config.get("thresholding", False)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps[0] == 999
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(point.shape, generator=generator)
    bar = torch.cumprod(1 - betas(DiffusionSettings()), 0).float()
    for t in scheduler.timesteps:
        noise = (x - bar[t].sqrt() * point) / (1 - bar[t]).sqrt()
        prediction = torch.cat([noise, -torch.ones_like(noise)], 1) if name == "ddpm" else noise
        kwargs = {} if name == "dpm-solver++" else {"generator": generator}
        x = scheduler.step(prediction, t, x, **kwargs).prev_sample
    torch.testing.assert_close(x, point, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "wrong, name",
    [
        ({"num_train_timesteps": 1}, "num_train_timesteps"),
        ({"beta_schedule": "square"}, "beta_schedule"),
        ({"beta_start": 0.0}, "beta_start"),
        ({"beta_end": 1.0}, "beta_end"),
        ({"vlb_weight": -1.0}, "vlb_weight"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, name):
    with pytest.raises(ValueError, match=name):
        DiffusionSettings(**wrong)


def test_wrong_shapes_and_names_are_refused():
    clean, noise, output = draw()
    objective = DiffusionObjective()
    t = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="noise: got shape"):
        objective.add_noise(clean, noise[:1], t)
    with pytest.raises(ValueError, match="output: got shape"):
        objective.loss(output[:, :, :4], clean, noise, clean, t)
    with pytest.raises(ValueError, match="scheduler: got 'euler'"):
        make_scheduler("euler")
