"""What does a run leave? A table to read and JSON to keep: figures, floors, ratios, and where they were measured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.machine import GpuLimits
from benchmarks.harness import environment
from benchmarks.harness.case import Case
from benchmarks.harness.limits import Limits, floor_of
from benchmarks.harness.measure import Outcome
from benchmarks.harness.work import Work

RESULTS = Path(__file__).parents[1] / "results"
FORMAT = 1


def case_record(case: Case, outcomes: Mapping[str, Outcome], limits: Limits | GpuLimits) -> dict[str, object]:
    """One case as plain values; times in seconds, memory in bytes.

    `level` is "operator", "layer" or "model". A variant's `times_as_fast` is, for each other variant, how often its
    median contains this one's; `peak_memory` what a call takes at most beyond its inputs. Operators have `work` and
    `floor`, each variant its `floor_multiple`; layers have `tokens`; models `clips`, variants `clips_per_second`, which
    for a step `of_steps` that a sampler takes are the clips of all its steps.
    Variants that were not timed stand under `not_timed` with the reason.
    """
    timed = {name: outcome for name, outcome in outcomes.items() if outcome.times}
    row = {
        "level": case.level,
        "case": case.name,
        "operator": case.operator,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "passes": case.passes,
        **case.facts,
    }
    if case.work is not None:
        row |= {"work": asdict(case.work), "floor": floor_record(case.work, limits)}
    rows = row["variants"] = {}
    for name, outcome in timed.items():
        rows[name] = timings(outcome)
        if case.work is not None:
            rows[name]["floor_multiple"] = outcome.median / row["floor"]["total"]
        if "clips" in case.facts:
            rows[name]["clips_per_second"] = case.facts["clips"] / (outcome.median * case.facts.get("of_steps", 1))
        rows[name]["times_as_fast"] = {other: times_as_fast(outcome, timed[other]) for other in timed if other != name}
        rows[name] |= {"peak_memory": outcome.peak, "errors": outcome.errors, **outcome.facts}
        if outcome.not_replayed:
            rows[name]["not_replayed"] = outcome.not_replayed
    row["not_timed"] = {name: str(outcome.failure) for name, outcome in outcomes.items() if outcome.failure}
    return row


def times_as_fast(one: Outcome, other: Outcome) -> float:
    """The other's median over that of one: by one clock, which is that of single calls where one was not replayed."""
    if one.not_replayed or other.not_replayed:
        one, other = Outcome(one.wall), Outcome(other.wall)
    return other.median / one.median


def timings(outcome: Outcome) -> dict[str, object]:
    """On a GPU, "device" times of replays (unless they could not be taken) and "eager" wall times; else just times."""
    if not outcome.wall:
        return timing(outcome)
    eager = {"eager": timing(Outcome(outcome.wall))}
    return eager if outcome.not_replayed else {"device": timing(outcome), **eager}


def timing(outcome: Outcome) -> dict[str, object]:
    """What a record keeps of the times of one variant, in seconds."""
    return {
        "median": outcome.median,
        "quartiles": list(outcome.quartiles),
        "minimum": outcome.minimum,
        "rounds": len(outcome.times),
    }


def floor_record(work: Work, limits: Limits | GpuLimits) -> dict[str, object]:
    """Seconds that `work` takes at least on the machine of these limits, and what they are made of."""
    return floor_of(work, limits).as_dict() if isinstance(limits, Limits) else limits.floor(work)


def run_record(cases: list[dict[str, object]], limits: Limits | GpuLimits, load_before) -> dict[str, object]:
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


def paths_of(name: str) -> list[Path]:
    """`path_of(name)`, and that file's name in the folder that the environment variable OUT names, if there is one."""
    path = path_of(name)
    return [path, Path(os.environ["OUT"]) / path.name] if os.environ.get("OUT") else [path]


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
        f"limits ({limits.get('source', 'device')}, {limits.get('threads', 'no')} threads):"
        f" copy {limits['copy'] / 1e9:.1f} GB/s, {limits['operations'] / 1e9:.0f} GFLOP/s,"
        f" {limits['exponentials'] / 1e9:.2f} G exponentials/s"
    ]
    return [*lines, *(line for case in record["cases"] for line in case_lines(case))]


def case_lines(case: dict[str, object]) -> list[str]:
    """Those of one case."""
    lines, floor = ["", case["case"]], case.get("floor")
    if floor:
        lines.append(
            f"  floor {duration(floor['total'])} = max(bytes {duration(floor['bytes'])},"
            f" operations {duration(floor['operations'])}) + exponentials {duration(floor['exponentials'])}"
            if "binding" not in floor
            else f"  floor {duration(floor['total'])}, by {floor['binding']}"
        )
    width = max(14, *map(len, [*case["variants"], *case["not_timed"]]))
    own = {"floor_multiple": "x floor", "clips_per_second": "clips/s"}
    own = {name: head for name, head in own.items() if any(name in row for row in case["variants"].values())}
    if case["variants"]:
        lines.append(
            f"  {'':{width}} {'median':>9} {'quartiles':>20} {'minimum':>9} {'rounds':>6}"
            + "".join(f" {head:>8}" for head in own.values())
            + f" {'peak MB':>8}  times as fast as slower ones"
        )
    for name, row in case["variants"].items():
        row = row | (row.get("device") or row.get("eager") or {})
        lower, upper = row["quartiles"]
        slower = (f"{other} {times:.2f}" for other, times in row["times_as_fast"].items() if times > 1)
        peak = "-" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:.1f}"
        lines.append(
            f"  {name:{width}} {duration(row['median']):>9} {duration(lower) + ' .. ' + duration(upper):>20}"
            f" {duration(row['minimum']):>9} {row['rounds']:>6}"
            + "".join(f" {row[figure]:>8.2f}" for figure in own)
            + f" {peak:>8}  {', '.join(slower)}".rstrip()
        )
    lines += [f"  {name:{width}} not timed: {reason}" for name, reason in case["not_timed"].items()]
    return lines + attention_lines(case)


def attention_lines(case: dict[str, object]) -> list[str]:
    """Which kernels of scaled_dot_product_attention the variants took, those that could run, and SDPA's own choice."""
    lines = []
    for name, row in case["variants"].items():
        for group, found in row.get("sdpa", {}).items():
            runs = ", ".join(found["seconds"])
            lines.append(
                f"  {name} ({group}) by the {found['fastest']} kernel; here run {runs}; by default {found['default']}"
            )
    return lines


def duration(seconds: float) -> str:
    """Three digits and a unit: 1.23 ms."""
    seconds = float(f"{seconds:.3g}")  # 999.9 us are 1 ms
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
