"""`python -m medsora.sample`: videos from a trained model, as files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from medsora.errors import UserError, run_command

if TYPE_CHECKING:
    import numpy as np

    from medsora.pipeline import MedSoraPipeline
    from medsora.processes import Processes
    from medsora.sample_folder import SampleFolder

DESCRIPTION = """\
Samples videos from a model that `python -m medsora.train` made, and writes video-00000.mp4, video-00001.mp4 ..., a
contact-sheet.png of the first eight, and samples.json, which says how they were made. Every file carries a mark that it
is synthetic. The videos are for research only and not for diagnosis.

With --num-frames beyond --window, a video is made window by window, each going on from the last frames of the one
before, and written as it grows: any length, in the memory of one window. That needs a model trained with
--denoiser.first_frame_conditioning true. With --num-frames 1, pictures are made (image-00000.png ...).

Video i depends on the model, the settings and (seed, i) alone: not on how many are made, nor, but for rounding, on
--batch-size. The same command again makes only what is missing, so an interrupted one goes on, and a larger
--num-videos adds to what is there.

examples:
  python -m medsora.sample --model runs/tiny
  python -m medsora.sample --model runs/tiny --num-videos 16 --steps 100 --seed 7 --gif
  python -m medsora.sample --model runs/mine --scheduler ddpm --steps 250 --output out/slow
  python -m medsora.sample --model runs/mine --class-label polyp --guidance-scale 2
  python -m medsora.sample --model runs/mine --num-frames 160 --num-videos 2
  torchrun --nproc-per-node=8 -m medsora.sample --model runs/mine --num-videos 2048 --batch-size 16
"""

# What a call of the pipeline names differently from this command.
OPTIONS = {"num_inference_steps": "--steps", "class_labels": "--class-label"}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 130 after Ctrl-C."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    from medsora.processes import joined_processes

    try:
        with joined_processes() as processes:
            return _sample(options, processes)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def _sample(options, processes: Processes) -> int:
    from medsora.sample_folder import SampleFolder
    from medsora.saved_model import load_pipeline, model_hashes

    if options.num_videos < 1:
        raise UserError(f"--num-videos: got {options.num_videos}, wants 1 or more")
    if options.gif and options.num_frames == 1:
        raise UserError("--gif: got pictures (--num-frames 1), wants videos")
    if options.fps is not None and not 0 < options.fps <= 1000:
        raise UserError(f"--fps: got {options.fps}, wants frames a second above 0, at most 1000")
    hashes = model_hashes(options.model)
    pipeline = load_pipeline(options.model, options.device)
    if options.compile:
        _compile(pipeline)
    call = _call(options, pipeline)
    settings = _settings(options, call, pipeline)
    folder = SampleFolder(options.output or Path(options.model) / "generated" / f"seed-{options.seed}", processes)
    folder.open(options.model, hashes, settings)
    missing = folder.missing(options.num_videos)
    kept = options.num_videos - len(missing)
    if processes.is_first:
        print(f"sampling  {len(missing)} video(s)" + (f", {kept} are there already" if kept else ""), flush=True)
    _make(pipeline, call, folder, processes.share(neighbours(missing, options.batch_size)), options)
    folder.join()
    if not processes.is_first:
        return 0
    folder.finish(options.num_videos, options.gif)
    print(f"written   {folder.path}  (contact-sheet.png, {folder.video(0).name} ...)")
    print("synthetic videos: for research only, not for diagnosis")
    return 0


def _make(pipeline: MedSoraPipeline, call: dict, folder: SampleFolder, batches: list[list[int]], options) -> None:
    """Samples batches of neighbouring videos; each is written when it is done, or, if long, as it grows."""
    from medsora.long_videos import count_windows
    from medsora.training.progress import step_bar

    steps = sum(map(len, batches)) * pipeline.count_predictions(options.steps, options.scheduler)
    if "overlap" in call:
        steps *= count_windows(call["num_frames"], call["window"], call["overlap"])
    with step_bar("sampling", 0, steps, shown=bool(batches) and folder.processes.is_first) as bar:
        for batch in batches:
            shared = call | {"num_videos": len(batch), "first_index": batch[0], "progress": False}
            if "overlap" in call:
                chunks = pipeline.long(**shared, on_step=bar.update)
            else:
                chunks = [pipeline(**shared, batch_size=len(batch), on_step=bar.update).videos]
            _write(folder, batch, chunks)


def _write(folder: SampleFolder, batch: list[int], chunks: Iterable[np.ndarray]) -> None:
    """Writes videos (N, t, H, W, 3) that come chunk by chunk; all of them are there at the end, or none."""
    from medsora.media import to_uint8

    with contextlib.ExitStack() as files:
        appends = [files.enter_context(folder.writing(index)) for index in batch]
        for chunk in chunks:
            for append, frames in zip(appends, to_uint8(chunk)):
                append(frames)


def _compile(pipeline: MedSoraPipeline) -> None:
    """Compiles the denoiser; UserError where torch.compile would find no compiler for this device."""
    import os
    import shutil

    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if pipeline.device.type == "cpu" and not any(map(shutil.which, names)):
        raise UserError(f"--compile: found no C++ compiler ({' or '.join(names)}), which torch.compile needs here")
    pipeline.compile_denoiser()


def neighbours(numbers: list[int], most: int) -> list[list[int]]:
    """Ascending numbers in groups of consecutive ones, at most `most` each."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and len(groups[-1]) < most and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _call(options, pipeline: MedSoraPipeline) -> dict:
    """Arguments of the pipeline that all batches share, checked; what is not given is the model's own."""
    default = pipeline.config
    height = default.height if options.height is None else options.height
    width = default.width if options.width is None else options.width
    first, label = options.first_frame, options.class_label
    window = default.num_frames if options.window is None else options.window
    num_frames = window if options.num_frames is None else options.num_frames
    names = default.class_names or []
    call = {
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "num_inference_steps": options.steps,
        "scheduler": options.scheduler,
        "seed": options.seed,
        "class_labels": names.index(label) if label in names else _number(label),
        "guidance_scale": options.guidance_scale,
        "first_frame": None if first is None else read_first_frame(first, height, width),
    }
    try:
        if num_frames <= window:
            if options.overlap is not None:
                raise UserError(f"--overlap: got {options.overlap}, wants --num-frames above the {window} of a window")
            pipeline.check_inputs(**call, batch_size=options.batch_size)
            return call
        if not pipeline.denoiser.config.first_frame_conditioning:
            raise UserError(
                f"--num-frames: got {num_frames}, wants at most the {window} of a window: this model was trained "
                "without given first frames, from which the next window would go on"
            )
        window, overlap = pipeline.long_shape(num_frames, window, options.overlap)
        pipeline.check_inputs(**call | {"num_frames": window}, overlap=overlap, batch_size=options.batch_size)
        return call | {"window": window, "overlap": overlap}
    except UserError:
        raise
    except ValueError as error:
        name, colon, rest = str(error).partition(":")
        raise UserError(f"{OPTIONS.get(name, '--' + name.replace('_', '-'))}{colon}{rest}") from None


def _number(label: str | None) -> int | str | None:
    """A class's number as such; a word is left to be refused as no class."""
    return int(label) if label is not None and label.removeprefix("-").isdecimal() else label


def _settings(options, call: dict, pipeline: MedSoraPipeline) -> dict:
    """What decides the videos, under the names of the options, as JSON types; batch size and device do not."""
    import hashlib

    first = call["first_frame"]
    return {name: call[name] for name in ("window", "overlap") if name in call} | {
        "seed": options.seed,
        "steps": options.steps,
        "scheduler": options.scheduler or _scheduler_name(pipeline.scheduler),
        "num_frames": call["num_frames"],
        "height": call["height"],
        "width": call["width"],
        "fps": float(pipeline.config.fps if options.fps is None else options.fps),
        "guidance_scale": float(options.guidance_scale),
        "class_label": call["class_labels"],
        "first_frame": None if first is None else "sha256:" + hashlib.sha256(first.tobytes()).hexdigest(),
    }


def _scheduler_name(scheduler) -> str:
    """The saved scheduler's name among the options, or that of its class, if it is none of them."""
    from medsora.diffusion import SCHEDULERS, make_scheduler

    names = {type(make_scheduler(name)): name for name in SCHEDULERS}
    return names.get(type(scheduler), type(scheduler).__name__)


def read_first_frame(path: str, height: int, width: int) -> np.ndarray:
    """A picture, or the first frame of a video, as uint8 (height, width, 3).

    One of this size is taken as it is; another is cut to its picture and square and resized, as recordings are when
    they are prepared. Raises UserError if it cannot be read, or is of another size and the video is not square.
    """
    from PIL import Image, ImageOps

    from medsora.data.framing import BorderFinder, square_frame
    from medsora.data.readers import open_recording
    from medsora.data.stills import SUFFIXES
    from medsora.data.video import UnreadableVideo

    try:
        if Path(path).suffix.lower() in SUFFIXES:
            import numpy as np

            with Image.open(path) as image:
                frame = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        else:
            frame = next(iter(open_recording(path).frames()))
    except (OSError, SyntaxError, UnreadableVideo) as error:
        raise UserError(f"--first-frame: {path} cannot be read as a picture or video ({error})") from None
    if frame.shape[:2] == (height, width):
        return frame
    if height != width:
        raise UserError(
            f"--first-frame: {path} is {frame.shape[0]} x {frame.shape[1]}, wants {height} x {width} like the video"
        )
    finder = BorderFinder()
    finder.add(frame)
    return square_frame(frame, finder.picture(), height)


def _parse(arguments: list[str]):
    from jsonargparse import ArgumentError

    # num_videos and num-videos are the same option
    given = [a.partition("=")[0].replace("_", "-") + "".join(a.partition("=")[1:]) if a.startswith("--") else a
             for a in arguments]  # fmt: skip
    try:
        return _parser().parse_args(given)
    except (ArgumentError, ValueError) as error:
        sentence = " ".join(str(error).split())
        raise UserError(f"{sentence} (python -m medsora.sample --help explains each option)") from None


def _parser():
    from jsonargparse import ArgumentParser

    from medsora.help_text import KeepLineBreaks

    parser = ArgumentParser(
        usage="python -m medsora.sample --model RUN [--num-videos N] [--steps K] [--seed S] [options]",
        description=DESCRIPTION,
        formatter_class=KeepLineBreaks,
        exit_on_error=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", type=str, required=True, help="Folder of a finished training run, or of a saved pipeline.")
    add("--num-videos", type=int, default=4, help="Videos to have in the end, numbers 0 to N - 1.")
    add("--steps", type=int, default=25, help="Denoising steps; more take longer and are closer to the model.")
    add("--seed", type=int, default=0, help="Decides every random draw, together with a video's number.")
    add("--scheduler", type=str | None, default=None, help='"ddim", "ddpm", "dpm-solver++" or "heun"; null: the '
        "model's own.")  # fmt: skip
    add("--num-frames", type=int | None, default=None, help="1, 8k or 8k + 1 frames, or any number above --window; "
        "null: as in training.")  # fmt: skip
    add("--window", type=int | None, default=None, help="Frames made at once, 1, 8k or 8k + 1; null: as in training.")
    add("--overlap", type=int | None, default=None, help="Frames that a window of a longer video is given, 1, 8 or 9; "
        "null: the most the model was trained with.")  # fmt: skip
    add("--height", type=int | None, default=None, help="Pixels; null: as in training.")
    add("--width", type=int | None, default=None, help="Pixels; null: as in training.")
    add("--fps", type=float | None, default=None, help="Frames a second of the files; null: as in training.")
    add("--output", type=str | None, default=None, help="Folder of the videos; null: MODEL/generated/seed-SEED.")
    add("--batch-size", type=int, default=4, help="Videos sampled together; decides memory and speed.")
    add("--guidance-scale", type=float, default=1.0, help="How strongly label or first frame guide; 1: not extra.")
    add("--class-label", type=str | None, default=None, help="Name or number of the class to show, for a model with "
        "classes.")  # fmt: skip
    add("--first-frame", type=str | None, default=None, help="A picture or video that the videos begin like.")
    add("--gif", action="store_true", help="Write each video as gif as well; each whole in memory.")
    add("--compile", action="store_true", help="Compile the denoiser first (torch.compile; on CUDA with graph "
        "capture), which takes a while; for many videos.")  # fmt: skip
    add("--device", type=str, default="auto", help='"auto", "cpu", "cuda", "cuda:1", "mps".')
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
