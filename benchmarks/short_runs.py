"""How much faster is `make train` with the native operators? Short runs of it, turn by turn.

    python -m benchmarks.short_runs --steps 150 --rounds 3 --record NAME

Each round trains the built-in cine for so many steps of each stage, once on plain PyTorch (MEDSORA_BACKEND=reference)
and once on what serves by default. A run's own record says how long its stages took.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import environment, record
from medsora.training.run_folder import RunFolder

WAYS = {"reference": {"MEDSORA_BACKEND": "reference"}, "default": {}}
STAGES = ("vae", "denoiser")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="of each stage")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way")
    parser.add_argument("--record", metavar="NAME", help="write benchmarks/results/NAME.json, or to a path")
    options = parser.parse_args()
    load_before = environment.load_average()
    seconds = {way: {stage: [] for stage in STAGES} for way in WAYS}
    for _ in range(options.rounds):
        for way, variables in WAYS.items():
            for stage, took in stage_seconds(options.steps, variables).items():
                seconds[way][stage].append(took)
    rows = {stage: {way: statistics.median(found[stage]) for way, found in seconds.items()} for stage in STAGES}
    for stage, row in rows.items():
        plain, default = row["reference"], row["default"]
        print(f"{stage}: {options.steps} steps in {plain:.1f} s on plain PyTorch, {default:.1f} s by default:", end=" ")
        print(f"{plain / default:.2f} times as fast")
    if options.record:
        found = {**record.circumstances(load_before), "steps": options.steps, "seconds": seconds, "median": rows}
        record.write(found, record.path_of(options.record))


def stage_seconds(steps: int, variables: dict[str, str]) -> dict[str, float]:
    """Seconds that each stage of one short run took, evaluation of what it made included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "medsora.train", f"--output={folder}/run", f"--max-steps={steps}"]
        command += ["--sampling.num_videos=1", "--sampling.num_inference_steps=2"]  # not what is measured
        subprocess.run(command, env=os.environ | variables, check=True, capture_output=True)
        run = RunFolder(Path(folder) / "run")
        return {stage: run.done(stage)["seconds"] for stage in STAGES}


if __name__ == "__main__":
    main()
