"""The report of a run: its settings, data, curves, numbers and samples on one page that needs no other file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from medsora.plots import plot_curves
from medsora.training.metrics_log import read_metrics

if TYPE_CHECKING:
    from medsora.config import TrainSettings
    from medsora.training.run_folder import RunFolder

CURVES = {
    "vae": ("Video VAE", ["loss", "l1", "focal", "lpips", "kl"]),
    "denoiser": ("Denoiser", ["loss", "mse", "vlb", "alignment", "image_loss"]),
}


def write_curves(run: Path) -> dict[str, Path]:
    """Draws plots/<stage>.png from metrics.jsonl, for each stage that has records."""
    drawn = {}
    for stage, (title, names) in CURVES.items():
        records = read_metrics(run, stage)
        series = {n: [(r["step"], r[n]) for r in records if isinstance(r.get(n), (int, float))] for n in names}
        series = {name: tuple(zip(*points, strict=True)) for name, points in series.items() if points}
        if series:
            drawn[stage] = run / "plots" / f"{stage}.png"
            plot_curves(drawn[stage], series, log_y=True, title=title)
    return drawn


def write_report(settings: TrainSettings, folder: RunFolder, results: dict) -> Path:
    """Writes report.html. results: what the last stage found (see `make_results`)."""
    from medsora.report import Report

    run, curves = folder.path, write_curves(folder.path)
    report = Report(
        f"MedSora: {run.name}",
        f"Trained on {settings.data} with the preset {settings.preset}. Generated videos on this page are synthetic: "
        "for research use only, not for diagnosis.",
    )
    report.figures(_key_figures(folder, results))
    report.heading("Generated videos")
    report.image(run / "samples" / "contact-sheet.png", "Each row is one generated video, its frames left to right")
    report.video(run / "samples" / "all.mp4", "All generated videos, side by side")
    report.heading("Recorded clips, to compare with")
    report.image(run / "samples" / "real-contact-sheet.png", "Each row is one recorded clip")
    _add_numbers(report, folder, results)
    report.heading("Video VAE: reconstruction")
    report.paragraph(
        f"Rows in pairs: {folder.done('vae')['split']} clip, then its reconstruction from latents."
        + (" Same patient as the training frames: a check of fit, not of generality." if _one_patient(settings) else "")
    )
    report.image(run / "plots" / "reconstruction.png")
    report.heading("Loss curves")
    for png in curves.values():
        report.curves(png)
    _add_data(report, folder)
    report.heading("Settings")
    values = settings.as_dict()
    report.table(
        ["setting", "value"],
        [
            [f"{part}.{name}" if name else part, yaml.safe_dump(value, default_flow_style=True).split("\n")[0]]
            for part, inner in values.items()
            for name, value in (inner.items() if isinstance(inner, dict) else [("", inner)])
        ],
    )
    report.write(run / "report.html")
    return run / "report.html"


def _key_figures(folder: RunFolder, results: dict) -> list[tuple[str, str]]:
    vae, denoiser = folder.done("vae"), folder.done("denoiser")
    final, distances = denoiser["denoising_loss"], results.get("distances")
    found = [
        (f"reconstruction, PSNR on {vae['split']} clips", f"{vae['psnr']:.1f} dB"),
        (f"denoising loss after {denoiser['steps']} steps", f"{final['mse']:.3f}"),
    ]
    if denoiser["baseline"]:
        found.append(
            (
                f"of the denoising loss at step {denoiser['baseline']['step']}",
                f"{final['mse'] / denoiser['baseline']['mse']:.0%}",
            )
        )
    if distances:
        found.append(("motion distance to real clips", f"{distances['generated']:.4g}"))
    return found


def _add_numbers(report, folder: RunFolder, results: dict) -> None:
    vae, denoiser = folder.done("vae"), folder.done("denoiser")
    rows = [
        ["Video VAE: PSNR of reconstructed clips", f"{vae['psnr']:.2f} dB", f"{vae['clips']} {vae['split']} clips"],
    ]
    final, baseline = denoiser["denoising_loss"], denoiser["baseline"]
    fixed = f"fixed set of (clip, timestep, noise), {denoiser['probed']} clips"
    if baseline:
        rows.append([f"Denoising loss (noise error) at step {baseline['step']}", f"{baseline['mse']:.4f}", fixed])
    rows.append([f"Denoising loss (noise error) at step {denoiser['steps']}", f"{final['mse']:.4f}", fixed])
    for name, value in results.get("distances", {}).items():
        rows.append([f"Motion distance to real clips: {name}", f"{value:.4g}", f"{results['real_clips']} real clips"])
    report.heading("Numbers")
    report.table(["measure", "value", "on"], rows)
    if results.get("distances"):
        from medsora.metrics import MotionFeatures

        report.paragraph(
            "Motion distance: Frechet distance between fixed, weight-free features of two sets of clips. "
            + " ".join((MotionFeatures.__doc__ or "").split())
        )


def _add_data(report, folder: RunFolder) -> None:
    from medsora.data.manifest import Manifest

    facts, latents = folder.done("frames"), folder.done("latents")
    manifest = Manifest.read(Path(facts["dataset"]))
    report.heading("Data")
    report.table(
        ["", "count"],
        [
            ["training clips", facts["train"]],
            ["validation clips", facts["val"]],
            ["files skipped", facts["skipped"]],
            ["windows encoded", latents["windows"]],
            ["single frames encoded", latents["images"]],
            ["frames in all", sum(clip.frames for clip in manifest.clips)],
        ],
    )
    for note in manifest.notes:
        report.paragraph(note)


def _one_patient(settings: TrainSettings) -> bool:
    return settings.data == "builtin:cine"
