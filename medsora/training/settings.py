"""The settings of training: how a stage is optimised, and what each stage, the evaluation and the samples are like."""

import math
from dataclasses import dataclass, field
from typing import Any

from medsora.diffusion import SCHEDULERS
from medsora.errors import UserError

TRAINABLE = ("all", "compensation")


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
        precision: "bf16" (autocast), "fp32", or "auto": bf16 where the processor computes in it.
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
    precision: str = "auto"
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
        for name, choices in (("schedule", ("constant", "cosine")), ("precision", ("auto", "bf16", "fp32"))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}: got {getattr(self, name)!r}, wants one of {', '.join(choices)}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay: got {self.ema_decay}, wants 0 <= ema_decay < 1")


@dataclass
class VAESettings(LoopSettings):
    """Stage 1: the video VAE.

    Args:
        preset: Size of a VAE trained from scratch: "tiny" or "cogvideox".
        pretrained: Folder or hub name of pretrained CogVideoX weights; none trains from scratch.
        pretrained_subfolder: Where in it the VAE is; "vae" in a whole CogVideoX pipeline.
        compensation: Residual blocks: "spectral" (in the frequency domain), "conv" (plain convolutions) or "none".
        trainable: "all", or "compensation" to leave the backbone as it is.
        model: Other options of the model by name.
        num_frames: Frames of a training clip: 1, 8k or 8k + 1.
        flips: Mirror half of the clips left to right.
        l1: Weight of the mean absolute error.
        focal: Weight of the focal frequency loss.
        lpips: Weight of the LPIPS perceptual distance; above 0 it needs lpips_weights.
        kl: Weight of the posterior's divergence from a standard normal.
        lpips_weights: Folder or file of LPIPS weights.
    """

    preset: str = "tiny"
    pretrained: str | None = None
    pretrained_subfolder: str | None = None
    compensation: str = "spectral"
    trainable: str = "all"
    model: dict[str, Any] = field(default_factory=dict)
    num_frames: int = 8
    flips: bool = True
    l1: float = 1.0
    focal: float = 0.1
    lpips: float = 0.0
    kl: float = 1e-6
    lpips_weights: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.trainable not in TRAINABLE:
            raise UserError(f"trainable: got {self.trainable!r}, wants one of {', '.join(TRAINABLE)}")
        if self.trainable == "compensation" and self.compensation == "none":
            raise UserError("trainable: got 'compensation' where compensation is 'none', wants 'all'")


@dataclass
class DenoiserSettings(LoopSettings):
    """Stage 2: the denoiser. Its clips are the windows of `prepare`.

    Args:
        preset: Size: "tiny", "S", "B", "L" or "XL".
        model: Other options of the model by name.
        images_per_batch: Single frames that train beside the clips in a batch of their own, 0 for none.
        image_loss_weight: Weight of the images' loss; that of the clips is 1.
        label_dropout: How often a label is withheld, so that guidance works.
        first_frame_conditioning: Learn to go on from given first frames: image to video, and videos of any length.
        given_frames: How many first frames it is shown, each equally often, of 1, 8 and 9; null: 1, and 8 in windows
            of 8k frames or 9 in those of 8k + 1 where these are longer.
        first_frame_dropout: How often given first frames are withheld.
        first_frame_noise: Standard deviation of noise on the latents of given first frames, whose own is about 1, in
            training and in sampling: what a window of a long video is given was sampled itself and is not as clean as
            data (conditioning augmentation, Ho et al. 2022, arXiv:2106.15282, at one level); 0 for none.
        gradient_checkpointing: Recompute blocks in the backward pass: less memory, more time.
        sample_every: Steps between grids of samples from the averaged weights, 0 for none.
    """

    preset: str = "tiny"
    model: dict[str, Any] = field(default_factory=dict)
    images_per_batch: int = 0
    image_loss_weight: float = 1.0
    label_dropout: float = 0.1
    first_frame_conditioning: bool = False
    given_frames: tuple[int, ...] | None = None
    first_frame_dropout: float = 0.2
    first_frame_noise: float = 0.0
    gradient_checkpointing: bool = False
    sample_every: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ("images_per_batch", "image_loss_weight", "first_frame_noise", "sample_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}: got {getattr(self, name)}, wants 0 or more")
        for name in ("label_dropout", "first_frame_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: got {getattr(self, name)}, wants a probability")


@dataclass
class EvaluationSettings:
    """What is measured while a run trains and at its end.

    Args:
        baseline_step: Step of the denoiser whose denoising loss the final one is compared with.
        denoising_samples: Size of the fixed set of (clip, timestep, noise).
        reconstruction_clips: At most so many held-out clips are reconstructed.
        distance_videos: Videos in each set of the motion distance; 0 leaves it out.
        batch_size: Videos a forward pass handles.
    """

    baseline_step: int = 20
    denoising_samples: int = 128
    reconstruction_clips: int = 64
    distance_videos: int = 32
    batch_size: int = 16

    def __post_init__(self):
        for name in ("baseline_step", "denoising_samples", "reconstruction_clips", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: got {getattr(self, name)}, wants at least 1")
        if self.distance_videos == 1 or self.distance_videos < 0:
            raise UserError(f"distance_videos: got {self.distance_videos}, wants 0 or at least 2")


@dataclass
class SamplingSettings:
    """The samples at the end of a run. Sampler and steps: benchmarks/results/sampler-quality-cpu.json.

    Args:
        num_videos: Videos to write.
        num_inference_steps: Denoising steps.
        scheduler: "ddim", "ddpm", "dpm-solver++" or "heun".
        guidance_scale: How strongly labels guide; 1 for not at all.
        fps: Frames a second of the files written.
        batch_size: Videos sampled together; decides memory and speed, not what they show.
    """

    num_videos: int = 16
    num_inference_steps: int = 25
    scheduler: str = "dpm-solver++"
    guidance_scale: float = 1.0
    fps: float = 6.0
    batch_size: int = 16

    def __post_init__(self):
        for name in ("num_videos", "num_inference_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: got {getattr(self, name)}, wants at least 1")
        if not self.fps > 0:
            raise UserError(f"fps: got {self.fps}, wants more than 0")
        if self.scheduler not in SCHEDULERS:
            raise UserError(f"scheduler: got {self.scheduler!r}, wants one of {', '.join(SCHEDULERS)}")


def samples_at_once(name: str, total: int, processes: int, accumulation: int) -> int:
    """Samples of a batch of `total` that a process handles at once. Raises UserError where they do not divide evenly.

    name: of the setting that says how many the batch has.
    """
    parts = processes * accumulation
    if total % parts:
        raise UserError(
            f"{name}: got {total}, wants a multiple of {parts} ({processes} processes x accumulation {accumulation})"
        )
    return total // parts
