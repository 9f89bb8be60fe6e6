"""Load a trained model, sample videos, save it: the Python face of MedSora.

Latents start as noise that depends on (seed, number of the video) alone, so a video does not depend on how many are
made with it. Batches of another size may round differently in the last digits; the draws are the same.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.utils import BaseOutput
from torch import Tensor
from tqdm import tqdm

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
    Raises ValueError for parts that do not fit each other.
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
        if vae.config.latent_channels != denoiser.config.in_channels:
            raise ValueError(
                f"vae, denoiser: got latents of {vae.config.latent_channels} channels for a denoiser of "
                f"{denoiser.config.in_channels}, wants the same number"
            )
        predicts = scheduler.config.get("prediction_type", "epsilon")
        if predicts != "epsilon":
            raise ValueError(f"scheduler: got prediction_type {predicts!r}, wants 'epsilon'")
        self.register_modules(vae=vae, denoiser=denoiser, scheduler=scheduler)
        self.register_to_config(
            height=height or vae.config.sample_height,
            width=width or vae.config.sample_width,
            num_frames=num_frames,
            fps=float(fps),
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
        on_step: Callable[[int], None] | None = None,
    ) -> MedSoraPipelineOutput:
        """Samples videos number `first_index` to `first_index + num_videos - 1` of this seed.

        num_frames: pixel frames, 1, 8k or 8k + 1. height, width: pixels, multiples of the VAE's and the patch's sides.
        num_inference_steps: steps of the sampler, up to the number of noise levels.
        scheduler: "ddpm", "ddim" or "dpm-solver++"; the saved one if None.
        class_labels: one class for all or one a video.
        guidance_scale: above 1 pushes away from the prediction without the label or, where none is given, without the
            first frame: without + scale (with - without), Ho & Salimans 2022. The learned variance is that of "with".
        first_frame: given beginning (1, 8 or 9 frames, H, W, 3), or one frame (H, W, 3); uint8, or float in [0, 1].
            `medsora.train` shows a model one frame; 8 and 9 are for models that were shown so many.
        batch_size: videos sampled at a time. output_type: "np", "pt" (CPU) or "latent".
        progress: show a bar of steps. on_step: called after each step with the number of videos that took it.
        Raises ValueError for arguments that do not fit the model or each other.
        """
        shape, labels, frames = self.check_inputs(
            num_videos=num_videos,
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            scheduler=scheduler,
            seed=seed,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            first_frame=first_frame,
            batch_size=batch_size,
            first_index=first_index,
            output_type=output_type,
        )
        given = None if frames is None else self._encode_given(frames)
        made = []
        starts = range(0, num_videos, batch_size)
        with self._bar(len(starts) * num_inference_steps, progress) as bar:

            def stepped(videos: int) -> None:
                bar.update()
                if on_step:
                    on_step(videos)

            for start in starts:
                rows = range(start, min(start + batch_size, num_videos))
                generators = [video_generator(seed, first_index + row) for row in rows]
                noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
                chosen = None if labels is None else labels[list(rows)].to(self._execution_device)
                sampler = self._sampler(scheduler, num_inference_steps)
                latents = self._denoise(noise, sampler, chosen, guidance_scale, given, generators, stepped)
                made.append((latents if output_type == "latent" else self._decode(latents)).cpu())
        self.maybe_free_model_hooks()
        videos = torch.cat(made)
        return MedSoraPipelineOutput(videos=videos.numpy() if output_type == "np" else videos)

    def check_inputs(
        self,
        *,
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
    ) -> tuple[tuple[int, int, int, int], Tensor | None, Tensor | None]:
        """Raises ValueError for arguments of a call that do not fit the model or each other; samples nothing.

        Returns a video's latent shape (F, C, h, w), labels int64 (num_videos,) or None, and the given frames, float32
        (1, 8 or 9, H, W, 3) in [0, 1], or None.
        """
        for name, value, least, most in (
            ("num_videos", num_videos, 1, None),
            ("batch_size", batch_size, 1, None),
            ("first_index", first_index, 0, None),
            ("seed", seed, None, None),
            ("num_inference_steps", num_inference_steps, 1, self.scheduler.config.num_train_timesteps),
        ):
            _check_whole(name, value, least, most)
        for name, value, known in (("scheduler", scheduler, SCHEDULERS), ("output_type", output_type, OUTPUT_TYPES)):
            if value not in known and not (name == "scheduler" and value is None):
                raise ValueError(f"{name}: got {value!r}, wants one of {', '.join(known)}")
        num_frames, height, width = self._size(num_frames, height, width)
        side = self.vae.spatial_compression
        shape = self.vae.latent_frames(num_frames), self.denoiser.config.in_channels, height // side, width // side
        labels = self._labels(class_labels, num_videos)
        frames = None if first_frame is None else self._given_frames(first_frame, num_frames, height, width)
        if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
            raise ValueError(f"guidance_scale: got {guidance_scale}, wants a number of 0 or more")
        if guidance_scale != 1.0 and labels is None and frames is None:
            raise ValueError(f"guidance_scale: got {guidance_scale}, wants 1 without a class label or first frame")
        return shape, labels, frames

    def enable_vae_tiling(self, tile: int | None = None) -> None:
        """Encode and decode larger frames in overlapping tiles: less memory. tile: side in pixels, None for the VAE's.

        See `FrequencyCompensatedVAE.enable_tiling`.
        """
        self.vae.enable_tiling(tile, tile)

    def disable_vae_tiling(self) -> None:
        """Decode whole frames again."""
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decode one video at a time: less memory."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode a batch at once again."""
        self.vae.disable_slicing()

    def _bar(self, steps: int, shown: bool):
        """A bar of the pipeline's configuration; a hidden one is made hidden, since a bar draws itself when made."""
        return self.progress_bar(total=steps) if shown else tqdm(disable=True)

    def _denoise(self, latents, scheduler, labels, guidance_scale, given, generators, stepped) -> Tensor:
        """Noise (B, F, C, h, w) -> latents. The scheduler works on (B, C, F, h, w)."""
        latents = latents.to(self._execution_device) * scheduler.init_noise_sigma
        condition = self._condition(latents, labels, given)
        withheld = self._condition(latents, None, None if labels is None else given)
        extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for t in scheduler.timesteps:
            timestep = t.expand(len(latents)).to(latents.device)
            entering = scheduler.scale_model_input(latents, t)
            noise, variance = self._predict(entering, timestep, condition).chunk(2, dim=2)
            if guidance_scale != 1.0:
                without = self._predict(entering, timestep, withheld).chunk(2, dim=2)[0]
                noise = without + guidance_scale * (noise - without)
            if t == scheduler.timesteps[-1]:
                # The smallest variance of the last step is zero. diffusers leaves its noise out at level 0 only, but
                # few steps end above it.
                variance = torch.full_like(variance, -1)
            output = scheduler_prediction(scheduler, torch.cat([noise, variance], dim=2))
            latents = scheduler.step(output, t, latents.transpose(1, 2), return_dict=False, **extra)[0].transpose(1, 2)
            stepped(len(latents))
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

    def _encode_given(self, frames: Tensor) -> Tensor:
        """Frames (T, H, W, 3) in [0, 1], encoded as a clip of their own -> scaled latents (F, C, h, w)."""
        x = (frames * 2 - 1).permute(3, 0, 1, 2)[None].to(self._execution_device, self.vae.dtype)
        return self.vae.encode(x).latent_dist.mode()[0].transpose(0, 1).float() * self.vae.config.scaling_factor

    def _sampler(self, name: str | None, steps: int):
        """A fresh scheduler, of this name or of the saved kind if None, with the saved noise schedule, set to `steps`.

        Two faults of diffusers come up where `steps` is no divisor of the number of noise levels. Its list of levels
        may have an entry too many, so it is given the list. Its DDIM goes down levels // steps at a time, whatever the
        list says (at 600 of 1000 it leaves a third more spread than the data has); first-order DPM-Solver++, which is
        the same step between any two levels (Lu et al. 2022, "DPM-Solver", 4.1), takes its place.
        """
        saved = self.scheduler.config
        if name is None:
            scheduler = type(self.scheduler).from_config(saved)
        else:
            names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
            scheduler = make_scheduler(name, DiffusionSettings(**{key: saved[key] for key in names}))
        levels = saved.num_train_timesteps
        if levels % steps == 0 or scheduler.config.get("timestep_spacing") != "trailing":
            scheduler.set_timesteps(steps, device=self._execution_device)
            return scheduler
        if isinstance(scheduler, DDIMScheduler):
            kind = {"algorithm_type": "dpmsolver++", "solver_order": 1}
            scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config, **kind)
        trailing = [levels - i * levels // steps - 1 for i in range(steps)]
        scheduler.set_timesteps(timesteps=trailing, device=self._execution_device)
        return scheduler

    def _size(self, num_frames: int | None, height: int | None, width: int | None) -> tuple[int, int, int]:
        num_frames = self.config.num_frames if num_frames is None else num_frames
        height = self.config.height if height is None else height
        width = self.config.width if width is None else width
        _check_whole("num_frames", num_frames, 1, None)
        multiple = self.vae.spatial_compression * self.denoiser.config.patch_size
        for name, value in (("height", height), ("width", width)):
            _check_whole(name, value, 1, None)
            if value % multiple:
                raise ValueError(f"{name}: got {value}, wants a positive multiple of {multiple}")
        return num_frames, height, width

    def _labels(self, class_labels: int | Sequence[int] | None, num_videos: int) -> Tensor | None:
        classes = self.denoiser.config.num_classes
        if class_labels is None:
            return None
        if not classes:
            raise ValueError(f"class_labels: got {class_labels!r}, wants None: this model was trained without classes")
        try:
            labels = torch.as_tensor(class_labels).reshape(-1)
        except (TypeError, ValueError, RuntimeError):  # words, ragged lists
            labels = torch.zeros(0)
        if labels.dtype not in (torch.uint8, torch.int32, torch.int64) or labels.numel() not in (1, num_videos):
            raise ValueError(f"class_labels: got {class_labels!r}, wants one class number or {num_videos} of them")
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"class_labels: got {class_labels!r}, wants numbers from 0 to {classes - 1}")
        return labels.long().cpu().expand(num_videos)

    def _given_frames(self, first_frame: np.ndarray | Tensor, num_frames: int, height: int, width: int) -> Tensor:
        if not self.denoiser.config.first_frame_conditioning:
            raise ValueError("first_frame: got frames, wants None: this model was trained without given first frames")
        frames = torch.as_tensor(first_frame)
        frames = frames[None] if frames.dim() == 3 else frames
        if frames.dim() != 4 or frames.shape[0] not in (1, 8, 9) or tuple(frames.shape[1:]) != (height, width, 3):
            raise ValueError(
                f"first_frame: got shape {tuple(frames.shape)}, wants (1, 8 or 9 frames, {height}, {width}, 3)"
            )
        if len(frames) > num_frames:
            raise ValueError(f"first_frame: got {len(frames)} frames, wants at most the video's {num_frames}")
        if frames.dtype == torch.uint8:
            return frames.float() / 255
        if not (frames.is_floating_point() and frames.min() >= 0 and frames.max() <= 1):
            raise ValueError(f"first_frame: got {frames.dtype} values, wants uint8, or floats in [0, 1]")
        return frames.float()


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


def _check_whole(name: str, value, least: int | None, most: int | None) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if whole and (least is None or value >= least) and (most is None or value <= most):
        return
    bounds = "a whole number" if least is None else f"{least} or more" if most is None else f"{least} to {most}"
    raise ValueError(f"{name}: got {value!r}, wants {bounds}")
