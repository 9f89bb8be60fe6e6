"""A whole run of a few seconds, and a way to be killed at a chosen moment.

Usage: python micro_run.py OUTPUT [OPTION ...], with the environment variable
MICRO_STOP = "<where>:<stage>:<step>:<signal>": where is "step" (once the step is logged) or "checkpoint" (its files are
written, their folder not yet renamed).
"""

import os
import signal
import sys
from pathlib import Path

from medsora import files
from medsora.errors import run_command
from medsora.train import main
from medsora.training import checkpoint, metrics_log

MODEL_OF_VAE = '{"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "sample_height": 32, "sample_width": 32}'
MODEL_OF_DENOISER = '{"hidden_size": 64, "depth": 1, "state_size": 8, "head_dim": 32}'
OPTIONS = {
    "prepare.size": 32,
    "prepare.num_frames": 8,
    "prepare.windows_per_clip": 3,
    "prepare.images_per_clip": 2,
    "vae.steps": 10,
    "vae.batch_size": 2,
    "vae.model": MODEL_OF_VAE,
    "denoiser.steps": 14,
    "denoiser.batch_size": 2,
    "denoiser.images_per_batch": 2,
    "denoiser.sample_every": 10,
    "denoiser.model": MODEL_OF_DENOISER,
    "sampling.num_videos": 2,
    "sampling.num_inference_steps": 2,
    "evaluation.distance_videos": 2,
    "evaluation.denoising_samples": 4,
    "evaluation.baseline_step": 6,
    **{f"{stage}.{name}": value for stage in ("vae", "denoiser") for name, value in
       (("checkpoint_every", 4), ("log_every", 1), ("warmup_steps", 3))},
}  # fmt: skip


def arguments(output: Path, *more: str) -> list[str]:
    """The command line of the micro run."""
    given = [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
    return ["--output", str(output), *given, *more]


def run(output: Path, *more: str) -> int:
    """Runs the command in this process; returns its exit code."""
    return run_command(lambda: main(arguments(output, *more)))


def arrange_stop(where: str, stage: str, step: str, signal_name: str) -> None:
    """Has this process signalled at the moment described above."""

    def stop():
        os.kill(os.getpid(), getattr(signal, signal_name))

    if where == "step":
        write = metrics_log.MetricsLog.write

        def write_then_stop(log, at, **values):
            write(log, at, **values)
            if (log.stage, at) == (stage, int(step)):
                stop()

        metrics_log.MetricsLog.write = write_then_stop
    else:
        sync = files.sync_folder

        def sync_then_stop(folder):
            sync(folder)
            written = Path(folder, checkpoint.STATE_FILE).is_file()  # the last of its files
            if written and f"{stage}/" in str(folder) and f"step-{int(step):07d}" in Path(folder).name:
                stop()

        files.sync_folder = sync_then_stop


if __name__ == "__main__":
    if "MICRO_STOP" in os.environ:
        arrange_stop(*os.environ["MICRO_STOP"].split(":"))
    sys.exit(run(Path(sys.argv[1]), *sys.argv[2:]))
