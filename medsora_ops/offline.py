"""Compile the Triton kernels for GPUs that are not here, and tell what the compiler made of them.

    python -m medsora_ops.offline --targets cuda:80 cuda:90 cuda:100 hip:gfx942

Registers and stack are those of one thread; a stack holds what did not fit into registers. Exit status 1 if a kernel
does not compile, asks for more registers or shared memory than the chip has, lacks the matrix instructions that it
should have, or, among the scans with heads of 64 channels and states of 128, uses a stack on one of the chips aimed at.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from medsora_ops import configs
from medsora_ops.launch import REGISTERS, Compiled, compiling, distinct
from medsora_ops.paths import ScanPath

# Shared memory that one program may ask for, in bytes, by architecture.
SHARED_MEMORY = {"cuda:80": 166912, "cuda:86": 101376, "cuda:89": 101376, "cuda:90": 232448, "cuda:100": 232448,
                 "cuda:120": 101376, "hip:gfx942": 65536}  # fmt: skip
AIMED_AT = ("cuda:80", "cuda:90", "cuda:100")
MANY = 132  # multiprocessors, of which one video's long sequences fill few
SIDES = (16, 32, 64, 128)  # of images, that the filters are compiled for


@dataclass(frozen=True)
class Resources:
    """What a program of a compiled kernel takes. Registers and stack for each thread; None where no tool tells."""

    registers: int | None
    stack: int | None
    local: int | None
    shared: int
    matrix_instructions: int


class _Absent:
    """What Triton asks of a driver, for a target that is not there."""

    def __init__(self, target: GPUTarget):
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return str(self._target)  # what is compiled is remembered by device

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def compiling_for(target: str, processors: int = 2) -> Iterator[list[Compiled]]:
    """Within the block, kernels that would be launched are compiled for `target`: "cuda:90", "hip:gfx942".

    processors: how many multiprocessors it is taken to have.
    """
    kind, architecture = target.split(":")
    before = triton.runtime.driver.__dict__.get("_active")
    aim = GPUTarget(kind, int(architecture), 32) if kind == "cuda" else GPUTarget(kind, architecture, 64)
    triton.runtime.driver.set_active(_Absent(aim))
    try:
        with compiling(_architecture(target), processors) as compiled:
            yield compiled
    finally:
        triton.runtime.driver._active = before


def _architecture(target: str) -> str:
    """As tables name it: "sm_90", "gfx942"."""
    return target.replace("cuda:", "sm_").removeprefix("hip:")


def resources(compiled: Compiled) -> Resources:
    """Registers, stack and shared memory of a kernel, and how many matrix instructions its code holds."""
    kernel = compiled.kernel
    shared = kernel.metadata.shared
    if "cubin" not in kernel.asm:
        code = kernel.asm.get("amdgcn", "")
        registers, scratch = (
            re.search(rf"\.{name}:\s*(\d+)", code) for name in ("vgpr_count", "private_segment_fixed_size")
        )
        found = [int(match.group(1)) if match else None for match in (registers, scratch)]
        return Resources(found[0], found[1], None, shared, len(re.findall(r"v_mfma", code)))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = resource_usage(file.name)
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    matrix = len(re.findall(r"^\s*(?:@\S+ )?(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", kernel.asm["ptx"], re.M))
    return Resources(numbers["REG"], numbers["STACK"], numbers["LOCAL"], shared, matrix)


def resource_usage(file: str | Path) -> str:
    """What the CUDA toolkit's cuobjdump says of every kernel in a file: a cubin, or a library with kernels within."""
    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [program, "--dump-resource-usage", file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_scans(target: str, dtype: torch.dtype, head_dim: int, state: int) -> list[Compiled]:
    """Every kernel of both scans, forward and backward, as the table of configurations cuts them; width 16 heads.

    Those of sequences cut into runs too, as a chip that one video does not fill would have them.
    """
    from medsora_ops.scan import triton as scans
    from medsora_ops.warmup import describe

    heads = 16
    settings = (heads * head_dim, head_dim, state, 1, 4, True, None, True, dtype, torch.float32, True)
    without_bias = (*settings[:7], False, *settings[8:])

    def meta(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    steps, single = meta(2, 4096, heads), meta(heads, dtype=torch.float32)
    x, groups = meta(2, 4096, heads, head_dim), meta(2, 4096, 1, state)
    arguments = (x, steps, single, groups, groups, single, x, single, None, True, False)
    found = []
    for processors in (2, MANY):
        with compiling_for(target, processors) as compiled:
            describe((ScanPath.plane("fw", (6, 8, 8)), ScanPath.plane("fh", (6, 8, 8))), *settings)
            describe((ScanPath.plane("fw", (6, 32, 20)), ScanPath.plane("fh", (6, 32, 20))), *settings)
            describe((ScanPath.raster((8, 16, 16)),), *settings)
            long = ScanPath.plane("fw", (8, 48, 64)), ScanPath.plane("fh", (8, 48, 64))
            describe(long, *settings)
            if processors == MANY:  # where long paths go together
                describe((ScanPath.temporal((8, 48, 64)), *long), *settings)  # and add to the short one's gradient
            else:
                describe((ScanPath.temporal((6, 8, 8)),), *without_bias)
            scans.ssd_scan_backward(scans.ssd_scan(*arguments), *arguments)
        found += compiled
    return distinct(found)


def compile_rare_scans(target: str, dtype: torch.dtype) -> list[Compiled]:
    """What `compile_scans` leaves out at 64 x 128: one direction, groups, norms over some heads or a part of one,
    parameters in the rows' type, and `ssd_scan` with states in and out, without a gate and a softplus."""
    from medsora_ops.scan import triton as scans
    from medsora_ops.warmup import describe

    short = ScanPath.plane("fw", (6, 8, 8)), ScanPath.plane("fh", (6, 8, 8))
    medium = ScanPath.plane("fw", (6, 32, 20)), ScanPath.plane("fh", (6, 32, 20))
    long = ScanPath.plane("fw", (8, 48, 64)), ScanPath.plane("fh", (8, 48, 64))

    def meta(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    x, groups, states = meta(2, 4096, 16, 64), meta(2, 4096, 4, 128), meta(2, 16, 64, 128, dtype=torch.float32)
    steps, single = meta(2, 4096, 16), meta(16)
    arguments = (x, steps, single, groups, groups, meta(16, 64), None, None, states, False, True)
    with compiling_for(target) as compiled:
        for paths in (short, medium, long):
            describe(paths, 1024, 64, 128, 2, 4, False, 512, True, dtype, dtype, True)
        describe(short, 1024, 64, 128, 1, 4, True, 32, True, dtype, torch.float32, True)
        scans.ssd_scan(*arguments)
        scans.ssd_scan_backward([x, states], *arguments)
    return distinct(compiled)


def shipped(target: str) -> list[configs.Case]:
    """What the shipped table has measured configurations for."""
    return [case for case in configs.read(configs.SHIPPED) if case.architecture == _architecture(target)]


def compile_shipped(target: str, case: configs.Case) -> list[Compiled]:
    """The kernels that a configuration of the shipped table cuts, and those launched beside them."""
    from medsora_ops.scan import triton as scans
    from medsora_ops.warmup import describe

    dtype, length, heads, backward = getattr(torch, case.dtype), case.length, 16, case.kernel.endswith("bwd")
    # One sequence fills a chip of one multiprocessor, and is taken whole there; else it goes chunk by chunk.
    with compiling_for(target, MANY if "chunk" in case.kernel else 1) as compiled:
        if case.kernel.startswith("path_scan"):
            settings = (heads * case.head_dim, case.head_dim, case.state, 1, 4, True, None, True, dtype, torch.float32)
            describe((ScanPath.raster((1, 1, length)),), *settings, backward)
        else:
            x = torch.empty(1, length, heads, case.head_dim, dtype=dtype, device="meta")
            groups, steps = x.new_empty(1, length, 1, case.state), x.new_empty(1, length, heads)
            single = steps.new_empty(heads, dtype=torch.float32)
            arguments = (x, steps, single, groups, groups, single, x, single, None, True, False)
            outputs = scans.ssd_scan(*arguments)
            if backward:
                scans.ssd_scan_backward(outputs, *arguments)
    return distinct(compiled)


def compile_reorders(target: str, dtype: torch.dtype) -> list[Compiled]:
    """`gather` and `merge`."""
    from medsora_ops.reorder import triton as reorders

    offsets = torch.empty(48, dtype=torch.int32, device="meta")
    with compiling_for(target) as compiled:
        reorders.gather(torch.empty(2, 384, 1024, dtype=dtype, device="meta"), offsets, 8)
        reorders.merge(torch.empty(2, 2, 8, 48, 1024, dtype=dtype, device="meta"), offsets, 8)
    return compiled


def compile_filters(target: str, dtype: torch.dtype, side: int) -> list[Compiled]:
    """Every kernel of `spectral_filter` by a complex weight and of the focal loss, both ways, of square images."""
    from medsora_ops.spectral import triton as filters

    x = torch.empty(2, 16, 8, side, side, dtype=dtype, device="meta")
    weight = torch.empty(16, side, side // 2 + 1, dtype=torch.complex64, device="meta")
    settings = (1.0, 1, False, False, False)
    with compiling_for(target) as compiled:
        filters.spectral_filter(x, weight)
        filters.spectral_filter_backward(x, x, weight)
        filters.focal_frequency_loss_backward(filters.focal_frequency_loss(x, x, *settings), x, x, *settings)
    return compiled


def report(target: str, dtype: torch.dtype, head_dim: int, state: int) -> list[dict]:
    """A row for each kernel of `compile_scans`: its resources, and what is wrong with it, if anything."""
    return _rows(compile_scans(target, dtype, head_dim, state), target, dtype, head_dim=head_dim, state=state)


def report_rare_scans(target: str, dtype: torch.dtype) -> list[dict]:
    """Likewise of `compile_rare_scans`."""
    return _rows(compile_rare_scans(target, dtype), target, dtype, head_dim=64, state=128)


def report_shipped(target: str, case: configs.Case) -> list[dict]:
    """Likewise of `compile_shipped`."""
    sizes = dict(head_dim=case.head_dim, state=case.state)
    return _rows(compile_shipped(target, case), target, getattr(torch, case.dtype), **sizes)


def report_others(target: str, dtype: torch.dtype) -> list[dict]:
    """Likewise of `compile_reorders`, and of `compile_filters` for each of SIDES."""
    rows = _rows(compile_reorders(target, dtype), target, dtype)
    for side in SIDES:
        rows += _rows(compile_filters(target, dtype, side), target, dtype, side=side)
    return rows


def _rows(
    compiled: Sequence[Compiled],
    target: str,
    dtype: torch.dtype,
    *,
    head_dim: int | None = None,
    state: int | None = None,
    side: int | None = None,
) -> list[dict]:
    rows = []
    for one in compiled:
        found = resources(one)
        wrong = []
        if found.stack and target in AIMED_AT and (head_dim, state) == (64, 128):
            wrong.append(f"uses {found.stack} bytes of stack")
        threads = 32 * one.options.get("num_warps", 4)
        if target.startswith("cuda") and -(-found.registers // 8) * 8 * threads > REGISTERS:
            wrong.append(f"asks for {found.registers} registers for each of {threads} threads, there are {REGISTERS}")
        if found.shared > SHARED_MEMORY[target]:
            wrong.append(f"asks for {found.shared} bytes of shared memory, {target} has {SHARED_MEMORY[target]}")
        if "tt.dot" in one.kernel.asm["ttir"] and not found.matrix_instructions:
            wrong.append("has no matrix instructions")
        case = dict(kernel=one.name, target=target, dtype=str(dtype).removeprefix("torch."), head_dim=head_dim)
        case |= dict(state=state, side=side, warps=one.options.get("num_warps", 4))
        rows.append({**case, **asdict(found), "wrong": wrong})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print a table, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m medsora_ops.offline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", default=["cuda:80", "cuda:90", "cuda:100"], choices=SHARED_MEMORY)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(64, 128)], metavar="PxN",
                        help="of the scans: channels of a head and numbers of its state (default: 64x128)")  # fmt: skip
    parser.add_argument(
        "--rare",
        action="store_true",
        help="instead the scans as few call them: one direction, groups, states in and out; 64x128 alone",
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="compile in so many processes (default: %(default)s, one a core)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    options = parser.parse_args(arguments)
    columns = ("kernel", "target", "dtype", "head_dim", "state", "side", "warps", "registers", "stack", "shared",
               "matrix_instructions")  # fmt: skip
    print(f"triton {triton.__version__}\n" + "  ".join(("kernel".ljust(28), *columns[1:])))
    rows = []
    for row in _all_rows(options):
        rows.append(row)
        cells = ["-" if row[name] is None else str(row[name]) for name in columns]
        aligned = (cell.rjust(len(name)) for cell, name in zip(cells[1:], columns[1:], strict=True))
        print("  ".join((cells[0].ljust(28), *aligned)), *row["wrong"], flush=True)
    if options.json:
        options.json.write_text(json.dumps({"triton": triton.__version__, "kernels": rows}, indent=1) + "\n")
    wrong = sum(bool(row["wrong"]) for row in rows)
    spilling = [row for row in rows if row["stack"]]
    for row in spilling:
        case = (f"{name} {row[name]}" for name in ("head_dim", "state", "side") if row[name] is not None)
        print("stack:", row["kernel"], row["target"], row["dtype"], *case, f"{row['stack']} bytes")
    print(f"{len(rows)} kernels compiled; {len(spilling)} use a stack; {wrong} wrong")
    return 1 if wrong else 0


def _all_rows(options: argparse.Namespace) -> Iterator[dict]:
    """In order, whichever process is done first."""
    cases = []
    if not options.rare:
        cases += [functools.partial(report_shipped, aim, case) for aim in options.targets for case in shipped(aim)]
    for target, dtype in itertools.product(options.targets, options.dtypes):
        kind = getattr(torch, dtype)
        if options.rare:
            cases.append(functools.partial(report_rare_scans, target, kind))
        else:
            cases += [functools.partial(report, target, kind, *size) for size in options.sizes]
            cases.append(functools.partial(report_others, target, kind))
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max(1, min(options.jobs, len(cases))), mp_context=fresh) as pool:
        for found in [pool.submit(case) for case in cases]:
            yield from found.result()


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"got {text!r}, wants channels x states such as 64x128")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.exit(main())
