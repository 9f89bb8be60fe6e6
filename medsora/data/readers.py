"""Which reader opens which file."""

import os
from pathlib import Path

from medsora.data import arrays, containers, dicom, stills
from medsora.data.video import Recording, UnreadableVideo, Video

SUFFIXES = containers.SUFFIXES | dicom.SUFFIXES | arrays.SUFFIXES


def is_video_file(path: Path) -> bool:
    """Whether a reader is in charge of this file, by its suffix or, without one, by the DICOM mark."""
    suffix = path.suffix.lower()
    # DICOM files are often named by a UID, whose last number looks like a suffix
    return suffix in SUFFIXES or ((not suffix or suffix[1:].isdigit()) and dicom.is_dicom(path))


def open_recording(path: str | os.PathLike, default_fps: float = 10.0) -> Recording:
    """Opens a video file or a folder of frames for reading frame by frame.

    Args:
        path: mp4, mov, avi, mkv, webm, gif, DICOM, npy, npz, or a folder of png or jpg frames.
        default_fps: Frames a second where the file does not state it.

    Raises:
        UnreadableVideo: It cannot be read as a video; the message is the reason and does not repeat the path.
    """
    path = Path(path)
    if path.is_dir():
        return stills.open_stills(path, default_fps)
    if not path.exists():
        raise UnreadableVideo("it does not exist")
    suffix = path.suffix.lower()
    if suffix in containers.SUFFIXES:
        return containers.open_container(path, default_fps)
    if suffix in arrays.SUFFIXES:
        return arrays.open_array(path, default_fps)
    if suffix in dicom.SUFFIXES or dicom.is_dicom(path):
        return dicom.open_dicom(path, default_fps)
    raise UnreadableVideo(f"{suffix or 'a file without suffix'} is not a kind of video this reads")


def read_video(path: str | os.PathLike, default_fps: float = 10.0) -> Video:
    """Reads a whole video into memory; arguments and errors as in `open_recording`, the message with the path."""
    try:
        return open_recording(path, default_fps).load()
    except UnreadableVideo as error:
        raise UnreadableVideo(f"{path} cannot be read: {error}") from error
