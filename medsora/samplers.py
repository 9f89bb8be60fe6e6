"""Samplers ready to step: diffusers' schedulers with their levels spread evenly, whatever the number of steps."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from medsora.diffusion import DiffusionSettings, make_scheduler


def ready_sampler(saved_scheduler, name: str | None, steps: int, device: torch.device | str = "cpu"):
    """A fresh scheduler of this name, or of the saved one's kind if None, with its noise schedule, set to `steps`.

    Two faults of diffusers come up where `steps` is no divisor of the number of noise levels. Its list of levels
    may have an entry too many, so it is given the list. Its DDIM goes down levels // steps at a time, whatever the
    list says (at 600 of 1000 it leaves a third more spread than the data has); first-order DPM-Solver++, which is
    the same step between any two levels (Lu et al. 2022, "DPM-Solver", 4.1), takes its place.
    """
    saved = saved_scheduler.config
    if name is None:
        scheduler = type(saved_scheduler).from_config(saved)
    else:
        names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
        scheduler = make_scheduler(name, DiffusionSettings(**{key: saved[key] for key in names}))
    levels = saved.num_train_timesteps
    if levels % steps == 0 or scheduler.config.get("timestep_spacing") != "trailing":
        scheduler.set_timesteps(steps, device=device)
        return scheduler
    if isinstance(scheduler, DDIMScheduler):
        kind = {"algorithm_type": "dpmsolver++", "solver_order": 1}
        scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config, **kind)
    trailing = [levels - i * levels // steps - 1 for i in range(steps)]
    scheduler.set_timesteps(timesteps=trailing, device=device)
    return scheduler


def scheduler_prediction(scheduler, output: Tensor) -> Tensor:
    """The denoiser's (B, F, 2C, h, w) as `scheduler.step` wants it.

    (B, 2C, F, h, w) where it learns the variance (DDPM splits dimension 1), else the noise alone, (B, C, F, h, w).
    """
    if str(scheduler.config.get("variance_type", "")).startswith("learned"):
        return output.transpose(1, 2)
    return output.chunk(2, dim=2)[0].transpose(1, 2)
