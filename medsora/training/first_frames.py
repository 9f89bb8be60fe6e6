"""Latents of each window's first frame, encoded as a video of its own, for a denoiser that is given first frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from medsora.data.manifest import digest, frames_path
from medsora.files import save_tensors
from medsora.training.vae_stage import to_model_range

if TYPE_CHECKING:
    from medsora.data import LatentClips
    from medsora.models import FrequencyCompensatedVAE


def first_frame_latents(dataset: Path, clips: LatentClips, vae: FrequencyCompensatedVAE) -> torch.Tensor:
    """Posterior means, float32 (entries, C, h, w), unscaled; cached under `dataset` for this VAE and these windows.

    An image's latent is not the first latent of its clip, so the windows' own latents cannot serve.
    """
    path, places = Path(dataset) / "first-frames.safetensors", [clips.place(i) for i in range(len(clips))]
    frames = {place["clip"]: clips.index["clips"][place["clip"]]["frames"] for place in places}
    made_from = digest(clips.index["vae"], frames, places)
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            known = file.metadata() or {}
        if known.get("made_from") == made_from:
            return load_file(path)["mean"]
    with torch.no_grad():
        means = torch.cat([_encode(vae, _first_frame(dataset, place)) for place in places])
    save_tensors(path, {"mean": means}, {"made_from": made_from})
    return means


def _first_frame(dataset: Path, place: dict) -> np.ndarray:
    with safe_open(frames_path(dataset, place["clip"]), framework="np") as file:
        frame = file.get_slice("frames")[place["start"] : place["start"] + 1]
    return np.ascontiguousarray(frame[:, :, ::-1] if place["flip"] else frame)


def _encode(vae: FrequencyCompensatedVAE, frame: np.ndarray) -> torch.Tensor:
    pixels = to_model_range(torch.from_numpy(frame)[None].to(vae.device)).to(vae.dtype)
    return vae.encode(pixels).latent_dist.mean[:, :, 0].float().cpu()
