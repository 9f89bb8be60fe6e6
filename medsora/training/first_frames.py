"""Latents of each window's first frames, encoded as videos of their own, for a denoiser that is given first frames.

Frames that are given when a video is made come alone: one picture, or the last 8 or 9 frames of the window before. In
training they are the window's own first 1, 8 or 9. Their latents are not those of the whole window: the VAE mixes the
frames of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tqdm import tqdm

from medsora.data.manifest import digest, frames_path
from medsora.errors import UserError
from medsora.files import save_tensors
from medsora.training.vae_stage import to_model_range

if TYPE_CHECKING:
    from medsora.data import LatentClips
    from medsora.models import FrequencyCompensatedVAE

GIVEN_FRAMES = (1, 8, 9)  # what the VAE encodes in one go


def given_counts(chosen: Sequence[int] | None, num_frames: int) -> list[int]:
    """How many first frames a model of windows of `num_frames` is shown, ascending: those chosen, or by itself.

    By itself: 1, and a whole chunk of the VAE where the window goes on after it: 8 frames of 8k, 9 of 8k + 1.
    Raises UserError for numbers that do not fit the VAE or the window.
    """
    if chosen is None:
        chunk = 8 + num_frames % 8
        chosen = [1, chunk] if num_frames > chunk else [1]
    wrong = [count for count in chosen if count not in GIVEN_FRAMES or count >= num_frames]
    if wrong or not chosen:
        raise UserError(
            f"denoiser.given_frames: got {list(chosen)} for windows of {num_frames} frames, wants some of 1, 8 and 9, "
            "each fewer than a window has"
        )
    return sorted(set(chosen))


def first_frame_latents(
    dataset: Path, clips: LatentClips, vae: FrequencyCompensatedVAE, counts: Sequence[int], progress: bool = False
) -> dict[int, torch.Tensor]:
    """Posterior means, float32 (entries, F, C, h, w), unscaled, for each number of given frames.

    Cached under `dataset` for this VAE, these windows and these numbers.
    """
    path, places = Path(dataset) / "first-frames.safetensors", [clips.place(i) for i in range(len(clips))]
    frames = {place["clip"]: clips.index["clips"][place["clip"]]["frames"] for place in places}
    interval = clips.index["settings"]["interval"]
    made_from = digest(clips.index["vae"], frames, places, interval, list(counts))
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            known = file.metadata() or {}
        if known.get("made_from") == made_from:
            return {int(name): tensor for name, tensor in load_file(path).items()}
    found: dict[int, list[torch.Tensor]] = {count: [] for count in counts}
    for place in tqdm(places, desc="first frames", disable=not progress):
        shown = _first_frames(dataset, place, max(counts), interval)
        for count in counts:
            found[count].append(_encode(vae, shown[:count]))
    means = {count: torch.stack(latents) for count, latents in found.items()}
    save_tensors(path, {str(count): mean for count, mean in means.items()}, {"made_from": made_from})
    return means


def _first_frames(dataset: Path, place: dict, count: int, interval: int) -> np.ndarray:
    """The first `count` frames of a window, uint8 (count, H, W, 3)."""
    span = slice(place["start"], place["start"] + (count - 1) * interval + 1)
    with safe_open(frames_path(dataset, place["clip"]), framework="np") as file:
        frames = file.get_slice("frames")[span][::interval]
    return np.ascontiguousarray(frames[:, :, ::-1] if place["flip"] else frames)


@torch.no_grad()
def _encode(vae: FrequencyCompensatedVAE, frames: np.ndarray) -> torch.Tensor:
    pixels = to_model_range(torch.from_numpy(frames)[None].to(vae.device)).to(vae.dtype)
    return vae.encode(pixels).latent_dist.mean[0].transpose(0, 1).float().cpu()
