"""The benchmark harness: its counts and floors by hand, what it refuses to time, its order, its records."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import train_step
from benchmarks.cases.path_scan import path_scan_inputs
from benchmarks.cases.trainer import Size
from benchmarks.gpu.machine import GpuLimits
from benchmarks.harness import limits as machine
from benchmarks.harness import record
from benchmarks.harness.case import Case, Unavailable, Variant
from benchmarks.harness.correctness import Wrong
from benchmarks.harness.device import input_sets
from benchmarks.harness.interleaved import Schedule, time_interleaved
from benchmarks.harness.limits import Limits, floor_of, higher, measure_limits
from benchmarks.harness.measure import Outcome, measured
from benchmarks.harness.work import (
    PASSES,
    Work,
    focal_loss_work,
    path_scan_work,
    reorder_work,
    scan_operations,
    spectral_filter_work,
    ssd_scan_work,
)
from medsora_ops import ScanPath, native, path_scan

ROOT = Path(__file__).parents[1]
LIMITS = Limits(copy=1e9, operations=2e9, exponentials=4e9, threads=1, source="made up")
FEW = Schedule(budget=0, min_rounds=3, slow_rounds=3)


# Counts


def test_path_scan_at_16_sequences_of_48():
    sizes = {"width": 1024, "state": 128, "head_dim": 64}
    one = path_scan_work(16, 48, **sizes)
    assert one.bytes == 768 * (2320 + 1024) * 4
    # a token: SiLU of 1280 channels, the gate of 1024, exp and log for 16 heads, 16 decays
    assert one.exponentials == 768 * (1280 + 1024 + 32 + 16)
    # 4 taps of 1280 channels; the quadratic form, 48 * 49 / 2 pairs of 1024 + 128
    assert one.operations == 768 * 2 * 4 * 1280 + 16 * 2 * (48 * 49 // 2) * 1152
    both = path_scan_work(16, 48, directions=2, **sizes)
    assert (both.bytes, both.operations) == (one.bytes, 2 * one.operations)
    assert both.exponentials == 768 * (2 * (1280 + 16) + 1024 + 32)
    back = path_scan_work(16, 48, backward=True, element_size=2, **sizes)
    assert back.bytes == 768 * 2 * ((2320 + 1024) + (2320 + 1024 + 2320))
    assert (back.operations, back.exponentials) == (4 * one.operations, 2 * one.exponentials)


def test_a_scan_takes_its_cheapest_form():
    # Three tokens, E 2, N 1. One chunk: 6 pairs of 6 operations. Chunks of one: 3 pairs, and two tokens each that add
    # to the state and that read it, 4 operations a token: 18 + 16. Chunks of 2 and 1: 4 pairs, and 2 + 1 tokens: 36.
    assert scan_operations(3, width=2, state=1, groups=1) == 34
    assert scan_operations(1, width=2, state=1, groups=1) == 6
    # A long scan is linear in its length.
    long = [scan_operations(length, width=1024, state=128, groups=1) for length in (2048, 4096)]
    assert 1.9 < long[1] / long[0] < 2.1


def test_ssd_scan_reads_and_writes_each_tensor_once():
    work = ssd_scan_work(2, 3, heads=2, head_dim=1, state=1)
    assert work == Work(bytes=2 * 3 * 4 * ((2 + 2 + 2) + 2), operations=2 * 34, exponentials=12)
    back = ssd_scan_work(2, 3, heads=2, head_dim=1, state=1, backward=True)
    assert back == Work(bytes=2 * 3 * 4 * (8 + 8 + 6), operations=8 * 34, exponentials=24)


def test_reorder_moves_three_rows_a_token():
    assert reorder_work(10, 8) == Work(bytes=3 * 10 * 8 * 4, operations=0)
    assert reorder_work(10, 8, element_size=2, backward=True).bytes == 6 * 10 * 8 * 2


def test_transforms_of_two_by_two_pixels():
    # A real transform of 4 pixels: 2.5 * 4 * log2(4) = 20 operations, 2 * 2 bins.
    assert spectral_filter_work(1, 1, 2, 2) == Work(bytes=2 * 16 + 4 * 8, operations=20 + 20 + 6 * 4 + 4)
    back = spectral_filter_work(3, 1, 2, 2, backward=True)
    assert back.bytes == 3 * 16 * 5 + 3 * 32
    assert back.operations == 3 * (2 * 68 + 20 + 8 * 4)
    assert focal_loss_work(1, 2, 2) == Work(bytes=32, operations=4 + 20 + 8 * 4)
    assert focal_loss_work(1, 2, 2, backward=True) == Work(bytes=80, operations=2 * 56 + 20 + 2 * 4)


# Limits and floors


@pytest.mark.parametrize(("operations", "total"), [(1e9, 3 + 0.5), (8e9, 4 + 0.5)])
def test_a_floor_is_the_longer_of_bytes_and_operations_and_the_exponentials(operations, total):
    floor = floor_of(Work(bytes=3e9, operations=operations, exponentials=2e9), LIMITS)
    assert floor.total == floor.as_dict()["total"] == pytest.approx(total)


def test_of_two_measurements_the_higher_limit_counts():
    other = Limits(copy=5e8, operations=3e9, exponentials=5e9, threads=1, source="made up")
    assert higher(LIMITS, other) == Limits(1e9, 3e9, 5e9, 1, "made up")


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
@pytest.mark.parametrize("isa", native.build_info().get("isa_supported", ()))
@pytest.mark.parametrize("limit", ["measure_fma", "measure_exp", "measure_copy"])
def test_limits_are_measured_on_every_instruction_set(monkeypatch, isa, limit):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    for threads in (1, 2):
        assert 1e6 < getattr(native.extension(), limit)(0.001, threads) < 1e15


def test_without_the_extension_pytorch_stands_in_and_the_record_says_so(monkeypatch):
    monkeypatch.setattr(machine.native, "unavailable", lambda: "not built")
    found = measure_limits(0.001)
    assert found.source == "PyTorch stands in: not built"
    assert min(found.copy, found.operations, found.exponentials) > 1e6


# What is refused


def square_case(passes: str = PASSES[1], **variants) -> Case:
    def inputs():
        return {"x": torch.linspace(1, 2, 64)}

    return Case(
        operator="square",
        shape="64",
        dtype=torch.float32,
        passes=passes,
        work=Work(bytes=512, operations=64),
        inputs=inputs,
        differentiated=("x",),
        definition=lambda x: x * x,
        variants=tuple(Variant(name, call) for name, call in variants.items()),
    )


class Counted:
    """A way to compute the operator that counts its calls."""

    def __init__(self, call):
        self.call, self.calls = call, 0

    def __call__(self, x):
        self.calls += 1
        return self.call(x)


@pytest.mark.parametrize(
    ("passes", "wrong", "message"),
    [
        (PASSES[0], lambda x: x * x * 1.00001, "output 0: relative RMS error 1.00e-05"),
        (PASSES[0], lambda x: x[:-1] * x[:-1], r"output 0: got shape \(63,\), wants \(64,\)"),
        (PASSES[0], lambda x: torch.where(x > 1.9, torch.nan, x * x), "output 0: relative RMS error nan"),
        (PASSES[1], lambda x: x * x.detach(), r"d\(x\): relative RMS error 5.00e-01"),
    ],
)
def test_a_wrong_variant_is_not_timed_and_the_right_one_is(passes, wrong, message):
    right, wrong = Counted(lambda x: x**2), Counted(wrong)
    case = square_case(passes, wrong=wrong, right=right)
    outcomes = measured(case, ["wrong", "right"], FEW)
    with pytest.raises(Wrong, match=message):
        raise outcomes["wrong"].failure
    assert wrong.calls == 1 and outcomes["wrong"].times == []
    assert outcomes["right"].failure is None and len(outcomes["right"].times) == 3
    assert set(outcomes["right"].errors) == ({"output 0"} if passes == PASSES[0] else {"output 0", "d(x)"})


def test_what_one_variant_raises_does_not_keep_others_from_being_timed():
    def here(x):
        raise Unavailable("not here")

    outcomes = measured(square_case(absent=here, right=torch.square), ["absent", "right"], FEW)
    assert str(outcomes["absent"].failure) == "not here" and not outcomes["absent"].times
    assert outcomes["right"].times


def test_only_selected_variants_are_computed_and_without_a_schedule_none_is_timed():
    left, chosen = Counted(torch.square), Counted(torch.square)
    outcomes = measured(square_case(left=left, chosen=chosen), ["chosen"], None)
    assert left.calls == 0 and chosen.calls == 1
    assert list(outcomes) == ["chosen"] and outcomes["chosen"].times == []


def test_what_compiles_is_called_once_more_before_its_memory_is_taken(monkeypatch):
    log = []
    monkeypatch.setattr("benchmarks.harness.measure.peak_memory", lambda call, device: log.append("peak"))
    monkeypatch.setattr("benchmarks.harness.measure.time_calls", lambda *_: log.append("times") or {})
    case = square_case(PASSES[0], plain=torch.square, slow=lambda x: log.append("call") or x * x)
    case = dataclasses.replace(case, variants=(case.variants[0], dataclasses.replace(case.variants[1], compiled=True)))
    measured(case, ["plain", "slow"], FEW)
    assert log == ["call", "peak", "call", "peak", "times"]


# Order


class Clock:
    """Moves only while a variant runs."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def variant(self, name, seconds):
        def call():
            self.log.append(name)
            self.now += seconds

        return call


def test_variants_take_turns_and_quick_ones_are_called_once_more_before():
    clock = Clock()
    calls = {"a": clock.variant("a", 0.001), "b": clock.variant("b", 0.5)}
    times = time_interleaved(calls, Schedule(budget=0.7, min_rounds=3), clock=clock)
    assert clock.log == ["a", "b"] + ["a", "a", "b"] * 3
    assert times == {"a": [pytest.approx(0.001)] * 3, "b": [pytest.approx(0.5)] * 3}


def test_what_comes_before_each_call_is_not_timed_and_takes_the_place_of_a_warm_up():
    clock = Clock()
    calls = {"a": clock.variant("a", 0.001), "b": clock.variant("b", 0.002)}
    times = time_interleaved(calls, Schedule(budget=0, slow_rounds=2), clock.variant("sweep", 1.0), clock)
    assert clock.log == ["a", "b"] + ["sweep", "a", "sweep", "b"] * 2
    assert times["a"] == [pytest.approx(0.001)] * 2


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    # Until the budget is spent; at least 7; for slow ones 6 budgets, but at least 3; at most 200.
    [(0.1, 15), (0.3, 7), (2.0, 5), (4.0, 3), (0.001, 200)],
)
def test_rounds_follow_the_budget(seconds, rounds):
    clock = Clock()
    times = time_interleaved({"a": clock.variant("a", seconds)}, Schedule(budget=1.45), clock=clock)
    assert len(times["a"]) == rounds


# Records


def recorded() -> dict:
    outcomes = {
        "reference": Outcome([4.0, 1.0, 3.0, 2.0, 5.0], {"output 0": 1e-7}),
        "native": Outcome([1.0, 1.5, 2.0], {"output 0": 2e-7}),
        "absent": Outcome(failure=Unavailable("not here")),
    }
    case = square_case(reference=torch.square, native=torch.square, absent=torch.square)
    return record.run_record([record.case_record(case, outcomes, LIMITS)], LIMITS, [0.1, 0.2, 0.3])


def test_a_record_holds_medians_quartiles_multiples_and_ratios():
    found = recorded()
    (case,) = found["cases"]
    assert case["case"] == "square 64, float32, forward + backward"
    floor = 512 / 1e9
    assert case["floor"]["total"] == pytest.approx(floor)
    reference, fast = case["variants"]["reference"], case["variants"]["native"]
    assert (reference["median"], reference["quartiles"], reference["minimum"]) == (3.0, [2.0, 4.0], 1.0)
    assert fast["times_as_fast"] == {"reference": 2.0} and fast["floor_multiple"] == pytest.approx(1.5 / floor)
    assert case["not_timed"] == {"absent": "not here"}
    assert found["environment"]["torch"] == torch.__version__ and found["environment"]["processor"]
    assert found["load_average"]["before"] == [0.1, 0.2, 0.3]


def test_a_record_comes_back_from_its_file_as_it_was(tmp_path):
    found = recorded()
    record.write(found, tmp_path / "new" / "run.json")
    assert json.loads((tmp_path / "new" / "run.json").read_text()) == found
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.json"]


def test_on_a_gpu_replays_and_single_calls_stand_apart():
    case = square_case(replayed=torch.square, stepped=torch.square)
    replayed, stepped = Outcome([1.0, 3.0, 2.0], wall=[4.0]), Outcome([6.0], wall=[6.0], not_replayed="it waits")
    replayed.peak = stepped.peak = 1000
    limits = GpuLimits(copy=1e9, operations=2e9, exponentials=4e9)
    found = record.case_record(case, {"replayed": replayed, "stepped": stepped}, limits)
    rows = found["variants"]
    assert (rows["replayed"]["device"]["median"], rows["replayed"]["eager"]["median"]) == (2.0, 4.0)
    assert "device" not in rows["stepped"] and rows["stepped"]["eager"]["median"] == 6.0
    assert rows["stepped"]["not_replayed"] == "it waits" and rows["replayed"]["times_as_fast"] == {"stepped": 1.5}
    assert found["floor"]["binding"] == "bytes" and rows["replayed"]["floor_multiple"] == pytest.approx(2e9 / 512)
    run = record.run_record([found], limits, None)
    assert "replayed" in (text := "\n".join(record.table(run))) and "by bytes" in text


def test_inputs_of_a_gpu_are_moved_and_those_of_a_processor_are_not():
    inputs = {"x": torch.ones(3)}
    assert input_sets(inputs, torch.device("cpu")) == [inputs]
    (moved,) = input_sets(inputs, torch.device("meta"))
    assert moved["x"].device.type == "meta" and moved["x"].shape == (3,)


def test_the_table_shows_floor_multiples_and_reasons():
    text = "\n".join(record.table(recorded()))
    assert "floor 512 ns = max(bytes 512 ns, operations 32 ns) + exponentials 0 ns" in text
    assert "reference 2.00" in text and "not timed: not here" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0123456, "12.3 ms"), (1.5e-5, "15 us"), (0.0, "0 ns"), (9.996e-4, "1 ms")]
)
def test_durations_have_three_digits(seconds, text):
    assert record.duration(seconds) == text


# A training step


def test_the_share_of_the_possible_gain():
    assert train_step.share_of_gain(reference=10.0, backend=4.0, without=2.0) == 0.75


def test_what_stands_in_for_a_scan_has_its_shape_type_and_a_gradient():
    inputs = path_scan_inputs(2, 384, torch.bfloat16)
    path = (ScanPath.temporal((6, 8, 8)), ScanPath.raster((6, 8, 8)))
    wanted = path_scan(**inputs, path=path, head_dim=64)
    inputs["zxbcdt"].requires_grad_()
    found = train_step.added_in_place_of_scan(**inputs, path=path, head_dim=64)
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in wanted]
    (grad,) = torch.autograd.grad(sum(found).sum(), inputs["zxbcdt"])
    assert grad[..., :2048].eq(2).all() and grad[..., 2048:].eq(0).all()


def test_a_step_that_does_not_agree_with_the_reference_is_refused():
    values = {"reference": {"loss": 1.0, "gradient_norm": 2.0}, "native": {"loss": 1.0, "gradient_norm": 2.1}}
    with pytest.raises(AssertionError, match="native: gradient_norm 2.1, wants 2 within 0.2%"):
        train_step.require_agreement(values)


def test_steps_are_timed_with_each_backend_and_without_scans(monkeypatch):
    monkeypatch.setitem(train_step.SIZES, "tiny", Size(2, 1, (8, 4, 4, 4)))
    row = train_step.measured_size("tiny", "fp32", Schedule(budget=0, slow_rounds=2))
    assert {"reference", "without scans"} <= set(row["variants"])
    assert {timing["rounds"] for timing in row["variants"].values()} == {2}
    assert set(row["share_of_possible_gain"]) == set(row["variants"]) - {"reference", "without scans"}
    assert row["precision"] == "fp32" and json.dumps(row)
    assert len(train_step.table(row)) == 1 + len(row["variants"])


# pytest-benchmark


def run_benchmarks(*options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks", "--budget=0.01", *options]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_pytest_benchmark_saves_what_was_recorded_and_compares_with_it(tmp_path):
    chosen = ("-k", "merge-1024x512-float32-forward and not backward", f"--benchmark-storage={tmp_path}")
    files = (f"--record={tmp_path / 'run.json'}", f"--benchmark-json={tmp_path / 'benchmark.json'}")
    run_benchmarks(*chosen, *files, "--benchmark-save=first")
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["command"].startswith(
        "python -m pytest -q benchmarks --budget=0.01 -k 'merge-1024x512-float32-forward and"
    )
    (case,) = run["cases"]
    rows = json.loads((tmp_path / "benchmark.json").read_text())["benchmarks"]
    assert {row["params"]["variant"] for row in rows} == set(case["variants"]) and len(rows) > 1
    for row in rows:
        ours = case["variants"][row["params"]["variant"]]
        assert row["group"] == case["case"]
        assert row["stats"]["rounds"] == ours["rounds"]
        for name in ("median", "min"):
            assert math.isclose(row["stats"][name], ours["minimum" if name == "min" else name], rel_tol=1e-9)
        assert row["extra_info"]["floor"]["total"] == case["floor"]["total"]
        assert row["extra_info"]["errors"] == ours["errors"]
    compared = run_benchmarks(*chosen, "--benchmark-compare=0001", "--benchmark-compare-fail=median:100000%")
    assert "(0001_first)" in compared and "(NOW)" in compared


def test_a_variant_may_be_timed_alone(tmp_path):
    run_benchmarks("-k", "gather-1024x512-float32-forward-reference", f"--record={tmp_path / 'run.json'}")
    (case,) = json.loads((tmp_path / "run.json").read_text())["cases"]
    assert list(case["variants"]) == ["reference"]


def test_compiled_variants_and_the_longest_runs_are_asked_for():
    default = run_benchmarks("--collect-only")
    for chosen in ("-reference", "mixing-layer-16x16x16-tokens-of-512-bfloat16-forward-mixers", "training-step-tiny"):
        assert chosen in default
    for left_out in ("torch.compile", "+compiled", "4x4096-one-direction-bfloat16", "mixing-layer-16x32x32"):
        assert left_out not in default
    assert "training-step-S" not in default and "cogvideox" not in default
    everything = run_benchmarks("--collect-only", "--compiled", "--full")
    for chosen in ("-torch.compile", "4x4096-one-direction-bfloat16", "mixing-layer-16x64x64"):
        assert chosen in everything
    for chosen in ("full-attention+compiled", "training-step-B-by-eights", "cogvideox"):
        assert chosen in everything


def test_a_library_that_is_not_there_is_skipped_with_the_reason():
    found = run_benchmarks("--benchmark-disable", "-k", "ssd_scan and forward and not backward and mamba_ssm")
    assert "1 skipped" in found
    assert "mamba_ssm does not import: No module named 'mamba_ssm'" in found or "mamba_ssm runs on GPUs only" in found


@pytest.mark.parametrize(("name", "wanted"), [("npu", "wants cpu or cuda"), ("cuda", "wants a machine with a GPU")])
def test_a_device_that_is_not_there_is_said_in_one_line(monkeypatch, name, wanted):
    from benchmarks.conftest import usable_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(pytest.UsageError, match=f"--device: got {name}, {wanted}"):
        usable_device(name)


def test_a_machine_with_a_gpu_needs_nothing_that_medsora_alone_asks_for():
    """What `make bench-gpu` imports there: torch, triton, numpy, pytest and its plugin are enough."""
    code = """
import sys
for name in ("medsora", "accelerate", "cv2", "diffusers", "hypothesis", "jsonargparse", "matplotlib", "scipy", "tqdm"):
    sys.modules[name] = None
import benchmarks.conftest, benchmarks.gpu.report, benchmarks.gpu_scan, benchmarks.test_operators
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
