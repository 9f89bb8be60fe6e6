"""The package as others get it: sdist, wheel, an install without a compiler, the native sources under strict flags."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from site import getsitepackages

import pytest

from medsora_ops.version import __version__

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc").rglob("*.cpp"))

pytestmark = pytest.mark.slow


def run(*command, cwd=None, **environment):
    """The standard output of a command that must succeed, in an environment without PYTHONPATH."""
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    # As long as a build may take on two busy cores: the bound is there for what hangs.
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=settings, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a clone holds, so that building leaves nothing in the working tree."""
    copy = tmp_path_factory.mktemp("checkout") / "medsora"
    ignored = shutil.ignore_patterns(
        ".git",
        ".venv",
        "build",
        "dist",
        "runs",
        "*.egg-info",
        "*.so",
        "__pycache__",
        ".*_cache",
        ".hypothesis",
        "golden",
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def archives(checkout, tmp_path_factory):
    """The sdist of the checkout, the wheel built from that sdist, and what the build printed."""
    for tool in ("build", "pybind11", "setuptools"):
        pytest.importorskip(tool)
    folder = tmp_path_factory.mktemp("dist")
    # For one GPU alone, as each takes nvcc some 15 seconds.
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout)
    printed = run(*command, MEDSORA_CUDA_ARCHS="80")
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel, printed


def environment_with(wheel, folder):
    """A fresh environment that holds the wheel and sees the packages of this one, but not its copy of medsora."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    # Plain path entries: the .pth file by which an editable install points at the checkout is not followed from here.
    (site / "shared.pth").write_text("\n".join(getsitepackages()) + "\n")
    return python


def test_sdist_holds_what_a_build_needs(archives):
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "LICENSE", "csrc/bindings.cpp", "csrc/common/path.h", "Makefile"} <= names
    assert {"medsora_ops/ADDING.md", "benchmarks/test_operators.py"} <= names
    assert {"csrc/cpu/reorder_steps.inc", "csrc/cuda/reorder.cu", "medsora_ops/py.typed", "tests/conftest.py"} <= names
    assert not any(name.endswith((".so", ".pyc", ".o")) for name in names)


def test_wheel_holds_the_packages_and_nothing_else(archives):
    with zipfile.ZipFile(archives[1]) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith("dist-info/METADATA"))
        described = archive.read(metadata).decode()
    assert {name.split("/")[0] for name in names} == {"medsora", "medsora_ops", f"medsora-{__version__}.dist-info"}
    assert {"medsora/py.typed", "medsora_ops/py.typed", "medsora_ops/reorder/native.py"} <= names
    assert any(name.startswith("medsora_ops/_C.") for name in names)
    configs = {f"medsora/configs/{file.name}" for file in (ROOT / "medsora" / "configs").glob("*.yaml")}
    assert configs and configs <= names
    assert f"Version: {__version__}\n" in described and "License-Expression: Apache-2.0\n" in described


def test_installed_wheel_works_away_from_the_checkout(archives, tmp_path):
    python = environment_with(archives[1], tmp_path / "venv")
    script = "import medsora, medsora_ops; print(medsora.__file__, medsora_ops.__file__, medsora_ops.__version__)"
    *files, version = run(python, "-c", script, cwd=tmp_path).split()
    assert all(Path(file).is_relative_to(tmp_path / "venv") for file in files)
    assert version == __version__
    report = json.loads(run(python, "-m", "medsora_ops", "--json", cwd=tmp_path))
    assert report["installation"]["extension"]["version"] == __version__
    serving = {row["operator"]: row["backend"] for row in report["operators"] if "cpu" in row["serves"]}
    assert serving["gather"] == serving["merge"] == "native"


def test_install_without_a_compiler_goes_on_and_says_so(checkout, tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "--no-index"]
    broken = {"CC": "/bin/false", "CXX": "/bin/false", "MEDSORA_REQUIRE_EXT": "0"}
    notes = run(*build, "--wheel-dir", tmp_path, checkout, **broken)
    assert "medsora_ops._C was not built" in notes
    (wheel,) = tmp_path.glob("*.whl")
    assert not any("_C." in name for name in zipfile.ZipFile(wheel).namelist())
    python = environment_with(wheel, tmp_path / "venv")
    script = """
import torch, medsora_ops
path = medsora_ops.ScanPath.raster((1, 2, 2))
print(medsora_ops.gather(torch.arange(4.0).reshape(1, 4, 1), path).flatten().tolist())
"""
    assert run(python, "-c", script, cwd=tmp_path).strip() == "[0.0, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 0.0]"
    report = json.loads(run(python, "-m", "medsora_ops", "--json", cwd=tmp_path))
    assert "is not built" in report["installation"]["extension_missing"]
    serving = {row["operator"]: row["backend"] for row in report["operators"] if "cpu" in row["serves"]}
    assert serving["gather"] == serving["merge"] == "reference"


def test_a_failed_build_in_place_leaves_no_extension_of_an_earlier_one(checkout):
    earlier = checkout / "medsora_ops" / "_C.earlier.so"
    earlier.touch()
    broken = {"CC": "/bin/false", "CXX": "/bin/false", "MEDSORA_REQUIRE_EXT": "0"}
    notes = run(sys.executable, "setup.py", "build_ext", "--inplace", "--force", cwd=checkout, **broken)
    assert "medsora_ops._C was not built" in notes
    assert not earlier.exists()


def test_a_required_extension_that_does_not_build_is_an_error(checkout):
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", "nowhere"],
        cwd=checkout,
        env=os.environ | {"CC": "/bin/false", "CXX": "/bin/false", "MEDSORA_REQUIRE_EXT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0


def compile_strictly(compiler, folder, *flags):
    pybind11 = pytest.importorskip("pybind11")
    include = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    strict = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", '-DMEDSORA_VERSION="0"', *flags]

    def compile_one(source):
        run(compiler, *strict, *include, "-c", source, "-o", folder / f"{source.parent.name}-{source.stem}.o")

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        list(executor.map(compile_one, SOURCES))


def test_the_build_warns_of_nothing_in_the_sources(archives):
    assert "csrc/bindings.cpp" in archives[2]
    assert not [line for line in archives[2].splitlines() if re.search(r"csrc/\S+ warning\b", line)]


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_gcc_compiles_the_portable_form_without_a_warning(tmp_path):
    compile_strictly("g++", tmp_path, "-DMEDSORA_X86_VARIANTS=0")


@pytest.mark.skipif(shutil.which("clang++") is None, reason="there is no clang++ here")
def test_clang_compiles_the_portable_form_without_a_warning(tmp_path):
    compile_strictly("clang++", tmp_path)
