"""What does a call of the scans cost the host? All of it but Triton's launcher: no kernel is launched here.

    TRITON_INTERPRET=1 python -m benchmarks.host_overhead [--record NAME]

A call on a GPU is checked, routed, given memory and launched by the host, which for small scans takes longer than the
device. Here tensors lie on the CPU and each launch only counts. Timed by turns: the operator called directly, as eager
calls do, through torch's library, as torch.compile does, and forward alone. `make bench-gpu` times whole calls, "host".
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import torch

from benchmarks.gpu.shapes import GPU_SCALE, Shape
from benchmarks.harness import record
from benchmarks.harness.environment import load_average
from benchmarks.harness.interleaved import Schedule, time_interleaved
from benchmarks.harness.measure import Outcome
from medsora_ops import ScanPath, dispatch, launch, path_scan, use_backend
from medsora_ops.scan import chunk_path_launch, runs, sequence_launch, sums, tile_launch

PROCESSORS = 132
SHAPES = {  # of one video: so few that heads go apart; in tiles; cut into runs
    "8 x 48 and 8 x 48": (ScanPath.plane("fw", (6, 8, 8)), ScanPath.plane("fh", (6, 8, 8))),
    "64 x 6": (ScanPath.temporal((6, 8, 8)),),
    "1 x 4096": (ScanPath.raster((16, 16, 16)),),
}


@contextlib.contextmanager
def nothing_launched() -> Iterator[list[str]]:
    """Within the block launches, as for a chip of PROCESSORS, only leave their kernels' names in the list."""
    names: list[str] = []

    def count(kernel, *_, **__):
        names.append(kernel.__name__)

    with contextlib.ExitStack() as patched:
        for module in (launch, tile_launch, sequence_launch, chunk_path_launch, sums, runs):
            for name, stand_in in (("launch", count), ("multiprocessors", lambda _: PROCESSORS)):
                if hasattr(module, name):
                    patched.enter_context(mock.patch.object(module, name, stand_in))
        yield names


def calls(paths: tuple[ScanPath, ...]) -> dict[str, Callable[[], object]]:
    """By name, on the same tensors, at the sizes of a model."""
    shape = Shape("", 1, paths, GPU_SCALE)
    inputs = {name: t.requires_grad_() for name, t in shape.inputs(torch.device("cpu")).items()}
    leaves, grads = list(inputs.values()), shape.gradients(torch.device("cpu"), 0)

    def forward():
        return path_scan(path=paths, head_dim=GPU_SCALE.head_dim, **inputs)

    def alone():
        with torch.no_grad():
            forward()

    def both():
        torch.autograd.grad(forward(), leaves, grads)

    def by_library():
        with mock.patch.object(dispatch, "_ordinary", lambda _: False):
            both()

    return {"forward": alone, "forward + backward": both, "forward + backward, torch's library": by_library}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, record. Returns the exit status, 2 where it cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--record", metavar="NAME", help="benchmarks/results/NAME.json, or the path of a .json file")
    parser.add_argument("--budget", type=float, default=2.0, metavar="SECONDS", help="a variant (%(default)s)")
    options = parser.parse_args(arguments)
    if not launch.INTERPRETED:
        print("benchmarks.host_overhead: set TRITON_INTERPRET=1, or Triton's kernels take no CPU", file=sys.stderr)
        return 2
    before, found = load_average(), {}
    with use_backend("triton"), nothing_launched() as launched:
        for name, paths in SHAPES.items():
            rows = found[name] = {}
            ways = calls(paths)
            for way, call in ways.items():
                launched.clear()
                call()
                rows[way] = {"launches": len(launched)}
            for way, times in time_interleaved(ways, Schedule(budget=options.budget, max_rounds=10_000)).items():
                rows[way] |= record.timing(Outcome(times))
            print(f"{name} tokens")
            for way, row in rows.items():
                low, high = map(record.duration, row["quartiles"])
                print(f"  {way:38} {record.duration(row['median']):>8} ({low} .. {high}), {row['launches']} launches")
    if options.record:
        record.write({**record.circumstances(before), "shapes": found}, record.path_of(options.record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
