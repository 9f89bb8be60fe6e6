"""`gather` and `merge` in sizes that a cache holds, and beyond it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from benchmarks.harness.case import Case, Variant, by_torch_compile, on_backends
from benchmarks.harness.work import PASSES, reorder_work
from medsora_ops import ScanPath, gather, merge, spiral_order, use_backend

# Tokens x channels as (videos, channels, path): of an embedding, of zxbcdt, and of one that fills no cache.
SHAPES = {
    "1024 x 512": (4, 512, ScanPath.plane("fw", (4, 8, 8), spiral_order(4, 8))),
    "768 x 2320": (2, 2320, ScanPath.plane("fw", (6, 8, 8), spiral_order(6, 8))),
    "8192 x 2320": (2, 2320, ScanPath.plane("fw", (16, 16, 16), spiral_order(16, 16))),
}


def reorder_cases() -> list[Case]:
    """Both operators at every shape, float32, forward and with the pass back."""
    return [
        reorder_case(operator, shape, passes)
        for operator in ("gather", "merge")
        for shape in SHAPES
        for passes in PASSES
    ]


def reorder_case(operator: str, shape: str, passes: str) -> Case:
    videos, channels, path = SHAPES[shape]
    tokens = path.tokens()
    call, composition = _gather(path, tokens) if operator == "gather" else _merge(path, tokens)

    def definition(**inputs):
        with use_backend("reference"):
            return call(**inputs)

    def inputs() -> dict[str, torch.Tensor]:
        drawn = torch.Generator().manual_seed(0)
        if operator == "gather":
            return {"x": torch.randn(videos, math.prod(path.grid), channels, generator=drawn)}
        return {"y": torch.randn(videos, 2, *tokens.shape, channels, generator=drawn)}

    return Case(
        operator=operator,
        shape=shape,
        dtype=torch.float32,
        passes=passes,
        work=reorder_work(videos * math.prod(path.grid), channels, backward=passes == PASSES[1]),
        inputs=inputs,
        differentiated=("x",) if operator == "gather" else ("y",),
        definition=definition,
        variants=(
            *on_backends(operator, call),
            Variant("indexing", composition),
            by_torch_compile(composition),
        ),
    )


def _gather(path: ScanPath, tokens: torch.Tensor) -> tuple[Callable, Callable]:
    both_ways = functools.cache(torch.stack((tokens, tokens.flip(1))).to)  # moved to a GPU once, not at each call

    def composition(x):
        return x[:, both_ways(x.device)]

    return lambda x: gather(x, path), composition


def _merge(path: ScanPath, tokens: torch.Tensor) -> tuple[Callable, Callable]:
    inverse = functools.cache(tokens.flatten().argsort().to)

    def composition(y):
        return (y[:, 0] + y[:, 1].flip(2)).flatten(1, 2)[:, inverse(y.device)]

    return lambda y: merge(y, path), composition
