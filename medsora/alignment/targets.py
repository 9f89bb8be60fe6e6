"""The alignment target of one clip: its motion, described on the token grid, one set of tokens a latent frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medsora.alignment.flow import ESTIMATORS, estimate_flow, load_raft
from medsora.alignment.representation import RADII, STATISTICS, encoder_features, flow_statistics, load_encoder

REPRESENTATIONS = ("flow", "dino", "none")


@dataclass
class AlignmentSettings:
    """What hidden tokens are aligned with, and how strongly.

    Args:
        flow: Estimator of motion: "dis" (no weights) or "raft" (torchvision).
        flow_weights: For "raft", a file of its weights or a name that torchvision knows.
        representation: "flow" (statistics of the flow, no weights), "dino" (an image encoder on the flow's colour
            picture) or "none" (no alignment).
        representation_weights: For "dino", a folder or hub name.
        representation_size: Side in pixels of the pictures that the encoder sees.
        weight: Factor of the alignment loss, 0 or more.
        motionless: Tokens whose flow is shorter than this many pixels a frame, on average, are left out.

    Raises:
        ValueError: A setting is unknown, out of its range, or lacks the weights it wants.
    """

    flow: str = "dis"
    flow_weights: str | None = None
    representation: str = "flow"
    representation_weights: str | None = None
    representation_size: int = 224
    weight: float = 0.1
    motionless: float = 0.05

    def __post_init__(self):
        if self.flow not in ESTIMATORS:
            raise ValueError(f"flow: got {self.flow!r}, wants one of {', '.join(ESTIMATORS)}")
        if self.representation not in REPRESENTATIONS:
            raise ValueError(f"representation: got {self.representation!r}, wants one of {', '.join(REPRESENTATIONS)}")
        if self.representation == "dino" and not self.representation_weights:
            raise ValueError("representation_weights: got none, wants the folder or hub name of a DINO encoder")
        if self.flow == "raft" and self.representation != "none" and not self.flow_weights:
            raise ValueError("flow_weights: got none, wants a file of RAFT weights or a name that torchvision knows")
        if self.representation_size < 1:
            raise ValueError(f"representation_size: got {self.representation_size}, wants 1 pixel or more")
        if self.weight < 0:
            raise ValueError(f"weight: got {self.weight}, wants 0 or more")
        if self.motionless < 0:
            raise ValueError(f"motionless: got {self.motionless}, wants 0 or more pixels a frame")


def alignment_targets(
    frames: np.ndarray, latent_frames: int, grid: tuple[int, int], settings: AlignmentSettings | None = None
) -> dict[str, Tensor] | None:
    """The alignment target of one clip.

    frames: uint8 (T, H, W, 3) RGB. latent_frames: F, how many latent frames the VAE makes of them (see `latent_flows`).
    grid: the denoiser's hidden tokens (h, w) of a frame, that is latents divided by its patch size.
    Returns {"target": float32 (layers, F, h*w, channels), "mask": bool (F, h*w), False where nothing moves}. A clip of
    one latent frame has no motion: its target is zero and its mask empty. None if the representation is "none".
    Raises ValueError for frames that do not make that many latents.
    """
    settings = settings or AlignmentSettings()
    if settings.representation == "none":
        return None
    if latent_frames == 1:
        layers, channels = _layers_and_channels(settings)
        tokens = grid[0] * grid[1]
        return {
            "target": torch.zeros(layers, 1, tokens, channels),
            "mask": torch.zeros(1, tokens, dtype=torch.bool),
        }
    owned = latent_flows(len(frames), latent_frames)
    flows = estimate_flow(frames, settings.flow, settings.flow_weights)
    mean_flows = np.stack([flows[first:last].mean(0) for first, last in owned])
    if settings.representation == "flow":
        target = flow_statistics(mean_flows, grid)
    else:
        target = encoder_features(mean_flows, grid, settings.representation_weights, settings.representation_size)
    return {"target": target, "mask": _moving(mean_flows, grid, settings.motionless)}


def load_alignment_weights(settings: AlignmentSettings) -> None:
    """Loads what `alignment_targets` needs beside the frames, so that weights that do not fit are told before any work.

    Raises ValueError for weights or libraries that are missing or do not fit; does nothing where none are needed.
    """
    if settings.representation == "none":
        return
    if settings.flow == "raft":
        load_raft(settings.flow_weights)
    if settings.representation == "dino":
        load_encoder(settings.representation_weights)


def latent_flows(num_frames: int, latent_frames: int) -> list[tuple[int, int]]:
    """Which flows each latent frame averages: F ranges (first, last + 1) of flow numbers, flow k from frame k to k + 1.

    A latent owns the flows that leave its own pixel frames. Of 8k frames the VAE makes 2k latents: latent f owns frames
    4f to 4f + 3. Of 8k + 1 it makes 2k + 1: latent 0 owns frame 0, latent f frames 4f - 3 to 4f. One more frame than
    that may follow, so that the last frame has a flow too. One latent owns no flow.
    Raises ValueError for frames that do not make that many latents.
    """
    if latent_frames == 1:
        return []
    before_first = 3 if latent_frames % 2 else 0
    wanted = 4 * latent_frames - before_first
    if latent_frames < 1 or num_frames not in (wanted, wanted + 1):
        raise ValueError(
            f"frames: got {num_frames} for {latent_frames} latent frames, wants {wanted}, or {wanted + 1} of which the "
            "last only serves the flow"
        )
    starts = [max(4 * f - before_first, 0) for f in range(latent_frames + 1)]
    return [(first, min(last, num_frames - 1)) for first, last in zip(starts[:-1], starts[1:], strict=True)]


def _moving(flows: np.ndarray, grid: tuple[int, int], motionless: float) -> Tensor:
    """bool (F, h*w): where the mean length of the flow over a token is at least `motionless` pixels."""
    length = torch.from_numpy(np.hypot(flows[..., 0], flows[..., 1])).float()
    return (F.adaptive_avg_pool2d(length[:, None], grid) >= motionless).flatten(1)


def _layers_and_channels(settings: AlignmentSettings) -> tuple[int, int]:
    if settings.representation == "flow":
        return len(RADII), len(STATISTICS)
    config = load_encoder(settings.representation_weights).config
    return config.num_hidden_layers, config.hidden_size
