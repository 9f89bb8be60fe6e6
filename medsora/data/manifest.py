"""The list of what a prepared folder holds: manifest.json, and the names of the files around it.

manifest.json             settings, clips, skipped files with their reasons
patient-salt.txt          the secret that turns patient names into the codes of the manifest; not to be passed on
frames/<clip id>.safetensors
latents.json, latents/<clip id>.safetensors
reconstruction.json       how well the VAE of the latents gives the recordings back, with the VAE's hash
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from medsora.errors import UserError
from medsora.files import write_json

FORMAT = 1


@dataclass
class Clip:
    """A prepared clip.

    Args:
        id: Name of its files; a hash, so that it says nothing of the source's name.
        source: Path of the recording relative to the source folder (or the built-in's name).
        first_frame: Where in the recording it starts.
        patient: Salted hash of the patient's name.
        split: "train" or "val".
        fps: Frames a second.
        frames: How many it has.
        label: Class, if known.
        synthetic: Whether it is rendered rather than recorded.
        warnings: What its reader noticed.
        sha256: Of the frames file, by which a damaged one is found.
    """

    id: str
    source: str
    first_frame: int
    patient: str
    split: str
    fps: float
    frames: int
    label: str | None
    synthetic: bool
    warnings: list[str]
    sha256: str


@dataclass
class Skipped:
    """A file that gave no clip, and why."""

    source: str
    reason: str


@dataclass
class Manifest:
    """What a prepared folder holds. `sources` maps each source to the state in which it was read; `complete` is false
    while a preparation is under way or was interrupted."""

    settings: dict
    complete: bool = False
    notes: list[str] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """All class names, sorted; a clip's class number is its place in this list."""
        return sorted({clip.label for clip in self.clips if clip.label is not None})

    def label_index(self, clip: Clip) -> int | None:
        """Class number of a clip, or None where it has no label."""
        return None if clip.label is None else self.labels.index(clip.label)

    def of_split(self, split: str) -> list[Clip]:
        """The clips of "train" or "val"."""
        if split not in ("train", "val"):
            raise ValueError(f'split is {split!r}; it must be "train" or "val"')
        return [clip for clip in self.clips if clip.split == split]

    def write(self, folder: Path) -> None:
        """Writes manifest.json, whole."""
        write_json(Path(folder) / "manifest.json", {"format": FORMAT, "labels": self.labels, **asdict(self)})

    @classmethod
    def read(cls, folder: Path, partial: bool = False) -> "Manifest":
        """Reads manifest.json of a prepared folder.

        Raises:
            UserError: There is none, it is damaged, of another format, or (unless `partial`) not complete.
        """
        path = Path(folder) / "manifest.json"
        values = read_index(path, "a prepared data set")
        if not partial and not values.get("complete"):
            raise UserError(f"the preparation of {folder} was interrupted; run medsora.prepare again to finish it")
        try:
            values["clips"] = [Clip(**clip) for clip in values["clips"]]
            values["skipped"] = [Skipped(**skipped) for skipped in values["skipped"]]
            return cls(**{f.name: values[f.name] for f in fields(cls)})
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is not a manifest of this program; prepare the data again") from error


def read_index(path: Path, what: str) -> dict:
    """A JSON file of this program's current format.

    Raises:
        UserError: It is missing, damaged or of another format.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not {what}: it has no {path.name}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON; prepare the data again") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path} is of another format than this version writes ({FORMAT}); prepare the data again")
    return values


def frames_path(folder: Path, clip_id: str) -> Path:
    """Where a clip's frames are: "frames" (T, H, W, 3) uint8."""
    return Path(folder) / "frames" / f"{clip_id}.safetensors"


def latents_path(folder: Path, clip_id: str) -> Path:
    """Where a clip's latents and alignment targets are."""
    return Path(folder) / "latents" / f"{clip_id}.safetensors"


def require_files(folder: Path, clips: list[Clip], place: Callable[[Path, str], Path]) -> None:
    """Raises UserError where a file that the index of a prepared folder lists is gone. place: names a clip's file."""
    lost = [place(folder, clip.id) for clip in clips if not place(folder, clip.id).is_file()]
    if lost:
        raise UserError(
            f"{len(lost)} of {len(clips)} files that the index of {folder} lists are not there, the first "
            f"{lost[0].relative_to(folder)}; put them back, or prepare the data again"
        )


def digest(*values: object) -> str:
    """A short hash (16 hex digits) of JSON-like values, for names and states."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
