"""A folder of sampled videos that knows how they were made.

samples.json holds the settings, the model's hashes, and each finished video with its own hash. A video counts as there
when its file has the hash that is recorded, so neither a killed command nor a damaged file leaves a wrong one behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from medsora.errors import UserError
from medsora.files import TEMPORARY_PREFIX, clear_leftovers, file_sha256, replacing, write_json
from medsora.processes import ALONE, Processes, RecordParts

SHEET_VIDEOS = 8
SHEET_COLUMNS = 8


class SampleFolder:
    """A folder of sampled videos; making the object changes nothing on disk.

    processes: those that fill it together; each opens it, adds its videos and joins.
    """

    def __init__(self, path: str | os.PathLike, processes: Processes = ALONE):
        self.path, self.processes = Path(path), processes
        self.record_file = self.path / "samples.json"
        self.record: dict = {}
        self._parts, self._added = RecordParts(self.record_file, processes), {}

    def video(self, index: int) -> Path:
        """The file of video `index`; a picture where videos have one frame."""
        return self.path / (f"image-{index:05d}.png" if self._holds_images else f"video-{index:05d}.mp4")

    def open(self, model: str | os.PathLike, hashes: dict[str, str], settings: dict) -> None:
        """Claims the folder for these settings and this model, or goes on with it.

        Raises UserError if it holds videos of other settings or another model, or files that are none of ours.
        """
        self.record = self.processes.from_first(lambda: self._claim(model, hashes, settings))

    def _claim(self, model: str | os.PathLike, hashes: dict[str, str], settings: dict) -> dict:
        from medsora.media import SYNTHETIC_MARK

        fresh = {
            "notice": SYNTHETIC_MARK,
            "settings": settings,
            "model": {"path": str(model), "sha256": hashes},
            "versions": _versions(),
            "videos": {},
        }
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output: {self.path} is a file, wants a folder")
        if self.record_file.is_file():
            self.record = self._read()
            self._check(settings, hashes)
            clear_leftovers(self.path)
            self._write(self._parts.read())
            return self.record
        if self.path.is_dir():
            foreign = sorted(f.name for f in self.path.iterdir() if not f.name.startswith(TEMPORARY_PREFIX))
            if foreign:
                raise UserError(
                    f"--output: {self.path} holds files that are no samples of ours ({foreign[0]}), wants another"
                )
        clear_leftovers(self.path)
        self.record = fresh
        self._write({})
        return self.record

    def missing(self, count: int) -> list[int]:
        """Numbers below `count` whose video is not there, or not as it was written; of all processes together."""
        return self.processes.from_first(lambda: [i for i in range(count) if not self._is_whole(self.video(i))])

    def add(self, index: int, frames: np.ndarray) -> None:
        """Writes video `index`, uint8 (T, H, W, 3), and records it."""
        with self.writing(index) as add:
            add(frames)

    @contextlib.contextmanager
    def writing(self, index: int) -> Iterator[Callable[[np.ndarray], None]]:
        """Yields a function that appends frames, uint8 (T, H, W, 3), to video `index`.

        The file is there, and recorded, once the block has ended without an error; until then nothing is. A video of
        one frame is a picture.
        """
        from medsora.media import Mp4Writer, write_png

        path = self.video(index)
        path.with_suffix(".gif").unlink(missing_ok=True)
        if self._holds_images:
            yield lambda frames: write_png(path, frames[0])
        else:
            with replacing(path) as temporary, Mp4Writer(temporary, self.record["settings"]["fps"]) as writer:
                yield writer.add
        self._added[path.name] = {"index": index, "sha256": file_sha256(path)}
        if self.processes.count > 1:
            self._parts.write(self._added)
        else:
            self._write(self._added)

    def join(self) -> None:
        """Once all processes have come here, the first records what they added."""
        added = self.processes.gathered(self._added)
        if self.processes.is_first:
            self._write({name: video for part in added for name, video in part.items()})
        self.processes.wait()

    def _write(self, added: dict) -> None:
        self.record["videos"] = dict(sorted((self.record["videos"] | added).items()))
        write_json(self.record_file, self.record)
        self._parts.clear()

    def finish(self, count: int, gif: bool) -> None:
        """Writes the contact sheet of the first videos and, on request, each video's gif, from the files."""
        from medsora.data.readers import read_video
        from medsora.media import contact_sheet, write_gif

        numbers, seed = range(min(count, SHEET_VIDEOS)), self.record["settings"]["seed"]
        if self._holds_images:
            rows = [range(i, min(i + SHEET_COLUMNS, count)) for i in range(0, count, SHEET_COLUMNS)][:SHEET_VIDEOS]
            shown = [np.concatenate([self._glance(index) for index in row]) for row in rows]
            labels = [f"seed {seed}, images {row[0]} to {row[-1]}" for row in rows]
        else:
            shown = [self._glance(index) for index in numbers]
            labels = [f"seed {seed}, video {index}" for index in numbers]
        contact_sheet(self.path / "contact-sheet.png", shown, SHEET_COLUMNS, labels)
        for path in (self.video(index) for index in range(count if gif else 0)):
            if not path.with_suffix(".gif").exists():
                write_gif(path.with_suffix(".gif"), read_video(path).frames, self.record["settings"]["fps"])

    @property
    def _holds_images(self) -> bool:
        return self.record["settings"]["num_frames"] == 1

    def _glance(self, index: int) -> np.ndarray:
        """What a contact sheet shows of a video, its evenly spaced frames, uint8 (t, H, W, 3); others are not kept."""
        from PIL import Image

        from medsora.data.readers import open_recording

        if self._holds_images:
            return np.asarray(Image.open(self.video(index)))[None]
        total = self.record["settings"]["num_frames"]
        wanted = set(np.linspace(0, total - 1, min(SHEET_COLUMNS, total)).round().astype(int).tolist())
        frames = enumerate(open_recording(self.video(index)).frames())
        return np.stack([frame for number, frame in frames if number in wanted])

    def _is_whole(self, path: Path) -> bool:
        known = self.record["videos"].get(path.name)
        return known is not None and path.is_file() and file_sha256(path) == known["sha256"]

    def _check(self, settings: dict, hashes: dict[str, str]) -> None:
        before = self.record["settings"]
        for name, value in settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"{self.path} holds videos made with --{name.replace('_', '-')} {json.dumps(before.get(name))}, "
                    f"now it is {json.dumps(value)}; give the recorded value to go on, or another --output"
                )
        if self.record["model"]["sha256"] != hashes:
            raise UserError(
                f"{self.path} holds videos of another model than the one now in --model; give another --output"
            )

    def _read(self) -> dict:
        try:
            record = json.loads(self.record_file.read_text("utf-8"))
            if all(isinstance(record[name], dict) for name in ("settings", "model", "videos")):
                return record
        except (ValueError, KeyError, TypeError):
            pass
        raise UserError(f"{self.record_file} is damaged; give another --output, or remove the folder") from None


def _versions() -> dict[str, str]:
    import diffusers
    import torch

    import medsora

    return {
        "medsora": medsora.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
