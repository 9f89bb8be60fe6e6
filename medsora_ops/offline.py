"""Compile the Triton kernels for a GPU that is not here, and read what the compiler made of them.

    with compiling_for("cuda:90") as compiled:
        path_scan(...)  # on the meta device: nothing runs
    print(resources(compiled[0]))
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from medsora_ops.launch import Compiled, compiling

# Shared memory that one program may ask for, in bytes, by architecture.
SHARED_MEMORY = {"cuda:80": 166912, "cuda:86": 101376, "cuda:89": 101376, "cuda:90": 232448, "cuda:100": 232448,
                 "cuda:120": 101376, "hip:gfx942": 65536}  # fmt: skip


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

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[list[Compiled]]:
    """Within the block, kernels that would be launched are compiled for `target`: "cuda:90", "hip:gfx942"."""
    kind, architecture = target.split(":")
    before = triton.runtime.driver.__dict__.get("_active")
    aim = GPUTarget(kind, int(architecture), 32) if kind == "cuda" else GPUTarget(kind, architecture, 64)
    triton.runtime.driver.set_active(_Absent(aim))
    try:
        with compiling(f"sm_{architecture}" if kind == "cuda" else architecture) as compiled:
            yield compiled
    finally:
        triton.runtime.driver._active = before


def resources(compiled: Compiled) -> Resources:
    """Registers, stack and shared memory of a kernel, and how many matrix instructions its code holds."""
    kernel = compiled.kernel
    shared = kernel.metadata.shared
    if "cubin" not in kernel.asm:
        code = kernel.asm.get("amdgcn", "")
        registers, scratch = (re.search(rf"\.{name}:\s*(\d+)", code) for name in ("vgpr_count", "private_segment_fixed_size"))
        found = [int(match.group(1)) if match else None for match in (registers, scratch)]
        return Resources(found[0], found[1], None, shared, len(re.findall(r"v_mfma", code)))
    usage = _cuobjdump(kernel.asm["cubin"], "--dump-resource-usage")
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    sass = _cuobjdump(kernel.asm["cubin"], "-sass")
    matrix = len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA|UTC\w*MMA)\b", sass))
    return Resources(numbers["REG"], numbers["STACK"], numbers["LOCAL"], shared, matrix)


def _cuobjdump(cubin: bytes, option: str) -> str:
    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([program, option, file.name], capture_output=True, text=True, check=True).stdout
