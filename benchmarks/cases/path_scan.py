"""`path_scan` from the few tokens of a temporal scan to the thousands of a whole video in one sequence."""

from __future__ import annotations

import functools
import math

import torch

from benchmarks.gpu.shapes import TAPS, Scale, Shape
from benchmarks.gpu.variants import path_scan_peers
from benchmarks.harness.case import Case, by_torch_compile, on_backends
from benchmarks.harness.work import PASSES, path_scan_work
from medsora_ops import ScanPath, path_scan, spiral_order, use_backend
from medsora_ops.scan import reference

WIDTH, STATE, HEAD_DIM = 1024, 128, 64
HEADS, MIXED = WIDTH // HEAD_DIM, WIDTH + 2 * STATE

# (videos, path): sequences of all videos x length.
SHAPES = {
    "16 x 48": (2, ScanPath.plane("fw", (6, 8, 8), spiral_order(6, 8))),
    "64 x 6": (1, ScanPath.temporal((6, 8, 8))),
    "24 x 32": (3, ScanPath.plane("fw", (4, 8, 8), spiral_order(4, 8))),
    "64 x 4": (1, ScanPath.temporal((4, 8, 8))),
    "16 x 256": (1, ScanPath.plane("fw", (16, 16, 16), spiral_order(16, 16))),
    "4 x 4096": (4, ScanPath.raster((16, 16, 16))),
}


def path_scan_cases() -> list[Case]:
    """Every shape, one direction and both, float32 and bfloat16, forward and with the pass back."""
    return [
        path_scan_case(shape, directions, dtype, passes)
        for dtype in (torch.float32, torch.bfloat16)
        for shape in SHAPES
        for directions in (1, 2)
        for passes in PASSES
    ]


def path_scan_case(shape: str, directions: int, dtype: torch.dtype, passes: str) -> Case:
    videos, path = SHAPES[shape]
    scanned = Shape(shape, videos, (path,), Scale(WIDTH, STATE, HEAD_DIM, dtype))
    sizes = {"head_dim": HEAD_DIM, "bidirectional": directions == 2}

    def scan(**inputs):
        return path_scan(path=path, **sizes, **inputs)

    def definition(**inputs):
        with use_backend("reference"):
            return scan(**inputs)

    def composition(**inputs):
        """The definition as plain PyTorch that torch.compile can look into; the operator is opaque to it."""
        offsets, settings = [path.offsets(inputs["zxbcdt"].device)], (HEAD_DIM, 1, directions == 2, 1e-5, WIDTH)
        return reference.path_scan(**inputs, offsets=offsets, strides=[path.stride], **_settings(settings))

    return Case(
        operator="path_scan",
        shape=f"{shape}, {'both directions' if directions == 2 else 'one direction'}",
        dtype=dtype,
        passes=passes,
        work=path_scan_work(
            videos * path.sequences,
            path.length,
            width=WIDTH,
            state=STATE,
            head_dim=HEAD_DIM,
            taps=TAPS,
            directions=directions,
            element_size=dtype.itemsize,
            backward=passes == PASSES[1],
        ),
        inputs=functools.partial(path_scan_inputs, videos, math.prod(path.grid), dtype),
        differentiated=("zxbcdt", "conv_weight", "conv_bias", "dt_bias", "A", "D", "norm_weight"),
        definition=definition,
        variants=(
            *on_backends("path_scan", scan),
            *path_scan_peers(scanned, directions == 2),
            by_torch_compile(composition),
        ),
    )


def path_scan_inputs(videos: int, tokens: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tokens of unit variance; parameters in float32, distributed as the mixers of the model begin with."""
    drawn = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=drawn) * (high - low) + low

    step = uniform(math.log(0.001), math.log(0.1), HEADS).exp()
    return {
        "zxbcdt": torch.randn(videos, tokens, WIDTH + MIXED + HEADS, generator=drawn).to(dtype),
        "conv_weight": uniform(-0.5, 0.5, MIXED, TAPS),
        "conv_bias": uniform(-0.5, 0.5, MIXED),
        "dt_bias": step + torch.log(-torch.expm1(-step)),
        "A": -uniform(1, 16, HEADS),
        "D": uniform(0.5, 1.5, HEADS),
        "norm_weight": uniform(0.5, 1.5, WIDTH),
    }


def _settings(values: tuple) -> dict[str, object]:
    return dict(zip(("head_dim", "groups", "bidirectional", "eps", "norm_group_size"), values))
