"""How far hidden tokens are from a motion target: 1 - Pearson correlation over channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VARIANCE_FLOOR = 1e-6


def alignment_pairs(depth: int, layers: int) -> list[tuple[int, int]]:
    """Which block meets which feature layer, as (block, layer).

    One layer meets the middle block, depth // 2. Else every block i of `depth` meets layer round(i layers / depth)
    where there are more layers than blocks (Python's round, as released), else floor(i layers / depth).
    """
    if depth < 1 or layers < 1:
        raise ValueError(f"depth, layers: got {depth} and {layers}, wants 1 or more of each")
    if layers == 1:
        return [(depth // 2, 0)]
    return [(block, paired_layer(block, depth, layers)) for block in range(depth)]


def paired_layer(block: int, depth: int, layers: int) -> int:
    """The feature layer that the released map gives to a block."""
    return round(block * layers / depth) if layers > depth else int(block / (depth / layers))


class AlignmentProjector(nn.Module):
    """A 3-layer MLP for each (block, layer) pair, from hidden to feature width (as in REPA, Yu et al. 2024).

    hidden_size: width of hidden tokens. channels: width of features. pairs: as from `alignment_pairs`.
    Trained with the denoiser and checkpointed with it; not part of the exported model.
    """

    def __init__(self, hidden_size: int, channels: int, pairs: Sequence[tuple[int, int]]):
        super().__init__()
        self.pairs = [(int(block), int(layer)) for block, layer in pairs]
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Linear(hidden_size, hidden_size),
                nn.SiLU(),
                nn.Linear(hidden_size, hidden_size),
                nn.SiLU(),
                nn.Linear(hidden_size, channels),
            )
            for _ in self.pairs
        )

    def forward(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """hidden: a tensor (B, F, tokens, D) for each block -> one (B, F, tokens, channels) for each pair."""
        return [project(hidden[block]) for project, (block, _) in zip(self.projections, self.pairs, strict=True)]


def alignment_loss(hidden: Sequence[Tensor], target: Tensor, mask: Tensor, projector: AlignmentProjector) -> Tensor:
    """Mean of 1 - Pearson correlation over the moving tokens and the projector's pairs: float32 (B,), in [0, 2].

    hidden: `depth` tensors (B, F, tokens, D). target: (B, layers, F, tokens, channels). mask: bool (B, F, tokens).
    A sample without a moving token, such as an image, has loss 0 and gradient 0.
    Raises ValueError where target or mask do not fit the hidden tokens or the projector.
    """
    batch, frames, tokens = hidden[0].shape[:3]
    layers = 1 + max(layer for _, layer in projector.pairs)
    fits = target.dim() == 5 and (target.shape[0], *target.shape[2:4]) == (batch, frames, tokens)
    if not fits or target.shape[1] < layers:
        wanted = f"({batch}, {layers} layers or more, {frames}, {tokens}, channels)"
        raise ValueError(f"target: got shape {tuple(target.shape)}, wants {wanted}")
    if tuple(mask.shape) != (batch, frames, tokens):
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, wants {(batch, frames, tokens)}")
    moving = mask.to(torch.float32)
    count = moving.sum((1, 2)).clamp(min=1)
    losses = []
    for projected, (_, layer) in zip(projector(hidden), projector.pairs, strict=True):
        if projected.shape[-1] != target.shape[-1]:
            raise ValueError(f"target: got {target.shape[-1]} channels, wants {projected.shape[-1]}")
        wide = torch.promote_types(projected.dtype, torch.float32)
        distance = 1 - pearson(projected.to(wide), target[:, layer].to(wide))
        losses.append((distance * moving).sum((1, 2)) / count)
    return torch.stack(losses).mean(0)


def pearson(x: Tensor, y: Tensor, floor: float = VARIANCE_FLOOR) -> Tensor:
    """Correlation over the last axis, `floor` added to each variance so that constant tokens have correlation 0."""
    x = x - x.mean(-1, keepdim=True)
    y = y - y.mean(-1, keepdim=True)
    spread = ((x.square().mean(-1) + floor) * (y.square().mean(-1) + floor)).sqrt()
    return (x * y).mean(-1) / spread


def released_alignment_loss(features: Sequence[Tensor], tokens: Sequence[Tensor]) -> Tensor:
    """The released alignment term, for the record: a scalar, before its 1 / (t + 1) weight and hinge.

    features: for each encoder layer (B, flow frames, feature tokens, channels). tokens: for each block
    (B, latent frames, hidden tokens, width). Feature tokens are standardised over channels, averaged over all flow
    frames, and their (tokens, channels) matrix is resized like an image to (hidden tokens, width), so tokens meet
    features from elsewhere in the frame: see `alignment_loss` for what we train with.
    """
    losses = []
    for block, hidden in enumerate(tokens):
        feature = features[paired_layer(block, len(tokens), len(features))]
        feature = F.layer_norm(feature, feature.shape[-1:], eps=1e-6).mean(1)
        feature = F.interpolate(feature[:, None], size=hidden.shape[-2:], mode="bilinear", align_corners=False)
        hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6)
        losses.append((1 - pearson(hidden, feature, floor=0.0)).mean())
    return torch.stack(losses).mean()
