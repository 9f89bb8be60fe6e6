"""The generated videos: a folder of files, or those that a trained model samples for the purpose.

Both have a length and `read(number)`, uint8 (T, H, W, 3), so that no more than a batch is in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsora.data import stills
from medsora.data.readers import open_recording
from medsora.data.video import UnreadableVideo
from medsora.errors import UserError
from medsora.evaluation.results import RESULT_FILE
from medsora.files import TEMPORARY_PREFIX, clear_leftovers, replacing, write_json
from medsora.processes import ALONE, Processes

if TYPE_CHECKING:
    from medsora.evaluation.settings import EvaluateSettings
    from medsora.pipeline import MedSoraPipeline


LOOKED_AT = 9  # videos, the first that can be used, whose most frequent size and length all are to have
UNREADABLE = (UnreadableVideo, OSError, SyntaxError)
UNLIKE = "unlike the others: "  # how a reason begins for which a whole video is skipped


class FolderVideos:
    """The videos of a folder: those that its samples.json lists, if it has one, else every file that can be read.

    most: how many are taken, in the order of their names. stride, num_frames: step between frames, and how many are
    taken from the first on (None: all, so that longer videos are unlike the others too).
    Attributes: names; shape, (T, H, W), what most of the first videos have; skipped, (name, reason) of what cannot be
    used: damaged files, videos that are too short, and those of another size or length.
    Raises UserError for a folder without videos.
    """

    kind = "folder"

    def __init__(self, folder: Path, most: int, stride: int, num_frames: int | None, output: Path):
        self.folder, self.stride, self.num_frames = Path(folder), stride, num_frames
        self.skipped: list[tuple[str, str]] = []
        names, shapes = self._listed(output), {}
        while names and len(shapes) < min(LOOKED_AT, most):
            name = names.pop(0)
            shape = self._shape_of(name)
            if shape is not None:
                shapes[name] = shape
        if not shapes:
            why = f": {self.skipped[-1][0]}: {self.skipped[-1][1]}" if self.skipped else ", for no video is in it"
            raise UserError(f"{self.folder} holds no generated video that can be used{why}")
        self.names = [*shapes, *names][:most]
        self.shape = Counter(shapes.values()).most_common(1)[0][0]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> np.ndarray | None:
        """The frames, or None, with an entry in `skipped`, for a video that is damaged or unlike the others."""
        name, wanted = self.names[number], self.shape
        try:
            frames = np.stack(list(islice(self._frames(name), wanted[0] + (self.num_frames is None))))
        except UNREADABLE as error:
            return self._skip(name, str(error))
        if frames.shape[1:3] != wanted[1:]:
            found, others = (f"{height} x {width}" for height, width in (frames.shape[1:3], wanted[1:]))
            return self._skip(name, f"{UNLIKE}it is {found}, they are {others}")
        if len(frames) != wanted[0]:
            return self._skip(name, self._another_length(len(frames), wanted[0]))
        return frames

    def require_enough(self, used: int) -> None:
        """Raises UserError for fewer than 2 that could be used, or fewer than were skipped as unlike the others."""
        unlike = [item for item in self.skipped if item[1].startswith(UNLIKE)]
        if len(unlike) > used:
            name, reason = unlike[0]
            raise UserError(
                f"{self.folder}: {len(unlike)} of {len(unlike) + used} videos are unlike the other {used}, such as "
                f"{name} ({reason.removeprefix(UNLIKE)}); wants one size, and one length unless --num_frames is given"
            )
        if used < 2:
            why = f"; {': '.join(self.skipped[0])}" if self.skipped else ""
            raise UserError(f"{self.folder}: {used} generated video(s) can be used, wants at least 2{why}")

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
        """(T, H, W), of no more frames than are asked for; None, with an entry in `skipped`, if it cannot be used."""
        count, size = 0, None
        try:
            for frame in islice(self._frames(name), self.num_frames):
                count, size = count + 1, frame.shape[:2]
        except UNREADABLE as error:
            return self._skip(name, str(error))
        if size is None or (self.num_frames is not None and count < self.num_frames):
            return self._skip(name, self._another_length(count, self.num_frames or 1))
        return (count, *size)

    def _frames(self, name: str) -> Iterator[np.ndarray]:
        """Every `stride`-th frame, uint8 (H, W, 3)."""
        path = self.folder / name
        if path.suffix.lower() in stills.SUFFIXES:  # a generated image is a video of one frame
            return iter([stills.read_still(path)])
        return islice(open_recording(path).frames(), 0, None, self.stride)

    def _another_length(self, count: int, wanted: int) -> str:
        step = f" at a step of {self.stride}" if self.stride > 1 else ""
        if self.num_frames is not None:
            return f"it has {count} frames{step}, wants {wanted}"
        if count > wanted:
            return f"{UNLIKE}it has more than their {wanted} frames{step}"
        return f"{UNLIKE}it has {count} frames{step}, they have {wanted}"

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append((name, reason))


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

    def require_enough(self, used: int) -> None:
        """Nothing to check: all were sampled."""

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
        """Makes the folder that of this model and these settings, if no samples of others are in it."""
        record = self.folder / "made-by.json"
        if record.is_file():
            try:
                before = json.loads(record.read_text("utf-8"))
            except ValueError:
                before = {}
            if before != self._made_by() and any(self.folder.glob("*.npy")):
                raise UserError(
                    f"{self.folder} holds samples {self._difference(before)}; give another --output, or remove it"
                )
        elif self.folder.is_dir() and any(not f.name.startswith(TEMPORARY_PREFIX) for f in self.folder.iterdir()):
            raise UserError(f"{self.folder} holds files that are none of this command's; give another --output")
        clear_leftovers(self.folder)
        write_json(record, self._made_by())

    def _difference(self, before: dict) -> str:
        """In what earlier samples differ from those that are wanted now."""
        for name, value in self._made_by()["settings"].items():
            known = before.get("settings", {}).get(name, value)
            if known != value:
                return f"made with --{name} {json.dumps(known)}, now it is {json.dumps(value)}"
        return "of another model"

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npy"
