"""NumPy files: npy, and npz with an array named "frames" or just one array of video shape."""

import math
import zipfile
from pathlib import Path

import numpy as np

from medsora.data.intensity import as_rgb, percentile_range, to_uint8
from medsora.data.video import Recording, UnreadableVideo

SUFFIXES = {".npy", ".npz"}


def open_array(path: Path, default_fps: float) -> Recording:
    """Opens (T, H, W) or (T, H, W, 1 | 3 | 4) arrays of uint8, another integer type, or floats.

    uint8 is taken as it is; floats within [0, 1] or [-1, 1] fill the range of 8 bits; anything else is scaled by the
    clip's percentiles. An npz may also hold "fps", one number.

    Raises:
        UnreadableVideo: Not a NumPy file, pickled objects, another shape, or NaN among the values.
    """
    try:
        frames, fps = _load(path)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UnreadableVideo):
            raise
        raise UnreadableVideo("it cannot be read as a NumPy file of plain numbers") from error
    if frames.ndim not in (3, 4) or (frames.ndim == 4 and frames.shape[-1] not in (1, 3, 4)) or 0 in frames.shape:
        raise UnreadableVideo(f"its array has shape {tuple(frames.shape)}; (frames, height, width[, 3]) is wanted")
    if fps is not None and not 0 < fps < math.inf:
        fps = None
    low, high = _value_range(frames)
    recording = Recording(
        lambda: (as_rgb(f if f.dtype == np.uint8 else to_uint8(f, low, high)) for f in frames), fps or default_fps
    )
    if not fps:
        recording.warn(f"it states no frame rate; {default_fps:g} frames a second are assumed")
    return recording


def _load(path: Path) -> tuple[np.ndarray, float | None]:
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False), None
    with np.load(path, allow_pickle=False) as archive:
        fps = float(archive["fps"]) if "fps" in archive.files else None
        if "frames" in archive.files:
            return archive["frames"], fps
        arrays = [array for array in (archive[name] for name in archive.files) if array.ndim in (3, 4)]
    if len(arrays) != 1:
        raise UnreadableVideo(f'it holds {len(arrays)} arrays of video shape; name one of them "frames"')
    return arrays[0], fps


def _value_range(frames: np.ndarray) -> tuple[float, float]:
    if frames.dtype == np.uint8:
        return 0.0, 255.0
    if frames.dtype.kind not in "iufb":
        raise UnreadableVideo(f"its values are of type {frames.dtype}; numbers are wanted")
    if frames.dtype.kind == "b":
        return 0.0, 1.0
    low, high = float(frames.min()), float(frames.max())
    if not np.isfinite([low, high]).all():
        raise UnreadableVideo("it holds NaN or infinite values")
    if frames.dtype.kind == "f" and -1 <= low and high <= 1:
        return (-1.0, 1.0) if low < 0 else (0.0, 1.0)
    return percentile_range(frames)
