"""The first stage: the video VAE learns to reconstruct clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from medsora.errors import UserError
from medsora.training.draws import Draws, Part
from medsora.training.loop import Task
from medsora.training.settings import VAESettings

if TYPE_CHECKING:
    from medsora.data import FrameClips
    from medsora.models import FrequencyCompensatedVAE
    from medsora.training.vae_loss import VAELoss


class VAETraining(nn.Module):
    """The VAE with its loss: a batch of frames and posterior noise in, a loss out."""

    def __init__(self, vae: nn.Module, loss: Callable):
        super().__init__()
        self.vae = vae
        self.loss = loss

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: "frames" uint8 (B, T, H, W, 3), "noise" float32 (B, C, F, h, w)."""
        target = to_model_range(batch["frames"])
        posterior = self.vae.encode(target).latent_dist
        latents = posterior.mean + posterior.std * batch["noise"]
        return self.loss(self.vae.decode(latents).sample.float(), target, posterior)


def build_vae(settings: VAESettings) -> FrequencyCompensatedVAE:
    """The VAE a run starts from; what must not train is frozen."""
    from medsora.models import FrequencyCompensatedVAE

    options = {**settings.model, "compensation": settings.compensation}
    try:
        if settings.pretrained is None:
            vae = FrequencyCompensatedVAE.preset(settings.preset, **options)
        else:
            place = {"subfolder": settings.pretrained_subfolder} if settings.pretrained_subfolder else {}
            vae = FrequencyCompensatedVAE.load_backbone(settings.pretrained, **place, **options)
    except (ValueError, TypeError) as error:
        words = str(error).replace("path_or_name", "vae.pretrained")
        raise UserError(words if words.startswith("vae.") else f"vae: {words}") from error
    except OSError as error:
        raise UserError(f"vae.pretrained: {settings.pretrained} cannot be loaded: {error}") from error
    if settings.trainable == "compensation":
        vae.requires_grad_(False)
        for parameter in vae.compensation_parameters():
            parameter.requires_grad_(True)
    return vae


def vae_task(vae: FrequencyCompensatedVAE, clips: FrameClips, settings: VAESettings, seed: int, inputs: str) -> Task:
    """What the loop needs to train `vae` on the training clips."""
    if not len(clips):
        raise UserError(f"data: there is no training clip of at least vae.num_frames = {settings.num_frames} frames")
    draws = Draws(seed, "vae")
    total = settings.batch_size

    def draw(step: int, part: Part) -> dict[str, Tensor]:
        indices = part.indices(total)
        chosen = draws.items("clip", step, indices, total, len(clips))
        frames = np.stack(
            [
                clips.clip(clip, settings.num_frames, draws.generator("window", step, i))
                for i, clip in zip(indices, chosen, strict=True)
            ]
        )
        if settings.flips:
            mirrored = draws.chance("flip", step, indices, 0.5).numpy()
            frames[mirrored] = frames[mirrored][:, :, :, ::-1]
        shape = latent_shape(vae, settings.num_frames, frames.shape[2:4])
        return {"frames": torch.from_numpy(frames), "noise": draws.normal("posterior", step, indices, shape)}

    return Task("vae", VAETraining(vae, build_loss(settings)), draw, inputs)


def build_loss(settings: VAESettings) -> VAELoss:
    """The loss that the settings describe."""
    from medsora.training.vae_loss import VAELoss

    terms = ("l1", "focal", "lpips", "kl", "lpips_weights")
    try:
        return VAELoss(**{name: getattr(settings, name) for name in terms})
    except (ValueError, OSError) as error:
        raise UserError(f"vae.{error}") from error


def latent_shape(vae: FrequencyCompensatedVAE, num_frames: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(C, F, h, w) of the latents of `num_frames` frames of `size` (height, width) pixels."""
    step = vae.spatial_compression
    if size[0] % step or size[1] % step:
        raise UserError(f"prepare.size: got frames of {size[0]} x {size[1]}, wants multiples of {step} for this VAE")
    try:
        frames = vae.latent_frames(num_frames)
    except ValueError as error:
        raise UserError(str(error)) from None
    return vae.config.latent_channels, frames, size[0] // step, size[1] // step


def to_model_range(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W) in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def to_pixels(frames: Tensor) -> Tensor:
    """(B, 3, T, H, W), about [-1, 1] -> uint8 (B, T, H, W, 3)."""
    return ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
