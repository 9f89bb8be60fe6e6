"""How well a video VAE gives clips back: fidelity by pixel, by structure, by perception and by band of the spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from medsora.metrics import SpectralComparison, psnr, ssim
from medsora.training.evaluation import reconstruct
from medsora.training.vae_stage import to_model_range

if TYPE_CHECKING:
    from medsora.training.lpips import LPIPS


def measure_reconstruction(
    vae: torch.nn.Module,
    clips: Iterable[np.ndarray],
    bands: int = 16,
    batch_size: int = 1,
    lpips: LPIPS | None = None,
    look: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> dict:
    """Encodes clips to their posterior means, decodes these, and compares; clips pass once.

    vae: `encode(x).latent_dist.mode()` and `decode(z).sample`, frames (B, 3, T, H, W) in [-1, 1]. clips: uint8
    (T, H, W, 3), all of one shape. lpips: on the VAE's device. look: called with each clip and its reconstruction.
    Returns means over clips of "psnr" (decibels, range 255; a clip given back exactly counts as 100), "ssim" (over
    frames and colours; None for sides below 11) and "lpips" (over frames; None without weights), their deviations over
    clips, "psnr_deviation", "ssim_deviation" and "lpips_deviation", "spectrum" (see `SpectralComparison`), "clips",
    "frames", "size".
    Raises ValueError for no clips.
    """
    values: dict[str, list[float]] = {"psnr": [], "ssim": [], "lpips": []}
    spectrum = shape = None
    for batch in in_batches(clips, batch_size):
        for clip, made in zip(batch, reconstruct(vae, batch, batch_size), strict=True):
            shape = clip.shape
            spectrum = spectrum or SpectralComparison(min(bands, min(shape[1:3]) // 2))
            spectrum.add(clip, made)
            values["psnr"].append(min(float(psnr(made, clip)), 100.0))
            if min(shape[1:3]) >= 11:
                values["ssim"].append(float(ssim(*(x.transpose(0, 3, 1, 2) for x in (made, clip)))))
            if lpips is not None:
                values["lpips"].append(_perceived(lpips, clip, made, vae.device))
            if look is not None:
                look(clip, made)
    if spectrum is None:
        raise ValueError("clips: got none, wants at least one")
    found = {"clips": len(values["psnr"]), "frames": shape[0], "size": list(shape[1:3])}
    for name, numbers in values.items():
        found[name] = float(np.mean(numbers)) if numbers else None
        found[f"{name}_deviation"] = float(np.std(numbers)) if numbers else None
    return found | {"spectrum": spectrum.result()}


def in_batches(items: Iterable, size: int) -> Iterator[Sequence]:
    """Lists of `size` items, the last one shorter; no more than one list is held."""
    held: list = []
    for item in items:
        held.append(item)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def summary(found: dict) -> str:
    """One line of what was measured, for a terminal."""
    spectrum = found["spectrum"]
    top = max(1, len(spectrum["energy_ratio"]) // 4)
    kept = math.prod(spectrum["energy_ratio"][-top:]) ** (1 / top)
    parts = [f"{found['psnr']:.2f} dB PSNR"]
    parts += [f"SSIM {found['ssim']:.3f}"] if found["ssim"] is not None else []
    parts += [f"LPIPS {found['lpips']:.3f}"] if found["lpips"] is not None else []
    parts += [
        f"spectra {spectrum['distance']:.1f} dB apart",
        f"{kept:.0%} of the energy of the finest quarter of frequencies kept",
    ]
    return ", ".join(parts)


@torch.no_grad()
def _perceived(lpips: LPIPS, clip: np.ndarray, made: np.ndarray, device) -> float:
    """Mean LPIPS over frames."""
    one, other = (to_model_range(torch.from_numpy(x)[None].to(device))[0].transpose(0, 1) for x in (clip, made))
    return float(lpips(one, other).mean())
