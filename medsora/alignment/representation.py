"""Describes a flow field on the token grid, in layers of channels: by its own statistics, or by an image encoder.

A representation maps flows (F, H, W, 2) to features (layers, F, h * w, channels), float32.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medsora.alignment.flow import flow_image
from medsora.pretrained import locate, require_transformers

# Radii, in tokens, of the neighbourhoods whose statistics make one layer each.
RADII = (0, 1, 2)
STATISTICS = (
    "mean u",
    "mean v",
    "mean length",
    "deviation of u",
    "deviation of v",
    "du/dx",
    "du/dy",
    "dv/dx",
    "dv/dy",
    "divergence",
    "curl",
    "stretch",
    "shear",
)
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def flow_statistics(flows: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Statistics of the flow around each token at several scales; no weights.

    flows: (F, H, W, 2) in pixels. grid: tokens (h, w). Returns (len(RADII), F, h * w, len(STATISTICS)): layer s
    describes the square of 2 RADII[s] + 1 tokens a side around each token (cut off at the rim). All channels are in
    pixels: derivatives are multiplied by the side of a token, so that they count the change across it.
    """
    field = torch.from_numpy(np.ascontiguousarray(flows)).float().permute(0, 3, 1, 2)
    height, width = field.shape[-2:]
    u, v = field.unbind(1)
    (du_dy, du_dx), (dv_dy, dv_dx) = (_gradient(component) for component in (u, v))
    tall, wide = height / grid[0], width / grid[1]
    moments = torch.stack(
        [u, v, torch.hypot(u, v), u * u, v * v, du_dx * wide, du_dy * tall, dv_dx * wide, dv_dy * tall], dim=1
    )
    # Means over tokens, then means over neighbourhoods of them: exact where tokens are of one size.
    by_token = F.adaptive_avg_pool2d(moments, grid)
    return torch.stack([_statistics(_neighbourhood_mean(by_token, radius)) for radius in RADII])


def _gradient(component: Tensor) -> tuple[Tensor, Tensor]:
    """(d/dy, d/dx) of (F, H, W) by central differences, one-sided at the rim; zero along a side of one pixel."""
    return tuple(
        torch.gradient(component, dim=axis)[0] if component.shape[axis] > 1 else torch.zeros_like(component)
        for axis in (1, 2)
    )


def _neighbourhood_mean(x: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(x, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)


def _statistics(means: Tensor) -> Tensor:
    """(F, 9 moments, h, w) -> (F, h * w, statistics)."""
    u, v, length, uu, vv, du_dx, du_dy, dv_dx, dv_dy = means.unbind(1)
    channels = [
        u,
        v,
        length,
        (uu - u * u).clamp(min=0).sqrt(),
        (vv - v * v).clamp(min=0).sqrt(),
        du_dx,
        du_dy,
        dv_dx,
        dv_dy,
        du_dx + dv_dy,
        dv_dx - du_dy,
        du_dx - dv_dy,
        du_dy + dv_dx,
    ]
    return torch.stack(channels, dim=-1).flatten(1, 2)


@torch.no_grad()
def encoder_features(flows: np.ndarray, grid: tuple[int, int], weights: str, image_size: int = 224) -> Tensor:
    """Patch features of the flows' colour pictures, one layer for each layer of a self-supervised image encoder.

    flows: (F, H, W, 2) in pixels; the clip's longest vector has full colour, so that speed stays comparable in time.
    grid: tokens (h, w). weights: folder or hub name of a vision transformer that transformers can load (DINO, DINOv2).
    image_size: side the pictures are resized to. Returns (encoder layers, F, h * w, width).
    """
    model = load_encoder(weights)
    pictures = torch.from_numpy(flow_image(flows)).permute(0, 3, 1, 2)
    pictures = F.interpolate(pictures, size=(image_size, image_size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    pictures = ((pictures - mean) / std).to(model.device)
    patch = model.config.patch_size
    side = image_size // patch
    extra = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    states = model(pixel_values=pictures, output_hidden_states=True, **extra).hidden_states[1:]
    layers = []
    for state in states:
        # Class and register tokens come first; the last side * side tokens are the patches.
        maps = state[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
        layers.append(F.interpolate(maps, size=grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2))
    return torch.stack(layers).float().cpu()


@functools.lru_cache(maxsize=1)
def load_encoder(weights: str):
    """The encoder in evaluation mode. weights: as `medsora.pretrained.locate` takes them.

    Raises ValueError if it is not found, no vision transformer, or does not fit.
    """
    require_transformers("representation_weights")
    folder = locate("dino", weights, "representation_weights").path
    from transformers import AutoModel

    try:
        model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"representation_weights: cannot load {weights!r} as a transformers model: {str(error).splitlines()[0]}"
        ) from error
    if not hasattr(model.config, "patch_size"):
        raise ValueError(f"representation_weights: {weights!r} is no vision transformer, wants one such as DINO")
    # A pooling head is not read here, and checkpoints come with and without one.
    missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
    if missing or report["mismatched_keys"]:
        wrong = [*missing, *(str(key[0]) for key in report["mismatched_keys"])]
        raise ValueError(f"representation_weights: {weights!r} does not fit its model: {', '.join(wrong[:3])}")
    return model.eval()
