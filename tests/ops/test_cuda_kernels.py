"""The CUDA kernels compile for every GPU that they are built for, without a GPU: nothing spills, registers are few."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cu"))
# Of a multiprocessor's 65536: four blocks of 256 threads at a time, or two of 288, which transform images of 64 x 64.
MOST_REGISTERS = {
    "gather_kernel": 64,
    "merge_kernel": 64,
    "spectral_filter_kernel": 96,
    "focal_kernel": 96,
    "weight_sum_kernel": 64,
    "focal_mean_kernel": 64,
}
ARCHITECTURES = (80, 86, 89, 90, 100, 120)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """For each kernel and architecture what ptxas says of it."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc here")
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    targets = [number for number in ARCHITECTURES if f"compute_{number}" in listed]
    found = {}
    for source in SOURCES:
        command = [
            *(nvcc, "-std=c++17", "-O3", "-Xptxas=-v", "-Xcompiler=-Wall,-Wextra,-Werror", "-Werror=all-warnings"),
            *(f"-gencode=arch=compute_{number},code=sm_{number}" for number in targets),
            *("--threads=0", "-c", source, "-o", tmp_path_factory.mktemp("cuda") / "kernels.o"),
        ]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for entry in re.split("Compiling entry function ", done.stderr)[1:]:
            mangled, architecture = re.match(r"'(\w+)' for 'sm_(\d+)'", entry).groups()
            found[mangled, int(architecture)] = entry
    assert {architecture for _, architecture in found} == set(targets)
    return found


@pytest.mark.slow
def test_nothing_spills_and_registers_leave_room_for_several_blocks(compiled):
    for (mangled, architecture), told in compiled.items():
        (most,) = (most for name, most in MOST_REGISTERS.items() if name in mangled)
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in told, told
        registers = int(re.search(r"Used (\d+) registers", told)[1])
        assert registers <= most, f"{mangled} on sm_{architecture}: {registers} registers"


@pytest.mark.slow
def test_a_kernel_for_each_type_and_width_and_few_for_spectra(compiled):
    names = [mangled for mangled, architecture in compiled if architecture == 90]
    assert sum("gather_kernel" in name for name in names) == 4
    assert sum("merge_kernel" in name for name in names) == 3 + 2 + 4 + 4
    assert len(names) == 4 + 3 + 2 + 4 + 4 + 4
