"""The denoising objective: noise prediction with a learned variance, and the matching diffusers schedulers.

Loss = mean square error of the noise + variational term of the learned variance (Nichol & Dhariwal 2021, "Improved
Denoising Diffusion Probabilistic Models", equations 14 to 16) in bits a dimension, in which the mean is held fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEDULERS = ("ddpm", "ddim", "dpm-solver++", "heun")
BETA_SCHEDULES = ("linear", "scaled_linear")
# Half a bin of the likelihood at t = 0: the released code's 255 steps over [-1, 1]. Latents have unit scale, so it is
# a resolution of 1/255 of a standard deviation; unlike pixels they have no outermost bins.
HALF_BIN = 1.0 / 255.0


@dataclass
class DiffusionSettings:
    """The noise schedule and the weight of the variational term.

    Args:
        num_train_timesteps: Number of noise levels, 2 or more.
        beta_schedule: How the variances grow: "linear", or "scaled_linear" (linear in sqrt(beta)).
        beta_start: Variance added at the first level, in (0, 1).
        beta_end: Variance added at the last level, in (0, 1), not below beta_start.
        vlb_weight: Factor of the variational term, 0 or more.

    Raises:
        ValueError: A setting is unknown or out of its range.
    """

    num_train_timesteps: int = 1000
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    vlb_weight: float = 1.0

    def __post_init__(self):
        if self.num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps: got {self.num_train_timesteps}, wants 2 or more")
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"beta_schedule: got {self.beta_schedule!r}, wants one of {', '.join(BETA_SCHEDULES)}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start, beta_end: got {self.beta_start} and {self.beta_end}, wants 0 < beta_start <= beta_end < 1"
            )
        if self.vlb_weight < 0:
            raise ValueError(f"vlb_weight: got {self.vlb_weight}, wants 0 or more")


def betas(settings: DiffusionSettings) -> Tensor:
    """Variance added at each level: float64 (num_train_timesteps,)."""
    n = settings.num_train_timesteps
    if settings.beta_schedule == "linear":
        return torch.linspace(settings.beta_start, settings.beta_end, n, dtype=torch.float64)
    return torch.linspace(settings.beta_start**0.5, settings.beta_end**0.5, n, dtype=torch.float64) ** 2


class DiffusionObjective:
    """Adds noise and scores a prediction. Sums run in float32, or float64 for float64 inputs; one value a sample.

    settings: the noise schedule. Timesteps t are int64 (B,) in [0, num_train_timesteps).
    """

    def __init__(self, settings: DiffusionSettings | None = None):
        self.settings = settings or DiffusionSettings()
        beta = betas(self.settings)
        alpha_bar = torch.cumprod(1 - beta, 0)
        alpha_bar_before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        posterior_variance = beta * (1 - alpha_bar_before) / (1 - alpha_bar)
        # At t = 0 the posterior has no width: its logarithm is taken from t = 1, as the released code does.
        self._tables = {
            "signal": alpha_bar.sqrt(),
            "noise": (1 - alpha_bar).sqrt(),
            "log_smallest": torch.cat([posterior_variance[1:2], posterior_variance[1:]]).log(),
            "log_largest": beta.log(),
            "posterior_of_clean": beta * alpha_bar_before.sqrt() / (1 - alpha_bar),
            "posterior_of_noisy": (1 - alpha_bar_before) * (1 - beta).sqrt() / (1 - alpha_bar),
        }

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """sqrt(alpha_bar_t) clean + sqrt(1 - alpha_bar_t) noise; clean and noise (B, F, C, h, w), t (B,)."""
        if clean.shape != noise.shape:
            raise ValueError(f"noise: got shape {tuple(noise.shape)}, wants that of clean, {tuple(clean.shape)}")
        return (self._at("signal", t, clean) * clean + self._at("noise", t, clean) * noise).to(clean.dtype)

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, noisy: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The training loss of each sample.

        output: (B, F, 2C, h, w), predicted noise then variance interpolation (-1 the smallest, 1 the largest variance).
        clean, noise, noisy: (B, F, C, h, w), with noisy = add_noise(clean, noise, t). t: int64 (B,).
        Returns float tensors (B,): "loss" = "mse" + vlb_weight * "vlb", "vlb" in bits a dimension.
        """
        channels = clean.shape[2]
        if (
            output.shape[:2] != clean.shape[:2]
            or output.shape[2] != 2 * channels
            or output.shape[3:] != clean.shape[3:]
        ):
            raise ValueError(
                f"output: got shape {tuple(output.shape)}, wants twice the channels of clean, {tuple(clean.shape)}"
            )
        predicted, interpolation = self._accumulate(output).split(channels, dim=2)
        clean, noise, noisy = (self._accumulate(x) for x in (clean, noise, noisy))
        mse = (predicted - noise).square().flatten(1).mean(1)
        vlb = self.variational_term(predicted.detach(), interpolation, clean, noisy, t)
        return {"loss": mse + self.settings.vlb_weight * vlb, "mse": mse, "vlb": vlb}

    def variational_term(
        self, predicted: Tensor, interpolation: Tensor, clean: Tensor, noisy: Tensor, t: Tensor
    ) -> Tensor:
        """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in bits a dimension, (B,); at t = 0 the negative likelihood.

        The likelihood at t = 0 is that of a Gaussian over bins of 2/255 around the clean latent, as in the released
        code but without its open outermost bins, which belong to pixels. Arguments as in `loss`, (B, F, C, h, w) each.
        """
        posterior_mean = self._posterior_mean(clean, noisy, t)
        signal, sigma = self._at("signal", t, clean), self._at("noise", t, clean)
        mean = self._posterior_mean((noisy - sigma * predicted) / signal, noisy, t)
        log_smallest, log_largest = self._at("log_smallest", t, clean), self._at("log_largest", t, clean)
        fraction = (interpolation + 1) / 2
        log_variance = fraction * log_largest + (1 - fraction) * log_smallest
        divergence = 0.5 * (
            log_variance
            - log_smallest
            - 1
            + (log_smallest - log_variance).exp()
            + (posterior_mean - mean).square() * (-log_variance).exp()
        )
        surprise = -_log_likelihood(clean, mean, 0.5 * log_variance)
        first = (t == 0).view(-1, *[1] * (clean.dim() - 1))
        return torch.where(first, surprise, divergence).flatten(1).mean(1) / math.log(2)

    def _posterior_mean(self, clean: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        return self._at("posterior_of_clean", t, clean) * clean + self._at("posterior_of_noisy", t, clean) * noisy

    def _at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """The table's values at t, shaped to multiply (B, ...), in the dtype sums run in."""
        table = self._tables[name]
        if table.device != t.device:
            # Kept where the timesteps live, so that training does not copy tables at each step.
            table = self._tables[name] = table.to(t.device)
        values = table[t].to(torch.promote_types(like.dtype, torch.float32))
        return values.view(-1, *[1] * (like.dim() - 1))

    @staticmethod
    def _accumulate(x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))


def _log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log P(x - HALF_BIN < X < x + HALF_BIN) for X ~ N(mean, exp(log_scale)^2), at least log(1e-12)."""
    inverse = (-log_scale).exp()
    # The two tails are mirror images; the lower one keeps its digits in float32.
    distance = -(x - mean).abs()
    upper = torch.special.ndtr(inverse * (distance + HALF_BIN))
    lower = torch.special.ndtr(inverse * (distance - HALF_BIN))
    return (upper - lower).clamp(min=1e-12).log()


def make_scheduler(name: str, settings: DiffusionSettings | None = None):
    """The diffusers scheduler that fits the objective: "ddpm" (learned variance), "ddim", "dpm-solver++" or "heun".

    Betas are always passed, and samples are never clipped (latents are unbounded). Raises ValueError for another name.
    "ddpm" takes (B, 2C, F, h, w) and splits dimension 1; the others take the C noise channels.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler: got {name!r}, wants one of {', '.join(SCHEDULERS)}")
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler

    settings = settings or DiffusionSettings()
    schedule = {
        "num_train_timesteps": settings.num_train_timesteps,
        "beta_schedule": settings.beta_schedule,
        "beta_start": settings.beta_start,
        "beta_end": settings.beta_end,
        "prediction_type": "epsilon",
        # Few-step sampling starts at the last level, where training ends.
        "timestep_spacing": "trailing",
    }
    if name == "ddpm":
        return DDPMScheduler(**schedule, variance_type="learned_range", clip_sample=False)
    if name == "ddim":
        return DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=True)
    if name == "heun":
        return HeunDiscreteScheduler(**schedule, clip_sample=False)
    return DPMSolverMultistepScheduler(**schedule, algorithm_type="dpmsolver++", solver_order=2)
