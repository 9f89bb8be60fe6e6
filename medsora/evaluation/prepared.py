"""What a video VAE loses of a prepared data set, measured and recorded before anyone trains on its latents."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from medsora.data.latents import hash_vae
from medsora.data.manifest import digest
from medsora.errors import UserError
from medsora.evaluation.reconstruction import measure_reconstruction
from medsora.evaluation.reference import Reference
from medsora.files import write_json
from medsora.training.progress import step_bar

RECORD = "reconstruction.json"
FRAMES = 8  # the VAE's chunk


def record_reconstruction(folder: str | Path, vae: torch.nn.Module, device: str, most: int, shown: bool) -> dict | None:
    """Reconstructs at most `most` clips of 8 frames, spread over the held-out recordings or, where none are held out,
    over all, and writes reconstruction.json.

    Returns what `measure_reconstruction` does, with "split", "vae" (the hash by which latents.json knows it) and "key",
    which changes with data, VAE and number: a record of the same key is returned as it is. None if no clip has 8
    frames. Raises UserError for a VAE that cannot take the frames.
    """
    path = Path(folder) / RECORD
    everything = Reference(Path(folder), "all", size=0)
    split = "val" if everything.manifest.of_split("val") else "train"
    reference = Reference(Path(folder), split, everything.stored_size)
    windows = reference.whole_windows(FRAMES, most)
    if not windows:
        return None
    vae_hash = hash_vae(vae)
    key = digest(vae_hash, [clip.sha256 for clip in reference.clips], most, FRAMES)
    before = read_record(path)
    if before is not None and before.get("key") == key:
        return before
    with step_bar("reconstruction", 0, len(windows), shown, "clip") as bar:
        clips = (reference.read(window, FRAMES, 1) for window in windows)
        try:
            found = measure_reconstruction(vae.to(device).eval(), clips, look=lambda *_: bar.update())
        except ValueError as error:
            raise UserError(f"--vae: it cannot take the data: {error}") from error
    found = {"key": key, "vae": vae_hash, "split": split, **found}
    write_json(path, found)
    return found


def read_record(path: Path) -> dict | None:
    """A record of before; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
