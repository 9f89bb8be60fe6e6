"""What a recording is, before it is prepared: frames one after another, and the few facts that go with them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from medsora.errors import UserError


class UnreadableVideo(UserError):
    """A file or folder that holds no video; the message is the reason, for the manifest's list of skipped files."""


@dataclass
class Video:
    """A video in memory.

    Args:
        frames: (T, H, W, 3) uint8, RGB.
        fps: Frames a second.
        patient: The patient's name in the file (DICOM PatientID), where it has one. Never written out as it is.
        label: Class of the video, if known.
        warnings: What its reader noticed, one sentence each.
    """

    frames: np.ndarray
    fps: float
    patient: str | None = None
    label: str | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass
class Recording:
    """A video that is read frame by frame, so that an hour of it needs no more memory than a clip.

    Args:
        frames: Starts a fresh pass; yields (H, W, 3) uint8 RGB frames of one size. It may add to `warnings` on the
            way and raises `UnreadableVideo` if not one frame can be read.
        fps, patient, warnings: As in `Video`.
    """

    frames: Callable[[], Iterator[np.ndarray]]
    fps: float
    patient: str | None = None
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, frames: Iterable[np.ndarray], fps: float, **facts) -> "Recording":
        """A recording of frames that are in memory already: (T, H, W, 3) uint8."""
        return cls(lambda: iter(frames), fps, **facts)

    def warn(self, sentence: str) -> None:
        """Keeps a sentence once, however many passes come by."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def load(self) -> Video:
        """All frames in memory."""
        frames = np.stack(list(self.frames()))
        return Video(frames, self.fps, self.patient, None, self.warnings)
