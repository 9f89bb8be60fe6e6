"""How recordings become clips, windows and latents: the settings of `medsora.prepare`."""

from dataclasses import dataclass

from medsora.errors import UserError


@dataclass
class PrepareSettings:
    """Preparation of a data set.

    Args:
        size: Height and width of the prepared frames, in pixels. The short side is resized to it, the long side is cut
            at the centre.
        num_frames: Frames of a window, the length the denoiser trains on: 1, 8k or 8k + 1.
        interval: Step between the frames of a window, in frames of the recording (3 = every third frame).
        windows_per_clip: At most so many windows are encoded for each clip, their starts spread evenly over it.
        flips: Encode the left-right mirror image of every window and image as an entry of its own.
        images_per_clip: Single frames encoded for each clip as one-frame videos, spread evenly over it; 0 for none.
        max_clip_frames: A longer recording is cut into clips of so many frames.
        min_clip_frames: A recording, or the rest of one, with fewer frames is left out.
        crop_borders: Cut away rows and columns that are black through the whole recording.
        val_fraction: Share of the patients (not of the clips) that is kept for validation.
        seed: Decides which patients those are.
        default_fps: Frames a second of a recording that does not state it.
        encode_dtype: Precision in which the VAE runs; latents are stored in float32 whatever it is.
    """

    size: int = 128
    num_frames: int = 16
    interval: int = 1
    windows_per_clip: int = 8
    flips: bool = True
    images_per_clip: int = 8
    max_clip_frames: int = 160
    min_clip_frames: int = 8
    crop_borders: bool = True
    val_fraction: float = 0.1
    seed: int = 0
    default_fps: float = 10.0
    encode_dtype: str = "float32"

    def check(self) -> None:
        """Raises `UserError` for a value outside its range."""
        for name in ("size", "num_frames", "interval", "windows_per_clip", "max_clip_frames", "min_clip_frames"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.size % 8:
            raise UserError(f"size is {self.size}; it must be a multiple of 8, the VAE's step in space")
        if not is_valid_length(self.num_frames):
            raise UserError(f"num_frames is {self.num_frames}; the video VAE takes 1, 8k or 8k + 1 frames")
        if self.min_clip_frames > self.max_clip_frames:
            raise UserError(
                f"min_clip_frames is {self.min_clip_frames}; it must not exceed max_clip_frames {self.max_clip_frames}"
            )
        if self.images_per_clip < 0:
            raise UserError(f"images_per_clip is {self.images_per_clip}; it must be 0 or more")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction is {self.val_fraction}; it must be at least 0 and below 1")
        if not 0 < self.default_fps <= 1000:
            raise UserError(f"default_fps is {self.default_fps}; it must be above 0 and at most 1000")
        if self.encode_dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"encode_dtype is {self.encode_dtype!r}; it must be float32, bfloat16 or float16")

    @property
    def span(self) -> int:
        """Frames of a recording that one window covers."""
        return (self.num_frames - 1) * self.interval + 1


def is_valid_length(num_frames: int) -> bool:
    """Whether the video VAE keeps the length of a video of `num_frames` frames: 1, 8k or 8k + 1."""
    return num_frames == 1 or (num_frames >= 8 and num_frames % 8 in (0, 1))
