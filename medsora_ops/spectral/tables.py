"""The Fourier matrices that the Triton kernels multiply by: small tables, made once for a size and a device."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def fourier_tables(height: int, width: int, rows: int, padded: int, columns: int, device: torch.device) -> Tensor:
    """Orthonormal transforms of `height` x `width` images, float32, one behind the other, padded by zeros.

    [2, rows, rows]        cosines and sines along columns, block-diagonal, for the rows // height images of a pack
    [2, padded, columns]   along rows, to the real and the imaginary parts of the half spectrum
    [2, columns, padded]   back: what the real and the imaginary parts add to the image. Columns count twice, except 0
                           and, for even widths, width / 2, whose imaginary parts do not act.
    """
    if device.type == "meta":
        return torch.empty(1, device=device)
    packed, half = rows // height, width // 2 + 1
    along = torch.zeros(2, rows, rows, dtype=torch.float64)
    for part, wave in zip(along, _waves(height, height), strict=True):
        part[: packed * height, : packed * height] = torch.block_diag(*[wave] * packed)
    cosine, sine = _waves(width, half)
    column = torch.arange(half)
    times = 2.0 - ((column == 0) | (2 * column == width)).double()
    across = torch.zeros(2, padded, columns, dtype=torch.float64)
    across[0, :width, :half], across[1, :width, :half] = cosine, -sine
    back = torch.zeros(2, columns, padded, dtype=torch.float64)
    back[:, :half, :width] = across[:, :width, :half].mT * times[:, None]
    return torch.cat([table.flatten() for table in (along, across, back)]).to(device, torch.float32)


def _waves(points: int, frequencies: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi i k / points, divided by sqrt(points): (points, frequencies); zeros are exactly 0."""
    turn = torch.arange(points)[:, None] * torch.arange(frequencies) % points
    angle = turn.double() * (2 * torch.pi / points)
    sine = torch.where(2 * turn % points == 0, 0.0, angle.sin())
    cosine = torch.where((4 * turn % points == 0) & (2 * turn % points != 0), 0.0, angle.cos())
    return cosine / points**0.5, sine / points**0.5
