"""Multi-frame DICOM to 8-bit RGB frames. Of the patient only PatientID is looked at, and it is never written out."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medsora.data.intensity import as_rgb, percentile_range, to_uint8
from medsora.data.video import Recording, UnreadableVideo

SUFFIXES = {".dcm", ".dicom"}
RANGE_SAMPLES = 32  # frames looked at to find the range of a clip without a window
DECODING_ERRORS = (RuntimeError, NotImplementedError, ValueError, AttributeError, KeyError, TypeError, OSError)


def is_dicom(path: Path) -> bool:
    """Whether a file bears the DICOM mark after its preamble; such files often have no suffix."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def open_dicom(path: Path, default_fps: float) -> Recording:
    """Opens a DICOM file; YBR, RGB, palette, MONOCHROME1 and MONOCHROME2 of any depth become 8-bit RGB.

    Grey values follow the file's first window (centre and width); 8-bit values without a window stay as they are;
    deeper ones are scaled by percentiles of the whole clip.

    Raises:
        UnreadableVideo: Not DICOM, no pixels, or pixels in a form that cannot be decoded here.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(path)
    except (InvalidDicomError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise UnreadableVideo("it cannot be read as DICOM; it is damaged or of another kind") from error
    if "PixelData" not in dataset:
        raise UnreadableVideo("it is a DICOM file without pixels")
    try:
        fps = _frame_rate(dataset)
    except DECODING_ERRORS:  # a tag that holds no number
        fps = None
    recording = Recording(
        lambda: _decode(dataset), fps or default_fps, str(dataset.get("PatientID") or "").strip() or None
    )
    if not fps:
        recording.warn(f"it states no frame rate; {default_fps:g} frames a second are assumed")
    if str(dataset.get("BurnedInAnnotation") or "").upper() == "YES":
        recording.warn(
            "BurnedInAnnotation is YES: names or dates may stand in the picture itself; look at it before it is used"
        )
    return recording


def _frame_rate(dataset) -> float | None:
    """Frames a second, from the frame time (milliseconds) or one of the stated rates."""
    vector = dataset.get("FrameTimeVector")
    times = [float(t) for t in vector if t] if isinstance(vector, (list, tuple)) or hasattr(vector, "append") else []
    frame_time = float(dataset.get("FrameTime") or 0) or (sum(times) / len(times) if times else 0.0)
    if frame_time > 0:
        return 1000.0 / frame_time
    for name in ("CineRate", "RecommendedDisplayFrameRate"):
        if float(dataset.get(name) or 0) > 0:
            return float(dataset.get(name))
    return None


def _decode(dataset) -> Iterator[np.ndarray]:
    from pydicom.pixels import iter_pixels

    try:
        to_rgb = _colour_rule(dataset)
        for frame in iter_pixels(dataset):
            yield to_rgb(frame)
    except DECODING_ERRORS as error:
        syntax = getattr(dataset.file_meta.get("TransferSyntaxUID"), "name", "unknown")
        raise UnreadableVideo(f"its pixels cannot be decoded (transfer syntax {syntax})") from error


def _colour_rule(dataset):
    """The function that takes one decoded frame to (H, W, 3) uint8."""
    from pydicom.pixels import apply_color_lut

    kind, bits = dataset.PhotometricInterpretation, int(dataset.BitsStored)
    if kind == "PALETTE COLOR":

        def palette(frame):
            colours = apply_color_lut(frame, dataset)
            return (colours >> 8 if colours.dtype == np.uint16 else colours).astype(np.uint8)[..., :3]

        return palette
    if not kind.startswith("MONOCHROME"):
        return lambda frame: as_rgb((frame >> (bits - 8) if bits > 8 else frame).astype(np.uint8))
    low, high = _grey_range(dataset, bits)
    slope, offset = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)

    def grey(frame):
        values = to_uint8(frame.astype(np.float32) * slope + offset, low, high)
        return as_rgb(255 - values if kind == "MONOCHROME1" else values)

    return grey


def _grey_range(dataset, bits: int) -> tuple[float, float]:
    """Values (after rescaling) that become black and white: the stated window, the full 8 bits, or percentiles."""
    from pydicom.pixels import pixel_array

    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None and width > 1:
        return centre - width / 2, centre + width / 2
    slope, offset = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    if bits <= 8:
        return offset, slope * (2**bits - 1) + offset
    count = int(dataset.get("NumberOfFrames") or 1)
    chosen = np.unique(np.linspace(0, count - 1, min(count, RANGE_SAMPLES)).astype(int))
    frames = [pixel_array(dataset, index=int(i)).astype(np.float32) * slope + offset for i in chosen]
    return percentile_range(np.stack(frames))


def _first(value) -> float | None:
    """The first of a value that may be absent, single or several."""
    if value is None or value == "":
        return None
    if hasattr(value, "append"):
        return float(value[0]) if len(value) else None
    return float(value)
