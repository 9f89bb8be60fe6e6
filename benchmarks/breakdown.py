"""Where does a step's time go? `python -m benchmarks.breakdown` profiles training and sampling steps of the denoiser.

Each operation that PyTorch's profiler sees counts its own time, without that of what it calls, towards the part of the
model that asked for it (in a pass back, the part whose forward operation is differentiated) and towards its kind. On a
CPU that is all of a step; on a GPU it is what the kernels take. A profiled step takes longer than one that is not,
whose time stands beside it: shares count, not seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from unittest import mock

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.cases.models import ATTENTIONS, ON_GPUS, SIZES, SamplingSteps, TrainingSteps, Ways
from benchmarks.harness import environment, record
from benchmarks.harness.interleaved import Schedule, time_interleaved
from benchmarks.harness.measure import Outcome
from benchmarks.harness.memory import keep_freed_memory
from medsora.alignment import AlignmentProjector
from medsora.models import mixer
from medsora.models.attention import LocalAttention
from medsora.models.denoiser import Block, FinalLayer, MedSora
from medsora_ops import backend_report, path_scan

STEP, MARK, SCAN, NODE = "step of the breakdown", "part: ", "path_scan", "autograd::engine::evaluate_function"
REST = "loss, clipping, optimizer, average"
# The first kind of which a word is in an operation's name.
KINDS = {
    "attention": ("bmm", "scaled_dot_product", "softmax"),
    "projections": ("aten::mm", "addmm", "linear", "convolution"),
    "norms": ("native_layer_norm", "rms_norm"),
    "optimizer": ("adamw", "AdamW", "lerp", "linalg_vector_norm", "_foreach"),
    "copies": (
        "copy",
        "clone",
        "aten::cat",
        "pad",
        "unfold_backward",
        "zero_",
        "fill_",
        "slice_backward",
        "contiguous",
    ),
    "elementwise": (
        *("aten::mul", "aten::add", "aten::sub", "aten::div", "aten::neg", "aten::exp", "aten::sum", "aten::pow"),
        *("sigmoid", "silu", "tanh", "gelu", "masked_fill", "where", "aten::cos", "aten::sin", "aten::mean"),
    ),
}
PYTHON, OTHER = "Python", "views, allocation, autograd"
PARTS = {LocalAttention: "local attention", Block: "modulation, norms, gates", FinalLayer: "ends", MedSora: "ends"}
SLOTS = {"spatial": "spatial mixer", "temporal": "temporal mixer"}  # by name: attention may be in them
STEPS_OF = {"training": TrainingSteps, "sampling": SamplingSteps}


def main() -> None:
    """Profiles the steps asked for, prints tables and writes a record if it has a name."""
    backends = [row.backend for row in backend_report() if row.operator == "path_scan" and row.available]
    ways = [*(f"mixers-{backend}" for backend in backends), *ATTENTIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny"], help="presets to profile")
    parser.add_argument("--steps", nargs="+", choices=STEPS_OF, default=list(STEPS_OF), help="of which kind")
    parser.add_argument("--ways", nargs="+", choices=ways, default=[f"mixers-{backends[-1]}", "factorised-attention"])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of the forward pass")
    parser.add_argument("--count", type=int, default=10, metavar="N", help="profiled steps; medians are reported")
    parser.add_argument("--record", metavar="NAME", help="write benchmarks/results/NAME.json, or to a path")
    options = parser.parse_args()
    if options.count < 1:
        parser.error(f"--count: got {options.count}, wants 1 or more")
    if not torch.cuda.is_available() and (large := [size for size in options.sizes if size in ON_GPUS]):
        parser.error(f"--sizes: got {large[0]}, wants a machine with a GPU for that")
    load_before, pages = environment.load_average(), "kept" if keep_freed_memory() else "fresh"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    cases = []
    for size in options.sizes:
        for kind in options.steps:
            device = "cuda" if size in ON_GPUS else "cpu"
            cases.append(broken_down(STEPS_OF[kind](size, dtype, device), kind, options.ways, options.count))
            print("\n".join(table(cases[-1])), flush=True)
    if options.record:
        path = record.path_of(options.record)
        record.write({**record.circumstances(load_before), "pages": pages, "cases": cases}, path)
        print(f"\nrecorded in {path}")


def broken_down(steps: Ways, kind: str, ways: Iterable[str], count: int) -> dict[str, object]:
    """One case as a record has it: times by turns without the profiler, then the parts and kinds of profiled steps."""
    with torch.set_grad_enabled(kind == "training"):
        calls = {way: (lambda chosen=way: steps.take(chosen)) for way in ways}
        times = time_interleaved(calls, Schedule(budget=0, min_rounds=count, slow_rounds=count))
        found = {way: profiled(call, steps.models[way], count, steps.device) for way, call in calls.items()}
    rows = {}
    for way, parts in found.items():
        kinds: dict[str, float] = defaultdict(float)
        for (_, name), seconds in parts.items():
            kinds[name] += seconds
        nested: dict[str, dict[str, float]] = defaultdict(dict)
        for (part, name), seconds in parts.items():
            nested[part][name] = seconds
        rows[way] = {
            **record.timing(Outcome(times[way])),
            "peak_memory": None,
            "profiled": sum(kinds.values()),
            "breakdown": dict(sorted(kinds.items(), key=lambda item: -item[1])),
            "parts": nested,
        }
    return {
        "level": "model",
        "case": f"{kind} step {steps.name}, {str(steps.dtype).removeprefix('torch.')}, profiled",
        "operator": f"{kind} step, profiled",
        "shape": steps.name,
        "dtype": str(steps.dtype).removeprefix("torch."),
        "passes": "forward + backward" if kind == "training" else "forward",
        "clips": steps.size.videos,
        "variants": rows,
        "not_timed": {},
    }


def profiled(step: Callable, model: nn.Module, count: int, device: str) -> dict[tuple[str, str], float]:
    """Seconds of a step by (part, kind): for each, the median over `count` steps."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device != "cpu")
    with marked(model), profile(activities=activities) as seen:
        for _ in range(count):
            with record_function(STEP):
                step()
            if device != "cpu":
                torch.cuda.synchronize()
    each = [defaultdict(float) for _ in range(count)]
    for number, part, kind, seconds in attributed(seen.events(), device):
        each[number][part, kind] += seconds
    keys = dict.fromkeys(key for one in each for key in one)
    return {key: statistics.median(one.get(key, 0.0) for one in each) for key in keys}


@contextlib.contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Within the block what a part of the model does in its forward pass is labelled with the part's name."""
    hooks, open_marks = [], []

    def labelled_scan(*arguments, **settings):
        with record_function(SCAN):
            return path_scan(*arguments, **settings)

    def enter(label):
        def hook(*_):
            open_marks.append(record_function(MARK + label))
            open_marks[-1].__enter__()

        return hook

    def leave(*_):
        open_marks.pop().__exit__(None, None, None)

    for name, module in model.named_modules():
        label = SLOTS.get(name.rpartition(".")[2]) or PARTS.get(type(module))
        label = "alignment" if isinstance(module, AlignmentProjector) else label
        if label:
            hooks += [module.register_forward_pre_hook(enter(label)), module.register_forward_hook(leave)]
    try:
        with mock.patch.object(mixer, "path_scan", labelled_scan):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def attributed(events, device: str = "cpu") -> Iterator[tuple[int, str, str, float]]:
    """(step, part, kind, seconds) of each event that has a time of its own and lies inside a step."""
    events = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    events.sort(key=lambda event: event.time_range.start)
    begun = [event.time_range.start for event in events if event.name == STEP]
    asked_by: dict[int, tuple[str, bool]] = {}  # of what the graph will differentiate, by its number
    for event in events:
        if event.sequence_nr >= 0 and not any(ancestor.name.startswith(NODE) for ancestor in lineage(event)):
            asked_by[event.sequence_nr] = origin(event, {})  # those before the one that took the number only saw it
    for event in events:
        number = sum(start <= event.time_range.start for start in begun) - 1
        seconds = (event.self_cpu_time_total if device == "cpu" else event.self_device_time_total) * 1e-6
        if number >= 0 and seconds:
            part, in_scan = origin(event, asked_by)
            yield number, part, "scans" if in_scan else kind_of(event.name), seconds


def lineage(event) -> Iterator:
    """The event, what called it, and so on."""
    while event is not None:
        yield event
        event = event.cpu_parent


def origin(event, asked_by: Mapping[int, tuple[str, bool]]) -> tuple[str, bool]:
    """The part of the model that asked for an event, and whether it belongs to a scan."""
    in_scan = False
    for ancestor in lineage(event):
        in_scan = in_scan or ancestor.name == SCAN
        if ancestor.name.startswith(MARK):
            return ancestor.name.removeprefix(MARK), in_scan
        if ancestor.name.startswith(NODE):
            return asked_by.get(ancestor.sequence_nr, (REST, False))
    return REST, in_scan


def kind_of(name: str) -> str:
    """The kind of an operation by its name."""
    if name == STEP or name.startswith(MARK):
        return PYTHON
    if name.startswith(NODE):
        return OTHER
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), OTHER)


def table(case: Mapping) -> list[str]:
    """Lines for a terminal: for each way a row a part and a column a kind, in per cent of the profiled step."""
    lines = ["", case["case"]]
    for way, row in case["variants"].items():
        total, kinds = row["profiled"], list(row["breakdown"])
        lines.append(
            f"  {way}: {record.duration(row['median'])} a step, {record.duration(total)} profiled; per cent of that"
        )
        lines.append(f"    {'':36}" + "".join(f" {kind[:12]:>12}" for kind in kinds) + f" {'all':>7}")
        parts = sorted(row["parts"].items(), key=lambda item: -sum(item[1].values()))
        for part, found in [*parts, ("all", row["breakdown"])]:
            shares = "".join(f" {found.get(kind, 0.0) / total:>12.1%}" for kind in kinds)
            lines.append(f"    {part:36}{shares} {sum(found.values()) / total:>7.1%}")
    return lines


if __name__ == "__main__":
    logging.getLogger("medsora").setLevel(logging.ERROR)
    main()
