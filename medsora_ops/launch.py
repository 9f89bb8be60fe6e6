"""The one way from Python to a Triton kernel, so that what runs can also be compiled without running.

A host function describes its tensors and calls `launch` for each kernel. Given tensors on the meta device, within
`compiling()`, the same host function compiles the very kernels that it would run, for `warmup` and for the checks that
need no GPU.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

REGISTERS = 65536  # of a multiprocessor, on NVIDIA's GPUs
MOST_PROGRAMS = (2**31 - 1, 65_535, 65_535)  # along the axes of a grid
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # triton reads it at its import: one process, one mode


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled without being run: its name, what it was specialised by, and Triton's result."""

    name: str
    options: dict
    kernel: object


_compiled: contextvars.ContextVar[tuple[str, list[Compiled], int] | None] = contextvars.ContextVar(
    "medsora_compiled", default=None
)


def launch(kernel, programs: int | tuple[int, ...], *arguments, **options) -> None:
    """Run `kernel` with `programs` programs on the current stream of the current device; no programs, no launch.

    Several numbers: of the grid's axes. Raises ValueError where one is more than a GPU takes.
    """
    grid = programs if isinstance(programs, tuple) else (programs,)
    if 0 in grid:
        return
    for axis, (number, most) in enumerate(zip(grid, MOST_PROGRAMS)):
        if number > most:
            raise ValueError(f"{kernel.__name__}: asks for {number} programs along axis {axis}, a GPU takes {most}")
    compiling = _compiled.get()
    if compiling is None:
        kernel[grid](*arguments, **options)
    else:
        found = kernel.warmup(*arguments, grid=grid, **options)
        compiling[1].append(Compiled(kernel.__name__, options, found))


@contextlib.contextmanager
def compiling(architecture: str, processors: int = 2) -> Iterator[list[Compiled]]:
    """Within the block kernels are compiled, not run; the list yielded holds them in the order of their launches.

    architecture, processors: what `architecture` and `multiprocessors` tell for the meta device; "sm_90".
    """
    token = _compiled.set((architecture, [], processors))
    try:
        yield _compiled.get()[1]
    finally:
        _compiled.reset(token)


def distinct(compiled: Sequence[Compiled]) -> list[Compiled]:
    """One of each that Triton tells from the others."""
    return list({one.kernel.hash: one for one in compiled}.values())


def on_device(x: torch.Tensor):
    """A context in which launches go to the device of x, whichever is current."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def multiprocessors(device: torch.device) -> int:
    """How many a device has; 2 for devices that have none, so that the interpreter's programs take several tiles."""
    if device.type == "meta" and _compiled.get() is not None:
        return _compiled.get()[2]
    return _multiprocessors(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def architecture(device: torch.device) -> str:
    """ "sm_90", "gfx942"; "interpreter" where kernels run on a CPU."""
    if device.type == "meta":
        return _compiled.get()[0]
    return _architecture(device)


@functools.cache
def _architecture(device: torch.device) -> str:
    if device.type != "cuda":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def sparing(device: torch.device) -> dict:
    """Options of a kernel that needs many registers: NVIDIA's assembler is to keep what it adds to them small."""
    return {"ptx_options": "--register-usage-level=3"} if architecture(device).startswith("sm_") else {}


def registers_of_one(num_warps: int) -> int:
    """Of a thread, where a program has a multiprocessor to itself."""
    return REGISTERS // (32 * num_warps)


def at_most(device: torch.device, registers: int) -> dict:
    """Options of a kernel that may take so many registers a thread, and no more, whatever NVIDIA's assembler thinks."""
    registers = min(registers, 255)  # no thread has more
    return {"maxnreg": registers} if architecture(device).startswith("sm_") else {}


def unavailable() -> str | None:
    """None if Triton kernels can run here, else why not."""
    if INTERPRETED:
        return None
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton does not import: {error}"
    return (
        None if torch.cuda.is_available() else "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels slowly on a CPU)"
    )
