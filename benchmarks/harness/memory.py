"""Memory: does a call pay the system for fresh pages, and how many bytes does it hold at most?

glibc hands every tensor above 32 MiB back to the system when it is freed, and the next one then costs a page fault for
each 4 KiB, several times what an operator takes to fill it. That is the allocator's price, whoever computes: here freed
memory stays with the process.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler announces each of its runs on the terminal
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_HIGHEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep and reuse what it frees, for good. False where the C library cannot be told."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _HIGHEST))


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call takes at most beyond what was taken before it, its results included, as PyTorch allocates.

    On a GPU the allocator's own peak. On a CPU the sum of all that is allocated and freed during the call; a thread's
    scratch inside a library (oneDNN, the native extension: some hundred kilobytes) is not PyTorch's and does not count.
    """
    if device.type == "cuda":
        from benchmarks.gpu.timing import peak_memory as on_gpu

        return on_gpu(call, device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        results = call()  # kept until the profile ends
    events = (event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]")
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    del results
    return max(itertools.accumulate(changes, initial=0))
