"""Load a trained model, sample videos, save it: the Python face of MedSora.

Latents start as noise that depends on (seed, number of the video, number of its window) alone, so a video does not
depend on how many are made with it. Batches of another size may round differently in the last digits; the draws are
the same.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor
from tqdm import tqdm

from medsora.diffusion import SCHEDULERS
from medsora.hub import SharedPipeline
from medsora.long_videos import count_windows, joined
from medsora.models.denoiser import MedSora
from medsora.models.vae import FrequencyCompensatedVAE
from medsora.pipeline_inputs import Wanted, check_overlap, check_whole, class_numbers, given_frames
from medsora.samplers import ready_sampler, scheduler_prediction

OUTPUT_TYPES = ("np", "pt", "latent")


@dataclass
class MedSoraPipelineOutput(BaseOutput):
    """videos: float32 (N, T, H, W, 3) in [0, 1], an array or tensor; or scaled latents (N, F, C, h, w)."""

    videos: np.ndarray | Tensor


class MedSoraPipeline(SharedPipeline):
    """Generates videos: noise -> denoiser -> latents -> video VAE -> frames. Output is synthetic, for research only.

    vae: `FrequencyCompensatedVAE`. denoiser: `MedSora`. scheduler: a diffusers scheduler of `make_scheduler`.
    height, width, num_frames, fps: what the model was trained on; the defaults of a call, saved with the model.
    class_names: the names of the denoiser's classes in their order, if known.
    given_frames: how many first frames the denoiser was shown in training: of 1, 8 and 9.
    given_noise: standard deviation of the noise that was on their scaled latents in training, and is in sampling.
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
        class_names: Sequence[str] | None = None,
        given_frames: list[int] | tuple[int, ...] = (1,),  # a kind that diffusers knows when it loads
        given_noise: float = 0.0,
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
        if class_names and len(class_names) != denoiser.config.num_classes:
            raise ValueError(
                f"class_names: got {len(class_names)} names, wants {denoiser.config.num_classes}, one a class"
            )
        if not 0 <= given_noise < math.inf:
            raise ValueError(f"given_noise: got {given_noise}, wants a number of 0 or more")
        self.register_modules(vae=vae, denoiser=denoiser, scheduler=scheduler)
        self.register_to_config(
            height=height or vae.config.sample_height,
            width=width or vae.config.sample_width,
            num_frames=num_frames,
            fps=float(fps),
            class_names=list(class_names) if class_names else None,
            given_frames=sorted(given_frames),
            given_noise=float(given_noise),
        )
        self._captures_graphs = False

    def __call__(
        self,
        num_videos: int = 1,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        scheduler: str | None = None,
        seed: int = 0,
        class_labels: int | str | Sequence[int | str] | None = None,
        guidance_scale: float = 1.0,
        first_frame: np.ndarray | Tensor | None = None,
        batch_size: int = 4,
        first_index: int = 0,
        output_type: str = "np",
        progress: bool = True,
        on_step: Callable[[int], None] | None = None,
    ) -> MedSoraPipelineOutput:
        """Samples videos number `first_index` to `first_index + num_videos - 1` of this seed.

        num_frames: pixel frames, 1, 8k or 8k + 1, made at once; for more than the model was trained on see `long`.
        height, width: pixels, multiples of the VAE's and the patch's sides.
        num_inference_steps: steps of the sampler, up to the number of noise levels.
        scheduler: "ddpm", "ddim", "dpm-solver++" or "heun"; the saved one if None. Heun asks the denoiser twice in
            each step but the last.
        class_labels: a class's number or name, one for all or one a video.
        guidance_scale: above 1 pushes away from the prediction without the label or, where none is given, without the
            first frame: without + scale (with - without), Ho & Salimans 2022. The learned variance is that of "with".
        first_frame: given beginning (T, H, W, 3), T one of the configuration's given_frames, or one frame (H, W, 3);
            uint8, or float in [0, 1].
        batch_size: videos sampled at a time. output_type: "np", "pt" (CPU) or "latent".
        progress: show a bar of predictions. on_step: called after each with the number of videos it was for.
        Raises ValueError for arguments that do not fit the model or each other.
        """
        wanted = self.check_inputs(
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
        given = self._encode_given(wanted.first_frames)
        made = []
        starts = range(0, num_videos, batch_size)
        with self._bar(len(starts) * self.count_predictions(num_inference_steps, scheduler), progress) as bar:
            for start in starts:
                rows = range(start, min(start + batch_size, num_videos))
                latents = self._sample(wanted, rows, given, _both(bar.update, on_step))
                made.append((latents if output_type == "latent" else self._decode(latents)).cpu())
        self.maybe_free_model_hooks()
        videos = torch.cat(made)
        return MedSoraPipelineOutput(videos=videos.numpy() if output_type == "np" else videos)

    def long(
        self,
        num_frames: int | None = None,
        *,
        num_videos: int = 1,
        window: int | None = None,
        overlap: int | None = None,
        output_type: str = "np",
        progress: bool = True,
        on_step: Callable[[int], None] | None = None,
        **arguments,
    ) -> Iterator[np.ndarray | Tensor]:
        """Samples videos of any length, window by window, each going on from the frames on which the last one ended.

        Needs a model trained with first_frame_conditioning. Memory does not depend on the length: what is yielded is
        not kept. Every draw is a function of (seed, number of the video, number of the window); the first window is
        the video that a call with the same arguments makes, but for its last frames, which are blended.

        num_frames: of each video, any number; None goes on for as long as chunks are asked for.
        num_videos: all sampled together. window: frames made at once, 1, 8k or 8k + 1; as in training if None.
        overlap: frames handed from window to window, one of the configuration's given_frames; the most if None. Both
            windows' versions of them are blended into each other.
        output_type: "np" or "pt" (CPU). Other arguments are those of a call; labels and guidance hold for all windows.
        Yields float32 (num_videos, t, H, W, 3) in [0, 1], chunks whose t add up to num_frames.
        Raises ValueError at once for arguments that do not fit the model or each other.
        """
        for name in arguments.keys() & {"batch_size"}:
            raise ValueError(f"{name}: got {arguments[name]!r}, wants num_videos alone: all are sampled together")
        if output_type == "latent":
            raise ValueError("output_type: got 'latent', wants np or pt, as windows are joined in pixels")
        window, overlap = self.long_shape(num_frames, window, overlap)
        wanted = self.check_inputs(
            num_videos=num_videos, num_frames=window, overlap=overlap, output_type=output_type, **arguments
        )
        count = None if num_frames is None else count_windows(num_frames, window, overlap)
        total = None if count is None else count * self.count_predictions(wanted.steps, wanted.scheduler)

        def chunks():
            with self._bar(total, progress) as bar:
                windows = self._windows(wanted, overlap, count, _both(bar.update, on_step))
                for chunk in joined(windows, overlap, num_frames):
                    yield chunk.numpy() if output_type == "np" else chunk
            self.maybe_free_model_hooks()

        return chunks()

    def long_shape(
        self, num_frames: int | None, window: int | None = None, overlap: int | None = None
    ) -> tuple[int, int]:
        """Frames of a window, and how many it takes over from the one before, as `long` would; ValueError likewise."""
        if num_frames is not None:
            check_whole("num_frames", num_frames, 1)
        window = self.config.num_frames if window is None else window
        check_whole("window", window, 1)
        try:
            self.vae.latent_frames(window)
        except ValueError as error:
            raise ValueError(str(error).replace("num_frames", "window", 1)) from None
        counts = self.config.given_frames
        if overlap is None:
            overlap = max((count for count in counts if count < window), default=min(counts))
        check_overlap(overlap, window, counts, self.denoiser.config.first_frame_conditioning)
        return window, overlap

    def count_predictions(self, num_inference_steps: int, scheduler: str | None = None) -> int:
        """How often a sampler steps with a prediction of the noise; under guidance each is of two."""
        return len(self._sampler(scheduler, num_inference_steps).timesteps)

    def compile_denoiser(self) -> None:
        """Compiles the denoiser with torch.compile; each new shape of input compiles once, which takes a while.

        On CUDA in the mode "reduce-overhead", which records a prediction as a graph and replays it. Videos agree with
        those of the plain denoiser but for rounding. Call it where the pipeline is to run (after `.to`).
        """
        self._captures_graphs = self._execution_device.type == "cuda"
        self.denoiser.compile(mode="reduce-overhead" if self._captures_graphs else None)

    def check_inputs(
        self,
        *,
        num_videos: int = 1,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        scheduler: str | None = None,
        seed: int = 0,
        class_labels: int | str | Sequence[int | str] | None = None,
        guidance_scale: float = 1.0,
        first_frame: np.ndarray | Tensor | None = None,
        batch_size: int = 4,
        first_index: int = 0,
        output_type: str = "np",
        overlap: int | None = None,
    ) -> Wanted:
        """What a call is to make; ValueError for arguments that do not fit the model or each other. Samples nothing.

        overlap: of a window of `long`, whose frames are given from the second window on.
        """
        for name, value, least, most in (
            ("num_videos", num_videos, 1, None),
            ("batch_size", batch_size, 1, None),
            ("first_index", first_index, 0, None),
            ("seed", seed, None, None),
            ("num_inference_steps", num_inference_steps, 1, self.scheduler.config.num_train_timesteps),
        ):
            check_whole(name, value, least, most)
        for name, value, known in (("scheduler", scheduler, SCHEDULERS), ("output_type", output_type, OUTPUT_TYPES)):
            if value not in known and not (name == "scheduler" and value is None):
                raise ValueError(f"{name}: got {value!r}, wants one of {', '.join(known)}")
        size, config = self._size(num_frames, height, width), self.denoiser.config
        side = self.vae.spatial_compression
        shape = self.vae.latent_frames(size[0]), config.in_channels, size[1] // side, size[2] // side
        labels = class_numbers(class_labels, num_videos, config.num_classes, self.config.class_names or ())
        frames = None
        if first_frame is not None:
            frames = given_frames(first_frame, size, self.config.given_frames, config.first_frame_conditioning)[None]
        if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
            raise ValueError(f"guidance_scale: got {guidance_scale}, wants a number of 0 or more")
        if guidance_scale != 1.0 and labels is None and frames is None and overlap is None:
            raise ValueError(f"guidance_scale: got {guidance_scale}, wants 1 without a class label or first frame")
        return Wanted(
            num_videos, shape, labels, frames, first_index, seed, scheduler, num_inference_steps, guidance_scale
        )

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

    def _bar(self, steps: int | None, shown: bool):
        """A bar of the pipeline's configuration; a hidden one is made hidden, since a bar draws itself when made."""
        return self.progress_bar(total=math.inf if steps is None else steps) if shown else tqdm(disable=True)

    def _windows(self, wanted: Wanted, overlap: int, count: int | None, stepped) -> Iterator[Tensor]:
        """Decoded windows (N, T, H, W, 3) on the CPU, each begun by the last `overlap` frames of the one before."""
        rows = range(wanted.num_videos)
        given = self._encode_given(wanted.first_frames)
        for number in itertools.count() if count is None else range(count):
            made = self._decode(self._sample(wanted, rows, given, stepped, number))
            yield made.cpu()
            given = self._encode_given(made[:, -overlap:])

    @torch.no_grad()
    def _sample(self, wanted: Wanted, rows: range, given: Tensor | None, stepped, window: int = 0) -> Tensor:
        """Scaled latents (B, F, C, h, w) of some of the videos; given: latents (1 or B, F, C, h, w) or None."""
        generators = [video_generator(wanted.seed, wanted.first_index + row, window) for row in rows]
        noise = torch.stack([torch.randn(wanted.shape, generator=g) for g in generators])
        if given is not None and self.config.given_noise:
            drawn = torch.stack([torch.randn(given.shape[1:], generator=g) for g in generators])
            given = given + self.config.given_noise * drawn.to(given)
        labels = None if wanted.labels is None else wanted.labels[list(rows)].to(self._execution_device)
        guidance_scale = 1.0 if labels is None and given is None else wanted.guidance_scale
        sampler = self._sampler(wanted.scheduler, wanted.steps)
        return self._denoise(noise, sampler, labels, guidance_scale, given, generators, stepped)

    def _denoise(self, latents, scheduler, labels, guidance_scale, given, generators, stepped) -> Tensor:
        """Noise (B, F, C, h, w) -> latents. The scheduler works on (B, C, F, h, w)."""
        latents = latents.to(self._execution_device) * scheduler.init_noise_sigma
        self.denoiser.prepare(latents.shape[1], *latents.shape[3:])
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
        if self._captures_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        output = self.denoiser(latents.to(self.denoiser.dtype), timestep, **condition).sample
        # What a replayed graph returns lies in its own memory, where the next replay writes.
        return output.to(torch.float32, copy=self._captures_graphs)

    def _condition(self, latents: Tensor, labels: Tensor | None, given: Tensor | None) -> dict:
        """Keyword arguments of the denoiser; None stands for "not given"."""
        condition = {"class_labels": labels}
        if given is not None:
            frames, mask = torch.zeros_like(latents), latents.new_zeros(latents.shape[:2])
            frames[:, : given.shape[1]], mask[:, : given.shape[1]] = given.to(latents), 1
            condition |= {"first_frames": frames.to(self.denoiser.dtype), "first_frames_mask": mask}
        return condition

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, F, C, h, w) -> float32 frames (B, T, H, W, 3) in [0, 1]."""
        z = (latents / self.vae.config.scaling_factor).transpose(1, 2).to(self.vae.dtype)
        frames = self.vae.decode(z).sample.float()
        return ((frames.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 4, 1)

    @torch.no_grad()
    def _encode_given(self, frames: Tensor | None) -> Tensor | None:
        """Frames (B, T, H, W, 3) in [0, 1], each encoded as a clip of its own -> scaled latents (B, F, C, h, w)."""
        if frames is None:
            return None
        x = (frames * 2 - 1).permute(0, 4, 1, 2, 3).to(self._execution_device, self.vae.dtype)
        return self.vae.encode(x).latent_dist.mode().transpose(1, 2).float() * self.vae.config.scaling_factor

    def _sampler(self, name: str | None, steps: int):
        return ready_sampler(self.scheduler, name, steps, self._execution_device)

    def _size(self, num_frames: int | None, height: int | None, width: int | None) -> tuple[int, int, int]:
        num_frames = self.config.num_frames if num_frames is None else num_frames
        height = self.config.height if height is None else height
        width = self.config.width if width is None else width
        check_whole("num_frames", num_frames, 1)
        multiple = self.vae.spatial_compression * self.denoiser.config.patch_size
        for name, value in (("height", height), ("width", width)):
            check_whole(name, value, 1)
            if value % multiple:
                raise ValueError(f"{name}: got {value}, wants a positive multiple of {multiple}")
        return num_frames, height, width


def video_generator(seed: int, index: int, window: int = 0) -> torch.Generator:
    """The generator of all draws of a window of video `index`, on the CPU: a pure function of the three numbers."""
    words = f"medsora video {int(seed)} {int(index)}" + (f" window {int(window)}" if window else "")
    digest = hashlib.sha256(words.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _both(first: Callable[[], object], second: Callable[[int], None] | None) -> Callable[[int], None]:
    """What is called after each prediction with its number of videos: the bar, and the caller's own."""

    def stepped(videos: int) -> None:
        first()
        if second:
            second(videos)

    return stepped
