"""MedSora's mixers beside what attention would put in their place, at equal width and tokens.

A layer is what changes tokens by looking at others: the spatial and the temporal mixer as a block of the denoiser has
them; one full attention over all tokens; a spatial, then a temporal attention (as in Latte and Endora); one attention
in 3-D windows. Each is x + mixer(x), projections included, norms and gates, which all would share, left out.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.cases.attention import Attention, Mixing, choose_kernels, frames, instants, whole, windows
from benchmarks.harness.case import Case, Problem, Unavailable, Variant, by_torch_compile, inputs_on_cpu
from benchmarks.harness.work import PASSES
from medsora.models.mixer import SpatialMixer, TemporalMixer
from medsora.models.presets import PUBLISHED
from medsora_ops import backend_report, use_backend

WIDTH, STATE, HEAD_DIM, PLANES = PUBLISHED["hidden_size"], PUBLISHED["state_size"], 64, ("fw", "fh")
GRIDS = ((4, 8, 8), (4, 16, 16), (16, 16, 16), (16, 32, 32), (16, 64, 64))
LARGEST_DEFAULT = 4096  # tokens
LARGEST_ON_CPU = 16384  # where float64 and all that a pass back keeps still fit into 16 GB
ATTENTIONS = {
    "full-attention": (whole,),
    "factorised-attention": (frames, instants),
    "windowed-attention": (windows,),
}


def layer_cases(width: int = WIDTH, state: int = STATE, grids=GRIDS) -> list[Case]:
    """Every grid in float32 and bfloat16, forward and with the pass back, one video each."""
    return [
        layer_case(grid, dtype, passes, width, state)
        for dtype in (torch.float32, torch.bfloat16)
        for grid in grids
        for passes in PASSES
    ]


def layer_case(grid: tuple[int, int, int], dtype: torch.dtype, passes: str, width: int, state: int) -> Case:
    def mixers() -> nn.Module:
        spatial = SpatialMixer(width, state, HEAD_DIM, PLANES, scan_order="spiral", variant=0)
        return Mixing(spatial, TemporalMixer(width, state, HEAD_DIM, bidirectional=True))

    mixing = Layer(mixers, grid, dtype, width)
    backends = [row.backend for row in backend_report() if row.operator == "path_scan" and row.available]
    variants = [Variant(f"mixers-{backend}", functools.partial(mixing.on_backend, backend)) for backend in backends]
    variants.append(by_torch_compile(mixing, "mixers+compiled"))
    variants = [dataclasses.replace(variant, facts=mixing.facts) for variant in variants]
    for name, groups in ATTENTIONS.items():
        variants += AttentionLayer(groups, grid, dtype, width, passes == PASSES[1]).variants(name)
    return Case(
        level="layer",
        operator="mixing layer",
        shape=f"{' x '.join(map(str, grid))} tokens of {width}",
        dtype=dtype,
        passes=passes,
        work=None,
        inputs=mixing.inputs,
        differentiated=mixing.names,
        definition=mixing.definition,
        variants=tuple(variants),
        facts={"tokens": math.prod(grid), "grid": list(grid), "width": width, "state": state, "videos": 1},
    )


class Layer:
    """A module as a function of its tokens and weights, in whatever type these are."""

    def __init__(self, make, grid: tuple[int, int, int], dtype: torch.dtype, width: int):
        self.grid, self.dtype, self.width = grid, dtype, width
        with torch.device("meta"):
            self.module = make()
        self._make = make
        self.names = ("x", *(name for name, _ in self.module.named_parameters()))

    def inputs(self) -> dict[str, Tensor]:
        """x (1, F*H*W, D) of unit variance, and the weights as the layer begins with them, all in the case's type."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            x = torch.randn(1, math.prod(self.grid), self.width)
            weights = dict(self._make().named_parameters())
        return {name: t.detach().to(self.dtype) for name, t in {"x": x, **weights}.items()}

    def facts(self) -> dict[str, object]:
        """For the record: layers of equal width may differ in how much they can learn."""
        return {"parameters": sum(parameter.numel() for parameter in self.module.parameters())}

    def __call__(self, x: Tensor, **weights: Tensor) -> Tensor:
        return functional_call(self.module, weights, (x, self.grid))

    def on_backend(self, backend: str, x: Tensor, **weights: Tensor) -> Tensor:
        with use_backend(backend):
            return self(x, **weights)

    def definition(self, x: Tensor, **weights: Tensor) -> Tensor:
        """By plain PyTorch, for any floating point type. Raises Unavailable where that would not fit in memory."""
        if inputs_on_cpu({"x": x}) and x.shape[1] > LARGEST_ON_CPU:
            raise Unavailable(f"on a CPU layers are compared up to {LARGEST_ON_CPU} tokens, this has {x.shape[1]}")
        return self.on_backend("reference", x, **weights)


class AttentionLayer(Layer):
    """Attention in groups of tokens, each by the fastest of SDPA's kernels, which the first call finds out."""

    def __init__(self, groups, grid: tuple[int, int, int], dtype: torch.dtype, width: int, backward: bool):
        super().__init__(lambda: Mixing(*(Attention(width, group) for group in groups)), grid, dtype, width)
        self.backward = backward
        self.kernels: dict[str, dict[str, object]] = {}

    def variants(self, name: str) -> tuple[Variant, Variant]:
        """As it is, and through torch.compile."""
        problem = Problem(self.inputs, self.names, self.definition)
        compiled = by_torch_compile(self, f"{name}+compiled", problem)
        calls = ((name, self, False), (compiled.name, compiled.call, True))
        return tuple(
            Variant(each, functools.partial(self._with_kernels, call), slow, problem, self.facts)
            for each, call, slow in calls
        )

    def facts(self) -> dict[str, object]:
        return {**super().facts(), "sdpa": self.kernels}

    def _with_kernels(self, call, x: Tensor, **weights: Tensor) -> Tensor:
        if not self.kernels:
            self.kernels = choose_kernels(self.module, x, self.grid, self.backward)
        return call(x=x, **weights)

    def definition(self, x: Tensor, **weights: Tensor) -> Tensor:
        attentions = [module for module in self.module.modules() if isinstance(module, Attention)]
        try:
            for module in attentions:
                module.plain = True
            return super().definition(x, **weights)
        finally:
            for module in attentions:
                module.plain = False
