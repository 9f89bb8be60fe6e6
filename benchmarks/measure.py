"""One case from its inputs to its figures: build, check, time in turns, free."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from benchmarks.case import Case
from benchmarks.correctness import Judge, prepared
from benchmarks.interleaved import Schedule, time_interleaved


@dataclass
class Outcome:
    """What became of one variant: its times in seconds, one a round, or why there are none.

    errors: relative RMS error of each result against float64. failure: Unavailable, Wrong or what else it raised.
    """

    times: list[float] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    failure: Exception | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.times) < 2:
            return self.times[0], self.times[0]
        lower, _, upper = statistics.quantiles(self.times, n=4, method="inclusive")
        return lower, upper

    @property
    def minimum(self) -> float:
        return min(self.times)


def measured(
    case: Case,
    variants: Collection[str],
    schedule: Schedule | None,
    before_each: Callable[[], object] | None = None,
) -> dict[str, Outcome]:
    """The outcome of each named variant of the case, timed in turns; only checked if there is no schedule."""
    inputs = case.inputs()
    judge = Judge(case, inputs)
    outcomes, calls = {}, {}
    for variant in case.variants:
        if variant.name not in variants:
            continue
        outcome = outcomes[variant.name] = Outcome()
        try:
            call = prepared(case, variant.call, inputs)
            outcome.errors = judge.errors(call())
        except Exception as error:  # one that fails must not keep the others from being timed
            outcome.failure = error
        else:
            calls[variant.name] = call
    del judge  # the float64 results, before memory is measured in time
    if schedule is not None and calls:
        for name, times in time_interleaved(calls, schedule, before_each).items():
            outcomes[name].times = times
    return outcomes
