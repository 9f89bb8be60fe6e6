"""One case from its inputs to its figures: build, check, time in turns, free."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

from benchmarks.harness.case import Case, Problem, Variant
from benchmarks.harness.correctness import Judge, prepared
from benchmarks.harness.device import Times, input_sets, time_calls
from benchmarks.harness.interleaved import Schedule
from benchmarks.harness.memory import peak_memory

CPU = torch.device("cpu")
Calls = dict[str, list[Callable[[], object]]]  # a variant's calls, one for each set of inputs


@dataclass
class Outcome(Times):
    """What became of one variant: its times, or why there are none.

    errors: relative RMS error of each result against float64. failure: Unavailable, Wrong or what else it raised.
    peak: bytes a call takes at most. facts: what else its variant tells.
    """

    errors: dict[str, float] = field(default_factory=dict)
    failure: Exception | None = None
    peak: int | None = None
    facts: dict[str, object] = field(default_factory=dict)

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
    device: torch.device = CPU,
) -> dict[str, Outcome]:
    """The outcome of each named variant of the case, timed in turns; only checked if there is no schedule."""
    chosen = [variant for variant in case.variants if variant.name in variants]
    outcomes = {variant.name: Outcome() for variant in chosen}
    calls: Calls = {}
    for problem in dict.fromkeys(variant.problem or case.problem for variant in chosen):
        same = [variant for variant in chosen if (variant.problem or case.problem) is problem]
        calls |= checked(case, problem, same, outcomes, device)
    calls = {name: calls[name] for name in outcomes if name in calls}
    if schedule is None or not calls:
        return outcomes
    compiled = {variant.name for variant in chosen if variant.compiled}
    for name, (call, *_) in calls.items():
        if name in compiled:
            call()  # another variant's first call has made the compiler forget this one: what compiles takes memory too
        outcomes[name].peak = peak_memory(call, device)
    for name, found in time_calls(calls, schedule, before_each, device).items():
        outcome = outcomes[name]
        outcome.times, outcome.wall, outcome.not_replayed = found.times, found.wall, found.not_replayed
    return outcomes


def checked(
    case: Case, problem: Problem, variants: list[Variant], outcomes: dict[str, Outcome], device: torch.device
) -> Calls:
    """What is to be timed of variants of one problem: those found right. The others' failures go to `outcomes`."""
    sets = input_sets(problem.inputs(), device)
    calls: Calls = {}
    try:
        judge = Judge(case, sets[0], problem)
    except Exception as error:  # such as too little memory for float64
        for variant in variants:
            outcomes[variant.name].failure = error
        return calls
    for variant in variants:
        outcome = outcomes[variant.name]
        try:
            each = [prepared(case, variant.call, inputs, problem) for inputs in sets]
            outcome.errors = judge.errors(each[0]())
            outcome.facts = variant.facts()
        except Exception as error:  # one that fails must not keep the others from being timed
            outcome.failure = error
        else:
            calls[variant.name] = each
    return calls
