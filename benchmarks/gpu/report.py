"""What a run leaves: plain values for JSON, and tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu import machine
from benchmarks.gpu.kernels import Kernel, listed
from benchmarks.gpu.machine import GpuLimits
from benchmarks.gpu.measure import Figures
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.timing import MOST_SETS
from benchmarks.gpu.variants import COMPILED, OURS
from benchmarks.harness import record
from benchmarks.harness.environment import load_average
from benchmarks.harness.measure import Outcome
from benchmarks.harness.work import Work

NOTES = {
    "device": "a call in replays of a CUDA graph that holds it on sets of inputs by turns, together larger than the"
    f" second-level cache three times over, or {MOST_SETS} sets; eager: wall time of one call, from its beginning to"
    " the end of its work; host: until it returns",
    "floor": "the longest of bytes, operations and exponentials over the limits measured in the same run",
    "chain": "stands in for mamba_ssm: separate kernels with the structure of Mamba-2's chunked pipeline, see"
    " benchmarks/gpu/chain.py",
    "launches": "kernels, copies and fills of one eager call, as torch's profiler sees them",
    "peak_memory": "bytes a call takes at most beyond its inputs, results included",
    "not_timed": f"{COMPILED} is timed with --compiled only",
}
Row = dict[str, object]


def case_row(shape: Shape, passes: str, figures: Mapping[str, Figures], limits: GpuLimits, judged_by: str) -> Row:
    """One case; times in seconds."""
    work, scale = shape.work(passes), shape.scale
    row = {
        "case": f"{shape.name}, {passes}",
        "shape": shape.name,
        "passes": passes,
        "videos": shape.videos,
        "tokens": shape.tokens,
        "sizes": {"width": scale.width, "state": scale.state, "head_dim": scale.head_dim, "directions": 2},
        "dtype": str(scale.dtype).removeprefix("torch."),
        "judged_by": judged_by,
        "work": asdict(work),
        "floor": limits.floor(work),
    }
    return row | variants_row(figures, row["floor"]["total"])


def variants_row(figures: Mapping[str, Figures], floor: float | None = None) -> Row:
    """`times_as_fast`: how often a peer's median contains this one's, on the device and in eager calls."""
    ran = {name: found for name, found in figures.items() if found.failure is None}
    rows = {}
    for name, found in ran.items():
        row = rows[name] = {"errors": found.errors, "peak_memory": found.peak, "calls_in_graph": found.copies}
        row["launches"] = None  # until the profiler has seen it
        if found.not_replayed:
            row["not_replayed"] = found.not_replayed
        for kind in ("device", "host", "eager"):
            own: Outcome = getattr(found, kind)
            if own.times:
                peers = {n: getattr(f, kind) for n, f in ran.items() if n != name}
                ratios = {n: peer.median / own.median for n, peer in peers.items() if peer.times}
                row[kind] = {**record.timing(own), "times_as_fast": ratios}
                if floor is not None and kind != "host":
                    row[kind]["floor_multiple"] = own.median / floor
    failed = {name: found.failure for name, found in figures.items() if found.failure is not None}
    return {"variants": rows, "not_timed": failed}


def add_kernels(row: Row, kernels: Mapping[str, list[Kernel]]) -> None:
    """What the profiler saw of the variants of a case or block."""
    for name, seen in kernels.items():
        row["variants"][name] |= {
            "launches": sum(kernel.launches for kernel in seen),
            "in_kernels": sum(kernel.seconds for kernel in seen),
            "kernels": [asdict(kernel) for kernel in listed(seen)],
        }


def floors_again(run: Row, limits: GpuLimits) -> None:
    """Floors and their multiples by other limits than those that the cases were first reported with."""
    for row in run["cases"]:
        row["floor"] = limits.floor(Work(**row["work"]))
        for found in row["variants"].values():
            for kind in ("device", "eager"):
                if kind in found:
                    found[kind]["floor_multiple"] = found[kind]["median"] / row["floor"]["total"]


def run_row(device, limits: GpuLimits, load_before, meaningless: bool) -> Row:
    """A whole run, its cases yet to come. meaningless: times are those of an interpreter and tell nothing."""
    found = {**record.circumstances(load_before), "gpu": machine.describe(device), "limits": asdict(limits)}
    return {**found, "times_are_meaningless": meaningless, "notes": NOTES, "cases": [], "blocks": [], "skipped": {}}


def write(run: Row, name: str | None) -> list[Path]:
    """The record, whole or not at all, in benchmarks/results (or where `name` says, a path of a .json file), and in the
    folder that the environment variable OUT names, if there is one. Returns where it was written."""
    if name is None:
        return []
    run["load_average"]["after"] = load_average()
    paths = record.paths_of(name)
    for path in paths:
        record.write(run, path)
    return paths


def limits_line(limits: Mapping[str, float]) -> str:
    return (
        f"limits: copy {limits['copy'] / 1e9:.0f} GB/s, bfloat16 products {limits['operations'] / 1e12:.0f} TFLOP/s,"
        f" exponentials {limits['exponentials'] / 1e12:.2f} T/s"
    )


def case_lines(row: Row) -> list[str]:
    """Floor, what binds, and a line a variant: medians, quartiles, multiples, ratios, launches, memory, error."""
    duration, lines = record.duration, []
    if "floor" in row:
        floor = row["floor"]
        lines.append(
            f"  floor {duration(floor['total'])}, by {floor['binding']} (bytes {duration(floor['bytes'])},"
            f" operations {duration(floor['operations'])}, exponentials {duration(floor['exponentials'])})"
        )
    lines.append(
        f"  {'':14} {'device':>9} {'quartiles':>20} {'x floor':>8} {'x ours':>7} {'host':>9} {'eager':>9}"
        f" {'peak MB':>8} {'error':>8}"
    )
    variants = row["variants"]
    for name, found in variants.items():
        device, host, eager = found.get("device"), found.get("host"), found.get("eager")
        spread = " .. ".join(map(duration, device["quartiles"])) if device else "-"
        best = device or eager
        ratio = 1.0 if name == OURS else (best or {}).get("times_as_fast", {}).get(OURS)
        cells = (
            f"{duration(device['median']) if device else '-':>9}",
            f"{spread:>20}",
            f"{_number((device or {}).get('floor_multiple'), '.2f'):>8}",
            f"{_number(1 / ratio if ratio else None, '.2f'):>7}",
            f"{duration(host['median']) if host else '-':>9}",
            f"{duration(eager['median']) if eager else '-':>9}",
            f"{_number(found['peak_memory'] and found['peak_memory'] / 1e6, '.0f'):>8}",
            f"{_number(max(found['errors'].values(), default=None), '.1e'):>8}",
        )
        lines.append(f"  {name:14} {' '.join(cells)}")
    silent = {name: found["not_replayed"] for name, found in variants.items() if "not_replayed" in found}
    for why in dict.fromkeys(silent.values()):
        lines.append(f"  no device times of {', '.join(name for name in silent if silent[name] == why)}: {why}")
    if row["not_timed"]:
        lines.append("  not timed: " + "; ".join(f"{name}: {why}" for name, why in row["not_timed"].items()))
    return lines


def kernel_lines(row: Row) -> list[str]:
    """Launches of each variant, and where the time of our own goes: its kernels, and what is between them."""
    counts = {name: found["launches"] for name, found in row["variants"].items() if found["launches"] is not None}
    lines = ["  launches: " + ", ".join(f"{name} {count}" for name, count in counts.items())] if counts else []
    ours = row["variants"].get(OURS, {})
    if "kernels" not in ours:
        return lines
    whole = ours.get("device", ours["eager"])["median"]
    for kernel in ours["kernels"]:
        lines.append(
            f"    {kernel['name'][:60]:60} {kernel['launches']:>4} x {record.duration(kernel['seconds']):>9}"
            f" {kernel['seconds'] / whole:>6.1%}"
        )
    between = whole - ours["in_kernels"]
    lines.append(f"    {'the whole less its kernels':60} {_signed(between):>16}")
    if "floor" in row:
        above = whole - row["floor"]["total"]
        lines.append(f"    {'above the floor':60} {_signed(above):>16} {above / whole:>6.1%}")
    return lines


def summary(run: Row) -> list[str]:
    """One line a case or block: the floor, our median on the device, its multiple of the floor, others beside it."""
    lines = [f"  {'':44} {'floor':>9} {'ours':>9} {'x floor':>8} {'eager':>9} {'launches':>8}  others, times ours"]
    for row in (*run["cases"], *run["blocks"]):
        floor = record.duration(row["floor"]["total"]) if "floor" in row else "-"
        head, found = f"  {row.get('case', row.get('block')):44} {floor:>9}", row["variants"].get(OURS, {})
        if "device" not in found:
            lines.append(f"{head} {row['not_timed'].get(OURS) or found.get('not_replayed', 'not timed')}")
            continue
        device, eager = found["device"], record.duration(found["eager"]["median"])
        multiple = _number(device.get("floor_multiple"), ".2f")
        others = ", ".join(f"{name} {times:.2f}" for name, times in device["times_as_fast"].items())
        lines.append(
            f"{head} {record.duration(device['median']):>9} {multiple:>8} {eager:>9}"
            f" {_number(found['launches'], 'd'):>8}  {others}"
        )
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _signed(seconds: float) -> str:
    return f"{'-' if seconds < 0 else ''}{record.duration(abs(seconds))}"
