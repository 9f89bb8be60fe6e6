"""Which chip is it, and what can it do at most?

The three limits are measured in the run that they judge, by device events, each the best of its repetitions: a copy
within the memory (bytes read and written), a product of large bfloat16 matrices, and exponentials by a kernel of many
chains that do not wait for one another.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from benchmarks.gpu.shapes import Scale
from benchmarks.harness.work import Work

CHAINS = 1024  # of exponentials, in one program


@dataclass(frozen=True)
class GpuLimits:
    """copy: bytes a second, read plus written. operations: in bfloat16 products, a second. exponentials: a second."""

    copy: float
    operations: float
    exponentials: float

    def floor(self, work: Work) -> dict[str, object]:
        """Seconds that each needs at least; on a GPU they run beside one another, so the longest binds."""
        each = {
            "bytes": work.bytes / self.copy,
            "operations": work.operations / self.operations,
            "exponentials": work.exponentials / self.exponentials,
        }
        binding = max(each, key=each.get)
        return {**each, "total": each[binding], "binding": binding}


def describe(device: torch.device) -> dict[str, object]:
    """The chip and what drives it; plain values for JSON."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = None
    if device.type != "cuda":
        return {"name": "none: Triton's interpreter on a CPU", "triton": version}
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory": found.total_memory,
        "l2_cache": second_level_cache(device),
        "cuda": torch.version.cuda or torch.version.hip,
        "triton": version,
    }


def chip(device: torch.device) -> str:
    """Its name as part of a file's name: "h100"."""
    if device.type != "cuda":
        return "interpreter"
    words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name(device).lower())
    # "NVIDIA H100 80GB HBM3": the first word with a digit names the chip.
    return next((word for word in words if any(map(str.isdigit, word))), "-".join(words))


def second_level_cache(device: torch.device) -> int:
    """Bytes; 64 MiB where torch does not tell, more than most have."""
    if device.type != "cuda":
        return 0
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20


def measure_limits(device: torch.device, scale: Scale) -> GpuLimits:
    """About a second on a GPU."""
    return GpuLimits(*(best_rate(prepare(device, scale), device) for prepare in (_copy, _product, _exponentials)))


def higher(one: GpuLimits, other: GpuLimits) -> GpuLimits:
    """The better of two measurements of each limit: other load can only have made one lower."""
    best = {name: max(value, asdict(other)[name]) for name, value in asdict(one).items()}
    return GpuLimits(**best)


def best_rate(burst: tuple[float, Callable[[], object]], device: torch.device, repetitions: int = 20) -> float:
    """burst: how much a call does, and the call. Amount a second, by the fastest of the repetitions."""
    amount, call = burst
    for _ in range(3 if device.type == "cuda" else 1):
        call()
    if device.type != "cuda":
        begun = time.perf_counter()
        call()
        return amount / (time.perf_counter() - begun)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repetitions + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize(device)
    return amount / min(a.elapsed_time(b) * 1e-3 for a, b in zip(events, events[1:]))


def _copy(device, scale):
    source = torch.randn(scale.copied // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes, lambda: target.copy_(source)


def _product(device, scale):
    size = scale.matrix
    left, right = torch.randn(2, size, size, device=device).to(scale.dtype).unbind(0)
    out = torch.empty_like(left)
    return 2 * size**3, lambda: torch.mm(left, right, out=out)


def _exponentials(device, scale):
    from benchmarks.gpu.rate_kernel import exponentials_kernel

    # Eight programs of 256 threads fill a multiprocessor; twice that, so that none idles at the end.
    programs = 32 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    values = torch.rand(programs * CHAINS, device=device)
    count = scale.exponentials
    return programs * CHAINS * count, lambda: exponentials_kernel[(programs,)](values, count, BLOCK=CHAINS)
