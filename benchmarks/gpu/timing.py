"""How long does a call take on the device, with nothing of it in the caches?

A CUDA graph holds the call several times over, each time on the next of so many sets of inputs that together they
exceed the second-level cache three times: when a set has its turn again, nothing of it is left there. A graph leaves
out what Python and the launches cost on the host; that is in the times of eager calls. Graphs of all variants are
replayed by turns, A B C A B C ..., each once untimed, so that the device is busy when the timed replay is handed over.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.gpu.machine import second_level_cache
from benchmarks.harness.interleaved import Schedule

CACHES = 3
MOST_SETS = 64  # then small inputs, 1 MB a set, exceed the 50 MB of a Hopper chip once, if not three times
LEAST = 1e-3  # seconds that a graph should take
MOST_REPEATS = 8
QUICK = 0.05  # seconds; a longer replay needs none before it
EAGER_ROUNDS = 9

Calls = Sequence[Callable[[], object]]  # the same call on each set of inputs


def sets_needed(device: torch.device, bytes_of_a_set: int) -> int:
    """How many sets of inputs exceed the cache, so that one set is cold when its turn comes; 1 off a GPU."""
    if device.type != "cuda":
        return 1
    return min(MOST_SETS, 1 + -(-CACHES * second_level_cache(device) // bytes_of_a_set))


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream()


class Replay:
    """A graph of calls."""

    def __init__(self, calls: Calls, seconds: float, pool):
        """seconds: about what a call takes. pool: memory shared by graphs, none of whose results anyone reads."""
        turns = max(1, min(MOST_REPEATS, int(LEAST / (len(calls) * max(seconds, 1e-6)))))
        self.copies = turns * len(calls)
        stream = _side_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:  # kernels are loaded and handles made before the capture
                call()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        # Gradients are launched from a thread of autograd's own, which must not end the capture.
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            for copy in range(self.copies):
                calls[copy % len(calls)]()

    def enqueue(self, warm: bool) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """A replay between two events."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if warm:
            self.graph.replay()
        begin.record()
        self.graph.replay()
        end.record()
        return begin, end


def replayed(replays: Mapping[str, Replay], schedule: Schedule) -> dict[str, list[float]]:
    """Seconds of a call, one a round."""
    times: dict[str, list[float]] = {name: [] for name in replays}
    lengths: dict[str, float] = {}
    for name, replay in replays.items():  # loads the graph onto the device, too
        begin, end = replay.enqueue(warm=True)
        torch.cuda.synchronize()
        lengths[name] = begin.elapsed_time(end) * 1e-3
    begun, rounds = time.perf_counter(), 0
    while replays and schedule.goes_on(rounds, (time.perf_counter() - begun) / len(replays)):
        rounds += 1
        events = {name: replay.enqueue(lengths[name] < QUICK) for name, replay in replays.items()}
        torch.cuda.synchronize()
        for name, (begin, end) in events.items():
            times[name].append(begin.elapsed_time(end) * 1e-3 / replays[name].copies)
    return times


def eager(calls: Mapping[str, Calls], device: torch.device) -> dict[str, list[tuple[float, float]]]:
    """Seconds from the beginning of a call to its return, and to the end of its work on the device, by turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    rounds = EAGER_ROUNDS if device.type == "cuda" else 1
    for number in range(rounds):
        for name, sets in calls.items():
            call = sets[number % len(sets)]
            synchronize(device)
            begun = time.perf_counter()
            call()
            returned = time.perf_counter()
            synchronize(device)
            times[name].append((returned - begun, time.perf_counter() - begun))
    return times


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call takes at most beyond what was taken before it, its results included."""
    if device.type != "cuda":
        return None
    synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give back what was freed, so that the next case has all of the memory."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
