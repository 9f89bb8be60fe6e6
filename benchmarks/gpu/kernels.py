"""Which kernels does a call launch, and how long does each take? As torch's profiler sees one eager call."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

LISTED = 12


@dataclass(frozen=True)
class Kernel:
    """One kernel (or copy, or fill) of a call: how often it is launched, and the seconds of all its launches."""

    name: str
    launches: int
    seconds: float


def kernels_of(calls: list[Callable[[], object]], device: torch.device) -> list[Kernel] | None:
    """Those of one call, the longest first; the mean over `calls`. None off a GPU and where the profiler sees none."""
    if device.type != "cuda":
        return None
    # Known to crash beside CUDA graphs if the profiler's library is taken down and set up again.
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=activities) as profile:
            for call in calls:
                call()
            torch.cuda.synchronize(device)
        seen: dict[str, list[float]] = {}
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
                seen.setdefault(event.name, []).append(event.time_range.elapsed_us() * 1e-6)
    found = [Kernel(name, round(len(times) / len(calls)), sum(times) / len(calls)) for name, times in seen.items()]
    return sorted(found, key=lambda kernel: -kernel.seconds) or None


def listed(kernels: list[Kernel], most: int = LISTED) -> list[Kernel]:
    """The longest ones by name, the others together."""
    rest = kernels[most:]
    if not rest:
        return kernels
    return [
        *kernels[:most],
        Kernel(f"{len(rest)} other kernels", sum(k.launches for k in rest), sum(k.seconds for k in rest)),
    ]
