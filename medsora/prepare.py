"""`python -m medsora.prepare`: a folder of recordings to a data set that training reads."""

import sys
from collections import Counter
from pathlib import Path

from medsora.data.manifest import Manifest
from medsora.data.settings import PrepareSettings
from medsora.errors import UserError, run_command
from medsora.saved_model import lacking_tensors, quiet_diffusers, why_not_loaded

DESCRIPTION = """\
Prepares recordings for training: finds them, cuts black borders, brings them to square frames, splits them by patient
and lists them, with every skipped file and its reason, in OUTPUT/manifest.json. With --vae it also measures how
well that VAE reconstructs them (OUTPUT/reconstruction.json) and encodes them, so that training itself needs neither the
VAE nor the optical flow. Run it again after adding files, changing a setting or an interruption: only what is missing
or changed is done.

SOURCE is one of
  a folder        mp4, mov, avi, mkv, webm, gif, DICOM, npy, npz, and folders of png or jpg frames, at any depth;
                  a DICOM's patient is its PatientID, any other's the first-level sub-folder it lies in, or, outside
                  of one, itself
  a csv or json   rows with path (relative to the list) and, where known, patient and label
  one video
  builtin:cine    the ultrasound cine that pydicom brings (real, one patient)
  builtin:phantom builtin:phantom:N   a procedural endoscopy with labels normal and polyp (synthetic), N clips

examples:
  python -m medsora.prepare my_videos/ --output data/mine
  python -m medsora.prepare list.csv --output data/mine --size 128 --num_frames 16 --interval 3
  python -m medsora.prepare my_videos/ --output data/mine --vae runs/mine/vae
  torchrun --nproc-per-node=8 -m medsora.prepare my_videos/ --output data/mine --vae runs/mine/vae --device cuda

The manifest holds a salted hash of each patient's name and no other tag; the salt lies beside it in patient-salt.txt
and should not leave with the data. Sources are listed by relative path: rename files whose names identify somebody.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 130 after Ctrl-C."""
    try:
        return _prepare(_parse(arguments))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def _prepare(options) -> int:
    from medsora.processes import joined_processes

    with joined_processes() as processes:
        return _prepare_share(options, processes)


def _prepare_share(options, processes) -> int:
    """What this of several processes does: the first one all but the encoding, of which each does its share."""
    if options.reconstruction_clips < 0:
        raise UserError(f"--reconstruction_clips: got {options.reconstruction_clips}, wants 0 or more")
    settings = PrepareSettings(**{name: options[name] for name in PrepareSettings.__dataclass_fields__})
    from medsora.data import prepare_frames

    # both are checked before the long work starts
    alignment, vae = (_alignment(options), load_vae(options.vae)) if options.vae else (None, None)

    def read() -> None:
        manifest = prepare_frames(options.source, options.output, settings, progress=not options.quiet)
        _print_summary(manifest, Path(options.output))

    processes.from_first(read)
    if vae is not None:
        if options.reconstruction_clips:
            processes.from_first(lambda: _measure(options, vae))
        _encode(options, settings, alignment, vae, processes)
    return 0


def _parse(arguments: list[str] | None):
    from jsonargparse import ArgumentError

    try:
        return _parser().parse_args(arguments)
    except (ArgumentError, ValueError) as error:
        sentence = " ".join(str(error).split())
        raise UserError(f"{sentence} (python -m medsora.prepare --help explains each option)") from None


def _parser():
    from jsonargparse import ActionYesNo, ArgumentParser

    from medsora.alignment import AlignmentSettings
    from medsora.help_text import KeepLineBreaks

    parser = ArgumentParser(
        usage="python -m medsora.prepare SOURCE --output FOLDER [--vae FOLDER] [options]",
        description=DESCRIPTION,
        formatter_class=KeepLineBreaks,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("source", type=str, help="What to prepare; see above.")
    parser.add_argument("--output", type=str, required=True, help="Folder of the prepared data set.")
    parser.add_argument(
        "--vae",
        type=str,
        default=None,
        help="Folder of a saved video VAE, or hub name of CogVideoX; encodes the clips with it.",
    )
    parser.add_argument("--device", type=str, default="cpu", help="Where the VAE runs: cpu, cuda, cuda:1, mps.")
    parser.add_argument("--patch_size", type=int, default=2, help="The denoiser's, for the grid of alignment targets.")
    parser.add_argument(
        "--reconstruction_clips", type=int, default=16, help="Clips on which the VAE is measured first; 0: none."
    )
    parser.add_argument("--quiet", action=ActionYesNo, default=False, help="Show no progress bar.")
    parser.add_class_arguments(PrepareSettings, as_group=True)
    parser.add_class_arguments(AlignmentSettings, "alignment", as_group=True)
    return parser


def _alignment(options):
    from medsora.alignment import AlignmentSettings, load_alignment_weights

    try:
        settings = AlignmentSettings(**vars(options.alignment))
        load_alignment_weights(settings)
        return settings
    except ValueError as error:
        raise UserError(f"alignment.{error}") from error


def _measure(options, vae) -> None:
    """Tells what the VAE keeps of these recordings: what it loses, no denoiser trained on its latents can give back."""
    from medsora.evaluation.prepared import RECORD, record_reconstruction
    from medsora.evaluation.reconstruction import summary
    from medsora.processes import local_device

    found = record_reconstruction(
        options.output, vae, local_device(options.device), options.reconstruction_clips, not options.quiet
    )
    if found is None:
        print("vae       not measured: no clip has 8 frames")
        return
    print(f"vae       {summary(found)}")
    split = {"val": "held-out", "train": "training"}[found["split"]]
    print(f"          on {found['clips']} {split} clip(s) of 8 frames; {Path(options.output) / RECORD}")


def _encode(options, settings: PrepareSettings, alignment, vae, processes) -> None:
    from medsora.data import prepare_latents
    from medsora.data.latents import read_latents_index
    from medsora.processes import local_device

    shown = processes.is_first and not options.quiet
    prepare_latents(
        options.output, vae, settings, alignment, local_device(options.device), shown,
        patch_size=options.patch_size, processes=processes,
    )  # fmt: skip
    if not processes.is_first:
        return
    index = read_latents_index(Path(options.output))
    windows = sum(len(record["starts"]) * (1 + record["flips"]) for record in index["clips"].values())
    images = sum(len(record["images"]) for record in index["clips"].values())
    print(f"latents   {windows} windows and {images} images, flips included", end="")
    print(f"; scaling factor {index['statistics']['scaling_factor']:.4f}")
    for item in index["skipped"]:
        print(f"  no window of clip {item['clip']}: {item['reason']}")


def load_vae(path: str):
    """Loads a saved `FrequencyCompensatedVAE` or plain CogVideoX VAE by the class its config names.

    path: its folder, that of a pipeline around it, or a hub name, with or without a checksum (`medsora.pretrained`).

    Raises:
        UserError: There is neither, its checksum is another than stated, or its weights are damaged or not whole.
    """
    import json

    from medsora.pretrained import locate, split_checksum

    try:
        folder = Path(split_checksum(path, "--vae")[0])
        if not (folder / "config.json").is_file():
            folder = locate("cogvideox", path, "--vae").path
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("_class_name")
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix("--vae: ")
        raise UserError(f"--vae {path} is not the folder of a saved video VAE: {reason}") from error
    if kind == "FrequencyCompensatedVAE":
        from medsora.models import FrequencyCompensatedVAE as VAE
    elif kind == "AutoencoderKLCogVideoX":
        from diffusers import AutoencoderKLCogVideoX as VAE
    else:
        raise UserError(f"--vae {path} holds a {kind}; FrequencyCompensatedVAE or AutoencoderKLCogVideoX is wanted")
    try:
        locate("cogvideox", path, "--vae")
        with quiet_diffusers():
            vae = VAE.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"--vae {path} cannot be loaded ({why_not_loaded(error)})") from error
    lacking = lacking_tensors(folder, vae)
    if lacking:
        raise UserError(f"--vae {path} lacks {len(lacking)} weights of its config, such as {lacking[0]}; save it again")
    return vae


def _print_summary(manifest: Manifest, output: Path) -> None:
    clips = manifest.clips
    patients = len({clip.patient for clip in clips})
    print(f"clips     {len(clips)} with {sum(clip.frames for clip in clips)} frames, of {patients} patient(s)")
    for split in ("train", "val"):
        part = manifest.of_split(split)
        print(f"  {split:<7} {len(part)} of {len({clip.patient for clip in part})} patient(s)")
    if manifest.labels:
        counts = Counter(clip.label for clip in clips if clip.label is not None)
        print("labels    " + ", ".join(f"{label} {counts[label]}" for label in manifest.labels))
    if manifest.skipped:
        print(f"skipped   {len(manifest.skipped)}")
        for item in manifest.skipped[:20]:
            print(f"  {item.source}: {item.reason}")
        if len(manifest.skipped) > 20:
            print(f"  and {len(manifest.skipped) - 20} more, in the manifest")
    warnings = list(dict.fromkeys((clip.source, sentence) for clip in clips for sentence in clip.warnings))
    for source, sentence in warnings[:20]:
        print(f"warning   {source}: {sentence}")
    if len(warnings) > 20:
        print(f"          and {len(warnings) - 20} more warnings, in the manifest")
    for note in manifest.notes:
        print(f"note      {note}")
    print(f"written   {output / 'manifest.json'}")


if __name__ == "__main__":
    sys.exit(run_command(main))
