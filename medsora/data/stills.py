"""Frame folders: pictures whose names, sorted as a person would, are the order of a video."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medsora.data.intensity import as_rgb
from medsora.data.video import Recording, UnreadableVideo

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorting key by which "frame10" comes after "frame9"."""
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.split(r"([0-9]+)", name) if part]


def list_stills(folder: Path) -> list[Path]:
    """The pictures directly in `folder`, in natural order; hidden files are left out."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    return sorted(found, key=lambda p: natural_key(p.name))


def open_stills(folder: Path, default_fps: float) -> Recording:
    """Opens a folder of pictures as one video at `default_fps`.

    A picture that cannot be read, or whose size is not the first one's, is left out with a warning.

    Raises:
        UnreadableVideo: No picture in it (or, from `frames`, none that can be read).
    """
    stills = list_stills(folder)
    if not stills:
        raise UnreadableVideo("it holds no png or jpg frames")
    recording = Recording(lambda: _read(stills, recording), default_fps)
    return recording


def _read(stills: list[Path], recording: Recording) -> Iterator[np.ndarray]:
    from PIL import Image

    shape = None
    for path in stills:
        try:
            frame = read_still(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # damaged, or immense
            kind = str(error).split("\n")[0].replace(str(path), path.name)
            recording.warn(f"frame {path.name} cannot be read and is left out ({kind})")
            continue
        shape = shape or frame.shape
        if frame.shape != shape:
            recording.warn(
                f"frame {path.name} is {frame.shape[1]} x {frame.shape[0]}, not {shape[1]} x {shape[0]} "
                "as the first, and is left out"
            )
            continue
        yield frame
    if shape is None:
        raise UnreadableVideo(f"not one of its {len(stills)} pictures can be read")


def read_still(path: Path) -> np.ndarray:
    """One picture, upright, (H, W, 3) uint8; 16-bit grey becomes 8-bit by its upper byte."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            return as_rgb((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
        return np.array(image.convert("RGB"))
