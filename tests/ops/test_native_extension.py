"""The extension as a whole: its build facts, its thread pool, and what the library says when it is not there."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from medsora_ops import native
from medsora_ops.__main__ import main
from medsora_ops.backends import BACKENDS, OPERATORS
from medsora_ops.version import __version__

needs_extension = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


def python(script):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_extension
def test_build_facts():
    info = native.build_info()
    assert info["version"] == __version__
    assert info["cpp_standard"] >= 201703
    assert info["isa_compiled"][0] == "baseline"
    assert set(info["isa_supported"]) <= set(info["isa_compiled"])
    assert (info["cuda"] is None) == (info["cuda_architectures"] == [])


@needs_extension
@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf here")
def test_what_cuda_needs_is_within_and_hidden():
    """No library of CUDA's is looked for, so that it loads without a driver, and none that torch brings is replaced."""
    path = native.extension().__file__
    assert not [line for line in _linked_libraries(path) if "cuda" in line]
    listed = subprocess.run(["readelf", "--dyn-syms", "-W", path], capture_output=True, text=True, check=True)
    assert "PyInit__C" in listed.stdout and "cuda" not in listed.stdout


@needs_extension
def test_the_best_instruction_set_is_used_unless_the_environment_names_another(monkeypatch):
    monkeypatch.delenv("MEDSORA_ISA", raising=False)
    supported = native.build_info()["isa_supported"]
    assert native.build_info()["isa"] == supported[-1]
    for name in supported:
        monkeypatch.setenv("MEDSORA_ISA", name)
        assert native.build_info()["isa"] == name


@needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_its_threads_are_those_of_torch():
    """With a second OpenMP runtime, calls that alternate with torch's are hundreds of times slower."""
    if not native.extension().build_info()["openmp"]:
        pytest.skip("this build has no OpenMP")
    for wanted in (1, 2, 3):
        assert native.extension().threads_seen(wanted) == wanted
    torch.ones(1 << 20).add_(1)
    runtimes = {
        Path(line.split()[-1]).name
        for line in Path("/proc/self/maps").read_text().splitlines()
        if any(name in line for name in ("libgomp", "libomp", "libiomp"))
    }
    assert len(runtimes) <= 1, runtimes
    assert not any("gomp" in line for line in _linked_libraries(native.extension().__file__))


def _linked_libraries(path):
    listed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if "NEEDED" in line]


def test_without_the_extension_the_reference_serves_and_the_reason_is_told():
    out = python("""
        import json, sys
        sys.modules["medsora_ops._C"] = None  # as if it had not been built
        import torch, medsora_ops
        from medsora_ops import native
        path = medsora_ops.ScanPath.raster((1, 2, 2))
        y = medsora_ops.gather(torch.arange(4.0).reshape(1, 4, 1), path)
        rows = {(row.operator, row.backend): row for row in medsora_ops.backend_report()}
        print(json.dumps({
            "y": y.flatten().tolist(), "reason": rows["gather", "native"].reason,
            "serves": rows["gather", "reference"].serves, "info": native.build_info(),
        }))
        try:
            native.extension()
        except RuntimeError as error:
            print(error)
    """).splitlines()
    told = json.loads(out[0])
    assert told["y"] == [0, 1, 2, 3, 3, 2, 1, 0]
    assert told["reason"].startswith("the extension medsora_ops._C is not built: install a C++17 compiler")
    assert told["serves"] == ["cpu", "cuda"]
    assert told["info"] == {}
    assert out[1] == told["reason"]


@needs_extension
def test_an_extension_of_another_version_is_refused():
    out = python("""
        from medsora_ops import native
        native.__version__ = "99.0"
        print(native.unavailable())
    """)
    assert out.strip() == f"the extension medsora_ops._C was built for {__version__}, this is 99.0: install again"


def test_the_report_has_a_line_for_every_operator_and_backend(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["operator", "backend", "available", "serves", "why", "not"]
    cells = [line.split() for line in lines[2 : 2 + len(OPERATORS) * len(BACKENDS)]]
    assert [(row[0], row[1]) for row in cells] == [(op, backend) for op in OPERATORS for backend in BACKENDS]
    for device in ("cpu", "cuda"):  # one backend serves each operator on each device, and it is available
        serving = [row for row in cells if row[2] == "yes" and device in row[3:5]]
        assert [row[0] for row in serving] == list(OPERATORS)
    assert "medsora_ops " + __version__ in "\n".join(lines)


def test_the_report_as_json(capsys):
    assert main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["installation"]["medsora_ops"] == __version__
    assert (report["installation"]["extension"] is None) == (native.unavailable() is not None)
    assert len(report["operators"]) == len(OPERATORS) * len(BACKENDS)
    for row in report["operators"]:
        assert row["available"] == (row["reason"] == "")
        assert row["available"] or row["serves"] == []


def test_the_report_says_which_backend_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("MEDSORA_BACKEND", "reference")
    assert main([]) == 0
    assert "MEDSORA_BACKEND=reference asks" in capsys.readouterr().out
    monkeypatch.setenv("MEDSORA_BACKEND", "fast")
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: backend: got 'fast', wants one of reference")


@needs_extension
def test_a_wrong_setting_is_one_line_and_exit_code_2(capsys, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", "sse9")
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "MEDSORA_ISA: got 'sse9'" in captured.err
