"""How pixels move from one frame to the next, and the colour picture of such a motion.

Flow is (u, v) in pixels a frame, u to the right and v down: what is at (x, y) in frame k is at (x + u, y + v) in k + 1.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from medsora.files import first_sentence, load_tensors
from medsora.pretrained import advice, locate

ESTIMATORS = ("dis", "raft")
RAFT_MULTIPLE = 8
RAFT_SMALLEST = 128
DIS_SMALLEST = 32
# Widths of the six hue transitions of the Middlebury wheel (Baker et al. 2011, "A Database and Evaluation Methodology
# for Optical Flow"): red-yellow, yellow-green, green-cyan, cyan-blue, blue-magenta, magenta-red.
TRANSITIONS = (15, 6, 4, 11, 13, 6)


def estimate_flow(frames: np.ndarray, estimator: str = "dis", weights: str | None = None) -> np.ndarray:
    """The flow between consecutive frames: float32 (T - 1, H, W, 2) of uint8 frames (T, H, W, 3), RGB.

    estimator: "dis" (OpenCV's dense inverse search, no weights) or "raft" (torchvision's RAFT).
    weights: for "raft", a file of its state dict or a name that torchvision knows ("C_T_SKHT_V2", a download).
    Raises ValueError for other frames or estimators, and for weights that cannot be read or do not fit.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        got = f"{getattr(frames, 'dtype', type(frames).__name__)} of shape {tuple(getattr(frames, 'shape', ()))}"
        raise ValueError(f"frames: got {got}, wants uint8 of shape (frames, height, width, 3)")
    if estimator not in ESTIMATORS:
        raise ValueError(f"flow: got {estimator!r}, wants one of {', '.join(ESTIMATORS)}")
    if len(frames) < 2:
        return np.zeros((0, *frames.shape[1:3], 2), np.float32)
    return _dis(frames) if estimator == "dis" else _raft(frames, weights)


def _dis(frames: np.ndarray) -> np.ndarray:
    """Dense inverse search (Kroeger et al. 2016) at full resolution, on grey frames."""
    import cv2

    height, width = frames.shape[1:3]
    # Its patches need some pixels to work on: tiny frames are enlarged and the flow scaled back.
    factor = max(1, -(-DIS_SMALLEST // min(height, width)))
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    estimator.setFinestScale(0)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    if factor > 1:
        grey = [cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR) for image in grey]
    flows = [estimator.calc(before, after, None) for before, after in zip(grey[:-1], grey[1:], strict=True)]
    if factor > 1:
        flows = [cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / factor for flow in flows]
    return np.stack(flows).astype(np.float32)


@torch.no_grad()
def _raft(frames: np.ndarray, weights: str | None) -> np.ndarray:
    model = load_raft(weights)
    # torchvision's RAFT takes [-1, 1]. Sides: a multiple of 8, and at least 128 for its four-level pyramid.
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    height, width = frames.shape[1:3]
    size = [max(RAFT_SMALLEST, -(-side // RAFT_MULTIPLE) * RAFT_MULTIPLE) for side in (height, width)]
    images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    pairs = zip(images[:-1], images[1:], strict=True)
    flows = torch.cat([model(before[None], after[None])[-1] for before, after in pairs])
    flows = F.interpolate(flows, size=(height, width), mode="bilinear", align_corners=False)
    flows *= torch.tensor([width / size[1], height / size[0]]).view(1, 2, 1, 1)
    return flows.permute(0, 2, 3, 1).contiguous().numpy()


@functools.lru_cache(maxsize=1)
def load_raft(weights: str | None):
    """torchvision's large RAFT in evaluation mode, on the CPU.

    weights: a file of its state dict (see `medsora.pretrained`), or a name that torchvision knows and downloads.
    Raises ValueError if torchvision or the weights are missing, or they do not fit.
    """
    try:
        from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
    except (ImportError, RuntimeError, AttributeError) as error:
        raise ValueError(f"flow: 'raft' wants torchvision, which cannot be imported here ({error})") from error
    if weights is None:
        raise ValueError("flow_weights: got None, wants a file of RAFT weights or the name 'C_T_SKHT_V2'")
    if weights in Raft_Large_Weights.__members__ and not Path(weights).exists():
        try:
            return raft_large(weights=Raft_Large_Weights[weights]).eval()
        except OSError as error:
            raise ValueError(
                f"flow_weights: {weights} cannot be downloaded ({error}); {advice('raft', 'flow_weights')}"
            ) from error
    path = locate("raft", weights, "flow_weights").path
    model = raft_large(weights=None)
    try:
        model.load_state_dict(load_tensors(path), strict=True)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"flow_weights: {weights} does not fit RAFT: {first_sentence(error)}") from error
    return model.eval()


@functools.cache
def colour_wheel() -> np.ndarray:
    """The Middlebury wheel: float64 (55, 3) RGB in [0, 1], hue by direction, red to the right."""
    corners = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]], float)
    return np.concatenate(
        [
            start + (stop - start) * np.arange(steps)[:, None] / steps
            for start, stop, steps in zip(corners[:-1], corners[1:], TRANSITIONS, strict=True)
        ]
    )


def flow_image(flow: np.ndarray, largest: float | None = None) -> np.ndarray:
    """The Middlebury colour picture of a flow: hue by direction, white at rest, full colour at the largest motion.

    flow: (..., H, W, 2) in pixels. largest: the length shown in full colour, the longest in `flow` by default; longer
    vectors are darkened. Returns float32 (..., H, W, 3) RGB in [0, 1].
    """
    flow = np.asarray(flow, np.float64)
    length = np.hypot(flow[..., 0], flow[..., 1])
    if largest is None:
        largest = float(length.max(initial=0.0))
    length = length / max(largest, 1e-9)
    wheel = colour_wheel()
    # The wheel's first entry, red, points right; entries follow the direction from right by down.
    place = (np.arctan2(-flow[..., 1], -flow[..., 0]) / np.pi + 1) / 2 * (len(wheel) - 1)
    before = np.floor(place).astype(int)
    share = (place - before)[..., None]
    colour = (1 - share) * wheel[before] + share * wheel[(before + 1) % len(wheel)]
    length = length[..., None]
    return np.where(length <= 1 + 1e-9, 1 - length * (1 - colour), 0.75 * colour).astype(np.float32)
