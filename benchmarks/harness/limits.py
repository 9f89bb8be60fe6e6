"""What can this machine do at most, and how fast could a piece of work be at best?

The limits are measured by the native extension, in the same run and with the same number of threads as the variants.
Where it is not built, calls of PyTorch stand in, and `source` says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from benchmarks.harness.work import Work
from medsora_ops import native

COPIED = 1 << 26  # float32: 256 MiB each way, beyond any cache
CACHED = 1 << 12


@dataclass(frozen=True)
class Limits:
    """copy: bytes a second, read plus written. operations: float32 a second. exponentials: a second."""

    copy: float
    operations: float
    exponentials: float
    threads: int
    source: str


@dataclass(frozen=True)
class Floor:
    """Seconds that work takes at least: bytes and arithmetic may overlap, exponentials come on top.

    total = max(bytes, operations) + exponentials
    """

    bytes: float
    operations: float
    exponentials: float

    @property
    def total(self) -> float:
        return max(self.bytes, self.operations) + self.exponentials

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "total": self.total}


def floor_of(work: Work, limits: Limits) -> Floor:
    return Floor(work.bytes / limits.copy, work.operations / limits.operations, work.exponentials / limits.exponentials)


def measure_limits(seconds: float) -> Limits:
    """About `seconds` for each limit, the best of many short bursts; for a copy PyTorch's own competes as well."""
    threads = native.threads()
    copied = _best_rate(_copy, 2 * COPIED * 4, seconds)
    if native.unavailable() is None:
        module = native.extension()
        return Limits(
            copy=max(copied, module.measure_copy(seconds, threads)),
            operations=module.measure_fma(seconds, threads),
            exponentials=module.measure_exp(seconds, threads),
            threads=threads,
            source=f"native, {module.isa_in_use()}",
        )
    return Limits(
        copy=copied,
        operations=_best_rate(_matmul, 2 * 1024**3, seconds),
        exponentials=_best_rate(_exp, 256 * threads * CACHED, seconds),
        threads=threads,
        source=f"PyTorch stands in: {native.unavailable()}",
    )


def higher(one: Limits, other: Limits) -> Limits:
    """The better of two measurements of each limit: other load can only have made one lower."""
    return Limits(
        max(one.copy, other.copy),
        max(one.operations, other.operations),
        max(one.exponentials, other.exponentials),
        one.threads,
        one.source,
    )


def _best_rate(prepared: Callable[[], Callable[[], object]], amount: float, seconds: float) -> float:
    burst, best, begun = prepared(), 0.0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        burst()
        best = max(best, amount / (time.perf_counter() - start))
    return best


def _copy():
    source, target = torch.ones(COPIED), torch.zeros(COPIED)
    return lambda: target.copy_(source)


def _matmul():
    left, right = torch.randn(2, 1024, 1024).unbind(0)
    out = torch.empty(1024, 1024)
    return lambda: torch.mm(left, right, out=out)


def _exp():
    operands = torch.randn(native.threads() * CACHED)
    out = torch.empty_like(operands)
    return lambda: [torch.exp(operands, out=out) for _ in range(256)]
