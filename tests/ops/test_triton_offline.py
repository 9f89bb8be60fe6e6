"""The Triton kernels compile for GPUs that are not here; `make test-gpu-offline` does it for more of them."""

import contextlib
import io
import itertools
import json

import pytest
from sampling import FULL

from medsora_ops.launch import INTERPRETED

pytest.importorskip("triton", reason="triton is not installed")
if INTERPRETED:
    pytest.skip("the interpreter does not compile", allow_module_level=True)

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from medsora_ops import configs, offline, path_scan  # noqa: E402
from medsora_ops.launch import launch  # noqa: E402
from medsora_ops.paths import ScanPath  # noqa: E402
from medsora_ops.scan import tile_launch  # noqa: E402
from medsora_ops.scan.tile_launch import TileConfig  # noqa: E402
from medsora_ops.triton_math import anew, sigmoid  # noqa: E402
from medsora_ops.warmup import describe, warmup  # noqa: E402


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """What the command says, and the rows that it writes, of every kernel for Hopper in bfloat16."""
    path = tmp_path_factory.mktemp("offline") / "kernels.json"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert offline.main(["--targets", "cuda:90", "--json", str(path)]) == 0
    return said.getvalue(), json.loads(path.read_text())["kernels"]


@pytest.fixture(scope="module")
def hopper(listed):
    return {row["kernel"]: row for row in listed[1] if row["head_dim"]}


def test_every_kernel_of_the_scans_compiles_and_fits(hopper):
    assert {"path_scan_tile_fwd_kernel", "path_scan_tile_bwd_kernel", "ssd_scan_fwd_kernel", "ssd_scan_bwd_kernel",
            "path_scan_sequence_fwd_kernel", "path_scan_sequence_bwd_kernel",
            "path_scan_chunk_fwd_kernel", "path_scan_chunk_bwd_kernel"} <= hopper.keys()  # fmt: skip
    for row in hopper.values():
        assert not row["wrong"] and row["stack"] == 0 and row["shared"] <= offline.SHARED_MEMORY["cuda:90"]


def test_kernels_of_sequences_cut_into_runs_are_compiled_too(hopper):
    assert {"scan_chain_runs_kernel", "path_scan_run_bwd_kernel", "ssd_scan_run_bwd_kernel"} <= hopper.keys()
    cuts = [one.options.get("CUT", "") for one in offline.compile_scans("cuda:90", torch.bfloat16, 64, 128)]
    assert {None, "ends", "starts"} <= set(cuts)


def test_a_stack_is_an_error_in_a_default_configuration_alone(monkeypatch):
    compiled = offline.compile_reorders("cuda:90", torch.bfloat16)
    monkeypatch.setattr(offline, "resources", lambda one: offline.Resources(255, 16, 0, 1024, 8))

    def wrong(target="cuda:90", dtype=torch.bfloat16, head_dim=64, state=128):
        return [row["wrong"] for row in offline._rows(compiled, target, dtype, head_dim=head_dim, state=state)]

    assert wrong() == wrong(dtype=torch.float32) == [["uses 16 bytes of stack"]] * len(compiled)
    for other in (dict(head_dim=128), dict(state=64), dict(target="cuda:120")):
        assert not any(wrong(**other)), other


def test_kernels_of_the_other_operators_compile_and_fit(listed):
    rows = [row for row in listed[1] if not row["head_dim"]]
    assert {row["kernel"] for row in rows} == {
        "gather_kernel",
        "merge_kernel",
        "spectral_filter_kernel",
        "spectral_weight_grad_kernel",
        "spectral_weight_sum_kernel",
        "focal_rows_kernel",
        "focal_gradient_kernel",
    }
    assert {row["side"] for row in rows} == {None, *offline.SIDES}
    for row in rows:
        assert not row["wrong"] and row["stack"] == 0, row


def test_rows_are_copied_in_pieces_of_16_bytes():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        for one in offline.compile_reorders("cuda:90", dtype):
            piece = "v2.b64" if dtype == torch.float64 else "v4.b32"
            code = one.kernel.asm["ptx"]
            assert f"ld.global.{piece}" in code and f"st.global.{piece}" in code


@triton.jit
def copy_kernel(x, y):
    at = tl.arange(0, 1024)
    tl.store(anew(y) + at, tl.load(anew(x) + at))


def test_scratch_is_read_and_written_in_pieces_of_16_bytes():
    """The compiler must know how a pointer is aligned of which it knows nothing else."""
    x = torch.empty(1024, dtype=torch.bfloat16, device="meta")
    with offline.compiling_for("cuda:90") as compiled:
        launch(copy_kernel, 1, x, torch.empty_like(x), num_warps=4)
    code = compiled[0].kernel.asm["ptx"]
    assert "ld.global.v4.b32" in code and "st.global.v4.b32" in code


@triton.jit
def sigmoid_kernel(x, y):
    at = tl.arange(0, 1024)
    tl.store(y + at, sigmoid(tl.load(x + at)))


def test_a_sigmoid_is_an_exponential_and_a_reciprocal():
    x = torch.empty(1024, device="meta")
    with offline.compiling_for("cuda:90") as compiled:
        launch(sigmoid_kernel, 1, x, torch.empty_like(x), num_warps=4)
    code = compiled[0].kernel.asm["ptx"]
    assert "ex2.approx" in code and "rcp.approx" in code and "div." not in code


@pytest.mark.skipif(not FULL, reason="minutes of compiling, which `make test-gpu-offline` does too")
def test_rare_scans_compile_and_fit(capsys):
    assert offline.main(["--rare", "--targets", "cuda:90"]) == 0
    assert "; 0 use a stack" in capsys.readouterr().out


@pytest.mark.parametrize("kernel", ["path_scan_tile_fwd", "path_scan_chunk_fwd", "ssd_scan_fwd"])
def test_what_the_shipped_table_has_measured_is_compiled_as_it_says(kernel, tmp_path, monkeypatch):
    case = configs.Case(kernel, "sm_90", 8, 32, 16, "float16")
    configs.write(tmp_path / "table.json", {case: {"values": {"num_warps": 2}, "measured": {}}})
    monkeypatch.setattr(configs, "SHIPPED", tmp_path / "table.json")
    assert offline.shipped("cuda:80") == [] and offline.shipped("cuda:90") == [case]
    warps = {row["kernel"]: row["warps"] for row in offline.report_shipped("cuda:90", case)}
    configs._chosen.cache_clear()
    assert warps[f"{kernel}_kernel"] == 2


@pytest.mark.parametrize(("head_dim", "state"), [(32, 16), (64, 64)])
def test_states_that_are_taken_at_once_compile_for_blackwell(head_dim, state):
    """Loops of one turn are none to the compiler: then a pass of Triton's failed on what was left of them."""
    settings = (16 * head_dim, head_dim, state, 1, 4, True, None, True, torch.bfloat16, torch.float32, True)
    with offline.compiling_for("cuda:100") as compiled:
        describe((ScanPath.plane("fw", (6, 8, 8)),), *settings)
    assert len(compiled) == 1 + 2


def test_registers_of_every_cut_fit_the_chip():
    with offline.compiling_for("cuda:90"):
        for programs, warps, channels in itertools.product((1, 2, 4, 2**31), (4, 8, 16), (16, 64, 256)):
            config = TileConfig(programs=programs, num_warps=warps)
            registers = tile_launch.registers(config, channels, torch.device("meta"))["maxnreg"]
            assert 64 <= registers <= 255 and registers * 32 * warps <= offline.REGISTERS, (config, channels)


def test_few_launches():
    """Of all paths: forward one, back two; of long ones, and where few sequences go by heads, two, and four."""
    short = ScanPath.plane("fw", (6, 8, 8)), ScanPath.plane("fh", (6, 8, 8))
    medium = ScanPath.plane("fw", (8, 32, 16)), ScanPath.plane("fh", (8, 32, 16))
    long = ScanPath.plane("fw", (8, 40, 48)), ScanPath.plane("fh", (8, 40, 48))
    settings = (1024, 64, 128, 1, 4, True, None, True, torch.bfloat16, torch.float32, True)
    with offline.compiling_for("cuda:90") as compiled:
        describe(short, *settings)
        assert len(compiled) == 1 + 2
        describe(medium, *settings)
        assert len(compiled) == 2 * (1 + 2)
        describe((ScanPath.raster((8, 16, 16)),), *settings)
        assert len(compiled) == 2 * (1 + 2) + 2 + 4
        describe(long, *settings)  # enough work to go alone, for less scratch
        assert len(compiled) == 2 * (1 + 2) + 3 * (2 + 4)
    with offline.compiling_for("cuda:90", processors=132) as compiled:
        describe(long, *settings)
        assert len(compiled) == 2 + 4
        describe(short, *settings)
        assert len(compiled) == 2 * (2 + 4)


def test_few_sequences_on_a_large_chip_are_cut():
    """Two launches more forward; back two more for the states and two for their gradients."""
    settings = (1024, 64, 128, 1, 4, True, None, True, torch.bfloat16, torch.float32, True)
    with offline.compiling_for("cuda:90", processors=132) as compiled:
        describe((ScanPath.raster((8, 16, 16)),), *settings)
    assert len(compiled) == 2 + 2 + 4 + 4


def test_two_targets_are_two_compilations():
    settings = (1024, 64, 128, 1, 4, True, None, True, torch.bfloat16, torch.float32, False)
    found = []
    for target in ("cuda:80", "cuda:90"):
        with offline.compiling_for(target) as compiled:
            describe((ScanPath.plane("fw", (6, 8, 8)),), *settings)
        found.append(offline.resources(compiled[0]).matrix_instructions)
    assert 0 < found[1] < found[0]  # Hopper's are larger


def test_the_command_reports(listed):
    said, rows = listed
    assert all(row["kernel"] in said for row in rows) and "0 wrong" in said


def test_warmup_needs_a_gpu_and_checks_its_sizes():
    paths = (ScanPath.raster((1, 4, 4)),)
    assert warmup(paths, width=64, head_dim=32, state=16, device="cpu") == 0
    with pytest.raises(ValueError, match="paths: got none"):
        warmup((), width=64)
    with pytest.raises(ValueError, match="head_dim"):
        warmup(paths, width=64, head_dim=48)


def test_without_a_gpu_the_backend_says_why():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from medsora_ops import use_backend

    rows = torch.zeros(1, 16, 2 * 32 + 2 * 16 + 1)
    parameters = (torch.zeros(64, 4), None, *(torch.zeros(1) for _ in range(3)), torch.ones(32))
    with use_backend("triton"), pytest.raises(ValueError, match="'triton' cannot serve path_scan on cpu: runs on cuda"):
        path_scan(rows, *parameters, ScanPath.raster((1, 4, 4)), head_dim=32)
