"""In which order a scan visits the tokens of a video, as a table of offsets and a stride instead of a copy.

Tokens of a grid (F, H, W) are numbered `f*H*W + h*W + w`. A `ScanPath` cuts the grid into equal sequences;
`token(n, s) = n * stride + offsets[s]` is the s-th token of sequence n.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

PLANES = ("fw", "fh", "hw")
SPIRAL_VARIANTS = 8


def _never_traced(function: Callable) -> Callable:
    """Like torch.compiler.disable, without its second of import time in programs that compile nothing.

    A compiled function may use paths; it makes them in a graph break (so not with fullgraph=True).
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return run


@_never_traced
def raster_order(rows: int, cols: int) -> torch.Tensor:
    """Visit a plane row by row, each from the left: int64 (rows * cols) flat cell numbers `r * cols + c`."""
    _check_plane(rows, cols)
    return torch.arange(rows * cols)


@_never_traced
def snake_order(rows: int, cols: int) -> torch.Tensor:
    """Visit a plane row by row, every second row from the right: int64 (rows * cols), each step to a neighbour."""
    _check_plane(rows, cols)
    cells = np.arange(rows * cols).reshape(rows, cols)
    cells[1::2] = cells[1::2, ::-1].copy()
    return torch.from_numpy(cells.reshape(-1))


@_never_traced
def spiral_order(rows: int, cols: int, variant: int = 0) -> torch.Tensor:
    """Visit a plane along a spiral from the rim to the centre, each step to a neighbour.

    rows, cols: size of the plane, each at least 1.
    variant: 0..7. 0 to 3 start clockwise (right along the top row), 4 to 7 counter-clockwise (down the left column);
        within each four the cells are mirrored not at all, left-right, top-bottom, both. Thin planes have fewer
        distinct spirals.
    Returns int64 (rows * cols): the flat number `r * cols + c` of the cell visited at each step.
    Raises ValueError for an empty plane or an unknown variant.
    """
    _check_plane(rows, cols)
    if variant not in range(SPIRAL_VARIANTS):
        raise ValueError(f"variant: got {variant!r}, wants an integer from 0 to {SPIRAL_VARIANTS - 1}")
    return torch.from_numpy(_spiral(int(rows), int(cols), int(variant)).copy())


@functools.lru_cache(maxsize=256)
def _spiral(rows: int, cols: int, variant: int) -> np.ndarray:
    cells = np.arange(rows * cols).reshape(rows, cols)
    if variant % 4 in (1, 3):
        cells = cells[:, ::-1]
    if variant % 4 in (2, 3):
        cells = cells[::-1]
    if variant >= 4:
        cells = cells.T
    walked = []
    while cells.size:
        walked.append(cells[0])
        cells = cells[1:].T[::-1]  # what is left, turned so that its next side is the top row
    return np.concatenate(walked)


@dataclass(frozen=True)
class ScanPath:
    """A way to walk over every token of a grid exactly once. Made by `plane`, `temporal` and `raster`.

    grid: (F, H, W), the token grid, each at least 1.
    sequences, length: number S of sequences a video is cut into and the tokens L of each; S * L = F * H * W.
    stride: from the tokens of one sequence to those of the next.
    table: the offsets of one sequence, L native int32 numbers as bytes.
    Equal paths compare and hash equal, so a path can key a cache.
    """

    grid: tuple[int, int, int]
    sequences: int
    length: int
    stride: int
    table: bytes = field(repr=False)
    _on_device: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        offsets = np.frombuffer(self.table, dtype=np.int32)
        if len(offsets) != self.length or self.stride < 0:
            raise ValueError(
                f"table: got {len(offsets)} offsets and a stride of {self.stride}, wants a length of {self.length} and"
                " a stride of at least 0"
            )
        tokens = offsets + np.arange(self.sequences)[:, None] * self.stride
        if not np.array_equal(np.sort(tokens, axis=None), np.arange(math.prod(self.grid))):
            raise ValueError(f"table: got a walk that does not visit each token of the grid {self.grid} exactly once")
        self.offsets("cpu")  # now, so that a compiled function finds it

    @classmethod
    @_never_traced
    def plane(cls, kind: str, grid: Sequence[int], order: Sequence[int] | torch.Tensor | None = None) -> ScanPath:
        """Cut the grid into planes, each one sequence.

        kind: "fw" (H planes of frame x width), "fh" (W planes of frame x height) or "hw" (F planes of height x width).
        grid: (F, H, W).
        order: the visiting order of a plane, a permutation of its flat cell numbers (row * columns + column) as a
            list, array or tensor; such as `spiral_order(rows, cols, variant)`. Row by row if None.
        Raises ValueError for an unknown kind, an empty grid, or an order that is no permutation of the plane.
        """
        frames, height, width = grid = _check_grid(grid)
        if kind == "fw":
            rows, cols, row_step, col_step, sequences, stride = frames, width, height * width, 1, height, width
        elif kind == "fh":
            rows, cols, row_step, col_step, sequences, stride = frames, height, height * width, width, width, 1
        elif kind == "hw":
            rows, cols, row_step, col_step, sequences, stride = height, width, width, 1, frames, height * width
        else:
            raise ValueError(f"kind: got {kind!r}, wants one of {', '.join(PLANES)}")
        cells = np.arange(rows * cols) if order is None else _check_order(order, rows, cols)
        return cls._make(grid, sequences, stride, cells // cols * row_step + cells % cols * col_step)

    @classmethod
    @_never_traced
    def temporal(cls, grid: Sequence[int]) -> ScanPath:
        """One sequence of F tokens for each of the H * W positions. Raises ValueError for an empty grid."""
        frames, height, width = grid = _check_grid(grid)
        return cls._make(grid, height * width, 1, np.arange(frames) * (height * width))

    @classmethod
    @_never_traced
    def raster(cls, grid: Sequence[int]) -> ScanPath:
        """One sequence of all F * H * W tokens in their own order. Raises ValueError for an empty grid."""
        frames, height, width = grid = _check_grid(grid)
        return cls._make(grid, 1, frames * height * width, np.arange(frames * height * width))

    @classmethod
    def _make(cls, grid: tuple[int, int, int], sequences: int, stride: int, offsets: np.ndarray) -> ScanPath:
        return cls(grid, sequences, len(offsets), stride, offsets.astype(np.int32).tobytes())

    def offsets(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The offsets of one sequence: int32 (L) on `device`, made once a device. Not to be written to."""
        key = torch.device(device)
        known = self._on_device.get(key)
        if known is not None:
            return known
        with torch.inference_mode(False):  # a table made under inference mode could not be saved for a backward pass
            if key.type == "cpu":
                made = torch.from_numpy(np.frombuffer(self.table, dtype=np.int32).copy())
            else:
                made = self.offsets("cpu").to(key)
        if type(made) is torch.Tensor:  # not a stand-in of a tracer, which must not outlive the trace
            self._on_device[key] = made
        return made

    def tokens(self) -> torch.Tensor:
        """Token numbers in visiting order: int64 (S, L) on the CPU."""
        first = torch.arange(self.sequences)[:, None] * self.stride
        return first + torch.from_numpy(np.frombuffer(self.table, dtype=np.int32).astype(np.int64))


def _check_plane(rows: int, cols: int) -> None:
    for name, size in (("rows", rows), ("cols", cols)):
        if int(size) != size or size < 1:
            raise ValueError(f"{name}: got {size!r}, wants an integer of at least 1")


def _check_grid(grid: Sequence[int]) -> tuple[int, int, int]:
    sizes = tuple(int(size) for size in grid)
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"grid: got {tuple(grid)!r}, wants three sizes (frames, height, width) of at least 1")
    if math.prod(sizes) > np.iinfo(np.int32).max:
        raise ValueError(f"grid: got {sizes!r}, wants at most {np.iinfo(np.int32).max} tokens")
    return sizes


def _check_order(order: Sequence[int] | torch.Tensor, rows: int, cols: int) -> np.ndarray:
    cells = np.asarray(order.detach().cpu() if isinstance(order, torch.Tensor) else order)
    if cells.ndim != 1 or len(cells) != rows * cols or cells.dtype.kind not in "iu":
        raise ValueError(
            f"order: got {cells.dtype} of shape {cells.shape}, wants {rows * cols} integers in one dimension,"
            f" the cells of a plane of {rows} x {cols}"
        )
    cells = cells.astype(np.int64)
    if not np.array_equal(np.sort(cells), np.arange(rows * cols)):
        raise ValueError(f"order: wants each of the cells 0 to {rows * cols - 1} exactly once, got others or repeats")
    return cells
