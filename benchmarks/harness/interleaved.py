"""How are variants timed? In turns, A B C A B C ..., so that whatever slows the machine down falls on all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

QUICK = 0.02  # seconds; a shorter call is preceded by one that is not timed


@dataclass(frozen=True)
class Schedule:
    """How long to time.

    budget: seconds for each variant. min_rounds: turns each variant gets even beyond the budget. patience: how many
    budgets slow variants may take for that; then `slow_rounds` turns must do. max_rounds: more would not say more.
    """

    budget: float = 0.7
    min_rounds: int = 7
    patience: float = 6.0
    slow_rounds: int = 3
    max_rounds: int = 200

    def goes_on(self, rounds: int, seconds: float) -> bool:
        """Whether there is another round after so many rounds and seconds a variant."""
        if rounds >= self.max_rounds:
            return False
        least = self.min_rounds if seconds < self.patience * self.budget else self.slow_rounds
        return rounds < least or seconds < self.budget


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    schedule: Schedule,
    before_each: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of single calls of each variant, one a round.

    Each variant is called once to learn how long it takes; calls that compile something have been made before, when
    its result was checked. Then in every round each variant has its turn, in the given order: a call
    that is not timed, which brings caches, allocator and threads back to this variant (calls over 20 ms go without),
    and a timed one. `before_each`, such as a sweep that empties the caches, takes the place of the untimed call.
    """
    lengths = {name: _timed(call, clock) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    begun, rounds = clock(), 0
    try:
        while schedule.goes_on(rounds, (clock() - begun) / len(calls)):
            rounds += 1
            for name, call in calls.items():
                if before_each is not None:
                    before_each()
                elif lengths[name] < QUICK:
                    call()
                times[name].append(_timed(call, clock))
    finally:
        if collecting:
            gc.enable()
    return times


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()  # its result is freed at once, inside the time taken
    return clock() - start
