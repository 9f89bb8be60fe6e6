"""How much memory training takes, from the model's parts, and how much a step sends between processes.

Bytes a trained parameter: weight 4, gradient 4, AdamW's two moments 8, moving average 4. A frozen one: 4. Activations
are what autograd keeps of a forward pass: measured on small models, on the CPU, and carried on to the size asked for,
since they grow in a straight line with blocks and with samples. At its highest a step holds about all of this, as the
gradients of the single frames are there before the clips' activations go. Where parameters are divided over processes
(sharding.py), each holds a share of these bytes, and a block's weights and gradients whole while they are used.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from medsora.training.sharding import divided_blocks

if TYPE_CHECKING:
    from medsora.models import MedSora

WEIGHT, GRADIENT, MOMENTS, AVERAGE = 4, 4, 8, 4
# Where parameters are divided, whole at one moment: of a block the weights, those of the next, as they come in and as
# they are used, its gradients, and these as they are sent; of what is outside of blocks, weights and gradients. Of a
# second pass (single frames beside clips) autograd keeps all gradients to add those of the first.
BLOCK_GATHERED, REST_GATHERED = 5 * WEIGHT, WEIGHT + GRADIENT
PROBED_SIDE = 32  # pixels; activations of a convolutional VAE grow with the frame's area


@dataclass(frozen=True)
class StageMemory:
    """Bytes that one process holds while it trains.

    parameters: all of the model's; trained: those that training changes. activations: of one micro-batch.
    shares: processes among which the parameters are divided. gathered: bytes of them whole at one moment. passes:
    forward passes of a micro-batch.
    """

    parameters: int
    trained: int
    activations: float
    shares: int = 1
    gathered: int = 0
    passes: int = 1

    @property
    def static(self) -> int:
        """Weights, gradients, moments and average: what does not depend on the batch."""
        whole = self.parameters * WEIGHT + self.trained * (GRADIENT + MOMENTS + AVERAGE)
        return -(-whole // self.shares) + self.gathered

    @property
    def total(self) -> float:
        """The highest amount of a step."""
        return self.static + self.activations

    def sent(self, processes: int, micro_batches: int = 1) -> float:
        """Bytes that each process sends in a step: a ring all-reduce of float32 gradients, 2 (n - 1) / n of them.

        Where parameters are divided, in each micro-batch: they are gathered forward and backward in each pass, and the
        gradients' sums are scattered.
        """
        others = (processes - 1) / processes
        if self.shares == 1:
            return 2 * others * self.trained * GRADIENT
        return micro_batches * others * (2 * self.passes * self.parameters * WEIGHT + self.trained * GRADIENT)


def stage_memory(model: nn.Module, activations: float, shares: int = 1, passes: int = 1) -> StageMemory:
    """Counts a model's parameters; the other arguments are those of `StageMemory`."""
    parameters = _count(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if shares == 1:
        return StageMemory(parameters, trained, activations, passes=passes)
    blocks = [_count(block) for block in divided_blocks(model)]
    gathered = BLOCK_GATHERED * max(blocks, default=0) + REST_GATHERED * (parameters - sum(blocks))
    if passes > 1:
        gathered += GRADIENT * sum(blocks)
    return StageMemory(parameters, trained, activations, shares, gathered, passes)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def denoiser_activations(
    model: MedSora, latents: tuple[int, int, int, int], videos: int, images: int, bf16: bool
) -> float:
    """Bytes kept of one micro-batch of clips and single frames.

    model: its configuration is read only (it may be on the meta device). latents: (F, C, h, w) of a clip.
    Under gradient checkpointing: each block's input, and one block's activations.
    """
    once, clip = _constant_and_slope(model, latents, bf16)
    frame = _constant_and_slope(model, (1, *latents[1:]), bf16)[1] if images else 0.0
    return once + clip * videos + frame * images


def _constant_and_slope(model: MedSora, latents: tuple[int, int, int, int], bf16: bool) -> tuple[float, float]:
    """Bytes kept once (under bf16 the weights' bf16 copies), and of each sample."""
    kept = {
        (depth, samples): _shallow_activations(model, depth, torch.zeros(samples, *latents), bf16)
        for depth in (1, 2)
        for samples in (1, 2)
    }
    depth, checkpointed = model.config.depth, model.gradient_checkpointing
    one, two = (kept[1, n] + (kept[2, n] - kept[1, n]) * (0 if checkpointed else depth - 1) for n in (1, 2))
    slope = two - one
    if checkpointed:
        tokens = latents[0] * latents[2] * latents[3] / model.config.patch_size**2
        slope += tokens * model.config.hidden_size * WEIGHT * depth
    return max(2 * one - two, 0.0), slope


def _shallow_activations(model: MedSora, depth: int, latents: torch.Tensor, bf16: bool) -> float:
    settings = {name: value for name, value in dict(model.config).items() if not name.startswith("_")}
    shallow = type(model)(**settings | {"depth": depth})
    timestep = torch.zeros(len(latents), dtype=torch.int64)
    return kept_bytes(shallow, lambda: shallow(latents, timestep, return_hidden=True), bf16)


def vae_activations(vae: nn.Module, num_frames: int, size: int, samples: int, bf16: bool) -> float:
    """Bytes kept of encoding and decoding `samples` clips of num_frames frames of size x size pixels."""
    side = max(PROBED_SIDE, vae.spatial_compression)
    side = min(size, side - side % vae.spatial_compression)

    def there_and_back(count: int) -> float:
        frames = torch.zeros(count, 3, num_frames, side, side)
        return kept_bytes(vae, lambda: vae.decode(vae.encode(frames).latent_dist.mode()), bf16)

    one, two = there_and_back(1), there_and_back(2)
    return max(2 * one - two, 0.0) + (two - one) * samples * (size / side) ** 2


def kept_bytes(model: nn.Module, forward: Callable[[], object], bf16: bool = False) -> float:
    """Bytes that autograd keeps of a forward pass on the CPU; the model's own weights are left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor stays alive, so its address stays taken
        return tensor

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=bf16))
        forward()
    return float(sum(size for size, _ in kept.values()))


def size_text(count: float) -> str:
    """Bytes for a reader, in MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{math.ceil(count / 2**20)} MiB"


def scaling_row(preset: str, clip: tuple[int, int, int, int], processes: int = 8) -> dict[str, str]:
    """What the table of SCALING.md says of a preset. clip: (F, C, h, w) of its latents."""
    from medsora.models import MedSora

    with torch.device("meta"):
        model = MedSora.preset(preset, in_channels=clip[1])
    memory = stage_memory(model, 0.0)
    row = {
        "preset": preset,
        "parameters": f"{memory.parameters / 1e6:.1f} M",
        "fixed": size_text(memory.static),
    }
    for name, bf16 in (("a clip, fp32", False), ("a clip, bf16", True)):
        row[name] = size_text(_constant_and_slope(model, clip, bf16)[1])
    model.enable_gradient_checkpointing()
    row["a clip, recomputed"] = size_text(_constant_and_slope(model, clip, True)[1])
    return row | {"sent": size_text(memory.sent(processes))}


def divided_row(preset: str, processes: int = 8) -> dict[str, str]:
    """What the second table of SCALING.md says of a preset whose parameters are divided."""
    from medsora.models import MedSora

    with torch.device("meta"):
        memory = stage_memory(MedSora.preset(preset, in_channels=16), 0.0, processes)
    return {
        "preset": preset,
        "fixed": size_text(memory.static),
        "gathered": size_text(memory.gathered),
        "sent": size_text(memory.sent(processes)),
    }
