"""What training reads: clips of frames for the VAE, posteriors and alignment targets for the denoiser."""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from medsora.data.manifest import Manifest, frames_path, latents_path, require_files
from medsora.errors import UserError


class FrameClips:
    """The prepared frames of one split.

    Args:
        dataset_folder: Where `prepare_frames` wrote.
        split: "train" or "val".
        min_frames: Shorter clips are left out.

    Raises:
        UserError: The folder is no prepared data set, its preparation was interrupted, or files of it are gone.
    """

    def __init__(self, dataset_folder: str | Path, split: str, min_frames: int = 1):
        self.folder = Path(dataset_folder)
        self.manifest = Manifest.read(self.folder)
        self.clips = [clip for clip in self.manifest.of_split(split) if clip.frames >= min_frames]
        require_files(self.folder, self.clips, frames_path)
        self.split = split

    def __len__(self) -> int:
        return len(self.clips)

    def clip(self, index: int, num_frames: int, rng: np.random.Generator, interval: int = 1) -> np.ndarray:
        """Frames from a random start of clip `index`, every `interval`-th: (num_frames, H, W, 3) uint8.

        Raises:
            ValueError: The clip is too short.
        """
        span = self._span(index, num_frames, interval)
        start = int(rng.integers(self.clips[index].frames - span + 1))
        return self._read(index, start, span, interval)

    def fixed_clips(self, num_frames: int, interval: int = 1) -> list[np.ndarray]:
        """Every clip cut into windows that do not overlap, from its first frame on; always the same list.

        Returns:
            Arrays (num_frames, H, W, 3) uint8; clips that are too short give none.
        """
        span = (num_frames - 1) * interval + 1
        return [
            self._read(index, start, span, interval)
            for index, clip in enumerate(self.clips)
            for start in range(0, clip.frames - span + 1, span)
        ]

    def _span(self, index: int, num_frames: int, interval: int) -> int:
        clip, span = self.clips[index], (num_frames - 1) * interval + 1
        if num_frames < 1 or interval < 1 or clip.frames < span:
            raise ValueError(
                f"num_frames {num_frames} at interval {interval} does not fit clip {clip.id}, which has {clip.frames}"
            )
        return span

    def _read(self, index: int, start: int, span: int, interval: int) -> np.ndarray:
        with safe_open(frames_path(self.folder, self.clips[index].id), framework="np") as file:
            return file.get_slice("frames")[start : start + span][::interval].copy()


class LatentClips:
    """The cached latents of one split: an entry for each (clip, window, flip), in a fixed order.

    Latents are raw: not yet multiplied by the scaling factor. Files are opened at each access, so the whole need not
    fit into memory.

    Attributes:
        images: The same for single frames, encoded as one-frame videos; an object with `len()` and `entry`.
        labels: Class names; an entry's label is a place in this list.
        statistics: "mean", "std" and "scaling_factor" (1 / std) of the training latents.

    Raises:
        UserError: The folder holds no latents, their preparation was interrupted, the frames changed since, or files
            of it are gone.
    """

    def __init__(self, dataset_folder: str | Path, split: str):
        from medsora.data.latents import read_latents_index

        self.folder = Path(dataset_folder)
        self.manifest = Manifest.read(self.folder)
        self.index = read_latents_index(self.folder)
        self.labels, self.statistics = self.manifest.labels, self.index["statistics"]
        self._entries, images = [], []
        for clip in self.manifest.of_split(split):
            record, label = self.index["clips"].get(clip.id), self.manifest.label_index(clip)
            if record is None or record.get("frames") != clip.sha256:
                raise UserError(f"the latents in {self.folder} are older than its frames; prepare the latents again")
            flips = range(2 if record["flips"] else 1)
            self._entries += [(clip.id, f"{k}.{v}", label) for k in range(len(record["starts"])) for v in flips]
            images += [(clip.id, str(j), label) for j in range(len(record["images"]))]
        require_files(self.folder, self.manifest.of_split(split), latents_path)
        self.images = LatentImages(self.folder, images)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, index: int) -> dict:
        """One window.

        Returns:
            mean, std: (C, F, h, w) float32, the posterior. target: (layers, F, tokens, channels) float16 and mask:
            (F, tokens) bool, the alignment targets, None where there are none. label: int or None.
        """
        clip_id, key, label = self._entries[index]
        entry = _read_entry(latents_path(self.folder, clip_id), "{}." + key, ("mean", "std", "target", "mask"))
        return {**entry, "label": label}

    def place(self, index: int) -> dict:
        """Where an entry comes from: clip, source, start, flip."""
        clip_id, key, _ = self._entries[index]
        window, flip = map(int, key.split("."))
        clip = next(clip for clip in self.manifest.clips if clip.id == clip_id)
        start = self.index["clips"][clip_id]["starts"][window]
        return {"clip": clip_id, "source": clip.source, "start": start, "flip": bool(flip)}


class LatentImages:
    """Single frames of one split as latents; made by `LatentClips`."""

    def __init__(self, folder: Path, entries: list[tuple[str, str, int | None]]):
        self.folder, self._entries = folder, entries

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, index: int) -> dict:
        """mean, std: (C, 1, h, w) float32; target and mask: None; label: int or None."""
        clip_id, key, label = self._entries[index]
        entry = _read_entry(latents_path(self.folder, clip_id), "image.{}." + key, ("mean", "std"))
        return {**entry, "target": None, "mask": None, "label": label}


def _read_entry(path: Path, pattern: str, names: tuple[str, ...]) -> dict[str, torch.Tensor | None]:
    with safe_open(path, framework="pt") as file:
        there = set(file.keys())
        wanted = {name: pattern.format(name) for name in names}
        return {name: file.get_tensor(key) if key in there else None for name, key in wanted.items()}
