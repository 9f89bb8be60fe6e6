"""Whole models: a training and a sampling step of the denoiser, beside itself with attention in place of its mixers.

`medsora.models.MedSora` has the spatial and temporal mixers of its blocks substituted; all else (local attention,
modulation, heads) is the same. Attention that takes the place of both mixers stands in the spatial branch, and the
temporal one then hands its tokens on as they are.
"""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.cases.attention import Attention, choose_kernels, frames, instants, whole, windows
from benchmarks.cases.trainer import Size, draw_zeros, random_batch, step_settings, untrained
from benchmarks.harness.case import Case, Problem, Unavailable, Variant
from benchmarks.harness.work import PASSES
from medsora_ops import backend_report, use_backend

# The tiny one as the default run trains it, the others on 16 frames of 128 x 128; many videos where a GPU takes them.
SIZES = {
    "tiny": Size(8, 2, (8, 4, 8, 8)),
    "S": Size(1, 1, (16, 4, 16, 16)),
    "B": Size(1, 1, (16, 4, 16, 16)),
    "S by eights": Size(8, 2, (16, 4, 16, 16)),
    "B by eights": Size(8, 2, (16, 4, 16, 16)),
}
ON_GPUS = ("S by eights", "B by eights")
STEPS = 50
ATTENTIONS = {
    "full-attention": (whole, None),
    "factorised-attention": (frames, instants),
    "windowed-attention": (windows, None),
}
TRAINING_AGREES, SAMPLING_AGREES = 2e-3, {torch.float32: 1e-4, torch.bfloat16: 5e-2}


class HandedOn(nn.Module):
    """In place of a mixer whose work another one does."""

    def forward(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        return x


def substitute(denoiser: nn.Module, groups: tuple, seed: int = 0) -> None:
    """Puts attention in the place of a denoiser's mixers: for (spatial, temporal) a group of tokens each, or None."""
    width = denoiser.config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in denoiser.blocks:
            block.spatial, block.temporal = (Attention(width, group) if group else HandedOn() for group in groups)


def plainly(model: nn.Module) -> None:
    """Lets every attention of the model compute by its definition."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.plain = True


class Ways:
    """The steps of one size, by way; each way has its own model, made when it is first asked for.

    way: "mixers-native" or of another backend, "mixers" (the default backend), or a name of ATTENTIONS; "+compiled"
    behind it: through torch.compile. dtype: of the forward pass. facts: what was noted of each way; models: what steps.
    """

    def __init__(self, name: str, dtype: torch.dtype, device: str = "cpu"):
        self.name, self.size, self.dtype, self.device = name, SIZES[name], dtype, device
        self.preset = name.split()[0]
        self.facts: dict[str, dict[str, object]] = {}
        self.models: dict[str, nn.Module] = {}
        self._steps: dict[str, Callable[[], tuple[Tensor, ...]]] = {}

    def to(self, device: torch.device, copy: bool = False) -> Ways:
        """The same on a device, with nothing made yet."""
        return type(self)(self.name, self.dtype, str(device))

    def take(self, way: str) -> tuple[Tensor, ...]:
        """One step this way."""
        if way not in self._steps:
            if self.device == "cpu" and self.name in ON_GPUS:
                raise Unavailable(f"{self.size.videos} videos of 128 x 128 at a time are for a GPU")
            self._steps[way] = self.made(way, plain=False)
        with backend_of(way):
            return self._steps[way]()

    def right(self, way: str) -> tuple[Tensor, ...]:
        """The first step by the definitions of what `way` computes: plain PyTorch."""
        with use_backend("reference"):
            return self.made(way, plain=True)()

    def made(self, way: str, plain: bool) -> Callable[[], tuple[Tensor, ...]]:
        """What takes steps this way, by definition if `plain`."""
        raise NotImplementedError

    def change(self, denoiser: nn.Module, way: str, plain: bool, backward: bool) -> None:
        """Substitutes what `way` asks for, and notes parameters and the kernels of attention."""
        _, length, height, width = self.size.latents
        patch, hidden = denoiser.config.patch_size, denoiser.config.hidden_size
        grid, base = (length, height // patch, width // patch), way.removesuffix("+compiled")
        if base in ATTENTIONS:
            substitute(denoiser, ATTENTIONS[base])
        note = {"parameters": sum(p.numel() for p in denoiser.parameters())}
        denoiser.to(self.device)
        if plain:
            plainly(denoiser)
            return
        if base in ATTENTIONS:
            x = torch.empty(self.size.videos, math.prod(grid), hidden, dtype=self.dtype, device=self.device)
            note["sdpa"] = choose_kernels(denoiser, x, grid, backward)
        else:
            denoiser.prepare(length, height, width)
            denoiser.prepare(1, height, width)  # of images, which torch.compile cannot make
        self.facts[way] = note


class TrainingSteps(Ways):
    """The trainer's own step on one batch: forward under its precision, backward, clipping, AdamW, moving average."""

    def made(self, way: str, plain: bool) -> Callable[[], tuple[Tensor, ...]]:
        settings = step_settings(self.preset, "bf16" if self.dtype == torch.bfloat16 else "fp32", self.size)
        settings.denoiser.compile = way.endswith("+compiled") and not plain
        folder = tempfile.TemporaryDirectory()  # a trainer wants one; it goes with the step that holds it
        change = functools.partial(self.change, way=way, plain=plain, backward=True)
        trainer = untrained(settings, self.size, Path(folder.name), change, self.device)
        batch = random_batch(settings, self.size)
        self.models[way] = trainer.task.module

        def step(folder=folder) -> tuple[Tensor, ...]:
            values = trainer._step([batch])[0]
            return torch.tensor(values["loss"]), torch.tensor(values["gradient_norm"])

        return step


class SamplingSteps(Ways):
    """One step of a DDIM sampler of 50: a prediction for noisy latents, and the latents of the next level."""

    def made(self, way: str, plain: bool) -> Callable[[], tuple[Tensor, ...]]:
        from medsora.diffusion import make_scheduler
        from medsora.samplers import ready_sampler, scheduler_prediction
        from medsora.training import denoiser_stage

        settings = step_settings(self.preset, "fp32", self.size)
        denoiser = denoiser_stage.build_denoiser(settings.denoiser, self.size.latents[0], 0, settings.seed)
        self.change(denoiser, way, plain, backward=False)
        drawn = draw_zeros(denoiser, settings.seed)
        denoiser.to(self.device, self.dtype).eval()
        if way.endswith("+compiled") and not plain:
            denoiser.compile()
        self.models[way] = denoiser
        channels, *rest = self.size.latents
        latents = torch.randn(self.size.videos, rest[0], channels, *rest[1:], generator=drawn).to(self.device)
        sampler = ready_sampler(make_scheduler("ddim", settings.diffusion), "ddim", STEPS, self.device)
        level = int(sampler.timesteps[STEPS // 2])  # a number: a tensor on a GPU would be waited for
        timestep = torch.full((len(latents),), level, device=self.device)

        def step() -> tuple[Tensor, ...]:
            output = denoiser(latents.to(self.dtype), timestep).sample.float()
            prediction = scheduler_prediction(sampler, output)
            return (sampler.step(prediction, level, latents.transpose(1, 2), return_dict=False)[0], output)

        return step


def backend_of(way: str):
    """That which the way names, or what the operators choose by themselves."""
    base = way.removesuffix("+compiled")
    return use_backend(base.removeprefix("mixers-")) if base.startswith("mixers-") else contextlib.nullcontext()


def training_case(name: str) -> Case:
    """Loss and gradient norm of the first step judge; in the precision that training takes by itself."""
    from medsora.training.optimization import uses_bf16

    dtype = torch.bfloat16 if name in ON_GPUS or uses_bf16("auto", torch.device("cpu")) else torch.float32
    size = SIZES[name]
    facts = {"clips": size.videos, "images": size.images, "latents": list(size.latents), "preset": name.split()[0]}
    return step_case("training step", TrainingSteps, name, dtype, PASSES[1], TRAINING_AGREES, facts)


def sampling_case(name: str, dtype: torch.dtype) -> Case:
    """The latents after the step and the prediction judge."""
    size = SIZES[name]
    facts = {"clips": size.videos, "of_steps": STEPS, "latents": list(size.latents), "preset": name.split()[0]}
    return step_case("sampling step", SamplingSteps, name, dtype, PASSES[0], SAMPLING_AGREES[dtype], facts)


def step_case(operator: str, steps, name: str, dtype: torch.dtype, passes: str, tolerance: float, facts: dict) -> Case:
    """All ways of one step. Each has the problem of its own model: `Ways` that it shares with its compiled form."""
    variants, problems = [], {}
    backends = [row.backend for row in backend_report() if row.operator == "path_scan" and row.available]
    ways = [*(f"mixers-{backend}" for backend in backends), "mixers+compiled"]
    ways += [name + suffix for name in ATTENTIONS for suffix in ("", "+compiled")]
    for way in ways:
        base = "mixers" if way.startswith("mixers") else way.removesuffix("+compiled")
        if base not in problems:
            problems[base] = Problem(
                inputs=lambda: {"steps": steps(name, dtype)},
                differentiated=(),
                definition=lambda steps, base=base: steps.right(base),
                tolerance=tolerance,
            )
        variants.append(step_variant(way, problems[base]))
    mixers = problems["mixers"]
    return Case(
        level="model",
        operator=operator,
        shape=name,
        dtype=dtype,
        passes=passes,
        work=None,
        inputs=mixers.inputs,
        differentiated=(),
        definition=mixers.definition,
        tolerance=tolerance,
        variants=tuple(variants),
        facts=facts,
    )


def step_variant(way: str, problem: Problem) -> Variant:
    facts: dict[str, object] = {}

    def call(steps: Ways) -> tuple[Tensor, ...]:
        results = steps.take(way)
        facts.update(steps.facts[way])
        return results

    return Variant(way, call, compiled=way.endswith("+compiled"), problem=problem, facts=lambda: dict(facts))
