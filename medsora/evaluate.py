"""`python -m medsora.evaluate`: how good generated videos are, beside recorded ones."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from medsora.errors import UserError, run_command

if TYPE_CHECKING:
    from medsora.evaluation.settings import EvaluateSettings
    from medsora.processes import Processes

CHUNK = 8  # frames that the video VAE encodes together
DESCRIPTION = """\
Compares generated videos with recorded ones and writes evaluation.json (every number, with the protocol it was measured
by), report.html (curves and videos) and the pictures they show into OUTPUT.

TARGET is one of
  a run         the folder of a finished training; its video VAE reconstructs recordings, and videos are sampled from it
  a folder      of generated videos: mp4, gif, npy, npz ...; where there is a samples.json, those that it lists
--reference is one of
  a folder      a data set that medsora.prepare made; of a run, RUN/dataset is what it was trained on
  any source    that medsora.prepare takes: a folder of videos, a list, builtin:cine, builtin:phantom

What is always measured: spectra by radial band, motion from optical flow, each sample's nearest recording, and a motion
distance on fixed numbers, a proxy that needs no weights. With weights: FVD (--i3d), CD-FVD (--videomae), FID and IS
(--inception), LPIPS of reconstructions (--lpips). Weights are given as a path or hub name (OWNER/REPOSITORY, or
OWNER/REPOSITORY/FILE), with #sha256=HEX behind it where they must have that checksum; the result records the checksum
in any case.

Videos pass once, and sums are kept of them: memory does not depend on their number. The samples of a run are kept in
OUTPUT/generated, so the same command after an interruption makes only those that are missing and measures again.
Started by torchrun, several processes share sampling and measuring.

examples:
  python -m medsora.evaluate runs/tiny --reference runs/tiny/dataset
  python -m medsora.evaluate my_samples/ --reference my_videos/ --inception pt_inception-2015-12-05-6726825d.pth
  python -m medsora.evaluate runs/mine --reference data/mine --num-videos 2048 --i3d i3d_torchscript.pt#sha256=HEX
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 130 after Ctrl-C."""
    from medsora.processes import joined_processes

    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        with joined_processes() as processes:
            return _evaluate(options, processes)
    except KeyboardInterrupt:
        print("interrupted; what was sampled is kept, the same command measures from the beginning", file=sys.stderr)
        return 130


def _evaluate(options, processes: Processes) -> int:
    from medsora.evaluation.measure import Evaluation, flow_estimate
    from medsora.evaluation.reference import Reference
    from medsora.evaluation.settings import EvaluateSettings
    from medsora.files import clear_leftovers
    from medsora.processes import local_device

    settings = EvaluateSettings(**{part.name: options[part.name] for part in fields(EvaluateSettings)})
    settings.check()
    target, output = Path(options.target), Path(options.output or Path(options.target) / "evaluation")
    if not target.is_dir():
        raise UserError(f"there is no folder {target}; wants a training run or a folder of generated videos")
    if processes.is_first:
        clear_leftovers(output)
    device, shown = local_device(settings.device), not options.quiet
    extractors, lpips = _networks(settings, device)
    pipeline, videos = _videos(target, settings, output, device, processes)
    size = settings.size or min(videos.shape[1:])
    trained = _as_trained(target)
    reference = processes.from_first(
        lambda: Reference.open(options.reference, settings.split, size, output / "reference", shown, **trained)
    )
    reference.size = size
    # A run may have cut a data set in another way than was written down when that was prepared.
    reference.interval, reference.flips = (trained.get(n, getattr(reference, n)) for n in ("interval", "flips"))
    evaluation = Evaluation(videos, reference, extractors, flow_estimate(settings), settings, processes, shown)
    reconstruction = None
    if pipeline is not None and settings.reconstruction_clips and processes.is_first:
        reconstruction = _reconstruct(pipeline.vae, reference, settings, output, lpips, shown)
    result = {"target": str(target), "reference": options.reference, "device": device} | evaluation.run()
    if processes.is_first:
        result["reconstruction"] = reconstruction
        _write(result, evaluation, output, _fps(pipeline, reference))
    processes.wait()
    return 0


def _networks(settings: EvaluateSettings, device: str):
    """The feature extractors there are weights for, and LPIPS or None; loaded first, as they may fail."""
    from medsora.alignment.flow import load_raft
    from medsora.evaluation.features import I3D, Inception, Motion, VideoMAE
    from medsora.training.lpips import LPIPS

    extractors: list = []
    try:
        if settings.flow == "raft":
            load_raft(settings.flow_weights)
        for network, given in ((I3D, settings.i3d), (VideoMAE, settings.videomae), (Inception, settings.inception)):
            if given is not None:
                extractors.append(network(given, device))
        lpips = None if settings.lpips is None else LPIPS(settings.lpips).to(device)
    except ValueError as error:
        words = str(error).replace("lpips_weights", "--lpips").replace("flow_weights", "--flow_weights")
        raise UserError(words) from error
    return [Motion(), *extractors], lpips


def _videos(target: Path, settings: EvaluateSettings, output: Path, device: str, processes: Processes):
    """The run's pipeline, or None, and the generated videos."""
    from medsora.evaluation.generated import FolderVideos, RunVideos

    if (target / "model_index.json").is_file() or (target / "settings.json").is_file():
        from medsora.saved_model import load_pipeline, model_hashes

        try:
            hashes, pipeline = model_hashes(target), load_pipeline(target, device)
        except UserError as error:
            raise UserError(str(error).removeprefix("--model: ")) from error
        return pipeline, RunVideos(target, hashes, pipeline, settings, output, processes)
    return None, FolderVideos(target, settings.num_videos, settings.stride, settings.num_frames, output)


def _as_trained(target: Path) -> dict:
    """How a run's recordings were prepared, where its folder tells; other recordings are prepared for it likewise."""
    import json

    try:
        prepared = json.loads((target / "settings.json").read_text("utf-8"))["settings"]["prepare"]
        return {name: prepared[name] for name in ("interval", "flips", "crop_borders")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _reconstruct(vae, reference, settings: EvaluateSettings, output: Path, lpips, shown: bool) -> dict:
    """Reconstruction of the reference's held-out clips or, where there are none, of all, and a picture of some."""
    from medsora.data.latents import hash_vae
    from medsora.evaluation.memorisation import PAGE
    from medsora.evaluation.reconstruction import measure_reconstruction
    from medsora.evaluation.reference import Reference
    from medsora.media import contact_sheet
    from medsora.training.progress import step_bar

    split = "val" if reference.manifest.of_split("val") else "train"
    part = Reference(reference.folder, split, reference.size)
    windows = part.whole_windows(CHUNK, settings.reconstruction_clips)
    if not windows:
        raise UserError(f"--reference: no clip of {reference.folder} has {CHUNK} frames to reconstruct")
    pairs: list = []

    def look(clip, made) -> None:
        bar.update()
        if len(pairs) < 6:
            pairs.extend([clip, made])

    with step_bar("reconstructions", 0, len(windows), shown, "clip") as bar:
        clips = (part.read(window, CHUNK, 1) for window in windows)
        found = measure_reconstruction(vae, clips, settings.bands, settings.batch_size, lpips, look)
    labels = ["recorded", "reconstructed"] * (len(pairs) // 2)
    contact_sheet(output / "reconstruction.png", pairs, labels=labels, width=PAGE)
    found["without_compensation"] = _without_compensation(vae, part, windows, settings, lpips, shown)
    found |= {"split": split, "vae_sha256": hash_vae(vae), "lpips_sha256": lpips.sha256 if lpips else None}
    return found


def _without_compensation(vae, part, windows: list, settings: EvaluateSettings, lpips, shown: bool) -> dict | None:
    """The same measures of the backbone alone: a VAE whose compensation is all zeros; None where it has none."""
    import copy

    from medsora.evaluation.reconstruction import measure_reconstruction
    from medsora.training.progress import step_bar

    plain = copy.deepcopy(vae)
    parameters = list(plain.compensation_parameters())
    for parameter in parameters:
        parameter.data.zero_()
    if not parameters:
        return None
    with step_bar("without compensation", 0, len(windows), shown, "clip") as bar:
        clips = (part.read(window, CHUNK, 1) for window in windows)
        return measure_reconstruction(plain, clips, settings.bands, settings.batch_size, lpips, lambda *_: bar.update())


def _write(result: dict, evaluation, output: Path, fps: float) -> None:
    """evaluation.json, the page and its pictures, and the table on the terminal."""
    from medsora.evaluation.memorisation import draw_pairs
    from medsora.evaluation.page import write_page
    from medsora.evaluation.results import RESULT_FILE, table
    from medsora.files import write_json

    found = result["memorisation"]
    if found:
        found["pairs"] = draw_pairs(
            output / "nearest.png", found, evaluation.samples, evaluation.reference, evaluation.interval
        )
    write_json(output / RESULT_FILE, result)
    page = write_page(output, result, evaluation.tiles, fps)
    rows = table(result)
    width = max(len(title) for title, _, _ in rows)
    for title, value, on in rows:
        print(f"{title:<{width}}  {value:>10}  {on}")
    for warning in result["warnings"]:
        print(f"warning   {warning}")
    print(f"written   {output / RESULT_FILE}, {page}")


def _fps(pipeline, reference) -> float:
    return float(pipeline.config.fps) if pipeline is not None else max(1.0, float(reference.clips[0].fps))


def _parse(arguments: list[str]):
    from jsonargparse import ArgumentError

    # num_videos and num-videos are the same option
    given = [a.partition("=")[0].replace("-", "_").replace("__", "--", 1) + "".join(a.partition("=")[1:])
             if a.startswith("--") else a for a in arguments]  # fmt: skip
    try:
        return _parser().parse_args(given)
    except (ArgumentError, ValueError) as error:
        sentence = " ".join(str(error).split())
        raise UserError(f"{sentence} (python -m medsora.evaluate --help explains each option)") from None


def _parser():
    from jsonargparse import ActionYesNo, ArgumentParser

    from medsora.evaluation.settings import EvaluateSettings
    from medsora.help_text import KeepLineBreaks

    parser = ArgumentParser(
        usage="python -m medsora.evaluate TARGET --reference DATA [--output FOLDER] [options]",
        description=DESCRIPTION,
        formatter_class=KeepLineBreaks,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("target", type=str, help="A training run, or a folder of generated videos; see above.")
    parser.add_argument("--reference", type=str, required=True, help="Recordings to compare with; see above.")
    parser.add_argument(
        "--output", type=str | None, default=None, help="Folder of the results; null: TARGET/evaluation."
    )
    parser.add_argument("--quiet", action=ActionYesNo, default=False, help="Show no progress bar.")
    parser.add_class_arguments(EvaluateSettings, as_group=True)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
