"""What the parts of the method do, one taken out at a time: `python -m benchmarks.ablations`.

Denoisers of the tiny preset learn rendered endoscopy clips (the phantom) from the same video VAE's latents, each with
one thing changed: no alignment; raster or the released order in place of spirals; attention in place of the scans.
Every few steps the averaged weights' denoising loss is measured on a fixed set of held-out clips. Video VAEs with
spectral, convolutional and no compensation are compared by `benchmarks.compensation`, on the ultrasound cine.

A tiny experiment: small models, few clips, few steps, at one constant learning rate. It says how the parts behave here,
and nothing about other data or longer training. A finished arm is kept in the work folder, so the same command goes on
where it stopped (an arm that was interrupted begins again); remove the folder after a change of the code.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import compensation
from benchmarks.cases.models import ATTENTIONS, substitute
from benchmarks.harness import environment, record
from benchmarks.reports.ablation_summary import BASE, draw, markdown, summary
from medsora.config import TrainSettings, read_command_line
from medsora.data import LatentClips, prepare_frames, prepare_latents
from medsora.data.manifest import digest
from medsora.files import write_json, write_text
from medsora.models.compensation import COMPENSATIONS
from medsora.training.denoiser_run import DenoiserRun
from medsora.training.loop import Trainer
from medsora.training.stopping import StopRequests

ARMS = {
    BASE: {},  # spirals, scans, alignment
    "no alignment": {"alignment.weight": 0.0},
    "raster": {"scan_order": "raster"},
    "released order": {"scan_order": "released"},
    "factorised attention": {"mixers": "factorised-attention"},
    "full attention": {"mixers": "full-attention"},
}
VAE_ARMS = {f"{kind} compensation": kind for kind in COMPENSATIONS}
MEASURED = 16  # times in a run
DATA = "builtin:phantom:16"


def main(arguments: list[str] | None = None) -> None:
    """Trains what is not there yet, then writes the record, the table and the picture."""
    options = _options(arguments)
    work = options.work / digest(options.steps, options.vae_steps, options.data)
    load_before, todo = environment.load_average(), list(_missing(work, options))
    if todo:
        print(f"{len(todo)} arms to train; finished ones are kept in {work}", flush=True)
        settings = ablation_settings(options.data, options.steps, options.vae_steps)
        prepare(work, settings)
    started = time.perf_counter()
    for number, (arm, seed) in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {arm}, seed {seed}", flush=True)
        row = {"arm": arm, "seed": seed, "commit": environment.revision()["commit"]}
        write_json(_row_file(work, arm, seed), row | run_arm(arm, seed, work, settings))
        left = (time.perf_counter() - started) / number * (len(todo) - number)
        print(f"      about {left / 60:.1f} minutes left", flush=True)
    rows = [json.loads(_row_file(work, arm, seed).read_text("utf-8")) for arm in options.arms for seed in options.seeds]
    write_results(rows, options, record.circumstances(load_before))


def write_results(rows: list[dict], options, circumstances: dict) -> None:
    """NAME.json, NAME.md and NAME.png."""
    found = summary(rows)
    about = {"data": options.data, "steps": options.steps, "vae_steps": options.vae_steps, "seeds": options.seeds}
    about["machine"] = circumstances["environment"]["processor"]
    write_json(options.output.with_suffix(".json"), {**circumstances, **about, "summary": found, "rows": rows})
    text = markdown(found, about)
    write_text(options.output.with_suffix(".md"), text)
    draw(options.output.with_suffix(".png"), rows, found, about)
    print(f"\n{text}\nwritten   {options.output.with_suffix('.json')}, .md and .png")


def ablation_settings(data: str, steps: int, vae_steps: int) -> TrainSettings:
    """The tiny preset's, at a constant learning rate, so that curves compare at any step and any time."""
    settings, _ = read_command_line(["--device", "cpu", "--data", data, "--prepare.windows_per_clip", "4"])
    settings.prepare.val_fraction, settings.prepare.images_per_clip = 0.25, 4
    settings.vae.steps = vae_steps
    options = settings.denoiser
    options.steps, options.schedule, options.warmup_steps = steps, "constant", min(20, steps)
    options.learning_rate, options.ema_decay = 1e-3, 0.98
    options.sample_every, options.checkpoint_every = 0, steps
    settings.evaluation.denoising_samples = 64
    return settings


def prepare(work: Path, settings: TrainSettings) -> None:
    """Frames, a video VAE and its latents in `work`, once."""
    if (work / "prepared.json").is_file():
        return
    from accelerate import Accelerator

    from medsora.data import FrameClips
    from medsora.training import vae_stage
    from medsora.training.draws import Draws

    print("      preparing clips, a video VAE and latents for all arms", flush=True)
    dataset = work / "dataset"
    prepare_frames(settings.data, dataset, settings.prepare, progress=False)
    torch.manual_seed(Draws(settings.seed, "vae").integer("initial weights"))
    vae = vae_stage.build_vae(settings.vae)
    clips = FrameClips(dataset, "train", min_frames=settings.vae.num_frames)
    task = vae_stage.vae_task(vae, clips, settings.vae, settings.seed, "")
    trainer = Trainer(task, settings.vae, work / "vae-run", Accelerator(cpu=True), StopRequests(), settings.seed)
    trainer.train(settings.vae.steps)
    with trainer.average.applied():
        vae.eval()
        prepare_latents(dataset, vae, settings.prepare, settings.alignment, progress=False)
        vae.register_to_config(scaling_factor=LatentClips(dataset, "train").statistics["scaling_factor"])
        vae.save_pretrained(work / "vae")
    write_json(work / "prepared.json", {"clips": len(clips)})


def run_arm(arm: str, seed: int, work: Path, settings: TrainSettings) -> dict:
    """What one arm gives with one seed."""
    if arm in VAE_ARMS:
        return vae_arm(arm, seed, work, settings)
    return denoiser_arm(arm, seed, work, settings)


def vae_arm(arm: str, seed: int, work: Path, settings: TrainSettings) -> dict:
    """PSNR and SSIM on the cine's held-out frames."""
    own, _ = read_command_line(["--device", "cpu"])
    own.vae.steps, own.vae.compensation = settings.vae.steps, VAE_ARMS[arm]
    cine = work / "cine"
    prepare_frames(own.data, cine, own.prepare, progress=False)
    return compensation.trained(own, cine, work / "runs" / f"{arm}-{seed}-{time.time_ns()}", seed)


def denoiser_arm(arm: str, seed: int, work: Path, settings: TrainSettings) -> dict:
    """The curve of the held-out denoising loss over steps, and the median time of a step."""
    from accelerate import Accelerator

    settings, change = copy.deepcopy(settings), ARMS[arm]
    settings.seed = seed
    settings.alignment.weight = change.get("alignment.weight", settings.alignment.weight)
    if "scan_order" in change:
        settings.denoiser.model["scan_order"] = change["scan_order"]
    accelerator, stops = Accelerator(cpu=True), StopRequests()
    run = DenoiserRun(settings, work, work / "dataset", accelerator, stops, lambda words: None)
    if "mixers" in change:
        substitute(run.denoiser, ATTENTIONS[change["mixers"]], seed)
    curve, times, every = [], [], max(settings.denoiser.steps // MEASURED, 1)
    begun = time.perf_counter()

    def after_step(step: int, trainer: Trainer) -> None:
        nonlocal begun
        times.append(time.perf_counter() - begun)
        if step % every == 0 or step == settings.denoiser.steps:
            with trainer.average.applied():
                curve.append([step, round(run.probe.measure(run.denoiser)["mse"], 6)])
        begun = time.perf_counter()

    run.task.after_step = after_step
    folder = work / "runs" / f"{arm}-{seed}-{time.time_ns()}"  # a new one: an interrupted arm begins again
    Trainer(run.task, settings.denoiser, folder, accelerator, stops, seed).train(settings.denoiser.steps)
    return {
        "curve": curve,
        "seconds_per_step": statistics.median(times),
        "parameters": sum(p.numel() for p in run.denoiser.parameters()),
        "clips": {split: len(LatentClips(work / "dataset", split)) for split in ("train", "val")},
        "probed": run.probed,
    }


def _missing(work: Path, options) -> Iterator[tuple[str, int]]:
    """Arms that are not done; seed by seed, so that what drifts on the machine meets all arms."""
    for seed in options.seeds:
        for arm in options.arms:
            if not _row_file(work, arm, seed).is_file():
                yield arm, seed


def _row_file(work: Path, arm: str, seed: int) -> Path:
    return work / "rows" / f"{arm.replace(' ', '-')}-{seed}.json"


def _options(arguments: list[str] | None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, arms = parser.add_argument, [*ARMS, *VAE_ARMS]
    add("--steps", type=int, default=400, help="training steps of each denoiser (default: 400)")
    add("--vae-steps", type=int, default=300, help="training steps of each video VAE (default: 300)")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="seeds to train each arm with (default: 0 1)")
    add("--arms", nargs="+", choices=arms, default=arms, metavar="ARM", help=f"some of: {', '.join(arms)}")
    add("--data", default=DATA, help=f"clips of the denoisers (default: {DATA})")
    add("--work", type=Path, default=Path("build/ablations"), help="where finished arms are kept")
    add("--output", type=Path, default=record.RESULTS / "ablations-cpu", help="results, without the ending")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    logging.getLogger("medsora").setLevel(logging.ERROR)
    main()
