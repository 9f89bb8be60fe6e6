"""What a user asks the pipeline for, checked against the model: sizes, classes, given frames.

Each check raises ValueError with one sentence that names the argument, what it got and what it wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Wanted:
    """What a call is to make, checked. shape: latents of a video, (F, C, h, w). labels: int64 (num_videos,) or None.

    first_frames: float32 (1, T, H, W, 3) in [0, 1] or None. Videos are numbers first_index and following of the seed.
    """

    num_videos: int
    shape: tuple[int, int, int, int]
    labels: Tensor | None
    first_frames: Tensor | None
    first_index: int
    seed: int
    scheduler: str | None
    steps: int
    guidance_scale: float


def check_whole(name: str, value, least: int | None, most: int | None = None) -> None:
    """`value` is a whole number from `least` to `most`, where these are not None."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if whole and (least is None or value >= least) and (most is None or value <= most):
        return
    bounds = "a whole number" if least is None else f"{least} or more" if most is None else f"{least} to {most}"
    raise ValueError(f"{name}: got {value!r}, wants {bounds}")


def class_numbers(
    class_labels: int | str | Sequence[int | str] | None, count: int, classes: int, names: Sequence[str]
) -> Tensor | None:
    """int64 (count,), each in [0, classes), of one label for all or one a video; None for None.

    A label is a class's number, or its name where `names` are known.
    """
    if class_labels is None:
        return None
    if not classes:
        raise ValueError(f"class_labels: got {class_labels!r}, wants None: this model was trained without classes")
    wants = f"numbers from 0 to {classes - 1}" + (f", or one of {', '.join(names)}" if names else "")
    labels = torch.zeros(0)
    try:
        one = isinstance(class_labels, str) or np.ndim(class_labels) == 0
        labels = torch.as_tensor([_number(label, names) for label in ([class_labels] if one else class_labels)])
    except KeyError:
        raise ValueError(f"class_labels: got {class_labels!r}, wants {wants}") from None
    except (TypeError, ValueError, RuntimeError):  # ragged lists, other objects
        pass
    if labels.dtype not in (torch.uint8, torch.int32, torch.int64) or tuple(labels.shape) not in ((1,), (count,)):
        raise ValueError(f"class_labels: got {class_labels!r}, wants one class number or {count} of them")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"class_labels: got {class_labels!r}, wants {wants}")
    return labels.long().cpu().expand(count)


def _number(label, names: Sequence[str]):
    """The number of a class; what is no name is left as it is. KeyError for an unknown name."""
    if not isinstance(label, str):
        return label
    if label not in names:
        raise KeyError(label)
    return list(names).index(label)


def given_frames(
    frames: np.ndarray | Tensor, size: tuple[int, int, int], counts: Sequence[int], trained: bool
) -> Tensor:
    """The frames a video begins with, float32 (T, H, W, 3) in [0, 1], of (T, H, W, 3) or one (H, W, 3).

    size: (frames, height, width) of the video. counts: how many frames the model was shown in training; `trained`:
    whether it was at all. Whole numbers are uint8, floats lie in [0, 1].
    """
    if not trained:
        raise ValueError("first_frame: got frames, wants None: this model was trained without given first frames")
    frames = torch.as_tensor(frames)
    frames = frames[None] if frames.dim() == 3 else frames
    if frames.dim() != 4 or frames.shape[0] not in counts or tuple(frames.shape[1:]) != (*size[1:], 3):
        raise ValueError(
            f"first_frame: got shape {tuple(frames.shape)}, wants ({either(counts)} frames, {size[1]}, {size[2]}, 3)"
        )
    if len(frames) > size[0]:
        raise ValueError(f"first_frame: got {len(frames)} frames, wants at most the video's {size[0]}")
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    if not (frames.is_floating_point() and frames.min() >= 0 and frames.max() <= 1):
        raise ValueError(f"first_frame: got {frames.dtype} values, wants uint8, or floats in [0, 1]")
    return frames.float()


def check_overlap(overlap: int, window: int, counts: Sequence[int], trained: bool) -> None:
    """Frames a window takes over from the one before: as many as the model was shown, and some are left to make."""
    if not trained:
        raise ValueError(
            f"overlap: got {overlap}, wants a model trained with first_frame_conditioning to go on from given frames"
        )
    if overlap not in counts:
        raise ValueError(
            f"overlap: got {overlap!r}, wants the number of frames this model was given in training, {either(counts)}"
        )
    if overlap >= window:
        raise ValueError(f"overlap: got {overlap}, wants fewer than the {window} frames of a window")


def either(numbers: Sequence[int]) -> str:
    """ "1", "1 or 8", "1, 8 or 9"."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
