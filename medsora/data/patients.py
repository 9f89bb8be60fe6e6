"""Whose a clip is, without saying who, and on which side of the split that patient stands."""

import hashlib
import secrets
from pathlib import Path

from medsora.data.manifest import Clip
from medsora.data.scan import patient_by_place
from medsora.files import write_text

SALT_FILE = "patient-salt.txt"


def load_salt(folder: Path) -> str:
    """The data set's secret, drawn at its first preparation and kept in a file of its own beside the manifest.

    Who has it can test whether a name is in the data set; without it the codes say nothing. Copied into another
    data set's folder before that is prepared, it makes the same patient's code, and so the split, the same there.
    """
    path = Path(folder) / SALT_FILE
    if not path.exists():
        write_text(path, secrets.token_hex(32) + "\n")
        path.chmod(0o600)
    return path.read_text("utf-8").strip()


def patient_code(salt: str, patient: str) -> str:
    """Salted hash of a patient's name, 16 hex digits."""
    return hashlib.sha256(f"{salt}:{patient}".encode()).hexdigest()[:16]


def join_folders(clips: list[Clip], salt: str) -> None:
    """Gives clips that were told apart by their folder alone the PatientID that the folder's DICOM files agree on.

    Without it a patient with a DICOM and an mp4 in one folder would be two patients, one perhaps on each side.
    """
    stated = {}
    for clip in clips:
        place = patient_by_place(clip.source)
        if clip.patient != patient_code(salt, place):
            stated.setdefault(place, set()).add(clip.patient)
    for clip in clips:
        place = patient_by_place(clip.source)
        if clip.patient == patient_code(salt, place) and len(stated.get(place, ())) == 1:
            clip.patient = next(iter(stated[place]))


def assign_splits(clips: list[Clip], fixed: dict[str, str], val_fraction: float, seed: int) -> None:
    """Puts each patient, with all clips, into "train" or "val" by a seeded hash of the patient's code.

    The hash keeps a patient's side when others join later. Where chance leaves one side empty though there are two
    patients or more, the patient nearest to it changes sides.

    Args:
        fixed: Split by source name, where it is not the patient that decides.
    """
    place = {clip.patient: _draw(seed, clip.patient) for clip in clips if clip.source not in fixed}
    val = {patient for patient, draw in place.items() if draw < val_fraction}
    if val_fraction > 0 and len(place) > 1:
        if not val:
            val = {min(place, key=place.get)}
        elif len(val) == len(place):
            val.remove(max(place, key=place.get))
    elif len(place) == 1:
        val = set()
    for clip in clips:
        clip.split = fixed.get(clip.source) or ("val" if clip.patient in val else "train")


def _draw(seed: int, patient: str) -> float:
    return int(hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()[:12], 16) / 16**12
