"""How a stage is optimised: its settings, the learning rate of each step, the precision."""

import math
from dataclasses import dataclass

import torch

from medsora.errors import UserError


@dataclass
class LoopSettings:
    """How a stage is optimised.

    Args:
        steps: Optimizer steps; also the length of the learning rate's schedule.
        batch_size: Samples an optimizer step sees, over all processes and micro-batches.
        accumulation: Micro-batches a process splits its share of the batch into; less memory, same result.
        learning_rate: AdamW's highest learning rate.
        warmup_steps: Steps over which the learning rate rises linearly to its highest.
        schedule: What follows the warm-up: "constant" or "cosine".
        final_learning_rate: Where a cosine ends, as a fraction of the highest.
        betas: AdamW's decay rates of the first and second moment.
        weight_decay: AdamW's decoupled weight decay.
        gradient_clip: Largest gradient norm; 0 does not clip.
        ema_decay: Decay of the weights' moving average (it warms up); 0 keeps no average.
        mixed_precision: "bf16", "no", or "auto": bf16 where the processor computes in it.
        compile: Compile the model with torch.compile.
        log_every: Steps between records in metrics.jsonl.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of the newest checkpoints stay.
        max_bad_steps: Non-finite losses in a row after which the run is given up.
    """

    steps: int = 1000
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: str = "constant"
    final_learning_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.9999
    mixed_precision: str = "auto"
    compile: bool = False
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    max_bad_steps: int = 5

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "keep_checkpoints",
                     "max_bad_steps"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"{name}: got {getattr(self, name)}, wants at least 1")
        for name in ("learning_rate", "warmup_steps", "weight_decay", "gradient_clip", "final_learning_rate"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise UserError(f"{name}: got {getattr(self, name)}, wants a finite number, 0 or more")
        for name, choices in (("schedule", ("constant", "cosine")), ("mixed_precision", ("auto", "bf16", "no"))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}: got {getattr(self, name)!r}, wants one of {', '.join(choices)}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay: got {self.ema_decay}, wants 0 <= ema_decay < 1")


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


def uses_bf16(mixed_precision: str, device: torch.device) -> bool:
    """Whether to run the forward pass under bf16 autocast on `device`; "auto" asks the processor."""
    if mixed_precision != "auto":
        return mixed_precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
