"""One training step of the denoiser by each backend, and with the scans taken out: `python -m benchmarks.train_step`.

The step is the trainer's own: forward under its precision, backward, clipping, AdamW and the moving average, on random
latents of the preset's shape. "without scans" puts one addition in the place of each scan: what is left is the rest of
the step, and no scan, however fast, makes the step faster than that. The share of this possible gain that a backend
reaches is (reference - backend) / (reference - without scans).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from benchmarks.cases import models
from benchmarks.cases.trainer import random_batch, step_settings, untrained
from benchmarks.harness import environment, record
from benchmarks.harness.interleaved import Schedule, time_interleaved
from benchmarks.harness.measure import Outcome
from benchmarks.harness.memory import keep_freed_memory
from medsora.models import mixer
from medsora.training.loop import Trainer
from medsora_ops import backend_report, use_backend

WITHOUT = "without scans"
AGREEMENT = 0.002
SIZES = {name: models.SIZES[name] for name in ("tiny", "S")}


def main() -> None:
    """Measures the sizes asked for, prints a table and writes a record if it has a name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="presets to measure")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of the forward pass")
    parser.add_argument("--budget", type=float, default=10.0, metavar="SECONDS", help="for each variant of a size")
    parser.add_argument("--record", metavar="NAME", help="write benchmarks/results/NAME.json, or to a path")
    options = parser.parse_args()
    load_before, pages = environment.load_average(), "kept" if keep_freed_memory() else "fresh"
    rows = []
    for name in options.sizes:
        rows.append(measured_size(name, options.precision, Schedule(budget=options.budget)))
        print("\n".join(table(rows[-1])), flush=True)
    if options.record:
        path = record.path_of(options.record)
        record.write({**record.circumstances(load_before), "pages": pages, "steps": rows}, path)
        print(f"\nrecorded in {path}")


def measured_size(name: str, precision: str, schedule: Schedule) -> dict[str, object]:
    """Times of the step of one preset; each variant trains its own copy, from the same weights on the same batch."""
    backends = [row.backend for row in backend_report() if row.operator == "path_scan" and row.available]
    ways = {backend: (lambda chosen=backend: use_backend(chosen)) for backend in backends} | {WITHOUT: without_scans}
    with tempfile.TemporaryDirectory() as folder:
        settings = step_settings(name, precision, SIZES[name])
        trainers = {way: untrained(settings, SIZES[name], Path(folder) / way.replace(" ", "-")) for way in ways}
        batch = random_batch(settings, SIZES[name])
        calls = {way: step_of(trainers[way], batch, context) for way, context in ways.items()}
        require_agreement({way: call() for way, call in calls.items()})
        times = time_interleaved(calls, schedule)
    outcomes = {way: Outcome(found) for way, found in times.items()}
    return {
        "preset": name,
        "videos": SIZES[name].videos,
        "images": SIZES[name].images,
        "latents": SIZES[name].latents,
        "precision": "bf16" if trainers[WITHOUT].bf16 else "fp32",
        "variants": {way: record.timing(outcome) for way, outcome in outcomes.items()},
        "share_of_possible_gain": {
            backend: share_of_gain(*(outcomes[way].median for way in ("reference", backend, WITHOUT)))
            for backend in backends
            if backend != "reference"
        },
    }


def share_of_gain(reference: float, backend: float, without: float) -> float:
    """How much of what a step would gain without its scans a backend gains: 1 is all of it, 0 nothing."""
    return (reference - backend) / (reference - without)


def step_of(trainer: Trainer, batch: dict[str, torch.Tensor], context) -> Callable[[], dict[str, float]]:
    """One step after another on the same batch, without the log and the checkpoints around them."""

    def step() -> dict[str, float]:
        with context():
            return trainer._step([batch])[0]

    return step


def require_agreement(values: dict[str, dict[str, float]]) -> None:
    """Loss and gradient norm of the first step are those of the reference. Raises AssertionError where not."""
    for way, found in values.items():
        for name in () if way == WITHOUT else ("loss", "gradient_norm"):
            right = values["reference"][name]
            if not abs(found[name] - right) <= AGREEMENT * abs(right):
                raise AssertionError(f"{way}: {name} {found[name]:.6g}, wants {right:.6g} within {AGREEMENT:.1%}")


@contextlib.contextmanager
def without_scans():
    """Within the block the mixers' scans are additions."""
    with mock.patch.object(mixer, "path_scan", added_in_place_of_scan):
        yield


def added_in_place_of_scan(zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight, path, **settings):
    """z + x for each path, of path_scan's shape and type; a gradient goes into zxbcdt."""
    width = norm_weight.shape[0]
    return tuple(zxbcdt[..., :width] + zxbcdt[..., width : 2 * width] for _ in path)


def table(row: dict[str, object]) -> list[str]:
    """Lines for a terminal."""
    lines = [
        f"{row['preset']}: {row['videos']} videos and {row['images']} images a step, latents {row['latents']},"
        f" {row['precision']}"
    ]
    for way, timing in row["variants"].items():
        spread = " .. ".join(map(record.duration, timing["quartiles"]))
        share = row["share_of_possible_gain"].get(way)
        gain = "" if share is None else f"  {share:.1%} of the possible gain"
        lines.append(
            f"  {way:14} {record.duration(timing['median']):>9} {spread:>20} {record.duration(timing['minimum']):>9}"
            f" {timing['rounds']:>4} rounds{gain}"
        )
    return lines


if __name__ == "__main__":
    logging.getLogger("medsora").setLevel(logging.ERROR)
    main()
