"""The learning rate of each step and the precision it is computed in."""

import math

import torch

from medsora.training.settings import LoopSettings


def learning_rate_at(step: int, settings: LoopSettings) -> float:
    """The learning rate of step `step` (from 0): linear warm-up, then constant or a cosine to its final value."""
    highest = settings.learning_rate
    if step < settings.warmup_steps:
        return highest * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return highest
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    final = settings.final_learning_rate
    return highest * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to run the forward pass under bf16 autocast on `device`; "auto" asks the processor."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
