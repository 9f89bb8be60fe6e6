"""Time `path_scan` on a GPU against its floor, the definition, and what a user would otherwise write.

    python -m benchmarks.gpu_scan                       everything that fits into the minutes of --minutes
    python -m benchmarks.gpu_scan --quick               three shapes and a block
    python -m benchmarks.gpu_scan -k "x 48" --compiled  cases whose names hold a text, with torch.compile beside
    python -m benchmarks.gpu_scan --list                the names

Each case is a shape (sequences x tokens, all of E 1024, N 128, P 64, bfloat16, both directions), forward or with the
pass back. Every variant is checked against float64 before it is timed; one that is wrong, missing or too large for the
memory is skipped and the record tells why. "device" is the time in replays of a CUDA graph with cold caches, "eager"
the wall time of one call, "host" what of it passes until the call returns. The floor is the longest of three: bytes,
operations and exponentials that no implementation does without (benchmarks/gpu/shapes.py has the formulae), over limits
that the run measures first.

A full run is recorded in benchmarks/results/gpu-<chip>.json, a part of it in gpu-<chip>-part.json; --record gives
another name. The record is written again after each case. If the environment variable OUT names a folder, it is
written there as well. A copy of the sources without git's history takes the revision from MEDSORA_REVISION.

Where there is no GPU, `TRITON_INTERPRET=1 python -m benchmarks.gpu_scan --device cpu` shows that the program works:
tiny sizes, the times mean nothing, and nothing is recorded unless --record asks for it.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from benchmarks.gpu import machine, report
from benchmarks.gpu.block import GRID, block_kernels, measured_block
from benchmarks.gpu.measure import Inputs, kernels_by_variant, measured, reason
from benchmarks.gpu.shapes import GPU_SCALE, TINY_SCALE, Shape, shapes, tiny_shapes
from benchmarks.gpu.timing import release
from benchmarks.gpu.variants import COMPILED, OURS
from benchmarks.harness.environment import load_average
from benchmarks.harness.interleaved import Schedule
from benchmarks.harness.work import PASSES
from medsora_ops import launch

BLOCK_BATCHES = (1, 8)
PROFILED = 0.2  # of the time, for the profiler


class CannotRun(Exception):
    """Why there is nothing to measure here, in one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, record. Returns the exit status: 2 where it cannot run, 1 where our own variant failed."""
    options = parser().parse_args(arguments)
    small = options.device == "cpu"
    found = tiny_shapes() if small else shapes(options.quick)
    cases = [(shape, passes) for shape in found for passes in PASSES if wanted(name_of(shape, passes), options.only)]
    batches = [batch for batch in BLOCK_BATCHES if wanted(name_of(None, batch), options.only)]
    batches = batches[:1] if small or options.quick else batches
    if options.list:
        print("\n".join([*(name_of(*case) for case in cases), *(name_of(None, batch) for batch in batches)]))
        return 0
    try:
        device = device_for(options.device)
        if not cases and not batches:
            raise CannotRun(f"no case has {options.only!r} in its name; --list prints the names")
    except CannotRun as error:
        print(f"benchmarks.gpu_scan: {error}", file=sys.stderr)
        return 2
    name = options.record
    if name is None and not small:
        name = f"gpu-{machine.chip(device)}" + ("-part" if options.quick or options.only else "")
    return Run(device, name, options).through(cases, batches)


class Run:
    """One run: its limits, its record as it grows, and its clock."""

    def __init__(self, device: torch.device, name: str | None, options: argparse.Namespace):
        self.device, self.name, self.options = device, name, options
        self.small = device.type != "cuda"
        self.scale = TINY_SCALE if self.small else GPU_SCALE
        self.schedule = Schedule(budget=options.budget, min_rounds=5, max_rounds=100)
        self.grid = (2, 2, 1) if self.small else GRID
        self.inputs: Inputs | None = None
        self.begun = time.monotonic()
        before = load_average()
        self.limits = machine.measure_limits(device, self.scale)
        self.row = report.run_row(device, self.limits, before, meaningless=self.small)

    def through(self, cases: list[tuple[Shape, str]], batches: list[int]) -> int:
        """All cases and blocks, as far as the time goes: first the times of all, then what the profiler sees of them.

        In that order because a profiler, once it is loaded, may slow launches down. Blocks come early: they are short.
        """
        print(self.row["gpu"]["name"], "\n" + report.limits_line(self.row["limits"]), flush=True)
        if self.small:
            print("Triton's interpreter on a CPU: the times mean nothing", flush=True)
        steps: list[tuple] = list(cases)
        steps[2:2] = [(None, batch) for batch in batches]
        for number, (shape, what) in enumerate(steps):
            name = name_of(shape, what)
            if self.minutes() > (1 - PROFILED) * self.options.minutes:
                self.row["skipped"][name] = f"of --minutes {self.options.minutes:g} too little was left"
                continue
            print(f"\n[{number + 1}/{len(steps)}] {name}{self.estimate(number, len(steps))}", flush=True)
            self.attempt(name, self.block if shape is None else self.case, shape, what)
            if not self.alive():
                print("the device no longer answers; the run ends here", file=sys.stderr)
                break
        self.inputs = None
        self.limits_again()
        if not self.small and self.alive():
            self.kernels(steps)
        return self.finish()

    def attempt(self, name: str, step: Callable, *arguments) -> None:
        """One that fails is skipped for the reason that it gave."""
        try:
            step(*arguments)
        except Exception as error:
            self.row["skipped"][name] = reason(error)
            print(f"  skipped: {self.row['skipped'][name]}", flush=True)
        report.write(self.row, self.name)

    def case(self, shape: Shape, passes: str) -> None:
        if self.inputs is None or self.inputs.shape is not shape:
            self.inputs = None  # the old ones go before the new ones come
            gc.collect()
            release(self.device)
            self.inputs = Inputs(shape, self.device)
        figures = measured(self.inputs, passes, self.schedule, self.options.compiled)
        row = report.case_row(shape, passes, figures, self.limits, self.inputs.judge.dtype)
        self.row["cases"].append(row)
        print("\n".join(report.case_lines(row)), flush=True)

    def block(self, _, batch: int) -> None:
        figures = measured_block(batch, self.scale, self.device, self.schedule, self.grid)
        row = {"block": name_of(None, batch), "batch": batch, "grid": self.grid, **report.variants_row(figures)}
        self.row["blocks"].append(row)
        print("\n".join(report.case_lines(row)), flush=True)

    def kernels(self, steps: list[tuple]) -> None:
        """Launches, and where the time above the floor goes."""
        print("\nlaunches and kernels, by torch's profiler", flush=True)
        rows = {row["case"]: row for row in self.row["cases"]} | {row["block"]: row for row in self.row["blocks"]}
        for shape, what in steps:
            name = name_of(shape, what)
            if name in rows and self.minutes() < self.options.minutes:
                self.attempt(f"kernels of {name}", self.kernels_of, rows[name], shape, what)

    def kernels_of(self, row: dict, shape: Shape | None, what) -> None:
        names = tuple(name for name in row["variants"] if name != COMPILED)  # it would be compiled once more
        if shape is None:
            found = block_kernels(what, self.scale, self.device, names, self.grid)
        else:
            found = kernels_by_variant(shape, self.device, what, names)
        report.add_kernels(row, found)
        print("\n".join([name_of(shape, what), *report.kernel_lines(row)]), flush=True)

    def limits_again(self) -> None:
        """Measured once more; the higher ones count, and floors are by them."""
        if self.alive():
            self.limits = machine.higher(self.limits, machine.measure_limits(self.device, self.scale))
        self.row["limits"] = asdict(self.limits)
        report.floors_again(self.row, self.limits)

    def finish(self) -> int:
        """A short table, the record, and the exit status."""
        self.row["minutes"] = round(self.minutes(), 1)
        print("\n" + "\n".join([report.limits_line(self.row["limits"]), *report.summary(self.row)]))
        for name, why in self.row["skipped"].items():
            print(f"  skipped {name}: {why}")
        for path in report.write(self.row, self.name):
            print(f"recorded in {path}")
        ours_failed = any(OURS in row["not_timed"] for row in (*self.row["cases"], *self.row["blocks"]))
        return 1 if ours_failed or not self.alive() else 0

    def estimate(self, done: int, of: int) -> str:
        """From the third step on; compilation makes the first ones slow."""
        left = min(self.minutes() / max(done, 1) * (of - done), self.options.minutes - self.minutes())
        return f", about {max(1, round(left))} min left" if done > 1 else ""

    def minutes(self) -> float:
        return (time.monotonic() - self.begun) / 60

    def alive(self) -> bool:
        """Whether the device still answers: after a bad access none of its calls does."""
        try:
            torch.ones(1, device=self.device).sum().item()
        except RuntimeError:
            return False
        return True


def device_for(kind: str) -> torch.device:
    """Raises CannotRun where the kernels cannot run on such a device."""
    if kind == "cpu":
        if not launch.INTERPRETED:
            raise CannotRun("--device cpu needs Triton's interpreter: set TRITON_INTERPRET=1 before it starts")
        return torch.device("cpu")
    if launch.INTERPRETED:
        raise CannotRun("TRITON_INTERPRET=1 is set, which runs kernels on a CPU: unset it, or give --device cpu")
    if why := launch.unavailable():
        raise CannotRun(f"cannot measure here: {why}")
    return torch.device("cuda", torch.cuda.current_device())


def name_of(shape: Shape | None, what: str | int) -> str:
    """Of a shape and its passes, or of a block and its batch."""
    return f"block, batch {what}" if shape is None else f"{shape.name}, {what}"


def wanted(name: str, only: str | None) -> bool:
    return only is None or only.lower() in name.lower()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_scan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("-k", dest="only", metavar="TEXT", help="only cases and blocks whose names hold this text")
    made.add_argument("--quick", action="store_true", help="three shapes and one block")
    made.add_argument("--list", action="store_true", help="print the names and stop")
    made.add_argument("--record", metavar="NAME", help="benchmarks/results/NAME.json, or the path of a .json file")
    made.add_argument("--compiled", action="store_true", help="torch.compile of the definition, too; minutes of it")
    made.add_argument("--budget", type=float, default=0.5, metavar="SECONDS", help="of replays a variant (%(default)s)")
    made.add_argument(
        "--minutes", type=float, default=8.0, metavar="M", help="begin nothing after so many (%(default)s)"
    )
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the interpreter, tiny sizes")
    return made


if __name__ == "__main__":
    sys.exit(main())
