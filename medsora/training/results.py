"""What a run leaves to see: the saved pipeline, reconstructions, samples, motion distances, curves, the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from medsora.files import replacing_folder, write_text

if TYPE_CHECKING:
    from medsora.config import TrainSettings
    from medsora.models import FrequencyCompensatedVAE, MedSora
    from medsora.training.run_folder import RunFolder

GRID_VIDEOS = 4
GRID_STEPS = 25
SHEET_VIDEOS = 8
REAL_CLIPS = 64  # at most so many recorded clips make the set that motion distances are measured to


def held_out_reconstruction(
    vae: FrequencyCompensatedVAE, dataset: Path, run: Path, settings: TrainSettings
) -> dict[str, float | int | str]:
    """PSNR of reconstructed held-out clips, and a picture of some; of training clips where none are held out."""
    from medsora import media
    from medsora.data import FrameClips
    from medsora.training.evaluation import mean_psnr, reconstruct

    for split in ("val", "train"):
        clips = FrameClips(dataset, split).fixed_clips(settings.vae.num_frames)
        if clips:
            break
    clips = clips[: settings.evaluation.reconstruction_clips]
    made = reconstruct(vae, clips, settings.evaluation.batch_size)
    pairs = [video for pair in zip(clips[:3], made[:3], strict=True) for video in pair]
    labels = ["recorded", "reconstructed"] * (len(pairs) // 2)
    media.contact_sheet(run / "plots" / "reconstruction.png", pairs, settings.vae.num_frames, labels)
    return {"psnr": mean_psnr(clips, made), "clips": len(clips), "split": "held-out" if split == "val" else "training"}


def save_denoiser(run: Path, denoiser: MedSora, settings: TrainSettings, class_names: list[str]) -> None:
    """Writes denoiser/, scheduler/ and, last, model_index.json, so that the run folder is a pipeline."""
    from medsora import MedSoraPipeline
    from medsora.diffusion import make_scheduler
    from medsora.models import FrequencyCompensatedVAE
    from medsora.training.first_frames import given_counts

    conditioned = denoiser.config.first_frame_conditioning
    scheduler = make_scheduler(settings.sampling.scheduler, settings.diffusion)
    vae = FrequencyCompensatedVAE.from_pretrained(run / "vae")
    pipeline = MedSoraPipeline(
        vae=vae,
        denoiser=denoiser,
        scheduler=scheduler,
        height=settings.prepare.size,
        width=settings.prepare.size,
        num_frames=settings.prepare.num_frames,
        fps=settings.sampling.fps,
        class_names=class_names,
        given_frames=given_counts(settings.denoiser.given_frames, settings.prepare.num_frames) if conditioned else (1,),
        given_noise=settings.denoiser.first_frame_noise if conditioned else 0.0,
    )
    for name, part in (("denoiser", denoiser), ("scheduler", scheduler)):
        with replacing_folder(run / name) as temporary:
            part.save_pretrained(temporary)
    write_text(run / "model_index.json", pipeline.to_json_string())


def sample(
    vae: FrequencyCompensatedVAE,
    denoiser: MedSora,
    settings: TrainSettings,
    count: int,
    steps: int,
    progress: bool = False,
) -> np.ndarray:
    """Videos 0 to count - 1 of the run's seed: uint8 (count, T, H, W, 3). Labels, where there are any, take turns."""
    from medsora import MedSoraPipeline, media
    from medsora.diffusion import make_scheduler

    sampling, classes = settings.sampling, denoiser.config.num_classes
    scheduler = make_scheduler(sampling.scheduler, settings.diffusion)
    pipeline = MedSoraPipeline(vae=vae, denoiser=denoiser, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=not progress, desc="sampling")
    training = denoiser.training
    denoiser.eval()
    try:
        made = pipeline(
            num_videos=count,
            num_frames=settings.prepare.num_frames,
            height=settings.prepare.size,
            width=settings.prepare.size,
            num_inference_steps=steps,
            scheduler=sampling.scheduler,
            seed=settings.seed,
            class_labels=[i % classes for i in range(count)] if classes else None,
            guidance_scale=sampling.guidance_scale if classes else 1.0,
            batch_size=sampling.batch_size,
            progress=progress,
        ).videos
    finally:
        denoiser.train(training)
    return media.to_uint8(made)


def sample_grid(run: Path, step: int, vae: FrequencyCompensatedVAE, denoiser: MedSora, settings: TrainSettings) -> None:
    """A look at training: a contact sheet of a few samples, a row each, samples/step-N.png."""
    from medsora import media

    steps = min(GRID_STEPS, settings.sampling.num_inference_steps)
    videos = sample(vae, denoiser, settings, GRID_VIDEOS, steps)
    media.contact_sheet(run / "samples" / f"step-{step:07d}.png", list(videos), columns=videos.shape[1])


def make_results(
    settings: TrainSettings, folder: RunFolder, dataset: Path, device: torch.device, say: Callable[[str], None]
) -> dict:
    """Samples from the saved pipeline, writes media, measures motion distances, draws curves, writes report.html."""
    from medsora import MedSoraPipeline
    from medsora.data import LatentClips
    from medsora.saved_model import quiet_diffusers
    from medsora.training import evaluation
    from medsora.training.denoiser_run import untrained_denoiser
    from medsora.training.run_report import write_report

    with quiet_diffusers():
        pipeline = MedSoraPipeline.from_pretrained(folder.path).to(device)
    measure = settings.evaluation.distance_videos
    count = max(settings.sampling.num_videos, measure)
    steps = settings.sampling.num_inference_steps
    say(f"      sampling {count} videos in {steps} steps")
    videos = sample(pipeline.vae, pipeline.denoiser, settings, count, steps, progress=True)
    names = pipeline.config.class_names
    labels = [names[i % len(names)] for i in range(SHEET_VIDEOS)] if names else None
    write_samples(folder.path / "samples", videos[: settings.sampling.num_videos], settings.sampling.fps, labels)

    facts: dict = {"videos": settings.sampling.num_videos}
    clips = LatentClips(dataset, "train")
    real = evaluation.real_windows(dataset, clips, settings.prepare.num_frames, settings.prepare.interval, REAL_CLIPS)
    write_real(folder.path / "samples", real[: settings.sampling.num_videos], settings.sampling.fps)
    if measure and len(real) > 1:
        denoiser = untrained_denoiser(settings, pipeline.vae, clips).to(device)
        untrained = sample(pipeline.vae, denoiser, settings, measure, steps, progress=True)
        facts["distances"] = evaluation.motion_distances(real, videos[:measure], untrained, settings.seed)
        facts["real_clips"] = len(real)
        say("      motion distance to real clips: " + _listed(facts["distances"]))
    write_report(settings, folder, facts)
    return facts


def write_samples(folder: Path, videos: np.ndarray, fps: float, labels: list[str] | None = None) -> None:
    """Each video as mp4, all of them side by side as mp4 and gif, and a contact sheet; marked as synthetic.

    labels: what stands above the videos of the contact sheet.
    """
    from medsora import media

    for number, video in enumerate(videos):
        media.write_mp4(folder / f"video-{number:04d}.mp4", video, fps)
    together = mosaic(videos)
    media.write_mp4(folder / "all.mp4", together, fps)
    media.write_gif(folder / "all.gif", together, fps)
    shown = list(videos[:SHEET_VIDEOS])
    media.contact_sheet(folder / "contact-sheet.png", shown, videos.shape[1], labels and labels[: len(shown)])


def write_real(folder: Path, videos: list[np.ndarray], fps: float) -> None:
    """Real clips in the same form, to compare with."""
    from medsora import media

    media.write_mp4(folder / "real.mp4", mosaic(np.stack(videos)), fps, synthetic=False)
    media.contact_sheet(folder / "real-contact-sheet.png", videos[:8], columns=len(videos[0]), synthetic=False)


def mosaic(videos: np.ndarray) -> np.ndarray:
    """(N, T, H, W, 3) -> one video of all side by side, (T, rows H, columns W, 3), about square; missing ones black."""
    count, frames, height, width, _ = videos.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    filled = np.zeros((rows * columns, *videos.shape[1:]), dtype=videos.dtype)
    filled[:count] = videos
    tiles = filled.reshape(rows, columns, frames, height, width, 3).transpose(2, 0, 3, 1, 4, 5)
    return np.ascontiguousarray(tiles.reshape(frames, rows * height, columns * width, 3))


def where_results_are(folder: RunFolder, settings: TrainSettings) -> str:
    """The last words of a run: its numbers and where to look."""
    path, vae, denoiser = folder.path, folder.done("vae"), folder.done("denoiser")
    results = folder.done("results")
    lines = [
        "",
        f"report         {path / 'report.html'}",
        f"samples        {path / 'samples'}  (contact-sheet.png, all.gif, all.mp4)",
        f"model          {path}  (python -m medsora.sample --model {path} --num-videos 4)",
        f"curves         {path / 'plots'}; tensorboard --logdir {path / 'tensorboard'}",
        f"video VAE      {vae['psnr']:.2f} dB PSNR on {vae['split']} clips after {vae['steps']} steps",
    ]
    final, baseline = denoiser["denoising_loss"], denoiser["baseline"]
    before = f", {baseline['mse']:.4f} at step {baseline['step']}" if baseline else ""
    lines.append(f"denoiser       loss {final['mse']:.4f} after {denoiser['steps']} steps{before}")
    if results.get("distances"):
        lines.append("motion         distance to real clips: " + _listed(results["distances"]))
    return "\n".join(lines)


def _listed(distances: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in distances.items())
