"""The benchmark of the scans on a GPU: one shape and a block of it from end to end, in the interpreter at tiny size."""

import json

import pytest
import torch

from benchmarks import gpu_scan
from benchmarks.gpu import check, timing
from benchmarks.gpu.machine import GpuLimits
from benchmarks.gpu.shapes import GPU_SCALE, TINY_SCALE, Shape, shapes, tiny_shapes
from benchmarks.gpu.variants import DEFINITION, OURS, variants
from benchmarks.harness.correctness import Wrong
from benchmarks.harness.work import PASSES, Work
from medsora_ops import ScanPath
from medsora_ops.launch import INTERPRETED

SHAPE = "4 x 2, fw and fh" if INTERPRETED else "1024 x 4, temporal"

LIMIT_OF = {"bytes": "copy", "operations": "operations", "exponentials": "exponentials"}


@pytest.fixture(autouse=True)
def ordinary_memory(poisoned_memory):
    """As in a run: with deterministic algorithms demanded the definition cannot run on a GPU."""
    torch.use_deterministic_algorithms(False)


def run(capsys, tmp_path, *arguments):
    path = tmp_path / "record.json"
    options = ["--record", str(path), "--budget", "0.01", "--device", "cpu" if INTERPRETED else "cuda"]
    status = gpu_scan.main([*options, *arguments])
    return status, json.loads(path.read_text()), capsys.readouterr().out


def test_a_shape_is_checked_timed_and_recorded(device, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    status, record, printed = run(capsys, tmp_path, "-k", SHAPE)
    assert status == 0
    assert json.loads((tmp_path / "out" / "record.json").read_text()) == record
    assert record["times_are_meaningless"] is INTERPRETED and record["gpu"]["triton"]
    assert record["environment"]["torch"] == torch.__version__ and "commit" in record["revision"] and record["command"]
    assert set(record["limits"]) == {"copy", "operations", "exponentials"} and min(record["limits"].values()) > 0
    assert [case["passes"] for case in record["cases"]] == list(PASSES) and record["skipped"] == {}
    for case in record["cases"]:
        floor, rows = case["floor"], case["variants"]
        assert set(rows) >= {OURS, DEFINITION, "chain"} and not {OURS, DEFINITION, "chain"} & set(case["not_timed"])
        assert floor["total"] == floor[floor["binding"]] == max(floor[kind] for kind in LIMIT_OF)
        for kind, limit in LIMIT_OF.items():
            assert floor[kind] == pytest.approx(case["work"][kind] / record["limits"][limit])
        for name, row in rows.items():
            assert row["errors"] and ("device" in row or row["not_replayed"])
            eager = row["eager"]
            assert eager["floor_multiple"] == pytest.approx(eager["median"] / floor["total"])
            assert set(eager["times_as_fast"]) == set(rows) - {name}
        if not INTERPRETED:
            ours = rows[OURS]
            assert ours["device"]["rounds"] >= 5 and ours["launches"] == sum(k["launches"] for k in ours["kernels"])
            assert ours["launches"] < rows["chain"]["launches"] and ours["peak_memory"] > 0
    gradients = record["cases"][1]["variants"][OURS]["errors"]
    assert {"output 0", "d(zxbcdt)", "d(conv_weight)", "d(A)"} <= set(gradients)
    assert SHAPE in printed and "floor" in printed and "recorded in" in printed


def test_a_block_is_timed_with_and_without_scans(device, capsys, tmp_path):
    status, record, _ = run(capsys, tmp_path, "-k", "block, batch 1")
    (row,) = record["blocks"]
    assert status == 0 and set(row["variants"]) == {OURS, "triton, whole", "chain", DEFINITION, "without scans"}
    assert set(row["variants"][OURS]["errors"]) == {"output", "d(input)"}
    assert INTERPRETED or row["variants"][OURS]["launches"] > row["variants"]["without scans"]["launches"] > 0


def test_a_wrong_variant_is_refused(device):
    shape = tiny_shapes()[0]
    inputs, grads = shape.inputs(device), shape.gradients(device, 0)
    judge, right = check.Judge(shape, inputs, grads), variants(shape, compiled=False)[DEFINITION]

    def wrong_at_the_end(**given):
        found = [out.clone() for out in right(**given)]
        if len(given["zxbcdt"]) == shape.videos:
            found[1][-1, -1] += 1
        return tuple(found)

    assert max(judge.errors(right, inputs, grads).values()) < 1e-4
    with pytest.raises(Wrong, match="output 1: .* at the last of all videos"):
        judge.errors(wrong_at_the_end, inputs, None)
    with pytest.raises(Wrong, match="output 0: relative RMS error"):
        judge.errors(lambda **given: tuple(2 * out for out in right(**given)), inputs, None)
    with pytest.raises(Wrong, match="not finite, of all 2 videos"):
        judge.errors(lambda **given: _spoilt(right(**given)), inputs, None)


def _spoilt(outputs):
    if len(outputs[0]) > 1:
        outputs[0][0, 0, 0] = float("inf")
    return outputs


def test_work_by_hand():
    """One video of 4 tokens in two paths of 2 sequences of 2: E 32, N 16, P 16, float32."""
    paths = (ScanPath.plane("fw", (1, 2, 2)), ScanPath.plane("fh", (1, 2, 2)))
    shape, row = Shape("", 1, paths, TINY_SCALE), 2 * 32 + 2 * 16 + 2
    forward, both = (shape.work(passes) for passes in PASSES)
    assert forward.bytes == 4 * 4 * (row + 2 * 32) and both.bytes == 4 * 4 * (3 * row + 4 * 32)
    # Per sequence and direction: 4 taps on 64 channels of 2 tokens, and 3 pairs of 2 (E + N).
    assert forward.operations == 2 * 2 * 2 * (2 * 4 * 64 * 2 + 3 * 2 * (32 + 16)) and both.operations == (
        4 * forward.operations
    )
    assert forward.exponentials == 4 * (2 * 2 * (64 + 2) + 32 + 2 * 2) and both.exponentials == 2 * forward.exponentials


def test_the_longest_of_three_binds():
    floor = GpuLimits(copy=10.0, operations=5.0, exponentials=1.0).floor(Work(bytes=20, operations=20, exponentials=3))
    assert floor == {"bytes": 2, "operations": 4, "exponentials": 3, "total": 4, "binding": "operations"}


def test_the_shapes_are_those_promised():
    found = {shape.name: shape for shape in shapes()}
    assert len(found) == 20 and {"512 x 128, fw and fh", "256 x 256, fw and fh"} < found.keys()
    assert all(shape.scale == GPU_SCALE for shape in found.values())
    for sequences in (128, 512, 1024, 4096):
        for length in (48, 32):
            planes, times = (
                found[f"{sequences} x {length}, fw and fh"],
                found[f"{sequences * 8} x {length // 8}, temporal"],
            )
            assert planes.tokens == times.tokens == sequences * length and len(planes.paths) == 2
    for shape in found.values():
        sequences, length = (int(part) for part in shape.name.split(",")[0].split(" x "))
        assert {(shape.videos * path.sequences, path.length) for path in shape.paths} == {(sequences, length)}
    assert {shape.name for shape in shapes(quick=True)} < set(found)


def test_sets_exceed_the_cache(monkeypatch):
    monkeypatch.setattr(timing, "second_level_cache", lambda device: 50)
    assert timing.sets_needed(torch.device("cuda"), 30) == 6 and timing.sets_needed(torch.device("cuda"), 10**6) == 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["-k", "no such shape"], "no case has"),
        (["--device", "cpu" if not INTERPRETED else "cuda"], "TRITON_INTERPRET"),
    ],
)
def test_what_cannot_run_says_why(capsys, arguments, said):
    given = arguments if "--device" in arguments else [*arguments, "--device", "cpu" if INTERPRETED else "cuda"]
    assert gpu_scan.main(given) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(gpu_scan.launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_scan.main([]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err
