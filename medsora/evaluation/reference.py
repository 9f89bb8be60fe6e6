"""The recordings that generated videos are compared with, as windows of a prepared data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from medsora.data import Manifest, PrepareSettings
from medsora.data.framing import square_frame
from medsora.data.manifest import frames_path
from medsora.errors import UserError


@dataclass(frozen=True)
class Window:
    """Frames of a recorded clip: its name, the first frame, and whether mirrored left to right."""

    clip: str
    start: int
    flip: bool = False


class Reference:
    """One split of a prepared data set at a given size, read window by window.

    Attributes: interval, flips: the step between frames, and whether mirror images count, as the data were prepared;
    both may be set to what a run made of them.
    Raises UserError where it is no such data set, has no clip of that split, or files of it are gone.
    """

    def __init__(self, folder: Path, split: str, size: int):
        self.folder, self.split, self.size = Path(folder), split, size
        self.manifest = Manifest.read(self.folder)
        self.interval = int(self.manifest.settings.get("interval", 1))
        self.flips = bool(self.manifest.settings.get("flips"))
        self.clips = self.manifest.clips if split == "all" else self.manifest.of_split(split)
        if not self.clips:
            raise UserError(f"--reference: {folder} has no clip of the split {split!r}")
        self._by_id = {clip.id: clip for clip in self.clips}
        gone = [clip.id for clip in self.clips if not frames_path(self.folder, clip.id).is_file()]
        if gone:
            raise UserError(
                f"--reference: {folder} lists {len(gone)} clip(s) whose files are gone, such as "
                f"{frames_path(self.folder, gone[0])}; put them back or prepare the data again"
            )

    @classmethod
    def open(cls, source: str, split: str, size: int, place: Path, progress: bool = True, **settings) -> Reference:
        """A prepared data set as it is; anything else that `medsora.prepare` takes is prepared at `size` in `place`.

        settings: more of `PrepareSettings`; nothing is held out and, unless they say so, nothing mirrored.
        """
        if not is_prepared(source):
            from medsora.data import prepare_frames

            settings = {"flips": False} | settings | {"size": size, "val_fraction": 0.0}
            prepare_frames(source, place, PrepareSettings(**settings), progress)
            return cls(place, split, size)
        return cls(Path(source), split, size)

    @property
    def stored_size(self) -> int:
        """Height and width of the stored frames."""
        return int(self.manifest.settings["size"])

    def windows(self, num_frames: int, interval: int, most: int, flips: bool, seed: int) -> list[Window]:
        """At most `most` different windows, in the order of the data set; all there are, or drawn from them by `seed`.

        Raises UserError if no clip is long enough.
        """
        span = (num_frames - 1) * interval + 1
        sides = 1 + flips
        counts = [max(0, clip.frames - span + 1) * sides for clip in self.clips]
        total = sum(counts)
        if not total:
            longest = max(clip.frames for clip in self.clips)
            raise UserError(
                f"--reference: no clip in {self.folder} holds {num_frames} frames at a step of {interval} ({span} "
                f"frames); the longest has {longest}; give --num_frames or --reference_stride"
            )
        chosen = np.arange(total)
        if total > most:
            chosen = np.sort(np.random.default_rng([seed, 0xEA]).choice(total, most, replace=False))
        ends = np.cumsum(counts)
        owners = np.searchsorted(ends, chosen, side="right")
        places = chosen - np.concatenate([[0], ends])[owners]
        return [
            Window(self.clips[owner].id, int(place) // sides, bool(place % sides))
            for owner, place in zip(owners, places)
        ]

    def whole_windows(self, num_frames: int, most: int) -> list[Window]:
        """Windows of neighbouring frames that do not overlap, at most `most`, spread evenly over the clips."""
        every = [
            Window(clip.id, start)
            for clip in self.clips
            for start in range(0, clip.frames - num_frames + 1, num_frames)
        ]
        return [every[i * len(every) // most] for i in range(most)] if len(every) > most else every

    def read(self, window: Window, num_frames: int, interval: int) -> np.ndarray:
        """The window's frames, uint8 (num_frames, size, size, 3)."""
        with safe_open(frames_path(self.folder, window.clip), framework="np") as file:
            last = window.start + (num_frames - 1) * interval + 1
            frames = file.get_slice("frames")[window.start : last][::interval]
        frames = resized(frames, self.size)
        return np.ascontiguousarray(frames[:, :, ::-1] if window.flip else frames)

    def recordings(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each clip's name with all of its frames, uint8 (L, size, size, 3), one at a time."""
        for clip in self.clips:
            with safe_open(frames_path(self.folder, clip.id), framework="np") as file:
                yield clip.id, resized(file.get_tensor("frames"), self.size)

    def describe(self, clip_id: str) -> str:
        """The source of a clip, with its first frame where that is not the recording's."""
        clip = self._by_id[clip_id]
        return clip.source + (f" from frame {clip.first_frame}" if clip.first_frame else "")

    def split_of(self, clip_id: str) -> str:
        """The split that a clip belongs to, "train" or "val"."""
        return self._by_id[clip_id].split


def is_prepared(source: str) -> bool:
    """Whether a source is the folder of a prepared data set."""
    return (Path(source) / "manifest.json").is_file()


def resized(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 (T, H, W, 3) as (T, size, size, 3): the short side resized (area down, cubic up), the long one cut."""
    if frames.shape[1:3] == (size, size):
        return frames
    whole = slice(0, frames.shape[1]), slice(0, frames.shape[2])
    return np.stack([square_frame(frame, whole, size) for frame in frames])
