"""What a run would do: settings, data, sizes, memory. Nothing is written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from torch import nn

from medsora.training import denoiser_stage, vae_stage
from medsora.training.optimization import uses_bf16

if TYPE_CHECKING:
    from medsora.config import TrainSettings
    from medsora.training.settings import LoopSettings

WEIGHT_BYTES, GRADIENT_BYTES, MOMENT_BYTES, AVERAGE_BYTES = 4, 4, 8, 4
PROBED_SIDE = 32  # pixels; activations of a convolutional VAE grow with the frame's area


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
    vae = settings.vae
    if vae.pretrained is not None:
        return [f"video VAE: pretrained weights of {vae.pretrained}, counted when they are loaded"]
    model = vae_stage.build_vae(vae)
    size = settings.prepare.size
    vae_stage.latent_shape(model, vae.num_frames, (size, size))
    side = max(PROBED_SIDE, model.spatial_compression)
    side = min(size, side - side % model.spatial_compression)
    frames = torch.zeros(1, 3, vae.num_frames, side, side)

    def forward():
        return model.decode(model.encode(frames).latent_dist.mode()).sample

    one = _saved_bytes(forward) * (size / side) ** 2
    return _memory_lines("video VAE", model, one, vae, settings.device)


def _denoiser_lines(settings: TrainSettings, labels: int) -> list[str]:
    options, prepare = settings.denoiser, settings.prepare
    if settings.vae.pretrained is None:
        vae = vae_stage.build_vae(settings.vae)
        channels, frames, height, width = vae_stage.latent_shape(vae, prepare.num_frames, (prepare.size, prepare.size))
    else:
        channels, frames, height, width = 16, prepare.num_frames // 4 + prepare.num_frames % 8, *[prepare.size // 8] * 2
    with torch.device("meta"):
        model = denoiser_stage.build_denoiser(options, channels, labels, settings.seed)
    latents = torch.zeros(1, frames, channels, height, width)
    small = [_one_sample_bytes(model, depth, latents) for depth in (1, 2)]
    one = small[0] + (small[1] - small[0]) * (model.config.depth - 1)
    if options.gradient_checkpointing:  # one block's activations, and each block's input
        tokens = math.prod(latents.shape) / channels / model.config.patch_size**2
        one = small[0] + tokens * model.config.hidden_size * 4 * model.config.depth
    shape = f"latents {frames} x {channels} x {height} x {width}"
    return [shape, *_memory_lines("denoiser", model, one, options, settings.device)]


def _one_sample_bytes(model: nn.Module, depth: int, latents: torch.Tensor) -> float:
    """Activations of one sample at a small depth; blocks are alike, so the rest follows."""
    shallow = type(model)(**{k: v for k, v in dict(model.config).items() if not k.startswith("_")} | {"depth": depth})
    return _saved_bytes(lambda: shallow(latents, torch.zeros(1, dtype=torch.int64)).sample)


def _saved_bytes(forward) -> float:
    """Bytes that autograd keeps of a forward pass, weights left out."""
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter) and not tensor.is_leaf:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor stays alive, so its address stays taken
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return float(sum(size for size, _ in kept.values()))


def _memory_lines(name: str, model: nn.Module, one: float, options: LoopSettings, device: str) -> list[str]:
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    static = count * WEIGHT_BYTES + trained * (GRADIENT_BYTES + MOMENT_BYTES + AVERAGE_BYTES)
    on = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    samples = max(options.batch_size // options.accumulation, 1)
    activations = one * samples * (0.5 if uses_bf16(options.precision, on) else 1.0)
    return [
        f"{name}: {count:,} parameters, {trained:,} trained, {options.steps} steps of {options.batch_size}",
        f"{name}: about {_size(static + activations)}: {_size(static)} of weights, gradients, moments and average, "
        f"{_size(activations)} of activations ({samples} samples at a time, one process)",
    ]


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.0f} MiB"
