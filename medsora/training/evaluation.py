"""How well a run has learnt: reconstruction, denoising on a fixed set, distance of generated motion to real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open

from medsora.training.draws import Draws
from medsora.training.settings import EvaluationSettings
from medsora.training.vae_stage import to_model_range, to_pixels

if TYPE_CHECKING:
    from medsora.data import LatentClips
    from medsora.diffusion import DiffusionObjective
    from medsora.models import FrequencyCompensatedVAE, MedSora


@torch.no_grad()
def reconstruct(vae: FrequencyCompensatedVAE, clips: Sequence[np.ndarray], batch_size: int) -> list[np.ndarray]:
    """Each clip, uint8 (T, H, W, 3), encoded to its posterior mean and decoded again."""
    made = []
    for batch in _batches(clips, batch_size):
        frames = to_model_range(torch.from_numpy(np.stack(batch)).to(vae.device)).to(vae.dtype)
        made += list(to_pixels(vae.decode(vae.encode(frames).latent_dist.mode()).sample).cpu().numpy())
    return made


def mean_psnr(clips: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Mean over clips of the peak signal-to-noise ratio in decibels, uint8 (T, H, W, 3) each."""
    from medsora.metrics import psnr

    return float(np.mean([float(psnr(a, b)) for a, b in zip(clips, others, strict=True)]))


class DenoisingProbe:
    """The denoising loss on a fixed set of (clip, timestep, noise), spread evenly over clips and noise levels.

    The clips are posterior means; the set depends on the seed and the data alone, so values at different steps compare.
    """

    def __init__(self, clips: LatentClips, settings: EvaluationSettings, scaling_factor: float,
                 objective: DiffusionObjective, seed: int):  # fmt: skip
        count = settings.denoising_samples
        entries = [clips.entry(i * len(clips) // count % len(clips)) for i in range(min(count, len(clips)))]
        means = torch.stack([e["mean"].float() for e in entries]).transpose(1, 2) * scaling_factor
        chosen = [i % len(entries) for i in range(count)]
        self.clean = means[chosen]
        self.labels = [entries[i]["label"] for i in chosen]
        self.noise = Draws(seed, "evaluation").normal("noise", 0, range(count), self.clean.shape[1:])
        levels = objective.settings.num_train_timesteps
        order = Draws(seed, "evaluation").generator("timestep order", 0).permutation(count)
        self.timestep = torch.tensor([int((i + 0.5) * levels / count) for i in order])
        self.objective, self.batch_size = objective, settings.batch_size

    @torch.no_grad()
    def measure(self, denoiser: MedSora) -> dict[str, float]:
        """{"mse", "vlb"}: means over the set, in float32, with the denoiser in evaluation mode."""
        training = denoiser.training
        denoiser.eval()
        totals = {"mse": 0.0, "vlb": 0.0}
        for rows in _batches(range(len(self.clean)), self.batch_size):
            clean, noise, t = (x[list(rows)].to(denoiser.device) for x in (self.clean, self.noise, self.timestep))
            noisy = self.objective.add_noise(clean, noise, t)
            output = denoiser(noisy, t, class_labels=self._labels(denoiser, rows)).sample.float()
            losses = self.objective.loss(output, clean, noise, noisy, t)
            for name in totals:
                totals[name] += float(losses[name].sum()) / len(self.clean)
        denoiser.train(training)
        return totals

    def _labels(self, denoiser: MedSora, rows: Sequence[int]) -> torch.Tensor | None:
        none = denoiser.config.num_classes
        if not none:
            return None
        labels = [none if self.labels[i] is None else self.labels[i] for i in rows]
        return torch.tensor(labels, device=denoiser.device)


def real_windows(dataset: Path, clips: LatentClips, num_frames: int, interval: int, most: int) -> list[np.ndarray]:
    """The recorded frames behind at most `most` entries, evenly chosen: uint8 (T, H, W, 3), mirrored where they are."""
    from medsora.data.manifest import frames_path

    count = min(most, len(clips))
    windows = []
    for number in range(count):
        place = clips.place(number * len(clips) // count)
        with safe_open(frames_path(dataset, place["clip"]), framework="np") as file:
            span = slice(place["start"], place["start"] + (num_frames - 1) * interval + 1)
            frames = file.get_slice("frames")[span][::interval]
        windows.append(np.ascontiguousarray(frames[:, :, ::-1] if place["flip"] else frames))
    return windows


def motion_distances(
    real: Sequence[np.ndarray], generated: np.ndarray, untrained: np.ndarray, seed: int
) -> dict[str, float]:
    """Frechet motion distance to the real clips of four sets: generated, untrained, and two that should lose.

    real, generated, untrained: uint8 (N, T, H, W, 3). "mean clip" repeats the mean of the real clips, "shuffled in
    time" permutes each real clip's frames at random.
    """
    from medsora.metrics import frechet_motion_distance

    real = np.stack(real)
    mean = real.mean(axis=0).round().astype(np.uint8)
    orders = [Draws(seed, "evaluation").generator("shuffle", 0, i).permutation(real.shape[1]) for i in range(len(real))]
    sets = {
        "generated": generated,
        "untrained model": untrained,
        "mean clip": np.repeat(mean[None], len(real), axis=0),
        "shuffled in time": np.stack([clip[order] for clip, order in zip(real, orders, strict=True)]),
    }
    return {name: float(frechet_motion_distance(real, clips)) for name, clips in sets.items()}


def _batches(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]
