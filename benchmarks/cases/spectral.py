"""`spectral_filter` beside the composition of torch.fft calls, `focal_frequency_loss` beside its published form."""

from __future__ import annotations

import torch

from benchmarks.harness.case import Case, Variant, by_torch_compile, on_backends
from benchmarks.harness.work import PASSES, focal_loss_work, spectral_filter_work
from medsora_ops import focal_frequency_loss, spectral_filter, use_backend
from medsora_ops.spectral.reference import focal_frequency_loss_full_spectrum

# Batch, channels, height, width: features of 16 MB in float32.
FILTERED = ((64, 256, 16, 16), (16, 256, 24, 40), (16, 256, 32, 32), (8, 128, 64, 64), (8, 32, 128, 128))
COMPARED = ((16, 3, 128, 128), (8, 3, 64, 64))


def spectral_filter_cases() -> list[Case]:
    """Every shape in float32 and bfloat16, forward and with the pass back."""
    return [
        spectral_filter_case(shape, dtype, passes)
        for dtype in (torch.float32, torch.bfloat16)
        for shape in FILTERED
        for passes in PASSES
    ]


def focal_loss_cases() -> list[Case]:
    """Every shape in float32, forward and with the gradient of the prediction."""
    return [focal_loss_case(shape, passes) for shape in COMPARED for passes in PASSES]


def spectral_filter_case(shape: tuple[int, int, int, int], dtype: torch.dtype, passes: str) -> Case:
    batch, channels, height, width = shape

    def definition(x, weight):
        with use_backend("reference"):
            return spectral_filter(x, weight)

    def composition(x, weight):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # torch.fft knows no bfloat16
        filtered = weight * torch.fft.rfft2(wide, norm="ortho")
        return (wide + torch.fft.irfft2(filtered, s=(height, width), norm="ortho")).to(x.dtype)

    def inputs() -> dict[str, torch.Tensor]:
        drawn = torch.Generator().manual_seed(0)
        weight = torch.randn(channels, height, width // 2 + 1, dtype=torch.complex64, generator=drawn)
        return {"x": torch.randn(shape, generator=drawn).to(dtype), "weight": weight}

    return Case(
        operator="spectral_filter",
        shape=" x ".join(map(str, shape)),
        dtype=dtype,
        passes=passes,
        work=spectral_filter_work(*shape, element_size=dtype.itemsize, backward=passes == PASSES[1]),
        inputs=inputs,
        differentiated=("x", "weight"),
        definition=definition,
        variants=(
            *on_backends("spectral_filter", spectral_filter),
            Variant("torch.fft", composition),
            by_torch_compile(composition),
        ),
    )


def focal_loss_case(shape: tuple[int, int, int, int], passes: str) -> Case:
    def definition(pred, target):
        with use_backend("reference"):
            return focal_frequency_loss(pred, target)

    def inputs() -> dict[str, torch.Tensor]:
        drawn = torch.Generator().manual_seed(0)
        return {name: torch.randn(shape, generator=drawn) for name in ("pred", "target")}

    batch, channels, height, width = shape
    return Case(
        operator="focal_frequency_loss",
        shape=" x ".join(map(str, shape)),
        dtype=torch.float32,
        passes=passes,
        work=focal_loss_work(batch * channels, height, width, backward=passes == PASSES[1]),
        inputs=inputs,
        differentiated=("pred",),
        definition=definition,
        variants=(
            *on_backends("focal_frequency_loss", focal_frequency_loss),
            Variant("published", focal_frequency_loss_full_spectrum),
            by_torch_compile(focal_frequency_loss_full_spectrum),
        ),
    )
