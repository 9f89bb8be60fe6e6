"""The second stage: the denoiser learns to take noise out of the VAE's latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medsora.errors import UserError
from medsora.training.draws import Draws, Part
from medsora.training.loop import Task, Trainer
from medsora.training.settings import DenoiserSettings

if TYPE_CHECKING:
    from medsora.alignment import AlignmentProjector
    from medsora.data import LatentClips
    from medsora.diffusion import DiffusionObjective
    from medsora.models import MedSora


class DenoiserTraining(nn.Module):
    """The denoiser with its losses: a batch of latents, noise and conditions in, a loss out.

    projector: maps hidden tokens to the alignment targets' features; None trains without alignment.
    """

    def __init__(
        self,
        denoiser: MedSora,
        objective: DiffusionObjective,
        projector: AlignmentProjector | None = None,
        alignment_weight: float = 0.0,
        image_loss_weight: float = 1.0,
    ):
        super().__init__()
        self.denoiser = denoiser
        self.projector = projector
        self._objective = objective
        self._alignment_weight = alignment_weight
        self._image_loss_weight = image_loss_weight

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: "video.*" and, for joint training, "image.*": "latents", "noise" (B, F, C, h, w), "timestep" (B,),
        and optionally "label", "first_frames" with "first_frames_mask", "target" with "mask" (see alignment)."""
        losses, hidden = self._denoise(batch, "video.")
        loss = losses["loss"].mean()
        values = {"mse": losses["mse"].mean(), "vlb": losses["vlb"].mean()}
        if self.projector is not None:
            from medsora.alignment import alignment_loss

            aligned = alignment_loss(hidden, batch["video.target"], batch["video.mask"], self.projector).mean()
            values["alignment"] = aligned
            loss = loss + self._alignment_weight * aligned
        if "image.latents" in batch:
            image_loss = self._denoise(batch, "image.")[0]["loss"].mean()
            values["image_loss"] = image_loss
            loss = loss + self._image_loss_weight * image_loss
        return loss, values

    def _denoise(self, batch: dict[str, Tensor], kind: str) -> tuple[dict[str, Tensor], tuple | None]:
        latents, noise, timestep = (batch[kind + name] for name in ("latents", "noise", "timestep"))
        noisy = self._objective.add_noise(latents, noise, timestep)
        output = self.denoiser(
            noisy,
            timestep,
            class_labels=batch.get(kind + "label"),
            first_frames=batch.get(kind + "first_frames"),
            first_frames_mask=batch.get(kind + "first_frames_mask"),
            return_hidden=kind == "video." and self.projector is not None,
        )
        return self._objective.loss(output.sample.float(), latents, noise, noisy, timestep), output.hidden


class LatentDraws:
    """Batches of latents with the noise, timesteps and conditions they train with, each a pure function of the step.

    clips: cached latents. config: the denoiser's. scaling_factor: multiplies latents, for unit variance.
    num_train_timesteps: noise levels. first_frames: (entries, F, C, h, w) for each number of first frames that the
    denoiser is given, what it sees of each entry; None for a denoiser that is given none.
    """

    def __init__(
        self,
        clips: LatentClips,
        settings: DenoiserSettings,
        config,
        scaling_factor: float,
        num_train_timesteps: int,
        seed: int,
        first_frames: dict[int, Tensor] | None = None,
    ):
        self.clips, self.settings, self.config = clips, settings, config
        self.scaling_factor, self.num_train_timesteps = scaling_factor, num_train_timesteps
        self.seed, self.first_frames = seed, first_frames

    def __call__(self, step: int, part: Part) -> dict[str, Tensor]:
        """The part of the batch of `step`: its clips, and its images where there are any."""
        batch = self._kind("video", self.clips, self.settings.batch_size, step, part)
        if self.settings.images_per_batch:
            batch |= self._kind("image", self.clips.images, self.settings.images_per_batch, step, part)
        return batch

    def _kind(self, kind: str, clips, total: int, step: int, part: Part) -> dict[str, Tensor]:
        draws, indices = Draws(self.seed, "denoiser " + kind), part.indices(total)
        chosen = draws.items("entry", step, indices, total, len(clips))
        entries = [clips.entry(i) for i in chosen]
        # (B, C, F, h, w) in the cache, (B, F, C, h, w) in the denoiser
        mean, std = (torch.stack([e[name] for e in entries]).transpose(1, 2).float() for name in ("mean", "std"))
        posterior = draws.normal("posterior", step, indices, mean.shape[1:])
        batch = {
            "latents": (mean + std * posterior) * self.scaling_factor,
            "noise": draws.normal("noise", step, indices, mean.shape[1:]),
            "timestep": draws.timesteps(step, indices, total, self.num_train_timesteps),
        }
        if self.config.num_classes:
            batch["label"] = self._labels(draws, entries, step, indices)
        if kind == "video" and self.first_frames is not None:
            batch |= self._given(draws, chosen, step, indices, mean)
        if entries[0]["target"] is not None:
            batch["target"] = torch.stack([e["target"] for e in entries]).float()
            batch["mask"] = torch.stack([e["mask"] for e in entries]).bool()
        return {f"{kind}.{name}": tensor for name, tensor in batch.items()}

    def _given(self, draws: Draws, chosen: list[int], step: int, indices: range, like: Tensor) -> dict[str, Tensor]:
        """Each sample's first frames, with noise on them and some withheld; how many it is shown is drawn for it."""
        frames, mask = torch.zeros_like(like), torch.zeros(like.shape[:2])
        counts = sorted(self.first_frames)
        places = draws.uniform("given frames", step, indices) * len(counts)
        withheld = draws.chance("first frame dropout", step, indices, self.settings.first_frame_dropout)
        for row, (entry, place) in enumerate(zip(chosen, places, strict=True)):
            shown = self.first_frames[counts[int(place)]][entry] * self.scaling_factor
            if self.settings.first_frame_noise:
                noise = draws.normal("first frame noise", step, [indices[row]], shown.shape)[0]
                shown = shown + self.settings.first_frame_noise * noise
            frames[row, : len(shown)] = shown
            mask[row, : len(shown)] = float(not withheld[row])
        return {"first_frames": frames, "first_frames_mask": mask}

    def _labels(self, draws: Draws, entries: list[dict], step: int, indices: range) -> Tensor:
        none = self.config.num_classes
        labels = torch.tensor([none if e["label"] is None else int(e["label"]) for e in entries])
        withheld = draws.chance("label dropout", step, indices, self.settings.label_dropout)
        return torch.where(withheld, none, labels)


def build_denoiser(settings: DenoiserSettings, in_channels: int, num_classes: int, seed: int) -> MedSora:
    """The untrained denoiser; its initial weights are a function of the seed."""
    from medsora.models import MedSora

    conditions = {"num_classes": num_classes, "first_frame_conditioning": settings.first_frame_conditioning}
    options = {"in_channels": in_channels} | conditions | settings.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Draws(seed, "denoiser").integer("initial weights"))
        try:
            denoiser = MedSora.preset(settings.preset, **options)
        except (ValueError, TypeError) as error:
            raise UserError(f"denoiser: {error}") from error
    if settings.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    return denoiser


def check_classes(settings: DenoiserSettings, labels: Sequence[str]) -> None:
    """UserError where the model is to have other classes than the data; 0 leaves the labels unused."""
    asked = settings.model.get("num_classes", 0)
    if asked not in (0, len(labels)):
        known = f"the labels {', '.join(labels)}" if labels else "no labels"
        wants = f"{len(labels)}, or 0 for a model without classes" if labels else "0"
        raise UserError(f"denoiser.model.num_classes: got {asked}, wants {wants}: the data has {known}")


def build_projector(denoiser: MedSora, target: Tensor | None, weight: float, seed: int) -> AlignmentProjector | None:
    """The projector for targets like `target` (layers, F, tokens, channels); None where nothing is to be aligned."""
    if target is None or weight == 0:
        return None
    from medsora.alignment import AlignmentProjector, alignment_pairs

    pairs = alignment_pairs(denoiser.config.depth, target.shape[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Draws(seed, "denoiser").integer("initial projector"))
        return AlignmentProjector(denoiser.config.hidden_size, target.shape[-1], pairs)


def denoiser_task(
    module: DenoiserTraining, draw: LatentDraws, inputs: str, after_step: Callable[[int, Trainer], None]
) -> Task:
    """What the loop needs to train the denoiser on cached latents."""
    if not len(draw.clips):
        raise UserError(
            "data: there is no training window, wants clips of at least "
            "(prepare.num_frames - 1) * prepare.interval + 1 frames"
        )
    if draw.settings.images_per_batch and not len(draw.clips.images):
        raise UserError(
            "denoiser.images_per_batch: the data has no single frames, wants prepare.images_per_clip above 0"
        )
    return Task("denoiser", module, draw, inputs, after_step)
