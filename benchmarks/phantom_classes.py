"""Does the model show the class it is asked for? `python -m benchmarks.phantom_classes`.

Trains a tiny class-conditional model on rendered endoscopies, half of them with a polyp, and samples both classes with
and without guidance. A small classifier that was trained on other rendered clips, and on no generated one, then tells
the classes apart: on rendered clips it has not seen, on these through the video VAE, which is the best that generated
clips can look like, and on the generated ones. The same command goes on where it was stopped.

A tiny experiment on synthetic data: it asks whether labels and guidance work, and tells nothing of real polyps.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness.environment import environment, revision
from medsora.data.phantom import LABELS, render
from medsora.errors import UserError, run_command
from medsora.files import write_json
from medsora.training.progress import step_bar

# Finer than the tiny preset, whose cells of 8 x 8 pixels blur a polyp away: 4 x 4 pixels for one latent.
VAE = {"pixel_unshuffle": 1, "sample_height": 32, "sample_width": 32}
RESULTS = Path(__file__).parent / "results" / "phantom-classes-cpu.json"
CLIPS, SIZE, FRAMES, RENDERED = 128, 32, 16, 24
STARTS = (0, RENDERED - FRAMES)  # where the two windows of a clip begin
# Anatomies that the model was not trained on: for the classifier's training, and to test it with.
TRAINING_SEEDS, HELD_OUT_SEEDS = range(10_000, 10_120), range(20_000, 20_040)
SCALES = (1.0, 4.0)
SHOWN = 3  # videos of each class in the picture


def main(arguments: list[str] | None = None) -> None:
    """Trains what is not trained yet, samples, classifies, and writes the record and the picture."""
    options = _parse(arguments)
    if min(options.vae_steps, options.steps, options.classifier_steps, options.sampling_steps) < 1:
        raise UserError("--vae-steps, --steps, --classifier-steps, --sampling-steps: wants 1 or more each")
    if options.videos < SHOWN:
        raise UserError(f"--videos: got {options.videos}, wants {SHOWN} or more")
    pipeline = trained_pipeline(options)
    print("rendering clips for the classifier", flush=True)
    training, held_out = rendered_clips(TRAINING_SEEDS), rendered_clips(HELD_OUT_SEEDS)
    blurred = [through_vae(pipeline.vae, clips) for clips, _ in (training, held_out)]
    classifier = trained_classifier(
        np.concatenate([training[0], blurred[0]]), np.tile(training[1], 2), options.classifier_steps, options.seed
    )
    tables = {
        "rendered, held out": confusion(classifier, *held_out),
        "rendered, held out, through the video VAE": confusion(classifier, blurred[1], held_out[1]),
    }
    generated = {scale: sampled_classes(pipeline, scale, options) for scale in SCALES}
    for scale, (clips, classes) in generated.items():
        tables[f"generated, guidance {scale:g}"] = confusion(classifier, clips, classes)
    print(as_text(tables))
    write_json(options.output, record(tables, pipeline, options))
    draw(options.output.with_suffix(".png"), blurred[1], held_out[1], *generated[SCALES[-1]])
    print(f"written {options.output} and {options.output.with_suffix('.png')}")


def trained_pipeline(options):
    """The class-conditional model, trained as `python -m medsora.train` does; a finished run is taken as it is."""
    from medsora.saved_model import load_pipeline
    from medsora.train import main as train

    given = {
        "data": f"builtin:phantom:{CLIPS}",
        "output": str(options.run),
        "seed": options.seed,
        "device": "cpu",
        "prepare.size": SIZE,
        "prepare.num_frames": FRAMES,
        "prepare.windows_per_clip": len(STARTS),
        "prepare.images_per_clip": 0,
        "vae.steps": options.vae_steps,
        "vae.model": json.dumps(VAE),
        "vae.kl": 1e-4,
        "denoiser.steps": options.steps,
        "denoiser.batch_size": 16,
        "denoiser.images_per_batch": 0,
        "denoiser.sample_every": 0,
        "denoiser.label_dropout": 0.15,
        "sampling.num_videos": 2 * SHOWN,
        "evaluation.distance_videos": 0,
    }
    code = train([part for name, value in given.items() for part in (f"--{name}", str(value))])
    if code:
        sys.exit(code)
    return load_pipeline(options.run, "cpu")


def rendered_clips(seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """Two windows of each anatomy, without and with its polyp: uint8 (N, T, H, W, 3), and the class of each, (N,)."""
    clips, classes = [], []
    for seed in seeds:
        for number, label in enumerate(LABELS):
            frames = render(seed, RENDERED, SIZE, polyp=label == "polyp")
            start = STARTS[seed % len(STARTS)]
            clips.append(frames[start : start + FRAMES])
            classes.append(number)
    return np.stack(clips), np.array(classes)


def through_vae(vae, clips: np.ndarray) -> np.ndarray:
    """The clips encoded and decoded again."""
    from medsora.training.evaluation import reconstruct

    return np.stack(reconstruct(vae, list(clips), 8))


def sampled_classes(pipeline, scale: float, options) -> tuple[np.ndarray, np.ndarray]:
    """`options.videos` generated clips of each class, uint8 (N, T, H, W, 3), and the class each was asked for, (N,).

    Video i has the same noise in each class and at each scale.
    """
    from medsora.media import to_uint8

    made, names = [], pipeline.config.class_names
    total = options.videos * options.sampling_steps
    for label in LABELS:
        with step_bar(f"sampling {label}, guidance {scale:g}", 0, total, shown=True) as bar:
            videos = pipeline(
                num_videos=options.videos, class_labels=names.index(label), guidance_scale=scale, seed=options.seed,
                num_inference_steps=options.sampling_steps, batch_size=16, progress=False, on_step=bar.update,
            ).videos  # fmt: skip
        made.append(to_uint8(videos))
    return np.concatenate(made), np.repeat(np.arange(len(LABELS)), options.videos)


class ClipClassifier(nn.Module):
    """Frames through two strided convolutions, the strongest answer anywhere in a frame, the mean over frames."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (32, 64)):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.local = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.leave = nn.Linear(widths[-1], classes)

    def forward(self, clips: Tensor) -> Tensor:
        """clips: uint8 (B, T, H, W, 3) -> logits (B, classes)."""
        frames = clips.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        strongest = functional.silu(self.local(self.features(frames))).amax((2, 3))
        return self.leave(strongest).unflatten(0, clips.shape[:2]).mean(1)


def trained_classifier(clips: np.ndarray, classes: np.ndarray, steps: int, seed: int, batch: int = 32) -> nn.Module:
    """A classifier of uint8 (N, T, H, W, 3), trained on mirrored clips too, in random lighting."""
    clips, classes = torch.from_numpy(clips), torch.from_numpy(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ClipClassifier(len(LABELS))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        with step_bar("training the classifier", 0, steps, shown=True) as bar:
            for _ in range(steps):
                chosen = torch.randint(len(clips), (batch,))
                shown = clips[chosen, ::2].float()  # every second frame is enough
                shown = torch.where(torch.rand(batch, 1, 1, 1, 1) < 0.5, shown.flip(3), shown)
                shown = (shown * (0.8 + 0.4 * torch.rand(batch, 1, 1, 1, 3))).clamp(0, 255)
                loss = functional.cross_entropy(model(shown), classes[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
    return model.eval()


@torch.no_grad()
def confusion(classifier: nn.Module, clips: np.ndarray, classes: np.ndarray) -> list[list[int]]:
    """Counts: a row for each class asked for or rendered, a column for each class told."""
    batches = torch.from_numpy(clips).split(32)
    told = torch.cat([classifier(batch).argmax(1) for batch in batches]).numpy()
    return [[int(((classes == a) & (told == b)).sum()) for b in range(len(LABELS))] for a in range(len(LABELS))]


def accuracy(table: list[list[int]]) -> float:
    """The share of clips that are told to be what they are or were asked to be."""
    return sum(row[i] for i, row in enumerate(table)) / sum(map(sum, table))


def record(tables: dict, pipeline, options) -> dict:
    """What was measured, and what a reader needs to do it again."""
    names = ("vae_steps", "steps", "classifier_steps", "sampling_steps", "videos", "seed")
    return {
        "what": "a classifier trained on rendered clips tells the classes of generated ones; a tiny experiment",
        "classes": list(LABELS),
        "rows": [
            {
                "clips": name,
                "count": sum(map(sum, table)),
                "accuracy": round(accuracy(table), 4),
                "accuracy_of_each_class": {
                    label: round(row[i] / sum(row), 4) for i, (label, row) in enumerate(zip(LABELS, table))
                },
                "confusion": table,
            }
            for name, table in tables.items()
        ],
        "data": f"{CLIPS} rendered clips, {SIZE} pixels, windows of {FRAMES} frames",
        "classifier": f"trained on {2 * len(TRAINING_SEEDS)} rendered clips of other anatomies, as they are and "
        f"through the video VAE; tested with {2 * len(HELD_OUT_SEEDS)} of others again",
        "scheduler": type(pipeline.scheduler).__name__,
        "settings": {name: getattr(options, name) for name in names},
        "environment": environment(),
        "revision": revision(),
    }


def as_text(tables: dict[str, list[list[int]]]) -> str:
    """The tables for a terminal."""
    width = max(map(len, tables))
    head = f"{'':{width}}  accuracy" + "".join(f"  {label + ' told as ' + ' / '.join(LABELS)}" for label in LABELS)
    lines = [head]
    for name, table in tables.items():
        counts = "".join(
            f"  {' / '.join(map(str, row)):>{len(label + ' told as ' + ' / '.join(LABELS))}}"
            for label, row in zip(LABELS, table)
        )
        lines.append(f"{name:{width}}  {accuracy(table):7.1%} {counts}")
    return "\n".join(lines)


def draw(path: Path, blurred, blurred_classes, generated, generated_classes) -> None:
    """A contact sheet: rendered clips through the VAE, then generated ones of the same noise, of each class."""
    from medsora.media import contact_sheet

    rows, labels = [], []
    for clips, classes, kind, count in (
        (blurred, blurred_classes, "rendered, through the video VAE", 2),
        (generated, generated_classes, f"generated, guidance {SCALES[-1]:g}", SHOWN),
    ):
        for number, label in enumerate(LABELS):
            rows += list(clips[classes == number][:count])
            labels += [f"{kind}: {label}"] * count
    contact_sheet(path, rows, 8, labels)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.phantom_classes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", type=Path, default=Path("runs/phantom-classes"), help="folder of the training run")
    add("--output", type=Path, default=RESULTS, help="JSON file of the record; the picture lies beside it")
    add("--vae-steps", type=int, default=4000, help="training steps of the video VAE")
    add("--steps", type=int, default=2500, help="training steps of the denoiser")
    add("--classifier-steps", type=int, default=500, help="training steps of the classifier")
    add("--sampling-steps", type=int, default=50, help="denoising steps")
    add("--videos", type=int, default=32, help="videos of each class")
    add("--seed", type=int, default=0, help="decides every random draw")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run_command(main))
