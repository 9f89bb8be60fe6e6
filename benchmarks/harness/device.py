"""Where cases are measured: the processor, or a GPU with nothing of the inputs left in its caches.

On a GPU a call is captured in a CUDA graph on several sets of inputs by turns (benchmarks/gpu/timing.py) and the time
of a replay is what counts; the wall time of single calls, with what Python and launches take, stands beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.harness.interleaved import Schedule, time_interleaved

Inputs = dict[str, object]


@dataclass
class Times:
    """Seconds of a call, one a round. wall: on a GPU, wall times of single calls beside those of replays.

    not_replayed: why the times themselves are wall times there.
    """

    times: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list, kw_only=True)
    not_replayed: str | None = field(default=None, kw_only=True)


def input_sets(inputs: Inputs, device: torch.device) -> list[Inputs]:
    """`inputs` (tensors, and what moves as they do) on the device, tensors as often as exceeds its cache."""
    if device.type == "cpu":
        return [inputs]
    from benchmarks.gpu.timing import sets_needed

    size = sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
    count = sets_needed(device, size) if size else 1
    return [{name: value.to(device, copy=True) for name, value in inputs.items()} for _ in range(count)]


def time_calls(
    calls: Mapping[str, Sequence[Callable[[], object]]],
    schedule: Schedule,
    before_each: Callable[[], object] | None,
    device: torch.device,
) -> dict[str, Times]:
    """Times of each variant, taken in turns; its calls are the same one on each set of inputs."""
    if device.type == "cpu":
        single = {name: sets[0] for name, sets in calls.items()}
        return {name: Times(found) for name, found in time_interleaved(single, schedule, before_each).items()}
    from benchmarks.gpu.measure import reason
    from benchmarks.gpu.timing import Replay, eager, release, replayed

    walls = {name: [wall for _, wall in found] for name, found in eager(calls, device).items()}
    times = {name: Times(found, wall=found) for name, found in walls.items()}
    pool, replays = torch.cuda.graph_pool_handle(), {}
    for name, sets in calls.items():
        try:
            replays[name] = Replay(sets, statistics.median(times[name].wall), pool)
        except Exception as error:  # such as a step that reads its loss on the host
            times[name].not_replayed = reason(error)
            torch.cuda.synchronize(device)
    for name, found in replayed(replays, schedule).items():
        times[name].times = found
    for replay in replays.values():
        replay.graph.reset()
    release(device)
    return times
