"""A trainer of the denoiser before its first step, and a batch of random latents for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medsora.config import TrainSettings, read_command_line
from medsora.models.presets import denoiser_preset
from medsora.training.loop import Trainer


@dataclass(frozen=True)
class Size:
    """videos, images: in a step. latents: (C, F, h, w) of a video."""

    videos: int
    images: int
    latents: tuple[int, int, int, int]


def step_settings(name: str, precision: str, size: Size) -> TrainSettings:
    """Those of the preset, with the batch of `size`."""
    settings, _ = read_command_line(["--preset", name, "--device", "cpu"])
    settings.denoiser.precision = precision
    settings.denoiser.batch_size, settings.denoiser.images_per_batch = size.videos, size.images
    return settings


def untrained(
    settings: TrainSettings,
    size: Size,
    run: Path,
    change: Callable[[nn.Module], object] = lambda denoiser: None,
    device: str = "cpu",
) -> Trainer:
    """A trainer before its first step, of the preset's denoiser after `change` has been at it."""
    from accelerate import Accelerator

    from medsora.diffusion import DiffusionObjective
    from medsora.training import denoiser_stage
    from medsora.training.stopping import StopRequests

    denoiser = denoiser_stage.build_denoiser(settings.denoiser, size.latents[0], 0, settings.seed)
    change(denoiser)
    draw_zeros(denoiser, settings.seed)
    target = random_batch(settings, size)["video.target"][0]
    weight = settings.alignment.weight
    module = denoiser_stage.DenoiserTraining(
        denoiser,
        DiffusionObjective(settings.diffusion),
        denoiser_stage.build_projector(denoiser, target, weight, settings.seed),
        weight,
        settings.denoiser.image_loss_weight,
    )
    task = denoiser_stage.Task("denoiser", module, lambda step, part: {})
    accelerator = Accelerator(cpu=device == "cpu")
    trainer = Trainer(task, settings.denoiser, run, accelerator, StopRequests(), settings.seed)
    module.train()
    return trainer


def draw_zeros(model: nn.Module, seed: int) -> torch.Generator:
    """Draws what begins at zero, such as gates, which would hide scans from a loss. Returns the generator."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=drawn) * 0.02)
    return drawn


def random_batch(settings: TrainSettings, size: Size) -> dict[str, torch.Tensor]:
    """Latents and noise of unit variance, timesteps over the whole range, alignment targets of random frames."""
    from medsora.alignment import alignment_targets

    channels, frames, height, width = size.latents
    drawn = torch.Generator().manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (settings.prepare.num_frames, 64, 64, 3), dtype=np.uint8)
    patch = denoiser_preset(settings.denoiser.preset)["patch_size"]
    aligned = alignment_targets(pixels, frames, (height // patch, width // patch), settings.alignment)
    batch = {name: torch.stack([value] * size.videos) for name, value in aligned.items()}
    batch = {f"video.{name}": value for name, value in batch.items()}
    for kind, count, length in (("video", size.videos, frames), ("image", size.images, 1)):
        for name in ("latents", "noise"):
            batch[f"{kind}.{name}"] = torch.randn(count, length, channels, height, width, generator=drawn)
        batch[f"{kind}.timestep"] = torch.linspace(0, settings.diffusion.num_train_timesteps - 1, count).long()
    return batch
