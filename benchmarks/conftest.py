"""How the harness stands in pytest-benchmark: each variant of a case is a benchmark, its group the case.

The first variant of a case to have its turn times all selected variants of that case, interleaved. Each test then plays
its recorded times back to pytest-benchmark through a clock that moves by what was recorded, so that saving, comparing,
sorting and -k work as they do anywhere. With --benchmark-disable variants are checked and not timed.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from benchmarks.gpu import machine
from benchmarks.gpu.shapes import GPU_SCALE
from benchmarks.harness import record
from benchmarks.harness.case import Unavailable
from benchmarks.harness.environment import load_average
from benchmarks.harness.interleaved import Schedule
from benchmarks.harness.limits import Limits, higher, measure_limits
from benchmarks.harness.measure import measured
from benchmarks.harness.memory import keep_freed_memory
from benchmarks.harness.playback import PLAYBACK
from benchmarks.reports import scaling

MOST_COMPILED = 256
CACHE_SWEEP = 1 << 26  # float32, more than any cache holds


def pytest_addoption(parser):
    group = parser.getgroup("medsora benchmarks")
    group.addoption("--record", metavar="NAME", help="write the run to benchmarks/results/NAME.json, or to a path")
    group.addoption("--compiled", action="store_true", help="time torch.compile as well (about 10 s more a case)")
    group.addoption("--full", action="store_true", help="all cases, also those left out of a default run")
    group.addoption(
        "--budget", type=float, default=0.7, metavar="SECONDS", help="for each variant and limit (default: 0.7)"
    )
    group.addoption("--fresh-pages", action="store_true", help="let the allocator return freed memory to the system")
    group.addoption("--cold", action="store_true", help="empty the caches before each call that is timed")
    group.addoption("--device", default="cpu", help="where: cpu (default) or cuda; on a GPU caches are always cold")


def pytest_configure(config):
    config.addinivalue_line("markers", "compiled: compiles when first called; runs with --compiled")
    config.addinivalue_line("markers", "full: left out of a default run; runs with --full")
    if config.getoption("compiled"):
        # By default one function is compiled for eight models or shapes at most, and runs uncompiled for any further.
        torch._dynamo.config.recompile_limit = MOST_COMPILED
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    config.pluginmanager.register(Run(config), "medsora-benchmarks")


class Run:
    """One session: which variants it times, what came out, and the limits they are held against."""

    def __init__(self, config):
        self.config = config
        self.selected: dict[str, list[str]] = defaultdict(list)
        self.cases, self.outcomes = {}, {}
        self.limits: Limits | None = None
        self.load_before = load_average()
        self.finished: dict | None = None
        self.device = usable_device(config.getoption("device"))
        self.pages = "fresh" if config.getoption("fresh_pages") or not keep_freed_memory() else "kept"

    def pytest_collection_modifyitems(self, config, items):
        unwanted = [name for name in ("compiled", "full") if not config.getoption(name)]
        dropped = [item for item in items if any(map(item.get_closest_marker, unwanted))]
        if dropped:
            config.hook.pytest_deselected(items=dropped)
            items[:] = [item for item in items if item not in set(dropped)]

    def pytest_collection_finish(self, session):
        for item in session.items:
            case = getattr(item, "callspec", None) and item.callspec.params.get("case")
            if case:
                self.selected[case].append(item.callspec.params["variant"])

    def outcome(self, case, variant: str, timed: bool):
        """That of one variant; the first one asked for measures all that were selected of its case."""
        if case.slug not in self.outcomes:
            if timed and self.limits is None:
                self.limits = self._limits()
            schedule = Schedule(budget=self.config.getoption("budget")) if timed else None
            before_each = torch.zeros(CACHE_SWEEP).add_ if self.config.getoption("cold") else None
            sweep = before_each and (lambda: before_each(1.0))
            self.outcomes[case.slug] = measured(case, self.selected[case.slug], schedule, sweep, self.device)
            self.cases[case.slug] = case
        return self.outcomes[case.slug][variant]

    def _limits(self) -> Limits | machine.GpuLimits:
        if self.device.type == "cuda":
            return machine.measure_limits(self.device, GPU_SCALE)
        return measure_limits(self.config.getoption("budget"))

    def finish(self) -> dict | None:
        """The record of the run; limits are measured once more, and the higher ones count."""
        if self.finished is None and self.limits is not None:
            best = machine.higher if self.device.type == "cuda" else higher
            self.limits = best(self.limits, self._limits())
            rows = [record.case_record(self.cases[slug], found, self.limits) for slug, found in self.outcomes.items()]
            self.finished = record.run_record(rows, self.limits, self.load_before)
            self.finished["pages"] = self.pages
            self.finished["caches"] = "cold" if self.config.getoption("cold") or self.device.type == "cuda" else "warm"
            if self.device.type == "cuda":
                self.finished["gpu"] = machine.describe(self.device)
        return self.finished

    def pytest_benchmark_update_json(self, output_json):
        """Floors beside the times in pytest-benchmark's own files."""
        if self.finish() is None:
            return
        for row in output_json["benchmarks"]:
            case = self.cases.get((row["params"] or {}).get("case"))
            if case is not None and case.work is not None:
                row["extra_info"]["floor"] = record.floor_record(case.work, self.limits)

    def pytest_terminal_summary(self, terminalreporter):
        finished = self.finish()
        if finished is None:
            return
        terminalreporter.section("medians, multiples of the floor, memory")
        terminalreporter.write_line("\n".join(record.table(finished)))
        if found := scaling.lines(finished["cases"]):
            terminalreporter.section("growth with tokens")
            terminalreporter.write_line("\n".join(found))
        if name := self.config.getoption("record"):
            for path in record.paths_of(name):
                record.write(finished, path)
                terminalreporter.write_line(f"\nrecorded in {path}")


def usable_device(name: str) -> torch.device:
    """The device of that name. Raises pytest.UsageError where there is none."""
    if name not in ("cpu", "cuda"):
        raise pytest.UsageError(f"--device: got {name}, wants cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device: got cuda, wants a machine with a GPU that this PyTorch can use")
    return torch.device(name)


@pytest.fixture
def measure(request, benchmark):
    """measure(case, variant): check and time a variant; the test fails if it is wrong and is skipped if it cannot."""
    run = request.config.pluginmanager.getplugin("medsora-benchmarks")

    def one(case, variant: str) -> None:
        outcome = run.outcome(case, variant, timed=benchmark.enabled)
        if isinstance(outcome.failure, Unavailable):
            pytest.skip(str(outcome.failure))
        if outcome.failure is not None:
            raise outcome.failure
        benchmark.extra_info.update(errors=outcome.errors, threads=torch.get_num_threads(), level=case.level)
        if outcome.peak is not None:
            benchmark.extra_info["peak_memory"] = outcome.peak
        PLAYBACK.into(benchmark, outcome.times)

    return one
