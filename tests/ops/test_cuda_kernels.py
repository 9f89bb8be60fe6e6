"""The CUDA kernels as the extension holds them, read without a GPU: nothing spills, registers are few."""

import re
from collections import Counter
from pathlib import Path

import pytest

from medsora_ops import native

# Of a multiprocessor's 65536: four blocks of 256 threads at a time, or two of 288, which transform images of 64 x 64.
MOST_REGISTERS = {
    "gather_kernel": 64,
    "merge_kernel": 64,
    "spectral_filter_kernel": 96,
    "focal_kernel": 96,
    "weight_sum_kernel": 64,
    "focal_mean_kernel": 64,
}


@pytest.fixture(scope="module")
def kernels():
    """The architecture, the name, the registers of a thread and the bytes of its stack, for each kernel."""
    built = native.build_info()
    if not built or not built["cuda"]:
        pytest.skip("the extension is built without CUDA")
    offline = pytest.importorskip("medsora_ops.offline", reason="triton, which brings cuobjdump, is not installed")
    found = []
    for code in offline.resource_usage(Path(native.extension().__file__)).split("arch = sm_")[1:]:
        architecture = int(re.match(r"\d+", code)[0])
        for mangled, *numbers in re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", code):
            (name,) = (name for name in MOST_REGISTERS if name in mangled)
            registers, stack, local = map(int, numbers)
            found.append((architecture, name, registers, stack + local))
    assert {architecture for architecture, *_ in found} == set(built["cuda_architectures"])
    return found


def test_nothing_spills_and_registers_leave_room_for_several_blocks(kernels):
    for architecture, name, registers, stack in kernels:
        assert stack == 0, f"{name} on sm_{architecture}: {stack} bytes of stack"
        assert registers <= MOST_REGISTERS[name], f"{name} on sm_{architecture}: {registers} registers"


def test_a_kernel_for_each_type_and_width_and_few_for_spectra(kernels):
    for architecture in {architecture for architecture, *_ in kernels}:
        count = Counter(name for found, name, *_ in kernels if found == architecture)
        assert count["gather_kernel"] == 4
        assert count["merge_kernel"] == 3 + 2 + 4 + 4
        assert count.total() == 4 + 3 + 2 + 4 + 4 + 4
