"""What does a run leave? A table to read and JSON to keep: figures, floors, ratios, and where they were measured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks import environment
from benchmarks.case import Case
from benchmarks.limits import Limits, floor_of
from benchmarks.measure import Outcome

RESULTS = Path(__file__).parent / "results"
FORMAT = 1


def case_record(case: Case, outcomes: Mapping[str, Outcome], limits: Limits) -> dict[str, object]:
    """One case as plain values; times in seconds.

    A variant's `floor_multiple` is its median over the floor; `times_as_fast` is, for each other variant, how often
    its median contains this one's. Variants that were not timed stand under `not_timed` with the reason.
    """
    floor = floor_of(case.work, limits)
    timed = {name: outcome for name, outcome in outcomes.items() if outcome.times}
    return {
        "case": case.name,
        "operator": case.operator,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "passes": case.passes,
        "work": asdict(case.work),
        "floor": floor.as_dict(),
        "variants": {
            name: {
                **timing(outcome),
                "floor_multiple": outcome.median / floor.total,
                "times_as_fast": {other: timed[other].median / outcome.median for other in timed if other != name},
                "errors": outcome.errors,
            }
            for name, outcome in timed.items()
        },
        "not_timed": {name: str(outcome.failure) for name, outcome in outcomes.items() if outcome.failure},
    }


def timing(outcome: Outcome) -> dict[str, object]:
    """What a record keeps of the times of one variant, in seconds."""
    return {
        "median": outcome.median,
        "quartiles": list(outcome.quartiles),
        "minimum": outcome.minimum,
        "rounds": len(outcome.times),
    }


def run_record(cases: list[dict[str, object]], limits: Limits, load_before) -> dict[str, object]:
    """A whole run. `cases` are those of `case_record`, with floors by these limits."""
    return {**circumstances(load_before), "limits": asdict(limits), "cases": cases}


def circumstances(load_before: list[float] | None) -> dict[str, object]:
    """Where, when, by which command and of which sources: the same in every record."""
    return {
        "format": FORMAT,
        "environment": environment.environment(),
        "revision": environment.revision(),
        "command": environment.command(),
        "load_average": {"before": load_before, "after": environment.load_average()},
    }


def path_of(name: str) -> Path:
    """benchmarks/results/NAME.json, or NAME itself if it is the path of a .json file."""
    return Path(name) if Path(name).suffix == ".json" else RESULTS / f"{name}.json"


def write(record: dict[str, object], path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def table(record: dict[str, object]) -> list[str]:
    """Lines for a terminal: the limits, then each case with its floor and a row a variant, medians compared."""
    limits = record["limits"]
    lines = [
        f"limits ({limits['source']}, {limits['threads']} threads): copy {limits['copy'] / 1e9:.1f} GB/s,"
        f" {limits['operations'] / 1e9:.0f} GFLOP/s, {limits['exponentials'] / 1e9:.2f} G exponentials/s"
    ]
    for case in record["cases"]:
        floor = case["floor"]
        lines += [
            "",
            case["case"],
            f"  floor {duration(floor['total'])} = max(bytes {duration(floor['bytes'])},"
            f" operations {duration(floor['operations'])}) + exponentials {duration(floor['exponentials'])}",
        ]
        if case["variants"]:
            lines.append(
                f"  {'':14} {'median':>9} {'quartiles':>20} {'minimum':>9} {'rounds':>6} {'x floor':>8}"
                "  times as fast as slower ones"
            )
        for name, row in case["variants"].items():
            lower, upper = row["quartiles"]
            slower = (f"{other} {times:.2f}" for other, times in row["times_as_fast"].items() if times > 1)
            lines.append(
                f"  {name:14} {duration(row['median']):>9} {duration(lower) + ' .. ' + duration(upper):>20}"
                f" {duration(row['minimum']):>9} {row['rounds']:>6} {row['floor_multiple']:>8.2f}"
                f"  {', '.join(slower)}".rstrip()
            )
        lines += [f"  {name:14} not timed: {reason}" for name, reason in case["not_timed"].items()]
    return lines


def duration(seconds: float) -> str:
    """Three digits and a unit: 1.23 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
