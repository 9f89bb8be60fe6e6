"""Video files: whatever FFmpeg decodes, read through PyAV frame by frame."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from medsora.data.video import Recording, UnreadableVideo

SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".gif", ".mpg", ".mpeg", ".wmv"}


def open_container(path: Path, default_fps: float) -> Recording:
    """Opens a video file; its frames come upright (rotation applied) and with square pixels.

    A file that ends early or breaks in the middle yields the frames before the damage, with a warning.

    Raises:
        UnreadableVideo: The file is no video or holds no picture stream.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UnreadableVideo("it holds no picture stream; it is sound only, damaged or cut off")
            stream = container.streams.video[0]
            fps, declared = stream.average_rate, stream.frames
    except av.FFmpegError as error:
        raise UnreadableVideo(
            f"it cannot be opened as a video; it is damaged, cut off or of another kind ({error.strerror})"
        ) from error
    recording = Recording(lambda: _decode(path, declared, recording), float(fps or default_fps))
    if not fps:
        recording.warn(f"it states no frame rate; {default_fps:g} frames a second are assumed")
    return recording


def _decode(path: Path, declared: int, recording: Recording) -> Iterator[np.ndarray]:
    count, broken = 0, False
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        shape = {}
        try:
            for frame in container.decode(stream):
                if not shape:  # later frames of another size are brought to the first one's
                    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
                    shape = {"width": max(1, round(frame.width * aspect)), "height": frame.height}
                count += 1
                picture = frame.to_ndarray(format="rgb24", **shape)
                yield np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))
        except av.FFmpegError:
            broken = True
    if not count:
        raise UnreadableVideo("not one frame of it can be decoded")
    if broken or count < 0.95 * declared - 1:
        stated = f" of {declared}" if declared else ""
        recording.warn(f"it is damaged or cut off: {count}{stated} frames could be decoded")
