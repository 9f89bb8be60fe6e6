"""What a run would do: settings, data, sizes, memory. Nothing is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from medsora.training import denoiser_stage, vae_stage
from medsora.training.memory import StageMemory, denoiser_activations, size_text, stage_memory, vae_activations
from medsora.training.optimization import uses_bf16
from medsora.training.settings import samples_at_once
from medsora.training.sharding import fsdp_plugin

if TYPE_CHECKING:
    from medsora.config import TrainSettings
    from medsora.training.settings import LoopSettings


def describe(settings: TrainSettings) -> str:
    """The resolved settings, data counts, parameter counts and a memory estimate, as text. Raises UserError."""
    from medsora.training.run_folder import RunFolder

    folder = RunFolder(settings.output)
    folder.check(settings)
    lines = ["# settings", yaml.safe_dump(settings.as_dict(), sort_keys=False).rstrip(), "", "# data"]
    labels, found = _data(settings)
    lines += found + ["", "# models and memory"]
    lines += _vae_lines(settings)
    lines += _denoiser_lines(settings, labels)
    state = "would resume" if folder.settings_file.is_file() else "would start anew"
    return "\n".join([*lines, "", f"# output: {settings.output} ({state}); nothing was written"])


def _data(settings: TrainSettings) -> tuple[int, list[str]]:
    """Number of labels, and lines on what the data holds."""
    from medsora.data.manifest import Manifest
    from medsora.data.scan import scan

    for prepared in (Path(settings.data), Path(settings.output) / "dataset"):
        if (prepared / "manifest.json").is_file():
            manifest = Manifest.read(prepared, partial=True)
            counts = {split: manifest.of_split(split) for split in ("train", "val")}
            denoiser_stage.check_classes(settings.denoiser, manifest.labels)
            return len(manifest.labels), [
                f"prepared: {prepared}; {len(manifest.skipped)} files skipped",
                *(f"{split}: {len(c)} clips, {sum(x.frames for x in c)} frames" for split, c in counts.items()),
            ]
    sources, skipped = scan(settings.data, settings.prepare, Path(settings.output) / "dataset")
    labels = {source.label for source in sources} - {None}
    denoiser_stage.check_classes(settings.denoiser, sorted(labels))
    return len(labels), [
        f"recordings: {len(sources)} in {settings.data}, to be read and cut into clips",
        f"labels: {', '.join(sorted(labels)) or 'none'}",
        f"files skipped: {len(skipped)}",
    ]


def _vae_lines(settings: TrainSettings) -> list[str]:
    options = settings.vae
    if options.pretrained is not None:
        return [f"video VAE: pretrained weights of {options.pretrained}, counted when they are loaded"]
    model, size = vae_stage.build_vae(options), settings.prepare.size
    vae_stage.latent_shape(model, options.num_frames, (size, size))
    samples = samples_at_once("vae.batch_size", options.batch_size, _processes(), options.accumulation)
    kept = vae_activations(model, options.num_frames, size, samples, _bf16(settings, options))
    return _memory_lines("video VAE", stage_memory(model, kept, _shares()), f"{samples} clips", options)


def _denoiser_lines(settings: TrainSettings, labels: int) -> list[str]:
    options, prepare = settings.denoiser, settings.prepare
    if settings.vae.pretrained is None:
        vae = vae_stage.build_vae(settings.vae)
        channels, frames, height, width = vae_stage.latent_shape(vae, prepare.num_frames, (prepare.size, prepare.size))
    else:
        channels, frames, height, width = 16, prepare.num_frames // 4 + prepare.num_frames % 8, *[prepare.size // 8] * 2
    with torch.device("meta"):
        model = denoiser_stage.build_denoiser(options, channels, labels, settings.seed)
    videos, images = (
        samples_at_once(f"denoiser.{name}", getattr(options, name), _processes(), options.accumulation)
        for name in ("batch_size", "images_per_batch")
    )
    bf16 = _bf16(settings, options)
    kept = denoiser_activations(model, (frames, channels, height, width), videos, images, bf16)
    shape = f"latents {frames} x {channels} x {height} x {width}"
    memory = stage_memory(model, kept, _shares(), passes=2 if images else 1)
    return [shape, *_memory_lines("denoiser", memory, f"{videos} clips, {images} frames", options)]


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def _shares() -> int:
    """Processes that parameters are divided among."""
    return _processes() if fsdp_plugin() is not None else 1


def _bf16(settings: TrainSettings, options: LoopSettings) -> bool:
    on_gpu = settings.device != "cpu" and torch.cuda.is_available()
    return uses_bf16(options.precision, torch.device("cuda" if on_gpu else "cpu"))


def _memory_lines(name: str, memory: StageMemory, batch: str, options: LoopSettings) -> list[str]:
    lines = [
        f"{name}: {memory.parameters:,} parameters, {memory.trained:,} trained, {options.steps} steps of "
        f"{options.batch_size}",
        f"{name}: about {size_text(memory.total)} a process: {size_text(memory.static)} of weights, gradients, moments "
        f"and average, {size_text(memory.activations)} of activations ({batch} at a time)",
    ]
    if memory.shares > 1:
        lines.append(
            f"{name}: parameters are divided (FSDP): a process holds 1/{memory.shares} of them and of what belongs to "
            f"them, and {size_text(memory.gathered)} while some are gathered"
        )
    if _processes() > 1:
        sent = size_text(memory.sent(_processes(), options.accumulation))
        lines.append(f"{name}: each of {_processes()} processes sends {sent} a step")
    return lines
