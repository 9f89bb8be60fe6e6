"""`ssd_scan`, the scan of plain sequences, at a size that short and long chunks both serve."""

from __future__ import annotations

import torch

from benchmarks.case import Case, by_torch_compile, on_backends
from benchmarks.work import PASSES, ssd_scan_work
from medsora_ops import ssd_scan, use_backend
from medsora_ops.scan import reference

# Sequences, length, heads, head_dim, state.
SHAPE = (4, 512, 16, 64, 128)


def ssd_scan_cases() -> list[Case]:
    """In float32, forward and with the pass back."""
    return [ssd_scan_case(passes) for passes in PASSES]


def ssd_scan_case(passes: str) -> Case:
    sequences, length, heads, head_dim, state = SHAPE

    def definition(**inputs):
        with use_backend("reference"):
            return ssd_scan(**inputs)

    def composition(**inputs):
        nothing = dict.fromkeys(("D", "z", "dt_bias", "initial_states"))
        return reference.ssd_scan(**inputs, **nothing, dt_softplus=False, return_final_states=False)[0]

    def inputs() -> dict[str, torch.Tensor]:
        drawn = torch.Generator().manual_seed(0)
        return {
            "x": torch.randn(sequences, length, heads, head_dim, generator=drawn),
            "dt": torch.rand(sequences, length, heads, generator=drawn) / 10,
            "A": -torch.rand(heads, generator=drawn) - 0.5,
            "B": torch.randn(sequences, length, 1, state, generator=drawn),
            "C": torch.randn(sequences, length, 1, state, generator=drawn),
        }

    return Case(
        operator="ssd_scan",
        shape=f"{sequences} x {length}, {heads} heads of {head_dim}, state {state}",
        dtype=torch.float32,
        passes=passes,
        work=ssd_scan_work(
            sequences,
            length,
            heads=heads,
            head_dim=head_dim,
            state=state,
            backward=passes == PASSES[1],
        ),
        inputs=inputs,
        differentiated=("x", "dt", "A", "B", "C"),
        definition=definition,
        variants=(*on_backends("ssd_scan", ssd_scan), by_torch_compile(composition)),
    )
