"""What the denoiser is told besides the noisy latents: where a token sits, how noisy it is, what the video shows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 128


class TimestepEmbedding(nn.Module):
    """Sinusoid of 2 * 128 numbers, computed in float32, then linear, SiLU, linear to the hidden width."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.enter = nn.Linear(2 * FREQUENCIES, hidden_size)
        self.leave = nn.Linear(hidden_size, hidden_size)

    def forward(self, timestep: Tensor) -> Tensor:
        """timestep: (B,) integers or floats -> (B, D)."""
        return self.leave(nn.functional.silu(self.enter(sinusoid(timestep).to(self.enter.weight.dtype))))


def sinusoid(timestep: Tensor) -> Tensor:
    """cat[cos, sin] of timestep * exp(-ln(10000) k / 128), k = 0..127: float32 (B, 256) for timestep (B,)."""
    k = torch.arange(FREQUENCIES, device=timestep.device, dtype=torch.float32)
    angle = timestep.float()[:, None] * torch.exp(-math.log(10000.0) * k / FREQUENCIES)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def position_table(height: int, width: int, hidden_size: int) -> Tensor:
    """Fixed 2-D positions [sin(x w), cos(x w), sin(y w), cos(y w)]: float32 (height * width, hidden_size).

    Raster order; x is the column, y the row, w = 10000^(-k / (D/4)) with k = 0..D/4 - 1.
    """
    quarter = hidden_size // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    angles = [torch.outer(position.flatten(), frequency) for position in (x, y)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


class LabelEmbedding(nn.Module):
    """One vector a class, and one for "no label", which has number `num_classes`."""

    def __init__(self, num_classes: int, hidden_size: int):
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, labels: Tensor | None, batch: int) -> Tensor:
        """labels: int64 (B,) in [0, num_classes], or None for "no label" -> (B, D)."""
        if labels is None:
            labels = torch.full((batch,), self.num_classes, device=self.table.weight.device)
        return self.table(labels)
