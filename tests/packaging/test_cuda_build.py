"""The CUDA kernels join the extension where nvcc is found; else the build says in a line that it goes on without."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Instead of compiling for minutes, the build compiles bindings of its own: what setup.py does is the same.
BINDINGS = """
#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C"};
PyMODINIT_FUNC PyInit__C() {
    PyObject* module = PyModule_Create(&definition);
#ifdef MEDSORA_CUDA
    PyModule_AddStringConstant(module, "cuda", MEDSORA_CUDA);
    PyObject* architectures = PyList_New(0);
    const int numbers[] = {MEDSORA_CUDA_ARCHITECTURES};
    for (int number : numbers) PyList_Append(architectures, PyLong_FromLong(number));
    PyModule_AddObject(module, "architectures", architectures);
#else
    PyModule_AddObject(module, "cuda", Py_NewRef(Py_None));
#endif
    return module;
}
"""
KERNELS = "__global__ void fill(int* to) { *to = 1; }\nvoid launch() { fill<<<1, 1>>>(nullptr); }\n"

needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")


@pytest.fixture
def build(tmp_path):
    """Builds in place with these variables; returns the exit status, what was said, and the module's own account."""
    pytest.importorskip("pybind11")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("csrc/cuda", "medsora", "medsora_ops"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "medsora_ops/version.py", tmp_path / "medsora_ops")
    (tmp_path / "medsora_ops/__init__.py").touch()
    (tmp_path / "csrc/bindings.cpp").write_text(BINDINGS)
    (tmp_path / "csrc/cuda/kernels.cu").write_text(KERNELS)

    def build(**environment):
        unset = {"MEDSORA_CUDA", "MEDSORA_CUDA_ARCHS", "MEDSORA_REQUIRE_EXT", "CUDA_HOME", "PYTHONPATH"}
        settings = {key: value for key, value in os.environ.items() if key not in unset} | environment

        def run(*arguments):
            return subprocess.run(
                [sys.executable, *arguments], cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
            )

        done = run("setup.py", "build_ext", "--inplace")
        script = "from medsora_ops import _C; print(_C.cuda, *getattr(_C, 'architectures', ()))"
        return done.returncode, done.stdout + done.stderr, run("-c", script).stdout.split()

    return build


def without_nvcc(folder):
    """A PATH on which everything is found that a build needs but nvcc."""
    folder.mkdir()
    for directory in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(directory).glob("*"):
            if program.name != "nvcc":
                (folder / program.name).unlink(missing_ok=True)
                (folder / program.name).symlink_to(program)
    return str(folder)


@needs_gcc
@needs_nvcc
@pytest.mark.slow
def test_with_nvcc_for_the_architectures_named(build):
    status, said, told = build(MEDSORA_CUDA_ARCHS="90, 80", MEDSORA_CUDA="1")
    assert status == 0, said
    assert told[1:] == ["80", "90"] and f"with CUDA {told[0]} for sm_80, sm_90" in said
    assert "compute_90,code=compute_90" in said and "code=compute_80" not in said


@needs_gcc
@pytest.mark.slow
def test_without_nvcc_a_line_says_so(build, tmp_path):
    path = without_nvcc(tmp_path / "bin")
    status, said, told = build(PATH=path, MEDSORA_REQUIRE_EXT="1")
    assert status == 0, said
    assert told == ["None"] and said.count("medsora_ops._C: without CUDA: no nvcc in CUDA_HOME or on the PATH\n") == 1
    status, said, _ = build(PATH=path, MEDSORA_CUDA="1", MEDSORA_REQUIRE_EXT="1")
    assert status != 0 and "no nvcc" in said


@needs_gcc
@pytest.mark.slow
def test_left_out_on_demand(build):
    status, said, told = build(MEDSORA_CUDA="0")
    assert status == 0, said
    assert told == ["None"] and "without CUDA, as MEDSORA_CUDA=0 says" in said


@needs_gcc
@needs_nvcc
@pytest.mark.slow
def test_kernels_that_do_not_compile_leave_the_rest(build, tmp_path):
    """Such as with a g++ that is too new for this nvcc."""
    (tmp_path / "csrc/cuda/kernels.cu").write_text("#error too new")
    status, said, told = build(MEDSORA_CUDA_ARCHS="90")
    assert status == 0, said
    assert told == ["None"] and "does not compile csrc/cuda/kernels.cu\n" in said
    assert build(MEDSORA_REQUIRE_EXT="1", MEDSORA_CUDA_ARCHS="90")[0] != 0


@needs_gcc
@needs_nvcc
@pytest.mark.parametrize("named", ["12", "90 fast"])
def test_an_architecture_that_is_none_is_named(named, build):
    status, said, _ = build(MEDSORA_CUDA_ARCHS=named, MEDSORA_CUDA="1", MEDSORA_REQUIRE_EXT="1")
    assert status != 0 and f"MEDSORA_CUDA_ARCHS: got {named!r}, wants numbers out of 8" in said
