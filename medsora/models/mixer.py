"""The Mamba-2 mixers of a block: one walks planes of the token grid (space), the other walks time at each position.

Both project the tokens once, scan them along `medsora_ops` paths (no permuted copy), and project back. The two
directions of a path, and all paths of a family, are summed before the output projection, which is linear.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from medsora_ops import ScanPath, path_scan, spiral_order

SCAN_ORDERS = ("spiral", "raster", "released")
PLANES = ("fw", "fh", "hw")
CONV_WIDTH = 4
SPIRALS = 8


class Mamba2(nn.Module):
    """Mamba-2 (Dao & Gu 2024) over a token grid: in_proj, scans along paths, out_proj; neither map has a bias.

    hidden_size: width D of the tokens; the inner width is E = 2D. state_size: N. head_dim: P, a divisor of E.
    """

    def __init__(self, hidden_size: int, state_size: int, head_dim: int):
        super().__init__()
        inner = 2 * hidden_size
        if head_dim < 1 or inner % head_dim:
            raise ValueError(f"head_dim: got {head_dim}, wants a divisor of twice the hidden size, {inner}")
        if state_size < 1:
            raise ValueError(f"state_size: got {state_size}, wants 1 or more")
        heads, convolved = inner // head_dim, inner + 2 * state_size
        self.head_dim = head_dim
        self.in_proj = nn.Linear(hidden_size, inner + convolved + heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(convolved, CONV_WIDTH))
        self.conv_bias = nn.Parameter(torch.empty(convolved))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm_weight = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, hidden_size, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A uniform in [-16, -1], step sizes log-uniform in [0.001, 0.1], D = 1, linear maps Xavier."""
        for linear in (self.in_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
        # PyTorch's default for a depthwise convolution: fan-in is the kernel width alone.
        for parameter in (self.conv_weight, self.conv_bias):
            nn.init.uniform_(parameter, -(CONV_WIDTH**-0.5), CONV_WIDTH**-0.5)
        self.A_log.uniform_(1, 16).log_()
        step = torch.empty_like(self.dt_bias).uniform_(math.log(0.001), math.log(0.1)).exp_()
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm_weight)

    def forward(self, u: Tensor, families: tuple[tuple[ScanPath, ...], ...], bidirectional: bool) -> tuple[Tensor, ...]:
        """Scans along every path of every family from one projection of the tokens.

        u: (B, F*H*W, D). families: tuples of paths over the grid (F, H, W); the scans of a family are summed.
        bidirectional: walk each path from both ends. Returns one (B, F*H*W, D) tensor a family.
        """
        zxbcdt = self.in_proj(u)
        # What decides decays keeps float32 at least, whatever the tokens' type.
        wide = torch.promote_types(zxbcdt.dtype, torch.float32)
        scanned = path_scan(
            zxbcdt,
            self.conv_weight,
            self.conv_bias,
            self.dt_bias.to(wide),
            -torch.exp(self.A_log.to(wide)),
            self.D.to(wide),
            self.norm_weight,
            tuple(path for family in families for path in family),
            head_dim=self.head_dim,
            bidirectional=bidirectional,
        )
        remaining = iter(scanned)
        return tuple(self.out_proj(add_up(next(remaining) for _ in family)) for family in families)


class SpatialMixer(nn.Module):
    """Scans families of planes in both directions and fuses them by gates: sum of sigmoid(W_k y_k + c_k) * y_k.

    planes: families to scan, of "fw" (frame x width), "fh" (frame x height) and "hw" (height x width).
    A single family needs no fusion and has no gate.
    scan_order: "spiral", "raster" or "released" (see `plane_paths`). variant: which spiral, 0 to 7.
    """

    def __init__(
        self, hidden_size: int, state_size: int, head_dim: int, planes: tuple[str, ...], scan_order: str, variant: int
    ):
        super().__init__()
        if not planes or len(set(planes)) != len(planes) or not set(planes) <= set(PLANES):
            raise ValueError(f"planes: got {planes!r}, wants one or more of {', '.join(PLANES)}, each once")
        if scan_order not in SCAN_ORDERS:
            raise ValueError(f"scan_order: got {scan_order!r}, wants one of {', '.join(SCAN_ORDERS)}")
        self.planes, self.scan_order, self.variant = tuple(planes), scan_order, variant
        self._known_families: dict[tuple[int, int, int], tuple[tuple[ScanPath, ...], ...]] = {}
        self.mamba = Mamba2(hidden_size, state_size, head_dim)
        self.gates = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in planes if len(planes) > 1)

    def forward(self, u: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """u: (B, F*H*W, D) over grid (F, H, W) -> (B, F*H*W, D)."""
        scanned = self.mamba(u, self.families(grid), bidirectional=self.scan_order != "released")
        if len(scanned) == 1:
            return scanned[0]
        return add_up(torch.sigmoid(gate(y)) * y for gate, y in zip(self.gates, scanned, strict=True))

    def families(self, grid: tuple[int, int, int]) -> tuple[tuple[ScanPath, ...], ...]:
        """The paths of each plane family. Kept in a plain dictionary, where a compiled function can find them."""
        if grid not in self._known_families:
            self._known_families[grid] = tuple(
                plane_paths(kind, grid, self.scan_order, self.variant) for kind in self.planes
            )
        return self._known_families[grid]


class TemporalMixer(nn.Module):
    """Scans the F tokens of each grid position forward in time, or in both directions."""

    def __init__(self, hidden_size: int, state_size: int, head_dim: int, bidirectional: bool):
        super().__init__()
        self.bidirectional = bidirectional
        self._known_families: dict[tuple[int, int, int], tuple[tuple[ScanPath, ...], ...]] = {}
        self.mamba = Mamba2(hidden_size, state_size, head_dim)

    def forward(self, u: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """u: (B, F*H*W, D) over grid (F, H, W) -> (B, F*H*W, D)."""
        return self.mamba(u, self.families(grid), self.bidirectional)[0]

    def families(self, grid: tuple[int, int, int]) -> tuple[tuple[ScanPath, ...], ...]:
        """One family of one path, kept like those of the spatial mixer."""
        if grid not in self._known_families:
            self._known_families[grid] = ((temporal_path(grid),),)
        return self._known_families[grid]


def add_up(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of one tensor or more. Python's `sum` begins by adding zero to the first, a pass over all of it."""
    return functools.reduce(torch.add, tensors)


@functools.lru_cache(maxsize=512)
def plane_paths(kind: str, grid: tuple[int, int, int], scan_order: str, variant: int) -> tuple[ScanPath, ...]:
    """The paths over one family of planes.

    "spiral": spiral `variant` of each plane, rim to centre. "raster": row by row. Both are meant for two directions.
    "released": what the released code walks instead of spiral o, in one direction each: rank = argsort(o), and its
    point reflection L - 1 - rank. Kept to reproduce its weights; neither is a spiral.
    """
    if scan_order == "raster":
        return (ScanPath.plane(kind, grid),)
    frames, height, width = grid
    rows, cols = {"fw": (frames, width), "fh": (frames, height), "hw": (height, width)}[kind]
    order = spiral_order(rows, cols, variant % SPIRALS)
    if scan_order == "spiral":
        return (ScanPath.plane(kind, grid, order),)
    rank = torch.argsort(order)
    return (ScanPath.plane(kind, grid, rank), ScanPath.plane(kind, grid, len(rank) - 1 - rank))


@functools.lru_cache(maxsize=64)
def temporal_path(grid: tuple[int, int, int]) -> ScanPath:
    """One sequence of F tokens for each position."""
    return ScanPath.temporal(grid)
