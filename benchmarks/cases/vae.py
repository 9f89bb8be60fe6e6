"""The video VAE, clips to latents and back: by each backend of its spectral filter, and without compensation."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.cases.trainer import draw_zeros
from benchmarks.harness.case import Case, Problem, Unavailable, Variant, on_backends
from benchmarks.harness.work import PASSES
from medsora_ops import use_backend

AGREES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
WITHOUT = "without-compensation"


@dataclass(frozen=True)
class Clips:
    """preset: of the VAE. clips, frames, side: of what is encoded, in pixels. on_gpus: too large for a CPU."""

    preset: str
    clips: int
    frames: int
    side: int
    on_gpus: bool = False


SIZES = {"tiny": Clips("tiny", 2, 16, 64), "cogvideox": Clips("cogvideox", 1, 16, 128, on_gpus=True)}


class Coder:
    """A VAE and what it is given, made when first asked for."""

    def __init__(self, size: Clips, operator: str, dtype: torch.dtype, compensation: str, device: str = "cpu"):
        self.settings = (size, operator, dtype, compensation)
        self.device = device

    def to(self, device: torch.device, copy: bool = False) -> Coder:
        return Coder(*self.settings, str(device))

    @functools.cached_property
    def parts(self) -> tuple[nn.Module, Tensor]:
        from medsora.models import FrequencyCompensatedVAE

        size, operator, dtype, compensation = self.settings
        if size.on_gpus and self.device == "cpu":
            raise Unavailable(f"the {size.preset} VAE is for a GPU")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vae = FrequencyCompensatedVAE.preset(size.preset, compensation=compensation)
            clip = torch.rand(size.clips, 3, size.frames, size.side, size.side) * 2 - 1
            draw_zeros(vae, 0)  # a fresh compensation adds nothing
            side = size.side // vae.spatial_compression
            shape = (size.clips, vae.config.latent_channels, vae.latent_frames(size.frames), side, side)
            given = clip if operator == "VAE encode" else torch.randn(shape)
        return vae.to(self.device, dtype).eval(), given.to(self.device, dtype)

    def code(self) -> Tensor:
        """The means of the latents, or the frames."""
        vae, given = self.parts
        return vae.encode(given).latent_dist.mean if self.settings[1] == "VAE encode" else vae.decode(given).sample


def vae_case(operator: str, name: str, dtype: torch.dtype) -> Case:
    """operator: "VAE encode" or "VAE decode"."""
    size = SIZES[name]

    def definition(coder: Coder) -> Tensor:
        with use_backend("reference"):
            return coder.code()

    def problem(compensation: str) -> Problem:
        return Problem(lambda: {"coder": Coder(size, operator, dtype, compensation)}, (), definition, AGREES[dtype])

    ours = problem("spectral")
    backends = on_backends("spectral_filter", lambda coder: coder.code())
    return Case(
        level="model",
        operator=operator,
        shape=f"{name}, {size.clips} x {size.frames} frames of {size.side} x {size.side}",
        dtype=dtype,
        passes=PASSES[0],
        work=None,
        inputs=ours.inputs,
        differentiated=(),
        definition=definition,
        tolerance=ours.tolerance,
        variants=(*backends, Variant(WITHOUT, lambda coder: coder.code(), problem=problem("none"))),
        facts={"clips": size.clips, "preset": name},
    )
