"""The one way from Python to a Triton kernel, so that what runs can also be listed and compiled without running.

A host function describes its tensors and calls `launch` for each kernel. Given tensors on the meta device, within
`compiling()`, the same host function compiles the very kernels that it would run, for `warmup` and for the checks that
need no GPU.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # triton reads it at its import: one process, one mode
_compiled: contextvars.ContextVar[list | None] = contextvars.ContextVar("medsora_compiled", default=None)


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled without being run: its name, what it was specialised by, and Triton's result."""

    name: str
    options: dict
    kernel: object


def launch(kernel, programs: int, *arguments, **options) -> None:
    """Run `kernel` with `programs` programs on the current stream of its tensors' device; 0 programs are no launch."""
    if programs == 0:
        return
    compiled = _compiled.get()
    if compiled is None:
        kernel[(programs,)](*arguments, **options)
    else:
        compiled.append(Compiled(kernel.__name__, options, kernel.warmup(*arguments, grid=(programs,), **options)))


@contextlib.contextmanager
def compiling() -> Iterator[list[Compiled]]:
    """Within the block kernels are compiled, not run; the list yielded holds them in the order of their launches."""
    token = _compiled.set([])
    try:
        yield _compiled.get()
    finally:
        _compiled.reset(token)


def on_device(x: torch.Tensor):
    """A context in which launches go to the device of x, whichever is current."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def unavailable() -> str | None:
    """None if Triton kernels can run here, else why not."""
    if INTERPRETED:
        return None
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton does not import: {error}"
    return None if torch.cuda.is_available() else "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels slowly on a CPU)"


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many a device has; 2 for devices that have none, so that the interpreter's programs take several tiles."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
