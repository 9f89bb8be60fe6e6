"""Brightness values of any kind to 8 bits."""

import numpy as np

PERCENTILES = (0.5, 99.5)  # of the whole clip, so that a few hot or dead pixels do not set the range


def percentile_range(values: np.ndarray) -> tuple[float, float]:
    """The range that covers all but the extreme half per cent of `values` on each side."""
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps [low, high] linearly to 0 to 255, clipped; a range without extent maps to 0."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def as_rgb(frame: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) to (H, W, 3); a fourth channel (alpha) is dropped."""
    if frame.ndim == 2:
        frame = frame[..., None]
    return np.repeat(frame, 3, axis=-1) if frame.shape[-1] == 1 else frame[..., :3]
