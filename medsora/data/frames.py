"""The first stage of preparation: recordings to clips of square frames, one safetensors file each."""

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from medsora.data.framing import BorderFinder, cut, square_frame
from medsora.data.manifest import Clip, Manifest, Skipped, digest, frames_path, latents_path
from medsora.data.patients import assign_splits, join_folders, load_salt, patient_code
from medsora.data.scan import Source, scan
from medsora.data.settings import PrepareSettings
from medsora.data.video import UnreadableVideo
from medsora.errors import UserError
from medsora.files import clear_leftovers, file_sha256, save_tensors

SAVE_EVERY = 5.0  # seconds between writes of the list of what is done, from which an interrupted run goes on
BURNED_IN_NOTE = (
    "Pictures can show names or dates that no tag tells of, and file names can too: look at both before sharing."
)
PHANTOM_NOTE = "The clips are a procedural phantom: synthetic, of no patient."
ONE_PATIENT_NOTE = "There is only one patient, so no clip is kept for validation."


def prepare_frames(source: str, output: str | Path, settings: PrepareSettings, progress: bool = True) -> Manifest:
    """Brings recordings to clips of square frames under `output`, and lists them in its manifest.json.

    Run again, it reads only what is new or changed (by size and time of the files, and the settings that matter),
    remakes damaged files and drops clips whose recording is gone; interrupted, it goes on where it was.

    Args:
        source: "builtin:cine", "builtin:phantom[:N]", a folder, a csv or json list with columns path, patient and
            label, or one video.
        output: Folder of the prepared data set.
        settings: Size, lengths, split.
        progress: Show a bar with counts and the time left.

    Returns:
        The manifest, with every skipped file and its reason.

    Raises:
        UserError: A setting out of range, no such source, an empty folder, or nothing usable in it.
    """
    settings.check()
    output = Path(output)
    sources, skipped = scan(str(source), settings, output)
    before = _previous(output)
    output.mkdir(parents=True, exist_ok=True)
    clear_leftovers(output, frames_path(output, "").parent)
    salt = "builtin" if str(source).startswith("builtin:") else load_salt(output)
    states = {s.name: _state(s, settings) for s in sources}
    manifest = Manifest(asdict(settings), skipped=skipped)
    _keep_unchanged(manifest, before, states, output)
    manifest.write(output)

    _read_all(
        [s for s in sources if s.name not in manifest.sources], manifest, states, output, salt, settings, progress
    )
    if not manifest.clips:
        raise UserError(f"nothing in {source} can be used: {_main_reasons(manifest.skipped)}")
    _finish(manifest, sources, salt, settings)
    manifest.write(output)
    _remove_orphans(manifest, output)
    return manifest


def _previous(output: Path) -> Manifest | None:
    """The manifest of an earlier run; a file of that name that is none of ours is not overwritten."""
    if not (output / "manifest.json").exists():
        return None
    try:
        return Manifest.read(output, partial=True)
    except UserError as error:
        raise UserError(
            f"{output / 'manifest.json'} is not a manifest of this version; remove it or choose another output folder"
        ) from error


def _state(source: Source, settings: PrepareSettings) -> str:
    """Changes when the recording does, or a setting that its frames depend on."""
    names = ("size", "max_clip_frames", "min_clip_frames", "crop_borders", "default_fps")
    return digest(source.state, [getattr(settings, name) for name in names])


def _keep_unchanged(manifest: Manifest, before: Manifest | None, states: dict[str, str], output: Path) -> None:
    """Takes over the clips of recordings that are as they were and whose frames files are whole."""
    if before is None:
        return
    clips = {}
    for clip in before.clips:
        clips.setdefault(clip.source, []).append(clip)
    for name, state in before.sources.items():
        if states.get(name) == state and name in clips:
            if all(file_sha256(frames_path(output, clip.id)) == clip.sha256 for clip in clips[name]):
                manifest.clips += clips[name]
                manifest.sources[name] = state


def _read_all(sources, manifest: Manifest, states, output: Path, salt: str, settings, progress: bool) -> None:
    """Prepares recordings one by one; what is done is listed every few seconds and at the end, interrupted or not."""
    saved = time.monotonic()
    try:
        with tqdm(sources, "frames", unit="recording", disable=not (progress and sources)) as bar:
            for source in bar:
                try:
                    manifest.clips += _prepare_source(source, output, salt, settings)
                    manifest.sources[source.name] = states[source.name]
                except UnreadableVideo as error:
                    manifest.skipped.append(Skipped(source.name, str(error)))
                bar.set_postfix(clips=len(manifest.clips), skipped=len(manifest.skipped))
                if time.monotonic() - saved > SAVE_EVERY:
                    manifest.write(output)
                    saved = time.monotonic()
    finally:
        manifest.write(output)


def _prepare_source(source: Source, output: Path, salt: str, settings: PrepareSettings) -> list[Clip]:
    """Reads a recording twice, for its borders and for its frames, and writes its clips."""
    recording = source.open()
    border = BorderFinder()
    for frame in recording.frames():
        border.add(frame)
    if border.count < settings.min_clip_frames:
        plural = "frame" if border.count == 1 else "frames"
        raise UnreadableVideo(f"it has {border.count} {plural}; at least {settings.min_clip_frames} are needed")
    if border.is_black:
        raise UnreadableVideo("it is black throughout")
    height, width = border.total.shape
    crop = source.crop and settings.crop_borders
    picture = border.picture() if crop else (slice(0, height), slice(0, width))

    patient = source.patient if source.stated or not recording.patient else recording.patient
    frames = (square_frame(frame, picture, settings.size) for frame in recording.frames())
    clips = []
    for start, clip_frames in cut(frames, settings.max_clip_frames, settings.min_clip_frames):
        clip_id = f"{digest(salt, source.name)[:12]}-{len(clips):03d}"
        path = frames_path(output, clip_id)
        save_tensors(path, {"frames": torch.from_numpy(clip_frames)})
        clips.append(
            Clip(
                id=clip_id,
                source=source.name,
                first_frame=start,
                patient=patient_code(salt, patient),
                split="train",  # the split is made when all patients are known
                fps=round(recording.fps, 3),
                frames=len(clip_frames),
                label=source.label,
                synthetic=source.synthetic,
                warnings=list(recording.warnings),
                sha256=file_sha256(path),
            )
        )
    return clips


def _finish(manifest: Manifest, sources: list[Source], salt: str, settings: PrepareSettings) -> None:
    """Order, patients, split and notes, once every recording has been read."""
    place = {source.name: number for number, source in enumerate(sources)}
    manifest.clips.sort(key=lambda clip: (place[clip.source], clip.first_frame))
    manifest.skipped.sort(key=lambda skipped: skipped.source)
    fixed = {source.name: source.split for source in sources if source.split}
    join_folders(manifest.clips, salt)
    assign_splits(manifest.clips, fixed, settings.val_fraction, settings.seed)
    if fixed:
        from medsora.data.cine import SPLIT_NOTE

        manifest.notes.append(SPLIT_NOTE)
    elif settings.val_fraction > 0 and not manifest.of_split("val"):
        manifest.notes.append(ONE_PATIENT_NOTE)
    if all(clip.synthetic for clip in manifest.clips):
        manifest.notes.append(PHANTOM_NOTE)
    elif not fixed:
        manifest.notes.append(BURNED_IN_NOTE)
    manifest.complete = True


def _main_reasons(skipped: list[Skipped]) -> str:
    """The three most frequent reasons, each with one file as an example."""
    example = {}
    for item in skipped:
        example.setdefault(item.reason, item.source)
    reasons = Counter(item.reason for item in skipped).most_common(3)
    return "; ".join(
        f"{example[reason]}{f' and {count - 1} more' * (count > 1)}: {reason}" for reason, count in reasons
    )


def _remove_orphans(manifest: Manifest, output: Path) -> None:
    """Deletes cache files of clips that are no longer listed."""
    listed = {clip.id for clip in manifest.clips}
    for folder in (frames_path(output, "").parent, latents_path(output, "").parent):
        for path in folder.glob("*.safetensors"):
            if path.stem not in listed:
                path.unlink()
