"""What do recorded runs hold? Records of every kind read into rows of one kind, for tables and pictures.

Read are the JSON files of `pytest benchmarks --record` (operators, layers, models), of benchmarks.train_step, of
benchmarks.short_runs and of benchmarks.gpu_scan. Times are seconds, memory bytes.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsora.errors import UserError

FORMAT = 1
LEVELS = ("operator", "layer", "model")
SECTIONS = {"cases": list, "blocks": list, "steps": list, "seconds": dict}  # a record of times has one at least


@dataclass(frozen=True)
class Timing:
    """Of single calls: median, lower and upper quartile, seconds; `rounds` of them were timed."""

    median: float
    lower: float
    upper: float
    rounds: int


@dataclass(frozen=True)
class Row:
    """One variant of one case. `clock`: "wall", or on GPUs "device" (graph replays) where it has been taken.

    subject: what is computed, such as an operator. eager: wall time of one call beside device time. floor: seconds that
    the case takes at least; None where none is known. tokens: those of all videos. peak_memory: beyond the inputs.
    clips_per_second: of models. note: what else there is to say, such as the kernels that attention took. breakdown:
    seconds of a call by the kind of work, parts: by the part of a model, both by a profiler; may be empty.
    parameters: how many numbers a layer or model learns.
    """

    level: str
    subject: str
    shape: str
    dtype: str
    passes: str
    variant: str
    time: Timing
    clock: str = "wall"
    eager: Timing | None = None
    floor: float | None = None
    tokens: int | None = None
    peak_memory: int | None = None
    clips_per_second: float | None = None
    note: str = ""
    breakdown: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None

    @property
    def case(self) -> str:
        return ", ".join(filter(None, (f"{self.subject} {self.shape}".strip(), self.dtype, self.passes)))

    def times_as_long(self, other: Row) -> float:
        """Median over that of another row: by one clock, which is that of single calls where one was not replayed."""
        if self.clock != other.clock:
            return (self.eager or self.time).median / (other.eager or other.time).median
        return self.time.median / other.time.median


@dataclass(frozen=True)
class Record:
    """One run. machine: the chip, or the processor; facts: where, when, of what, name -> text; not_timed: (case,
    variant, reason) each."""

    name: str
    machine: str
    facts: Mapping[str, str]
    rows: Sequence[Row]
    not_timed: Sequence[tuple[str, str, str]]


class NoTimes(UserError):
    """A file that is no record of times, though it may be one of something else."""


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises NoTimes for JSON of another kind, UserError for what cannot be read or is incomplete, each naming the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}), wants a record of a benchmark run") from error
    if not isinstance(found, dict) or not any(isinstance(found.get(name), kind) for name, kind in SECTIONS.items()):
        raise NoTimes(f"{path}: holds no times, wants a record such as `pytest benchmarks --record NAME` writes")
    if found.get("format") != FORMAT:
        raise UserError(f"{path}: got a record of format {found.get('format')!r}, wants {FORMAT}")
    if found.get("times_are_meaningless"):
        raise UserError(f"{path}: was made in Triton's interpreter, whose times mean nothing; wants a run on a GPU")
    try:
        return Record(path.stem, machine_of(found), facts_of(found), list(rows_of(found)), list(not_timed_of(found)))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(f"{path}: the record is incomplete or damaged: {described(error)}") from error


def described(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def machine_of(found: Mapping) -> str:
    return found["gpu"]["name"] if "gpu" in found else found["environment"]["processor"]


def facts_of(found: Mapping) -> dict[str, str]:
    """What a reader needs to judge the figures or to measure them again."""
    here, revision = found["environment"], found["revision"]
    facts = {
        "date": here["date"],
        "machine": machine_of(found),
        "command": found["command"],
        "revision": (revision["commit"] or "unknown") + (", changed since" if revision["changed"] else ""),
    }
    if "gpu" in found:
        gpu = found["gpu"]
        facts["GPU"] = f"capability {gpu['capability']}, {gpu['multiprocessors']} multiprocessors, CUDA {gpu['cuda']}"
        facts["host"] = here["processor"]
    facts["threads"] = f"{here['threads']} on {here['cores']} cores, {here['isa']}"
    facts["versions"] = ", ".join(f"{name} {here[name]}" for name in ("python", "torch", "numpy", "medsora"))
    if triton := found.get("gpu", {}).get("triton"):
        facts["versions"] += f", triton {triton}"
    facts["compiler"], facts["system"] = here["compiler"], here["system"]
    for name in ("pages", "caches"):
        if name in found:
            facts[name] = found[name]
    if limits := found.get("limits"):
        facts["limits"] = (
            f"copy {limits['copy'] / 1e9:.1f} GB/s, {limits['operations'] / 1e9:.0f} GFLOP/s,"
            f" {limits['exponentials'] / 1e9:.2f} G exponentials/s"
        )
    if here["variables"]:
        facts["variables"] = ", ".join(f"{name}={value}" for name, value in here["variables"].items())
    load = found["load_average"]
    facts["load average"] = f"{_first(load['before'])} before, {_first(load['after'])} after"
    return facts


def rows_of(found: Mapping) -> Iterator[Row]:
    for case in (*found.get("cases", ()), *found.get("blocks", ())):
        for variant, figures in case["variants"].items():
            yield variant_row(case_fields(case), variant, figures)
    if "seconds" in found:  # of short_runs, where "steps" is the length of a stage
        for variant, stages in found["seconds"].items():
            for stage, seconds in stages.items():
                shape = f"{stage} stage, {found['steps']} steps"
                yield Row("model", "make train", shape, "", "", variant, timing_of(seconds))
        return
    for step in found.get("steps", ()):
        for variant, figures in step["variants"].items():
            yield variant_row(step_fields(step), variant, figures)


def case_fields(case: Mapping) -> dict[str, object]:
    """The fields of a row that all variants of a case share; a record of a GPU's scans does not name its operator."""
    level = case.get("level", "layer" if "block" in case else "operator")
    if level not in LEVELS:
        raise ValueError(f"got level {level!r}, wants one of {', '.join(LEVELS)}")
    return {
        "level": level,
        "subject": case.get("operator") or ("mixers of a block" if "block" in case else "path_scan"),
        "shape": case["block"].removeprefix("block, ") if "block" in case else case["shape"],
        "dtype": case.get("dtype", ""),
        "passes": case.get("passes", "forward + backward"),
        "floor": _positive(case["floor"]["total"], "floor") if case.get("floor") else None,
        "tokens": case.get("tokens"),
    }


def step_fields(step: Mapping) -> dict[str, object]:
    shape = f"{step['preset']}, {_count(step['videos'], 'video')}, {_count(step['images'], 'image')}"
    return {"level": "model", "subject": "training step", "shape": shape, "dtype": step["precision"], "passes": ""}


def variant_row(shared: Mapping[str, object], variant: str, figures: Mapping) -> Row:
    """Times stand in the figures themselves, or under "device" and "eager"."""
    measured: dict[str, object] = {"clock": "wall", "eager": None}
    if "median" in figures:
        time = timing(figures)
    else:
        measured["clock"] = "device" if "device" in figures else "eager"
        time = timing(figures[measured["clock"]])
        measured["eager"] = timing(figures["eager"]) if "eager" in figures and "device" in figures else None
    return Row(
        **shared,
        **measured,
        variant=variant,
        time=time,
        peak_memory=figures.get("peak_memory"),
        clips_per_second=figures.get("clips_per_second"),
        parameters=figures.get("parameters"),
        note=attention_kernels(figures.get("sdpa") or {}),
        breakdown=breakdown_of(figures),
        parts={part: sum(kinds.values()) for part, kinds in (figures.get("parts") or {}).items()},
    )


def attention_kernels(chosen: Mapping[str, Mapping]) -> str:
    """SDPA's kernel for each kind of group of tokens, and where that is not the one it takes by itself."""
    return "; ".join(
        f"{group}: {kernels['fastest']}"
        + (f", by default {kernels['default']}" if kernels["default"] != kernels["fastest"] else "")
        for group, kernels in chosen.items()
    )


def breakdown_of(figures: Mapping) -> dict[str, float]:
    """Seconds by kind: a record's own breakdown, or the kernels that a GPU's profiler saw."""
    if "kernels" in figures:
        return {kernel["name"]: kernel["seconds"] for kernel in figures["kernels"]}
    return dict(figures.get("breakdown") or {})


def timing(figures: Mapping) -> Timing:
    lower, upper = figures["quartiles"]
    each = [_positive(value, "time") for value in (figures["median"], lower, upper)]
    return Timing(*each, rounds=int(figures["rounds"]))


def timing_of(seconds: Sequence[float]) -> Timing:
    """From the times themselves."""
    seconds = [_positive(value, "time") for value in seconds]
    lower, _, upper = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return Timing(statistics.median(seconds), lower, upper, len(seconds))


def not_timed_of(found: Mapping) -> Iterator[tuple[str, str, str]]:
    for case in (*found.get("cases", ()), *found.get("blocks", ())):
        for variant, why in case["not_timed"].items():
            yield case.get("case") or case["block"], variant, str(why)
    for case, why in found.get("skipped", {}).items():
        yield case, "all", str(why)


def _positive(value: float, what: str) -> float:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise ValueError(f"got a {what} of {value!r}, wants seconds above 0")
    return float(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _first(load: Sequence[float] | None) -> str:
    return "unknown" if load is None else f"{load[0]:g}"
