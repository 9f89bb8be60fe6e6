"""One case from its inputs to its figures: a shape, forward or with the pass back, all variants of it by turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from benchmarks.gpu.check import Judge, passing
from benchmarks.gpu.kernels import Kernel, kernels_of
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.timing import Replay, eager, peak_memory, release, replayed, sets_needed, synchronize
from benchmarks.gpu.variants import DEFINITION, variants
from benchmarks.harness.case import Unavailable
from benchmarks.harness.interleaved import Schedule
from benchmarks.harness.measure import Outcome
from benchmarks.harness.work import PASSES


@dataclass
class Figures:
    """What became of one variant. device, host, eager: times in seconds. failure: why there are none of them.

    not_replayed: why there are no device times though it runs. copies: calls in a graph. peak: bytes.
    """

    device: Outcome = field(default_factory=Outcome)
    eager: Outcome = field(default_factory=Outcome)
    errors: dict[str, float] = field(default_factory=dict)
    peak: int | None = None
    copies: int = 0
    not_replayed: str | None = None
    failure: str | None = None
    host: Outcome = field(default_factory=Outcome)


class Inputs:
    """Of one shape: as many sets as the caches ask for, and the judge of all that is computed from the first."""

    def __init__(self, shape: Shape, device: torch.device):
        self.shape, self.device = shape, device
        self.sets = [shape.inputs(device)]
        count = sets_needed(device, self.sets[0]["zxbcdt"].nbytes)
        self.sets += [shape.inputs(device, seed) for seed in range(1, count)]
        self.grads = [shape.gradients(device, seed) for seed in range(count)]
        self.judge = Judge(shape, self.sets[0], self.grads[0])


def measured(inputs: Inputs, passes: str, schedule: Schedule, compiled: bool = False) -> dict[str, Figures]:
    """The figures of every variant. One that fails says why and does not keep the others from being measured."""
    shape, device, backward = inputs.shape, inputs.device, passes == PASSES[1]
    figures: dict[str, Figures] = {}
    calls: dict[str, list[Callable]] = {}
    for name, call in variants(shape, compiled).items():
        figures[name] = Figures()
        grads = inputs.grads if backward else [None] * len(inputs.sets)
        sets = [passing(call, one, grad) for one, grad in zip(inputs.sets, grads, strict=True)]
        try:
            figures[name].errors = inputs.judge.errors(call, inputs.sets[0], grads[0])
            figures[name].peak = peak_memory(sets[0], device)
        except Exception as error:
            figures[name].failure = reason(error)
        else:
            calls[name] = sets
        release(device)
        synchronize(device)  # a device that no longer answers ends the run here
    time_eagerly(calls, figures, device)
    if device.type == "cuda":
        replay_all(calls, figures, schedule)
    else:
        for name in calls:
            figures[name].not_replayed = "there is no device, hence no graph"
    release(device)
    return figures


def kernels_by_variant(
    shape: Shape, device: torch.device, passes: str, names: Iterable[str]
) -> dict[str, list[Kernel]]:
    """The kernels of the named variants, which have been found right before."""
    inputs, grads = shape.inputs(device), shape.gradients(device, 0) if passes == PASSES[1] else None
    every, found = variants(shape, compiled=False), {}
    for name in names:
        call = passing(every[name], inputs, grads)
        call()
        # A call of the definition can be tens of thousands of launches, which the profiler takes its time over.
        found[name] = kernels_of([call] if name == DEFINITION else [call, call], device)
        release(device)
    return {name: kernels for name, kernels in found.items() if kernels}


def time_eagerly(calls: dict[str, list[Callable]], figures: dict[str, Figures], device: torch.device) -> None:
    """Times of the host and wall times of all, into `figures`."""
    for name, times in eager(calls, device).items():
        host, wall = zip(*times, strict=True)
        figures[name].host.times, figures[name].eager.times = list(host), list(wall)


def replay_all(calls: dict[str, list[Callable]], figures: dict[str, Figures], schedule: Schedule) -> None:
    """Device times of all that can be captured, into `figures`; the graphs share memory."""
    pool, replays = torch.cuda.graph_pool_handle(), {}
    for name, sets in calls.items():
        try:
            replays[name] = Replay(sets, figures[name].eager.median, pool)
            figures[name].copies = replays[name].copies
        except Exception as error:
            figures[name].not_replayed = reason(error)
            torch.cuda.synchronize()
    for name, times in replayed(replays, schedule).items():
        figures[name].device.times = times
    for replay in replays.values():
        replay.graph.reset()


def reason(error: Exception) -> str:
    """In one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit in memory"
    text = " ".join(str(error).split())
    return text if isinstance(error, Unavailable) else f"{type(error).__name__}: {text[:300]}"
