"""The Mamba-2 mixer as a ready layer over a grid of tokens: two projections around `path_scan`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medsora_ops import checks
from medsora_ops.paths import PLANES, SPIRAL_VARIANTS, ScanPath, spiral_order
from medsora_ops.scan import path_scan

WALKS = (*PLANES, "temporal", "raster")
NO_LIMIT = (0.0, math.inf)  # mamba_ssm's dt_limit when it limits nothing


class GridMamba2(nn.Module):
    """A Mamba-2 layer that walks over the tokens of a video along chosen paths, both ways by default.

    d_model: width of the tokens. expand * d_model = E channels are scanned, in heads of `head_dim`.
    d_state, n_groups, d_conv: state size, groups that share B and C, taps of the convolution.
    walks: the paths taken when `forward` is given a grid: any of "fw", "fh", "hw" (planes, along spiral `variant`),
        "temporal" and "raster". Their results are summed, as are the two directions.
    bidirectional: also scan each path from its end.
    conv_bias, eps: as in mamba_ssm. norm_group_size: channels the RMSNorm runs over, all E if None.

    Parameters bear the names of mamba_ssm's Mamba2 layer, whose weights `load_mamba2` and `from_mamba2` take.
    Raises ValueError for sizes that do not divide or an unknown walk. (Dao and Gu, arXiv 2405.21060.)
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        expand: float = 2,
        head_dim: int = 64,
        n_groups: int = 1,
        d_conv: int = 4,
        *,
        walks: Sequence[str] = ("fw", "fh"),
        variant: int = 0,
        bidirectional: bool = True,
        conv_bias: bool = True,
        eps: float = 1e-5,
        norm_group_size: int | None = None,
    ):
        super().__init__()
        width = round(expand * d_model)
        checks.divisor("head_dim", head_dim, width, "the inner width expand * d_model")
        heads = width // head_dim
        checks.divisor("n_groups", n_groups, heads, "the number of heads")
        if not walks or not set(walks) <= set(WALKS):
            raise ValueError(f"walks: got {tuple(walks)!r}, wants some of {', '.join(WALKS)}")
        if variant not in range(SPIRAL_VARIANTS):
            raise ValueError(f"variant: got {variant!r}, wants an integer from 0 to {SPIRAL_VARIANTS - 1}")
        self.head_dim, self.n_groups, self.bidirectional = head_dim, n_groups, bidirectional
        self.walks, self.variant, self.eps, self.norm_group_size = tuple(walks), variant, eps, norm_group_size
        mixed = width + 2 * n_groups * d_state
        self.in_proj = nn.Linear(d_model, width + mixed + heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, d_conv, groups=mixed, bias=conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = nn.RMSNorm(width, eps)
        self.out_proj = nn.Linear(width, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A from U(-16, -1), time steps log-uniform in [0.001, 0.1], D = 1, projections Xavier."""
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
            step = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
            self.D.fill_(1)
            self.norm.weight.fill_(1)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        self.conv1d.reset_parameters()

    def forward(self, x: Tensor, grid: tuple[int, int, int] | ScanPath | tuple[ScanPath, ...]) -> Tensor:
        """Mix tokens along paths.

        x: (B, F*H*W, d_model). grid: (F, H, W), walked as `walks` says, or the path or paths to take instead.
            Under torch.compile(fullgraph=True) give paths: they cannot be made while a graph is recorded.
        Returns (B, F*H*W, d_model). Raises ValueError for tokens of another grid.
        """
        if isinstance(grid, ScanPath):
            paths = (grid,)
        elif grid and isinstance(grid[0], ScanPath):
            paths = tuple(grid)
        else:
            paths = _walks_over(self.walks, self.variant, tuple(grid))
        outputs = path_scan(
            self.in_proj(x),
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.dt_bias,
            -self.A_log.float().exp() if self.A_log.dtype != torch.float64 else -self.A_log.exp(),
            self.D,
            self.norm.weight,
            paths,
            head_dim=self.head_dim,
            groups=self.n_groups,
            bidirectional=self.bidirectional,
            eps=self.eps,
            norm_group_size=self.norm_group_size,
        )
        # out_proj is linear and has no bias: summing before it is exact and runs it once.
        return self.out_proj(functools.reduce(torch.add, outputs))

    def load_mamba2(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take the weights of a mamba_ssm Mamba2 layer of this shape.

        Raises ValueError naming the parameters that are missing, too many (such as projection biases) or misshapen.
        """
        own = self.state_dict()
        missing, extra = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
        if missing or extra:
            raise ValueError(
                f"state_dict: got the wrong parameters for a GridMamba2: missing {missing}, not known {extra}"
            )
        for name, value in own.items():
            if state_dict[name].shape != value.shape:
                got, wanted = tuple(state_dict[name].shape), tuple(value.shape)
                raise ValueError(f"state_dict[{name!r}]: got shape {got}, wants {wanted}")
        self.load_state_dict(state_dict)

    @classmethod
    def from_mamba2(
        cls, layer: nn.Module | Mapping[str, Tensor], *, n_groups: int | None = None, **options
    ) -> GridMamba2:
        """A GridMamba2 with the sizes and weights of a mamba_ssm Mamba2 layer, or of its state_dict.

        n_groups: its `ngroups`; read from a layer, else 1. options: walks, variant, bidirectional, eps.
        The layer must have rmsnorm=True, norm_before_gate=False, no dt_limit and no projection biases; a state_dict
        cannot tell norm_before_gate and dt_limit. Along one forward-only path the result agrees with the layer.
        Raises ValueError for a layer that has no such form.
        """
        state_dict = layer.state_dict() if isinstance(layer, nn.Module) else layer
        if isinstance(layer, nn.Module):
            n_groups = getattr(layer, "ngroups", 1) if n_groups is None else n_groups
            norm = getattr(layer, "norm", None)
            if getattr(norm, "norm_before_gate", False):
                raise ValueError("layer: got norm_before_gate=True, wants False, the norm after the gate")
            limit = tuple(getattr(layer, "dt_limit", NO_LIMIT))
            if limit != NO_LIMIT:
                raise ValueError(f"layer: got dt_limit={limit}, wants (0.0, inf): time steps are not clamped here")
            options.setdefault("eps", getattr(norm, "eps", 1e-5))
        n_groups = 1 if n_groups is None else n_groups
        needed = ("in_proj.weight", "conv1d.weight", "dt_bias", "A_log", "D", "norm.weight", "out_proj.weight")
        missing = [name for name in needed if name not in state_dict]
        if missing:
            raise ValueError(f"layer: got a layer without {', '.join(missing)}, wants a Mamba2 with rmsnorm=True")
        d_model, width = state_dict["out_proj.weight"].shape
        mixed, _, taps = state_dict["conv1d.weight"].shape
        made = cls(
            d_model,
            (mixed - width) // (2 * n_groups),
            width / d_model,
            width // len(state_dict["dt_bias"]),
            n_groups,
            taps,
            conv_bias="conv1d.bias" in state_dict,
            norm_group_size=width // n_groups,
            **options,
        )
        made.load_mamba2(state_dict)
        # Again by assignment: each parameter keeps its own type (A_log often stays float32 in a half-type layer).
        made.load_state_dict({name: value.detach().clone() for name, value in state_dict.items()}, assign=True)
        return made


@functools.lru_cache(maxsize=256)
def _walks_over(walks: tuple[str, ...], variant: int, grid: tuple[int, int, int]) -> tuple[ScanPath, ...]:
    def walk(kind):
        if kind == "temporal":
            return ScanPath.temporal(grid)
        if kind == "raster":
            return ScanPath.raster(grid)
        frames, height, width = grid
        rows, cols = {"fw": (frames, width), "fh": (frames, height), "hw": (height, width)}[kind]
        return ScanPath.plane(kind, grid, spiral_order(rows, cols, variant))

    return tuple(walk(kind) for kind in walks)
