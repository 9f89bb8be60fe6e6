"""The generated videos: a folder of files, or those that a trained model samples for the purpose.

Both have a length and `read(number)`, uint8 (T, H, W, 3), so that no more than a batch is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsora.errors import UserError
from medsora.evaluation.results import RESULT_FILE
from medsora.files import TEMPORARY_PREFIX, clear_leftovers, replacing, write_json
from medsora.processes import ALONE, Processes

if TYPE_CHECKING:
    from medsora.evaluation.settings import EvaluateSettings
    from medsora.pipeline import MedSoraPipeline


class FolderVideos:
    """The videos of a folder: those that its samples.json lists, if it has one, else every file that can be read.

    most: how many are taken, in the order of their names. stride, num_frames: step between frames, and how many are
    taken from the first on (None: all of the first video).
    Attributes: names; shape, (T, H, W) of the first video that can be used; skipped, (name, reason) of what cannot.
    Raises UserError for a folder without videos.
    """

    kind = "folder"

    def __init__(self, folder: Path, most: int, stride: int, num_frames: int | None, output: Path):
        self.folder, self.stride, self.num_frames = Path(folder), stride, num_frames
        self.skipped: list[tuple[str, str]] = []
        names = self._listed(output)
        self.shape = None
        while names and self.shape is None:
            self.names, self.shape = names[:most], self._shape_of(names[0])
            names = names[1:]
        if self.shape is None:
            why = f": {self.skipped[-1][0]}: {self.skipped[-1][1]}" if self.skipped else ", for no video is in it"
            raise UserError(f"{self.folder} holds no generated video that can be used{why}")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> np.ndarray | None:
        """The frames, or None, with an entry in `skipped`, for a video that is damaged or too short.

        Raises UserError for a video of another size than the first.
        """
        frames = self._frames(self.names[number], self.shape[0])
        if frames is not None and frames.shape[1:3] != self.shape[1:]:
            raise UserError(
                f"{self.folder}: {self.names[0]} is {self.shape[1]} x {self.shape[2]} but {self.names[number]} is "
                f"{frames.shape[1]} x {frames.shape[2]}, wants a folder of generated videos of one size alone"
            )
        return frames

    def prepare(self, progress: bool = True) -> None:
        """Nothing to do: the files are there."""

    def describe(self) -> dict:
        return {"source": "folder", "path": str(self.folder), "videos": len(self)}

    def _listed(self, output: Path) -> list[str]:
        from medsora.data.scan import scan
        from medsora.data.settings import PrepareSettings

        record = self.folder / "samples.json"
        if record.is_file():
            try:
                return sorted(json.loads(record.read_text("utf-8"))["videos"])
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{record} is damaged: it lists no videos") from None
        found, skipped = scan(str(self.folder), PrepareSettings(), output)
        self.skipped += [(item.source, item.reason) for item in skipped if not self._is_result(item.source)]
        return [source.name for source in found if not self._is_result(source.name)]

    def _is_result(self, name: str) -> bool:
        """Whether a file belongs to an evaluation of before, whose output was put into this folder."""
        within = (name, *map(str, Path(name).parents))
        return any((self.folder / place / RESULT_FILE).is_file() for place in within if place != ".")

    def _shape_of(self, name: str) -> tuple[int, int, int] | None:
        frames = self._frames(name, self.num_frames)
        return None if frames is None else frames.shape[:3]

    def _frames(self, name: str, num_frames: int | None) -> np.ndarray | None:
        from medsora.data import stills
        from medsora.data.readers import open_recording
        from medsora.data.video import UnreadableVideo

        path = self.folder / name
        last = None if num_frames is None else (num_frames - 1) * self.stride + 1
        try:
            if path.suffix.lower() in stills.SUFFIXES:  # a generated image is a video of one frame
                frames = stills.read_still(path)[None]
            else:
                frames = np.stack(list(islice(open_recording(path).frames(), 0, last, self.stride)))
        except (UnreadableVideo, OSError, SyntaxError) as error:
            self.skipped.append((name, str(error)))
            return None
        if num_frames is not None and len(frames) < num_frames:
            step = f" at a step of {self.stride}" if self.stride > 1 else ""
            self.skipped.append((name, f"it has {len(frames)} frames{step}, wants {num_frames}"))
            return None
        return frames


class RunVideos:
    """Videos 0 to N - 1 that a trained model samples, kept without loss as OUTPUT/generated/<number>.npy.

    What is there is not made again; several processes share what is missing. Raises UserError if the folder holds
    videos of another model or of other settings, and for settings that the model cannot meet.
    """

    kind = "run"

    def __init__(self, run: Path, hashes: dict[str, str], pipeline: MedSoraPipeline, settings: EvaluateSettings,
                 output: Path, processes: Processes = ALONE):  # fmt: skip
        self.run, self.hashes, self.pipeline, self.settings = Path(run), hashes, pipeline, settings
        self.folder, self.processes = Path(output) / "generated", processes
        config = pipeline.config
        frames = len(range(0, config.num_frames, settings.stride))
        if settings.num_frames is not None and settings.num_frames > frames:
            raise UserError(
                f"--num_frames: got {settings.num_frames}, wants at most {frames}: the model makes "
                f"{config.num_frames} frames, taken at a step of {settings.stride}"
            )
        self.shape, self.skipped = (settings.num_frames or frames, config.height, config.width), []
        try:
            pipeline.check_inputs(**self._call([0]))
        except ValueError as error:
            raise UserError("--" + str(error).replace("num_inference_steps", "steps", 1)) from None
        processes.from_first(self._claim)

    def __len__(self) -> int:
        return self.settings.num_videos

    def read(self, number: int) -> np.ndarray:
        """The frames of a video that was sampled."""
        return np.load(self._path(number))[:: self.settings.stride][: self.shape[0]]

    def prepare(self, progress: bool = True) -> None:
        """Samples what is missing, batch by batch; a batch that is done is kept."""
        from medsora.media import to_uint8
        from medsora.sample import neighbours
        from medsora.training.progress import step_bar

        batches = neighbours([n for n in range(len(self)) if not self._path(n).is_file()], self.settings.batch_size)
        mine = self.processes.share(batches)
        steps = sum(map(len, mine)) * self.settings.steps
        with step_bar("sampling", 0, steps, progress and bool(mine) and self.processes.is_first) as bar:
            for batch in mine:
                made = self.pipeline(**self._call(batch), progress=False, on_step=bar.update).videos
                for number, frames in zip(batch, to_uint8(made)):
                    with replacing(self._path(number)) as temporary:
                        np.save(temporary, frames)
        self.processes.wait()

    def describe(self) -> dict:
        return {"source": "run", "path": str(self.run), "videos": len(self), **self._made_by()}

    def _call(self, numbers: Iterable[int]) -> dict:
        numbers, settings = list(numbers), self.settings
        classes = self.pipeline.denoiser.config.num_classes
        return {
            "num_videos": len(numbers),
            "first_index": numbers[0],
            "batch_size": len(numbers),
            "num_inference_steps": settings.steps,
            "scheduler": settings.scheduler,
            "seed": settings.seed,
            "class_labels": [n % classes for n in numbers] if classes else None,
            "guidance_scale": settings.guidance_scale,
        }

    def _made_by(self) -> dict:
        names = ("seed", "steps", "scheduler", "guidance_scale")
        return {"settings": {n: getattr(self.settings, n) for n in names}, "sha256": self.hashes}

    def _claim(self) -> None:
        record = self.folder / "made-by.json"
        if record.is_file():
            try:
                before = json.loads(record.read_text("utf-8"))
            except ValueError:
                before = None
            if before != self._made_by():
                raise UserError(
                    f"{self.folder} holds samples of another model or of other settings; give another --output, or "
                    "remove it"
                )
        elif self.folder.is_dir() and any(not f.name.startswith(TEMPORARY_PREFIX) for f in self.folder.iterdir()):
            raise UserError(f"{self.folder} holds files that are none of this command's; give another --output")
        clear_leftovers(self.folder)
        write_json(record, self._made_by())

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npy"
