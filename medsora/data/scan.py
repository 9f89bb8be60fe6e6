"""Which recordings a source names: a folder, one file, a list (csv, json) or built-in data."""

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medsora.data import stills
from medsora.data.manifest import Manifest, Skipped, digest, frames_path, require_files
from medsora.data.readers import is_video_file, open_recording
from medsora.data.settings import PrepareSettings
from medsora.data.video import Recording
from medsora.errors import UserError

PHANTOM_CLIPS = 16
PHANTOM_FRAMES = 24
BUILT_IN = ("builtin:cine", "builtin:phantom", "builtin:phantom:N")


@dataclass(frozen=True)
class Source:
    """A recording that can be opened.

    Args:
        name: Path relative to the scanned folder, with forward slashes; or the built-in's name.
        state: Changes when the recording does (sizes and times of its files).
        patient: Whose it is.
        stated: Whether `patient` was named by the user; otherwise a PatientID in the recording is preferred.
        open: Opens it.
        label: Class, if known.
        split: "train" or "val" where it is fixed, else the patient decides.
        synthetic: Rendered rather than recorded.
        crop: Whether black borders may be cut.
    """

    name: str
    state: str
    patient: str
    open: Callable[[], Recording]
    label: str | None = None
    stated: bool = False
    split: str | None = None
    synthetic: bool = False
    crop: bool = True


def scan(source: str, settings: PrepareSettings, output: Path) -> tuple[list[Source], list[Skipped]]:
    """Finds the recordings that `source` names, in a stable order.

    Args:
        source: "builtin:cine", "builtin:phantom", "builtin:phantom:N", a folder, a csv or json list, or one video.
        settings: For the size of rendered clips and the assumed frame rate.
        output: The folder being prepared; skipped where it lies inside the source.

    Returns:
        The recordings, and the files that are none, with the reason.

    Raises:
        UserError: No such source, an empty folder, or a list that cannot be read.
    """
    if str(source).startswith("builtin:"):
        return _built_in(str(source), settings), []
    path = Path(source)
    if path.is_dir():
        found, skipped = _scan_folder(path, Path(output), settings)
        if not found and not skipped:
            raise UserError(f"the folder {path} is empty: no video, DICOM, array or frame folder is in it")
        if not found:
            _refuse_without_frames(path)
        return found, skipped
    if not path.exists():
        raise UserError(f"{path} does not exist; name a folder, a csv or json list, a video, or {', '.join(BUILT_IN)}")
    if path.suffix.lower() in (".csv", ".json"):
        return _scan_list(path, settings)
    return [_source(path, path.name, settings)], []


def _refuse_without_frames(folder: Path) -> None:
    """Raises UserError if a folder without recordings is a prepared data set whose frames are gone."""
    try:
        manifest = Manifest.read(folder, partial=True)
    except UserError:
        return
    require_files(folder, manifest.clips, frames_path)


def _source(path: Path, name: str, settings: PrepareSettings, patient: str | None = None, label=None) -> Source:
    files = stills.list_stills(path) if path.is_dir() else [path]
    state = digest([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files], patient, label)
    opened = partial(open_recording, path, settings.default_fps)
    return Source(name, state, patient or patient_by_place(name), opened, label, stated=patient is not None)


def patient_by_place(name: str) -> str:
    """Whose a recording is when nothing else tells: its first-level sub-folder's, or its own if it lies in none."""
    return name.split("/")[0]


def _scan_folder(root: Path, output: Path, settings: PrepareSettings) -> tuple[list[Source], list[Skipped]]:
    found, skipped = [], []
    for folder, files in _walk(root, output.resolve()):
        parts = folder.relative_to(root).parts
        if any(f.suffix.lower() in stills.SUFFIXES for f in files):
            found.append(_source(folder, "/".join(parts) or ".", settings))
        for path in files:
            name = path.relative_to(root).as_posix()
            if not path.exists():
                skipped.append(Skipped(name, "it is a link that leads nowhere"))
            elif is_video_file(path):
                found.append(_source(path, name, settings))
            elif path.suffix.lower() not in stills.SUFFIXES:
                skipped.append(Skipped(name, "it is not a kind of video this reads"))
    return sorted(found, key=lambda s: stills.natural_key(s.name)), skipped


def _walk(root: Path, output: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Folders with their files, hidden ones and `output` left out; links are followed, each folder visited once."""
    visited = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = Path(folder).resolve()
        if real in visited or real == output:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(folder), [Path(folder, name) for name in sorted(files) if not name.startswith(".")]


def _scan_list(path: Path, settings: PrepareSettings) -> tuple[list[Source], list[Skipped]]:
    """Recordings of a csv or json list with columns path and, where known, patient and label."""
    found, skipped, seen = [], [], set()
    for row in _read_rows(path):
        name = str(row["path"]).strip()
        place = path.parent / name
        if name in seen:
            skipped.append(Skipped(name, f"{path.name} lists it more than once"))
        elif not place.exists():
            skipped.append(Skipped(name, "it does not exist"))
        else:
            patient, label = (str(row.get(column) or "").strip() or None for column in ("patient", "label"))
            found.append(_source(place, name, settings, patient, label))
        seen.add(name)
    return found, skipped


def _read_rows(path: Path) -> list[dict]:
    try:
        text = path.read_text("utf-8-sig")
        rows = json.loads(text) if path.suffix.lower() == ".json" else list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"the list {path} cannot be read as {path.suffix[1:]}: {error}") from error
    if isinstance(rows, dict) and "clips" in rows:
        raise UserError(f"{path} belongs to a prepared data set; give its folder, {path.parent}, or a list of videos")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f'the list {path} must be a JSON array of objects such as {{"path": "a.mp4", "patient": "1"}}')
    if not rows:
        raise UserError(f"the list {path} names no video")
    missing = next((number for number, row in enumerate(rows, 1) if not row.get("path")), None)
    if missing is not None:
        raise UserError(
            f'row {missing} of the list {path} has no "path"; its columns are {", ".join(map(str, rows[missing - 1]))}'
        )
    return rows


def _built_in(name: str, settings: PrepareSettings) -> list[Source]:
    if name == "builtin:cine":
        return _cine_sources()
    if name == "builtin:phantom":
        return _phantom_sources(PHANTOM_CLIPS, settings)
    count = name.removeprefix("builtin:phantom:")
    if count != name and count.isdigit() and int(count) > 0:
        return _phantom_sources(int(count), settings)
    raise UserError(f"{name} is not built in; {', '.join(BUILT_IN)} are (N the number of clips)")


def _cine_sources() -> list[Source]:
    from medsora.data.cine import TRAIN_FRAMES, VAL_FRAMES, load_cine

    def part(frames: slice) -> Recording:
        cine = load_cine()
        return Recording.of(cine.frames[frames], cine.fps)

    return [
        Source(
            f"builtin:cine/{split}", digest(str(frames)), "cine", partial(part, frames), None, True, split, crop=False
        )
        for split, frames in (("train", TRAIN_FRAMES), ("val", VAL_FRAMES))
    ]


def _phantom_sources(count: int, settings: PrepareSettings) -> list[Source]:
    from medsora.data.phantom import LABELS, render

    frames = max(PHANTOM_FRAMES, settings.span)

    def clip(seed: int) -> Recording:
        return Recording.of(render(seed, frames, settings.size, polyp=bool(seed % 2)), 10.0)

    return [
        Source(
            f"builtin:phantom/{seed:04d}",
            digest(seed, frames),
            f"phantom {seed}",
            partial(clip, seed),
            LABELS[seed % 2],
            stated=True,
            synthetic=True,
            crop=False,
        )
        for seed in range(count)
    ]
