"""The model card: README.md of a saved model, which says what it was made from, how, how well, and what it is not for.

Its head is the metadata that the Hugging Face hub reads. It names no file, patient or machine: counts and settings
only, so that it can go with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from medsora.config import TrainSettings
    from medsora.data.manifest import Manifest
    from medsora.pipeline import MedSoraPipeline

CARD_FILE = "README.md"
UNKNOWN = "unknown"

TAGS = ["video-generation", "diffusion", "mamba", "medical", "synthetic", "research-only"]

MOTION = """
The motion distance is a Frechet distance between fixed, weight-free features; it compares with no published FVD or FID.
"""

USE = """\
## Use

```python
from medsora import MedSoraPipeline

pipeline = MedSoraPipeline.from_pretrained("FOLDER_OR_HUB_NAME")
videos = pipeline(num_videos=4, num_inference_steps=25, seed=1).videos  # float32 (4, T, H, W, 3) in [0, 1]
```

## Limits

* **For research only. What this model generates is synthetic and must not be used for diagnosis, treatment or any
  other decision about a patient**, nor be passed off as a recording. Files that the command writes carry a mark.
* Nothing has been evaluated with clinicians; the measures above say nothing of medical correctness.
* A model trained on few patients repeats them: its videos can be near copies of training clips, with what
  can be recognised in them. Compare samples with the nearest training clips before you share either.
* It shows what its data showed: one view, device or disease too seldom recorded is too seldom or wrongly drawn.
"""


def run_card(settings: TrainSettings, manifest: Manifest, stages: dict[str, dict]) -> str:
    """The card of a model that `medsora.train` made.

    manifest: of the prepared data. stages: what each stage of the run found, as in stages.json; one that is not done
    yet is passed over.
    """
    name = f"MedSora {settings.preset}"
    sections = [
        _opening(name, settings.license),
        "## Data\n\n" + _table(("", ""), _data_rows(settings, manifest)) + "".join(f"\n{n}\n" for n in manifest.notes),
        "## Training\n\n" + _table(("setting", "value"), _setting_rows(settings, manifest, stages)),
        "## Measured\n\n" + _measured(stages),
        USE,
    ]
    return "\n".join(sections)


def plain_card(pipeline: MedSoraPipeline) -> str:
    """The card of a pipeline of which no more is known than its parts."""
    denoiser, rows = pipeline.denoiser, []
    rows.append(("denoiser", f"{_parameters(denoiser)} parameters, {denoiser.config.depth} blocks"))
    rows.append(("video VAE", f"{_parameters(pipeline.vae)} parameters"))
    rows.append(("video", f"{pipeline.config.num_frames} frames of {pipeline.config.height} x {pipeline.config.width}"))
    rows.append(("classes", str(denoiser.config.num_classes or "none")))
    return "\n".join(
        [
            _opening("MedSora", UNKNOWN),
            "## Model\n\n" + _table(("", ""), rows),
            "## Data\n\nNot recorded with this model.\n",
            "## Measured\n\nNot recorded with this model.\n",
            USE,
        ]
    )


def write_run_card(run: Path, settings: TrainSettings, dataset: Path, stages: dict[str, dict]) -> None:
    """Writes the card of a run into its folder."""
    from medsora.data.manifest import Manifest
    from medsora.files import write_text

    write_text(run / CARD_FILE, run_card(settings, Manifest.read(dataset), stages))


def _opening(name: str, licence: str) -> str:
    head = yaml.safe_dump({"license": licence, "library_name": "diffusers", "tags": TAGS}, sort_keys=False)
    terms = f"`{licence}`" if licence != UNKNOWN else "unknown: ask whoever gave you the recordings or the model"
    return (
        f"---\n{head}---\n\n# {name}\n\nA latent diffusion model of short medical videos, made with MedSora "
        "(after [arXiv 2411.01647](https://arxiv.org/abs/2411.01647)).\n"
        f"**For research only, not for diagnosis.** Licence of data and weights: {terms}.\n"
    )


def _data_rows(settings: TrainSettings, manifest: Manifest) -> list[tuple[str, str]]:
    builtin = settings.data.startswith("builtin:")
    rows = [("origin", settings.data if builtin else "recordings of the model's maker, which it does not name")]
    patients = {}
    for split, title in (("train", "training"), ("val", "held out")):
        clips = manifest.of_split(split)
        patients[split] = {clip.patient for clip in clips}
        amounts = (
            _count(len(clips), "clip"),
            _count(sum(clip.frames for clip in clips), "frame"),
            _count(len({clip.source for clip in clips}), "recording"),
            _count(len(patients[split]), "patient"),
        )
        rows.append((title, ", ".join(amounts)))
    both = _count(len(patients["train"] & patients["val"]), "patient")
    split = f"{both} on both sides: a check of fitting, not of generality"
    rows.append(("split", "by patient" if both.startswith("0") else split))
    rendered = sum(clip.synthetic for clip in manifest.clips)
    rows.append(("rendered, not recorded", _count(rendered, "clip")))
    rows.append(("classes", ", ".join(manifest.labels) or "none"))
    rows.append(("licence", settings.license))
    return rows


def _setting_rows(settings: TrainSettings, manifest: Manifest, stages: dict[str, dict]) -> list[tuple[str, str]]:
    vae, denoiser, prepare = settings.vae, settings.denoiser, settings.prepare
    backbone = f"pretrained ({Path(vae.pretrained).name}), trained: {vae.trainable}" if vae.pretrained else vae.preset
    size = f"{prepare.size} x {prepare.size} pixels"
    return [
        ("video", f"{_count(prepare.num_frames, 'frame')} at interval {prepare.interval}, {size}"),
        ("video VAE", f"{backbone}, compensation {vae.compensation}, {_steps(stages, 'vae')}"),
        ("denoiser", f"{settings.preset}: {_steps(stages, 'denoiser')}, {denoiser.batch_size} clips and "
                     f"{denoiser.images_per_batch} single frames a step"),
        ("optimizer", f"AdamW, learning rate {denoiser.learning_rate:g}, {denoiser.schedule}, "
                      f"weights averaged with decay {denoiser.ema_decay:g}"),
        ("alignment", f"{settings.alignment.representation}, weight {settings.alignment.weight:g}"),
        ("conditioning", _conditions(settings, manifest)),
        ("noise", f"{settings.diffusion.num_train_timesteps} levels, {settings.diffusion.beta_schedule}"),
        ("sampler", f"{settings.sampling.scheduler}, {settings.sampling.num_inference_steps} steps"),
        ("seed", str(settings.seed)),
    ]  # fmt: skip


def _conditions(settings: TrainSettings, manifest: Manifest) -> str:
    """What a video can be asked for, and how often training withheld it."""
    from medsora.pipeline_inputs import either
    from medsora.training.first_frames import given_counts

    denoiser, found = settings.denoiser, []
    if manifest.labels and denoiser.model.get("num_classes") != 0:
        found.append(f"class, withheld in {denoiser.label_dropout:.0%} of samples")
    if denoiser.model.get("first_frame_conditioning", denoiser.first_frame_conditioning):
        counts = either(given_counts(denoiser.given_frames, settings.prepare.num_frames))
        noise = f", with noise {denoiser.first_frame_noise:g}" if denoiser.first_frame_noise else ""
        found.append(f"first frames ({counts}){noise}, withheld in {denoiser.first_frame_dropout:.0%} of samples")
    return "; ".join(found) or "none"


def _steps(stages: dict[str, dict], stage: str) -> str:
    found = stages.get(stage)
    return f"{found['steps']} steps, {found['parameters']:,} parameters" if found else "not finished"


def _measured(stages: dict[str, dict]) -> str:
    vae, denoiser, results = (stages.get(name) or {} for name in ("vae", "denoiser", "results"))
    rows = []
    if "psnr" in vae:
        clips = f"{_count(vae['clips'], 'clip')}, {vae['split']}"
        rows.append(("reconstruction by the video VAE, PSNR", f"{vae['psnr']:.2f} dB", clips))
    if denoiser:
        final, baseline, probed = denoiser["denoising_loss"], denoiser["baseline"], f"{denoiser['probed']} clips"
        if baseline:
            rows.append((f"denoising loss at step {baseline['step']}", f"{baseline['mse']:.4f}", probed))
        rows.append((f"denoising loss at the end, step {denoiser['steps']}", f"{final['mse']:.4f}", probed))
    for kind, value in results.get("distances", {}).items():
        clips = _count(results["real_clips"], "recorded window")
        rows.append((f"motion distance to recorded windows: {kind}", f"{value:.4g}", clips))
    if not rows:
        return "Nothing yet.\n"
    return _table(("measure", "value", "on"), rows) + (MOTION if results.get("distances") else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |\n" for row in cells)


def _parameters(module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"
