"""A small denoiser trained on random latents, and a run of it as a program for tests of divided parameters.

Usage: python small_denoiser.py RUN_FOLDER LIMIT

Each process leaves RUN_FOLDER/process-N.json: "held", what part of parameters, moments and averages it
holds; "gathered", the modules whose weights are gathered together; "prediction", see below.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from medsora.alignment import AlignmentProjector
from medsora.diffusion import DiffusionObjective, DiffusionSettings
from medsora.models import MedSora
from medsora.processes import leave_group
from medsora.training.denoiser_stage import DenoiserTraining
from medsora.training.draws import Draws
from medsora.training.loop import Task, Trainer
from medsora.training.settings import DenoiserSettings
from medsora.training.stopping import StopRequests

BATCH, LATENTS = 4, (2, 4, 4, 4)  # (F, C, h, w)
POISONED = 2
SETTINGS = {"batch_size": BATCH, "accumulation": 2, "learning_rate": 1e-3, "weight_decay": 0.1, "ema_decay": 0.5,
            "gradient_clip": 0.5, "warmup_steps": 2, "checkpoint_every": 4, "precision": "fp32"}  # fmt: skip


def small_module() -> DenoiserTraining:
    """Two blocks that are recomputed, clips and single frames, and a projector beside the denoiser."""
    torch.manual_seed(0)
    denoiser = MedSora(in_channels=LATENTS[1], hidden_size=32, attention_heads=2, depth=2, state_size=4, head_dim=16)
    for parameter in denoiser.parameters():  # weights that start at zero would leave most gradients at zero
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    denoiser.enable_gradient_checkpointing()
    projector = AlignmentProjector(32, 3, [(0, 0), (1, 0)])
    return DenoiserTraining(denoiser, DiffusionObjective(DiffusionSettings()), projector, alignment_weight=0.5)


def draw(step, part):
    """A part of a batch; the noise of the first clip of the poisoned step is NaN."""
    draws, indices = Draws(1, "small"), part.indices(BATCH)
    batch = {}
    for kind, frames in (("video", LATENTS[0]), ("image", 1)):
        batch |= {f"{kind}.{name}": draws.normal(kind + name, step, indices, (frames, *LATENTS[1:]))
                  for name in ("latents", "noise")}  # fmt: skip
        batch[f"{kind}.timestep"] = draws.timesteps(step, indices, BATCH, 1000)
    batch["video.target"] = draws.normal("target", step, indices, (1, LATENTS[0], 4, 3))
    batch["video.mask"] = torch.ones(len(indices), LATENTS[0], 4, dtype=torch.bool)
    if step == POISONED and 0 in indices:
        batch["video.noise"][0] = float("nan")
    return batch


def small_trainer(run, module=None) -> Trainer:
    """A trainer of the small denoiser, from the run's last checkpoint on."""
    task = Task("small", module or small_module(), draw, "inputs")
    return Trainer(task, DenoiserSettings(**SETTINGS), Path(run), Accelerator(cpu=True), StopRequests(), seed=1)


def prediction(trainer: Trainer) -> list[float] | None:
    """What the averaged weights make of a fixed batch, a sum for each clip; None in all processes but the first."""
    latents = Draws(1, "small").normal("looked at", 0, range(BATCH), LATENTS)

    def at(module):
        with torch.no_grad():
            return module.denoiser(latents, torch.arange(BATCH)).sample.sum(dim=(1, 2, 3, 4)).tolist()

    return trainer.look(at)


def part_held(tensors) -> float:
    """The part of the tensors' elements that lies in this process."""
    tensors = list(tensors)
    held = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(t.numel() for t in held) / sum(t.numel() for t in tensors)


def main() -> None:
    """Trains to LIMIT."""
    run, limit = Path(sys.argv[1]), int(sys.argv[2])
    trainer = small_trainer(run)
    trainer.train(limit)
    moments = [state["exp_avg"] for state in trainer.optimizer.state.values()]
    facts = {
        "held": [part_held(t) for t in (trainer.parameters, moments, trainer.average.values.values())],
        "gathered": [n for n, m in trainer.task.module.named_modules() if hasattr(m, "reshard")],
        "prediction": prediction(trainer),
    }
    (run / f"process-{trainer.accelerator.process_index}.json").write_text(json.dumps(facts))
    leave_group()


if __name__ == "__main__":
    main()
