"""The video VAE with spectral, convolutional and no compensation at equal steps: `python -m benchmarks.compensation`.

Trains the tiny VAE on the built-in cine with each structure and several seeds, and records PSNR and SSIM on the
held-out frames. One patient and few frames: a tiny experiment, which says how the parts behave here and nothing about
other data.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from medsora.config import read_command_line
from medsora.data import FrameClips, prepare_frames
from medsora.files import write_json
from medsora.metrics import ssim
from medsora.models.compensation import COMPENSATIONS
from medsora.training import vae_stage
from medsora.training.draws import Draws
from medsora.training.evaluation import mean_psnr, reconstruct
from medsora.training.loop import Trainer
from medsora.training.stopping import StopRequests

RESULTS = Path(__file__).parent / "results" / "compensation-cpu.json"


def main() -> None:
    """Trains, prints a row a structure and seed, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds to train each structure with")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file of the record")
    parser.add_argument("--steps", type=int, default=None, help="training steps; those of the default run if not given")
    options = parser.parse_args()
    settings, _ = read_command_line(["--device", "cpu"])
    settings.vae.steps = options.steps or settings.vae.steps
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset"
        prepare_frames(settings.data, dataset, settings.prepare, progress=False)
        for seed in options.seeds:
            for compensation in COMPENSATIONS:
                settings.vae.compensation = compensation
                row = trained(settings, dataset, Path(folder) / f"{compensation}-{seed}", seed)
                rows.append({"compensation": compensation, "seed": seed, **row})
                print(json.dumps(rows[-1]), flush=True)
    write_json(options.output, {"rows": rows, **circumstances(settings)})


def trained(settings, dataset: Path, run: Path, seed: int) -> dict:
    """Trains one VAE and measures its averaged weights on the held-out clip."""
    from accelerate import Accelerator

    torch.manual_seed(Draws(seed, "vae").integer("initial weights"))
    vae = vae_stage.build_vae(settings.vae)
    clips = FrameClips(dataset, "train", min_frames=settings.vae.num_frames)
    task = vae_stage.vae_task(vae, clips, settings.vae, seed, "")
    trainer = Trainer(task, settings.vae, run, Accelerator(cpu=True), StopRequests(), seed)
    started = time.process_time()
    trainer.train(settings.vae.steps)
    seconds = time.process_time() - started
    held_out = FrameClips(dataset, "val").fixed_clips(settings.vae.num_frames)
    with trainer.average.applied():
        vae.eval()
        made = reconstruct(vae, held_out, 1)
    similarity = [float(ssim(np.moveaxis(m, -1, 0), np.moveaxis(t, -1, 0))) for m, t in zip(made, held_out)]
    return {
        "psnr_db": round(mean_psnr(made, held_out), 3),
        "ssim": round(float(np.mean(similarity)), 4),
        "steps": settings.vae.steps,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "processor_seconds": round(seconds, 1),
    }


def circumstances(settings) -> dict:
    """What a reader needs to run it again."""
    return {
        "command": "python -m benchmarks.compensation " + " ".join(sys.argv[1:]),
        "data": f"{settings.data}, {settings.prepare.size} pixels, frames 22 to 29 held out, of the same patient",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


if __name__ == "__main__":
    main()
