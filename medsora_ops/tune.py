"""Measure how the scans' Triton kernels are best cut on this GPU, and keep it in a table for later calls.

    python -m medsora_ops.tune --head-dims 64 --states 128 --lengths 4 6 32 48 --dtypes bfloat16

Nothing else ever tunes: calls use this table, the one that ships, or the defaults. Each candidate is compiled, dropped
if it does not fit the chip, checked against the default's results, and timed by replays of a CUDA graph, in turns with
the others. The table is written after every case, so that an interrupted run loses one case at most.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from medsora_ops import configs, launch
from medsora_ops.paths import ScanPath

HEADS = 16


def candidates(
    kernel: str, length: int, dtype: torch.dtype, state: int, architecture: str = ""
) -> Iterator[object]:  # fmt: skip
    """The configurations worth a try on an architecture, its default first."""
    from medsora_ops.scan import chunk_config

    room, way = _whole(kernel), kernel.rpartition("_")[2]
    if room:
        default = room.default(way, dtype, state)
    else:
        default = chunk_config.FORWARD if way == "fwd" else chunk_config.BACKWARD
        default = chunk_config.fitting(default, dtype, state, architecture)
    yield default
    if room:
        tokens = [size for size in (16, 32, 64) if size >= length or "tile" not in kernel]
        choices = dict(tokens=tokens, state=(32, 64), channels=(16, 32, 64), programs=(1, 2, 4), num_warps=(4, 8, 16))
    else:
        choices = dict(tokens=(16, 32, 64, 128), channels=(32, 64), num_warps=(4, 8), num_stages=(1, 2))
    if kernel == "path_scan_sequence_fwd":  # takes whole heads
        choices.pop("channels", None)
    if dtype == torch.float32:  # products are loops there, around which no loads go ahead of time
        choices.pop("num_stages", None)
    for values in itertools.product(*choices.values()):
        config = dataclasses.replace(default, **dict(zip(choices, values, strict=True)))
        if config != default:
            yield config


def work(kernel: str, length: int, head_dim: int, state: int, dtype, device, tokens: int) -> Callable[[object], list]:
    """A function of a configuration that runs `kernel`, and what goes with it, on random inputs of about `tokens`."""
    from medsora_ops.scan import chunk_launch, chunk_path_launch
    from medsora_ops.scan.tile_launch import Mixer

    width, mixed = HEADS * head_dim, HEADS * head_dim + 2 * state
    made = torch.Generator(device).manual_seed(0)

    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=made, device=device).to(dtype)

    rates = -torch.rand(HEADS, generator=made, device=device) - 0.1
    if kernel.startswith("ssd_scan"):
        shape = (max(1, tokens // length), length)
        arguments = (
            *(normal(*shape, HEADS, head_dim), normal(*shape, HEADS), rates, normal(*shape, 1, state)),
            *(normal(*shape, 1, state), None, None, None, None, True, False),
        )
        if kernel.endswith("fwd"):
            return lambda config: chunk_launch.ssd_scan(*arguments, config=config)
        grads = [normal(*shape, HEADS, head_dim)]
        return lambda config: chunk_launch.ssd_scan_backward(grads, *arguments, config=config)

    path = ScanPath.raster((1, 1, length))
    rows = normal(max(1, tokens // length), length, width + mixed + HEADS)
    single = torch.float32
    parameters = [
        normal(mixed, 4, dtype=single) * 0.4,
        *(normal(mixed, dtype=single), normal(HEADS, dtype=single), rates, normal(HEADS, dtype=single)),
        normal(width, dtype=single),
    ]
    settings = (head_dim, 1, True, 1e-5, width)
    tables, strides = [path.offsets(device)], [path.stride]
    grad, grad_rows = normal(*rows.shape[:2], width), torch.empty_like(rows)
    whole = _whole(kernel)
    if whole:
        mixer = Mixer.of(parameters[0], parameters[2], parameters[5], *settings)
        if kernel.endswith("fwd"):
            return lambda config: whole.forward(rows, parameters, tables, strides, mixer, config)
        given = ([grad], grad_rows, rows, parameters, tables, strides, mixer)
        return lambda config: [*whole.backward(*given, config), grad_rows]
    along = (*parameters, tables, strides, *settings)
    if kernel.endswith("fwd"):
        return lambda config: chunk_path_launch.path_scan_chunked(rows, *along, config=config)
    return lambda config: [
        *chunk_path_launch.path_scan_chunked_backward([grad], grad_rows, rows, *along, config=config),
        grad_rows,
    ]


def _whole(kernel: str):
    """The launches of whole sequences that `kernel` is of; None: it goes chunk by chunk."""
    from medsora_ops.scan import sequence_launch, tile_launch

    rooms = {"path_scan_tile": tile_launch, "path_scan_sequence": sequence_launch}
    return rooms.get(kernel.rpartition("_")[0])


def seconds(run: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Times of single runs: of the device by graph replay on a GPU, of the wall elsewhere."""
    if device.type != "cuda":
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return times
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def best(run: Callable[[object], list[Tensor]], tried: Sequence[object], device: torch.device, rounds: int):
    """The fastest of the configurations that run here and agree with the first, and each one's median seconds."""
    right, usable = None, []
    for config in tried:
        try:
            found = [t.double() for t in run(config)]
        except Exception as error:  # whatever Triton says of a tile that the chip cannot hold
            if right is None:
                raise
            print(f"  left out: {config}: {type(error).__name__}", file=sys.stderr)
            continue
        right = right or found
        if all((a - b).norm() <= 0.05 * b.norm() + 1e-30 for a, b in zip(found, right, strict=True)):
            usable.append(config)
        else:
            print(f"  left out: {config}: results differ from the default's", file=sys.stderr)
    times: dict[object, list[float]] = {config: [] for config in usable}
    for _ in range(3):  # in turns, so that a slow moment of the machine meets all alike
        for config in usable:
            times[config] += seconds(lambda config=config: run(config), device, rounds)
    medians = {config: statistics.median(values) for config, values in times.items()}
    return min(medians, key=medians.get), medians


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune, write the table, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m medsora_ops.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=[4, 6, 32, 48, 256, 4096], metavar="L")
    parser.add_argument("--head-dims", nargs="+", type=int, default=[64], metavar="P")
    parser.add_argument("--states", nargs="+", type=int, default=[128], metavar="N")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tokens", type=int, default=49152, help="tokens of a timed call (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls in each of three turns")
    parser.add_argument("--most", type=int, default=1000, metavar="N", help="try at most so many configurations a case")
    parser.add_argument("--output", type=Path, help=f"table to write or add to (default {configs.user_path()})")
    options = parser.parse_args(arguments)
    if launch.unavailable():
        print(f"error: there is nothing to tune: {launch.unavailable()}", file=sys.stderr)
        return 2
    device = torch.device("cpu") if launch.INTERPRETED else torch.device("cuda", torch.cuda.current_device())
    path = options.output or configs.user_path()
    try:
        entries = configs.read(path) if path.exists() else {}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kept = {case: {"values": e["values"], "measured": e["measured"]} for case, e in entries.items()}
    cases = list(_cases(options))
    start = time.monotonic()
    for done, (kernel, length, head_dim, state, dtype) in enumerate(cases):
        left = f", about {(time.monotonic() - start) / done * (len(cases) - done):.0f} s left" if done else ""
        print(f"[{done + 1}/{len(cases)}{left}] {kernel}, length {length}, head_dim {head_dim}, state {state}, {dtype}")
        run = work(kernel, length, head_dim, state, getattr(torch, dtype), device, options.tokens)
        of_case = candidates(kernel, length, getattr(torch, dtype), state, launch.architecture(device))
        tried = list(itertools.islice(of_case, options.most))
        with launch.on_device(torch.empty(0, device=device)):
            winner, medians = best(run, tried, device, options.rounds)
        case = configs.Case(kernel, launch.architecture(device), configs.bucket(length), head_dim, state, dtype)
        changed = {k: v for k, v in dataclasses.asdict(winner).items() if v != getattr(tried[0], k)}
        kept[case] = {"values": changed, "measured": _measured(device, medians[winner], medians[tried[0]])}
        configs.write(path, kept)
        print(f"  {changed or 'the default'}: {medians[winner] * 1e6:.1f} us, default {medians[tried[0]] * 1e6:.1f} us")
    print(f"{path}: {len(kept)} cases; MEDSORA_CONFIGS={path} uses it from anywhere")
    return 0


def _cases(options) -> Iterator[tuple[str, int, int, int, str]]:
    from medsora_ops.scan.sequence_launch import LONGEST
    from medsora_ops.scan.tile_launch import LONGEST_TILE

    for length, head_dim, state, dtype in itertools.product(
        options.lengths, options.head_dims, options.states, options.dtypes
    ):
        if length <= LONGEST_TILE:
            kernels = ["path_scan_tile"]
        else:
            kernels = ["path_scan_sequence"] * (length <= LONGEST) + ["path_scan_chunk", "ssd_scan"]
        for kernel, way in itertools.product(kernels, ("fwd", "bwd")):
            yield f"{kernel}_{way}", length, head_dim, state, dtype


def _measured(device: torch.device, found: float, default: float) -> dict:
    import triton

    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else "the interpreter: no measurement"
    return {
        "chip": chip,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "microseconds": round(found * 1e6, 2),
        "microseconds_of_default": round(default * 1e6, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
