"""What is scanned: how many sequences of which length, along which paths, and what that takes at least."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.work import PASSES, Work, path_scan_work
from medsora_ops import ScanPath, spiral_order

NAMES = ("zxbcdt", "conv_weight", "conv_bias", "dt_bias", "A", "D", "norm_weight")
TAPS = 4  # of the convolution


@dataclass(frozen=True)
class Scale:
    """How large everything is: the sizes of a model for a GPU, or small ones that the interpreter can do.

    width: E. copied, matrix, exponentials: bytes, side and chain length of what measures the limits.
    """

    width: int = 1024
    state: int = 128
    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16
    copied: int = 1 << 30
    matrix: int = 8192
    exponentials: int = 4096

    @property
    def heads(self) -> int:
        return self.width // self.head_dim

    @property
    def mixed(self) -> int:
        return self.width + 2 * self.state


GPU_SCALE = Scale()
# float32: half types are not what they are on a GPU in Triton's interpreter.
TINY_SCALE = Scale(32, 16, 16, torch.float32, copied=1 << 20, matrix=64, exponentials=8)


@dataclass(frozen=True)
class Shape:
    """Videos on one grid and the paths over it, all scanned in both directions by one call."""

    name: str
    videos: int
    paths: tuple[ScanPath, ...]
    scale: Scale

    @property
    def tokens(self) -> int:
        """Of all videos."""
        return self.videos * math.prod(self.paths[0].grid)

    def inputs(self, device: torch.device, seed: int = 0, videos: int | None = None) -> dict[str, Tensor]:
        """Tokens of unit variance; float32 parameters, distributed as the mixers of the model begin with."""
        drawn = torch.Generator(device=device).manual_seed(seed)
        scale, tokens = self.scale, math.prod(self.paths[0].grid)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.rand(shape, generator=drawn, device=device) * (high - low) + low

        step = uniform(math.log(0.001), math.log(0.1), scale.heads).exp()
        parameters = (
            uniform(-0.5, 0.5, scale.mixed, TAPS),
            uniform(-0.5, 0.5, scale.mixed),
            step + torch.log(-torch.expm1(-step)),
            -uniform(1, 16, scale.heads),
            uniform(0.5, 1.5, scale.heads),
            uniform(0.5, 1.5, scale.width),
        )
        sizes = (self.videos if videos is None else videos, tokens, scale.width + scale.mixed + scale.heads)
        rows = torch.randn(sizes, generator=drawn, device=device, dtype=scale.dtype)
        return dict(zip(NAMES, (rows, *parameters), strict=True))

    def gradients(self, device: torch.device, seed: int, videos: int | None = None) -> list[Tensor]:
        """Of each output."""
        drawn = torch.Generator(device=device).manual_seed(seed + 1000)
        sizes = (self.videos if videos is None else videos, math.prod(self.paths[0].grid), self.scale.width)
        return [torch.randn(sizes, generator=drawn, device=device, dtype=self.scale.dtype) for _ in self.paths]

    def work(self, passes: str) -> Work:
        """The bytes, operations and exponentials that no implementation does without.

        For one path as `path_scan_work` counts them (harness/work.py): a token and direction of a forward pass
            bytes         element size * (2 E + 2 N + nh read and E written), for both directions together
            operations    2 taps (E + 2 N) of the convolution, and of a chunk of q tokens (q + 1) (E + N) for the
                          scores and their product with x, plus 2 * 2 N E for the state where there are several chunks,
                          at the best q: the quadratic form for short sequences
            exponentials  E + 2 N of SiLU and nh decays; once for both directions E of the gate and 2 nh of softplus
        A pass back reads rows and d(out), writes d(rows), takes three times the operations and again the exponentials.
        A sigmoid counts as one exponential, as a tanh on the special-function units makes it, though the kernels take
        two for accuracy; the decays of pairs of tokens do not count at all, since a form without them exists. Several
        paths read the rows once, write d(rows) once and share gate and softplus, which belong to a token and not to a
        path.
        """
        backward = passes == PASSES[1]
        one = [
            path_scan_work(
                self.videos * path.sequences,
                path.length,
                width=self.scale.width,
                state=self.scale.state,
                head_dim=self.scale.head_dim,
                taps=TAPS,
                directions=2,
                element_size=self.scale.dtype.itemsize,
                backward=backward,
            )
            for path in self.paths
        ]
        shared, size = len(self.paths) - 1, self.scale.dtype.itemsize
        rows = self.tokens * size * (self.scale.width + self.scale.mixed + self.scale.heads)
        gates = self.tokens * (self.scale.width + 2 * self.scale.heads)
        return Work(
            bytes=sum(work.bytes for work in one) - shared * rows * (3 if backward else 1),
            operations=sum(work.operations for work in one),
            exponentials=sum(work.exponentials for work in one) - shared * gates * (2 if backward else 1),
        )


def shapes(quick: bool = False) -> list[Shape]:
    """Those of a run on a GPU, those that say most first; with `quick` a few that end within two minutes."""
    found = []
    for sequences in (512, 4096, 128, 1024):
        for length in (48, 32):
            grid = (length // 8, 8, 8)
            videos = sequences // 8
            planes = tuple(ScanPath.plane(kind, grid, spiral_order(length // 8, 8)) for kind in ("fw", "fh"))
            found.append(Shape(f"{sequences} x {length}, fw and fh", videos, planes, GPU_SCALE))
            times = (ScanPath.temporal(grid),)
            found.append(Shape(f"{sequences * 8} x {length // 8}, temporal", videos, times, GPU_SCALE))
    for length, frames, videos in ((128, 8, 32), (256, 16, 16)):  # taken whole too, but block by block
        grid = (frames, 16, 16)
        planes = tuple(ScanPath.plane(kind, grid, spiral_order(frames, 16)) for kind in ("fw", "fh"))
        found.append(Shape(f"{videos * 16} x {length}, fw and fh", videos, planes, GPU_SCALE))
    found[4:4] = [
        Shape("8 x 4096, raster", 8, (ScanPath.raster((16, 16, 16)),), GPU_SCALE),
        Shape("1 x 65536, raster", 1, (ScanPath.raster((16, 64, 64)),), GPU_SCALE),
    ]
    kept = ("512 x 48,", "4096 x 6,", "8 x 4096,")
    return [shape for shape in found if shape.name.startswith(kept)] if quick else found


def tiny_shapes() -> list[Shape]:
    """A short and a long one for the interpreter: it takes them the ways that it takes the large ones."""
    planes = tuple(ScanPath.plane(kind, (1, 2, 2)) for kind in ("fw", "fh"))
    return [
        Shape("4 x 2, fw and fh", 2, planes, TINY_SCALE),
        Shape("1 x 288, raster", 1, (ScanPath.raster((2, 12, 12)),), TINY_SCALE),
    ]
