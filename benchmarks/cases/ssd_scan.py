"""`ssd_scan`, the scan of plain sequences, at a size that short and long chunks both serve."""

from __future__ import annotations

import torch

from benchmarks.gpu.variants import LIBRARY_CHUNK, imported, on_gpus
from benchmarks.harness.case import Case, Variant, by_torch_compile, on_backends
from benchmarks.harness.work import PASSES, ssd_scan_work
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

    def by_mamba_ssm(x, dt, A, B, C):
        scan = imported("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
        return scan(x, dt, A, B, C, LIBRARY_CHUNK)

    def by_fla(x, dt, A, B, C):
        """With one decay a head its gated linear attention is this scan: q = C, k = B, v = dt x."""
        B, C = (t.expand(-1, -1, heads, -1).contiguous() for t in (B, C))
        return imported("fla.ops.simple_gla").chunk_simple_gla(C, B, x * dt[..., None], g=dt * A, scale=1.0)[0]

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
        variants=(
            *on_backends("ssd_scan", ssd_scan),
            Variant("mamba_ssm", on_gpus(by_mamba_ssm, "mamba_ssm")),
            Variant("fla", on_gpus(by_fla, "fla")),
            by_torch_compile(composition),
        ),
    )
