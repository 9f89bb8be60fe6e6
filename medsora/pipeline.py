"""Load a trained model, sample videos, save it: the Python face of MedSora.

Latents start as noise that depends on (seed, number of the video) alone, so a video does not depend on how many are
made with it. Batches of another size may round differently in the last digits; the draws are the same.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from medsora.diffusion import SCHEDULERS, DiffusionSettings, make_scheduler
from medsora.models.denoiser import MedSora
from medsora.models.vae import FrequencyCompensatedVAE

OUTPUT_TYPES = ("np", "pt", "latent")


@dataclass
class MedSoraPipelineOutput(BaseOutput):
    """videos: float32 (N, T, H, W, 3) in [0, 1], an array or tensor; or scaled latents (N, F, C, h, w)."""

    videos: np.ndarray | Tensor


class MedSoraPipeline(DiffusionPipeline):
    """Generates videos: noise -> denoiser -> latents -> video VAE -> frames. Output is synthetic, for research only.

    vae: `FrequencyCompensatedVAE`. denoiser: `MedSora`. scheduler: a diffusers scheduler of `make_scheduler`.
    height, width, num_frames, fps: what the model was trained on; the defaults of a call, saved with the model.
    """

    model_cpu_offload_seq = "denoiser->vae"

    def __init__(
        self,
        vae: FrequencyCompensatedVAE,
        denoiser: MedSora,
        scheduler,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 16,
        fps: float = 6.0,
    ):
        super().__init__()
        self.register_modules(vae=vae, denoiser=denoiser, scheduler=scheduler)
        self.register_to_config(
            height=height or vae.config.sample_height,
            width=width or vae.config.sample_width,
            num_frames=num_frames,
            fps=fps,
        )

    @torch.no_grad()
    def __call__(
        self,
        num_videos: int = 1,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        scheduler: str | None = None,
        seed: int = 0,
        class_labels: int | Sequence[int] | None = None,
        guidance_scale: float = 1.0,
        first_frame: np.ndarray | Tensor | None = None,
        batch_size: int = 4,
        first_index: int = 0,
        output_type: str = "np",
        progress: bool = True,
    ) -> MedSoraPipelineOutput:
        """Samples videos number `first_index` to `first_index + num_videos - 1` of this seed.

        num_frames: pixel frames, 1, 8k or 8k + 1. height, width: pixels, multiples of the VAE's and the patch's sides.
        num_inference_steps: steps of the sampler. scheduler: "ddpm", "ddim" or "dpm-solver++"; the saved one if None.
        class_labels: one class for all or one a video. guidance_scale: above 1 pushes away from the unconditional
            prediction (Ho & Salimans 2022); needs a class label or a first frame.
        first_frame: given beginning (1, 8 or 9 frames, H, W, 3), or one frame (H, W, 3); uint8, or float in [0, 1].
        batch_size: videos sampled at a time. output_type: "np", "pt" (CPU) or "latent".
        Raises ValueError for arguments that do not fit the model or each other.
        """
        num_frames, height, width = self._size(num_frames, height, width)
        labels = self._labels(class_labels, num_videos)
        self._check(num_videos, num_inference_steps, scheduler, guidance_scale, labels, first_frame)
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, wants 1 or more")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: got {output_type!r}, wants one of {', '.join(OUTPUT_TYPES)}")
        shape = self._latent_shape(num_frames, height, width)
        given = None if first_frame is None else self._encode_given(first_frame, height, width)
        if given is not None and len(given) > shape[0]:
            raise ValueError(f"first_frame: got frames of {len(given)} latents, wants at most {shape[0]} of the video")

        made = []
        starts = range(0, num_videos, batch_size)
        with self.progress_bar(total=len(starts) * num_inference_steps) as bar:
            bar.disable = bar.disable or not progress
            for start in starts:
                rows = range(start, min(start + batch_size, num_videos))
                generators = [video_generator(seed, first_index + row) for row in rows]
                noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
                chosen = None if labels is None else labels[list(rows)].to(self._execution_device)
                sampler = self._scheduler(scheduler)
                latents = self._denoise(
                    noise, sampler, num_inference_steps, chosen, guidance_scale, given, generators, bar
                )
                made.append((latents if output_type == "latent" else self._decode(latents)).cpu())
        self.maybe_free_model_hooks()
        videos = torch.cat(made)
        return MedSoraPipelineOutput(videos=videos.numpy() if output_type == "np" else videos)

    def enable_vae_tiling(self) -> None:
        """Decode large frames in overlapping tiles: less memory."""
        self.vae.enable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decode one video at a time: less memory."""
        self.vae.enable_slicing()

    def _denoise(self, latents, scheduler, steps, labels, guidance_scale, given, generators, bar) -> Tensor:
        """Noise (B, F, C, h, w) -> latents. The scheduler works on (B, C, F, h, w)."""
        device = self._execution_device
        latents = latents.to(device)
        condition = self._condition(latents, labels, given)
        guided = guidance_scale != 1.0
        scheduler.set_timesteps(steps, device=device)
        latents = latents * scheduler.init_noise_sigma
        extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for t in scheduler.timesteps:
            timestep = t.expand(len(latents)).to(device)
            entering = scheduler.scale_model_input(latents, t)
            output = self._predict(entering, timestep, condition)
            if guided:
                noise, variance = output.chunk(2, dim=2)
                free = self._predict(entering, timestep, self._condition(latents, None, None)).chunk(2, dim=2)[0]
                output = torch.cat([free + guidance_scale * (noise - free), variance], dim=2)
            output = scheduler_prediction(scheduler, output)
            latents = scheduler.step(output, t, latents.transpose(1, 2), return_dict=False, **extra)[0].transpose(1, 2)
            bar.update()
        return latents

    def _predict(self, latents: Tensor, timestep: Tensor, condition: dict) -> Tensor:
        return self.denoiser(latents.to(self.denoiser.dtype), timestep, **condition).sample.float()

    def _condition(self, latents: Tensor, labels: Tensor | None, given: Tensor | None) -> dict:
        """Keyword arguments of the denoiser; None stands for "not given"."""
        condition = {"class_labels": labels}
        if given is not None:
            frames, mask = torch.zeros_like(latents), latents.new_zeros(latents.shape[:2])
            frames[:, : len(given)], mask[:, : len(given)] = given.to(latents), 1
            condition |= {"first_frames": frames.to(self.denoiser.dtype), "first_frames_mask": mask}
        return condition

    def _decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, F, C, h, w) -> float32 frames (B, T, H, W, 3) in [0, 1]."""
        z = (latents / self.vae.config.scaling_factor).transpose(1, 2).to(self.vae.dtype)
        frames = self.vae.decode(z).sample.float()
        return ((frames.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 4, 1)

    def _encode_given(self, frames: np.ndarray | Tensor, height: int, width: int) -> Tensor:
        """Given frames as a clip of their own -> scaled latents (F, C, h, w)."""
        frames = torch.as_tensor(frames)
        frames = frames[None] if frames.dim() == 3 else frames
        if frames.dim() != 4 or frames.shape[0] not in (1, 8, 9) or tuple(frames.shape[1:]) != (height, width, 3):
            raise ValueError(
                f"first_frame: got shape {tuple(frames.shape)}, wants (1, 8 or 9 frames, {height}, {width}, 3)"
            )
        frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
        x = (frames * 2 - 1).permute(3, 0, 1, 2)[None].to(self._execution_device, self.vae.dtype)
        return self.vae.encode(x).latent_dist.mode()[0].transpose(0, 1).float() * self.vae.config.scaling_factor

    def _scheduler(self, name: str | None):
        """A fresh scheduler of this name with the saved noise schedule; of the saved kind if None."""
        saved = self.scheduler.config
        if name is None:
            return type(self.scheduler).from_config(saved)
        names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
        return make_scheduler(name, DiffusionSettings(**{key: saved[key] for key in names}))

    def _size(self, num_frames: int | None, height: int | None, width: int | None) -> tuple[int, int, int]:
        num_frames = self.config.num_frames if num_frames is None else num_frames
        height = self.config.height if height is None else height
        width = self.config.width if width is None else width
        multiple = self.vae.spatial_compression * self.denoiser.config.patch_size
        for name, value in (("height", height), ("width", width)):
            if value < multiple or value % multiple:
                raise ValueError(f"{name}: got {value}, wants a positive multiple of {multiple}")
        return num_frames, height, width

    def _latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        side = self.vae.spatial_compression
        frames = self.vae.latent_frames(num_frames)
        return frames, self.denoiser.config.in_channels, height // side, width // side

    def _labels(self, class_labels: int | Sequence[int] | None, num_videos: int) -> Tensor | None:
        classes = self.denoiser.config.num_classes
        if class_labels is None:
            return None
        if not classes:
            raise ValueError(f"class_labels: got {class_labels!r}, wants None: this model was trained without classes")
        labels = torch.as_tensor(class_labels).reshape(-1)
        if labels.is_floating_point() or labels.numel() not in (1, num_videos):
            raise ValueError(f"class_labels: got {class_labels!r}, wants one class number or {num_videos} of them")
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"class_labels: got {class_labels!r}, wants numbers from 0 to {classes - 1}")
        return labels.long().expand(num_videos)

    def _check(self, num_videos, steps, scheduler, guidance_scale, labels, first_frame) -> None:
        if num_videos < 1:
            raise ValueError(f"num_videos: got {num_videos}, wants 1 or more")
        most = self.scheduler.config.num_train_timesteps
        if not 1 <= steps <= most:
            raise ValueError(f"num_inference_steps: got {steps}, wants 1 to {most}")
        if scheduler is not None and scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler: got {scheduler!r}, wants one of {', '.join(SCHEDULERS)}")
        if guidance_scale != 1.0 and labels is None and first_frame is None:
            raise ValueError(f"guidance_scale: got {guidance_scale}, wants 1 without a class label or first frame")
        if first_frame is not None and not self.denoiser.config.first_frame_conditioning:
            raise ValueError("first_frame: got frames, wants None: this model was trained without given first frames")


def video_generator(seed: int, index: int) -> torch.Generator:
    """The generator of all draws of video `index`, on the CPU: a pure function of both numbers."""
    digest = hashlib.sha256(f"medsora video {int(seed)} {int(index)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def scheduler_prediction(scheduler, output: Tensor) -> Tensor:
    """The denoiser's (B, F, 2C, h, w) as `scheduler.step` wants it.

    (B, 2C, F, h, w) where it learns the variance (DDPM splits dimension 1), else the noise alone, (B, C, F, h, w).
    """
    if str(scheduler.config.get("variance_type", "")).startswith("learned"):
        return output.transpose(1, 2)
    return output.chunk(2, dim=2)[0].transpose(1, 2)
