"""The denoiser's stage of a run: from cached latents to averaged weights, with looks at it on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medsora.data import LatentClips
from medsora.diffusion import DiffusionObjective
from medsora.files import write_json
from medsora.models import FrequencyCompensatedVAE
from medsora.training import denoiser_stage
from medsora.training.evaluation import DenoisingProbe
from medsora.training.loop import Trainer
from medsora.training.results import sample_grid, save_denoiser
from medsora.training.stopping import StopRequests

if TYPE_CHECKING:
    from accelerate import Accelerator

    from medsora.config import TrainSettings

BASELINE_FILE = "denoising-baseline.json"


class DenoiserRun:
    """Trains the denoiser of a run and measures its denoising loss at the baseline step and at the end."""

    def __init__(self, settings: TrainSettings, run: Path, dataset: Path, accelerator: Accelerator,
                 stops: StopRequests, say: Callable[[str], None]):  # fmt: skip
        self.settings, self.run, self.accelerator, self.stops, self.say = settings, run, accelerator, stops, say
        clips = LatentClips(dataset, "train")
        held_out = LatentClips(dataset, "val")
        self.vae = FrequencyCompensatedVAE.from_pretrained(run / "vae").to(accelerator.device).eval()
        self.objective = DiffusionObjective(settings.diffusion)
        scale = float(self.vae.config.scaling_factor)
        self.denoiser = untrained_denoiser(settings, self.vae, clips)
        self.class_names = clips.labels if self.denoiser.config.num_classes else []
        module = denoiser_stage.DenoiserTraining(
            self.denoiser,
            self.objective,
            denoiser_stage.build_projector(
                self.denoiser, clips.entry(0)["target"], settings.alignment.weight, settings.seed
            ),
            settings.alignment.weight,
            settings.denoiser.image_loss_weight,
        )
        draw = denoiser_stage.LatentDraws(
            clips,
            settings.denoiser,
            self.denoiser.config,
            scale,
            settings.diffusion.num_train_timesteps,
            settings.seed,
            self._first_frames(dataset, clips),
        )
        self.probed = "held-out" if len(held_out) else "training"
        self.probe = DenoisingProbe(held_out if len(held_out) else clips, settings.evaluation, scale, self.objective,
                                    settings.seed)  # fmt: skip
        inputs = clips.index["vae"][:16]
        self.task = denoiser_stage.denoiser_task(module, draw, inputs, self._after_step)

    def train(self) -> dict:
        """Trains to the limit and writes denoiser/; returns what is recorded of the stage."""
        trainer = Trainer(self.task, self.settings.denoiser, self.run, self.accelerator, self.stops, self.settings.seed)
        trainer.train(self.settings.limit("denoiser"))
        facts = {
            "steps": trainer.step,
            "parameters": sum(p.numel() for p in self.denoiser.parameters()),
            "probed": self.probed,
        }
        final = trainer.look(self._finish)
        if self.accelerator.is_main_process:
            baseline = self._baseline()
            facts |= {"denoising_loss": final, "baseline": baseline}
            if baseline:
                self.say(
                    f"      denoising loss {final['mse']:.4f} (at step {baseline['step']}: {baseline['mse']:.4f}) on a "
                    f"fixed set of {self.probed} clips"
                )
        return facts

    def _finish(self, module: denoiser_stage.DenoiserTraining) -> dict[str, float]:
        save_denoiser(self.run, module.denoiser, self.settings, self.class_names)
        return self.probe.measure(module.denoiser)

    def _after_step(self, step: int, trainer: Trainer) -> None:
        if step == self.settings.evaluation.baseline_step:
            measured = trainer.look(lambda module: self.probe.measure(module.denoiser))
            if measured is not None:
                write_json(self.run / BASELINE_FILE, {"step": step, "inputs": self.task.inputs, **measured})
        every = self.settings.denoiser.sample_every
        if every and step % every == 0:
            trainer.look(lambda module: sample_grid(self.run, step, self.vae, module.denoiser, self.settings))

    def _baseline(self) -> dict | None:
        path = self.run / BASELINE_FILE
        found = json.loads(path.read_text("utf-8")) if path.is_file() else None
        return found if found and found["inputs"] == self.task.inputs else None

    def _first_frames(self, dataset: Path, clips: LatentClips) -> dict[int, torch.Tensor] | None:
        if not self.denoiser.config.first_frame_conditioning:
            return None
        from medsora.training.first_frames import first_frame_latents, given_counts

        counts = given_counts(self.settings.denoiser.given_frames, self.settings.prepare.num_frames)
        return first_frame_latents(dataset, clips, self.vae, counts)


def untrained_denoiser(settings: TrainSettings, vae: FrequencyCompensatedVAE, clips: LatentClips):
    """The denoiser as it is before the first step, with a class for each label: the same weights at each call."""
    denoiser_stage.check_classes(settings.denoiser, clips.labels)
    return denoiser_stage.build_denoiser(
        settings.denoiser, vae.config.latent_channels, len(clips.labels), settings.seed
    )
