"""Recorded times for pytest-benchmark, by its public means: a timer, and a function that makes it move."""

from __future__ import annotations

import pytest

from benchmarks.harness.case import Case


class Playback:
    """A clock that stands still, but for `tick`, which moves it by the next recorded time."""

    def __init__(self):
        self.now, self._due = 0.0, iter(())

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now = next(self._due, 0.0)

    def rewind(self) -> None:
        self.now = 0.0

    def into(self, benchmark, times: list[float]) -> None:
        """Let `benchmark`, whose timer is this clock, measure `times`; without any, only count as used."""
        self._due = iter(times)
        benchmark.pedantic(self.tick, setup=self.rewind, rounds=max(len(times), 1))


PLAYBACK = Playback()


def variants_of(cases: dict[str, Case], full: frozenset[str | tuple[str, str]] = frozenset()) -> list:
    """Parameters (case, variant) of a test of these cases; cases, or variants (case, name), in `full` run with --full
    only."""
    rows = []
    for slug, case in cases.items():
        for variant in case.variants:
            marks = [pytest.mark.benchmark(group=case.name, timer=PLAYBACK)]
            marks += [pytest.mark.compiled] * variant.compiled
            marks += [pytest.mark.full] * (slug in full or (slug, variant.name) in full)
            rows.append(pytest.param(slug, variant.name, id=f"{slug}-{variant.name}", marks=marks))
    return rows
