"""What every native operator promises and timing cannot show: memory, threads, forks, and calls from many threads."""

import concurrent.futures
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from medsora_ops import (
    ScanPath,
    backend_report,
    focal_frequency_loss,
    gather,
    merge,
    native,
    path_scan,
    spectral_filter,
    spiral_order,
    ssd_scan,
    use_backend,
)

NATIVE = [row.operator for row in backend_report() if row.backend == "native" and row.available]
pytestmark = pytest.mark.skipif(not NATIVE, reason="no operator has a native implementation here")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and forks")

# Enough for several threads of an operator, too little for torch to use more than one in its own: in a forked child its
# threads are gone.
MOST_ELEMENTS = 32768


def spiral(size, height=6):
    return ScanPath.plane("fw", (4, height, size), spiral_order(4, size))


def gather_case(size, random):
    return lambda x: gather(x, spiral(size)), [random(1, 24 * size, 130)]


def merge_case(size, random):
    return lambda y: merge(y, spiral(size, height=4)), [random(1, 2, 4, 4 * size, 128)]


def path_scan_case(size, random):
    paths = (spiral(size), ScanPath.temporal((4, 6, size)))
    parameters = [random(96, 4), random(96), random(2), -1 - random(2).abs(), random(2), random(64)]
    return lambda *tensors: path_scan(*tensors, paths, head_dim=32), [random(1, 24 * size, 162), *parameters]


def ssd_scan_case(size, random):
    tensors = [random(1, 16 * size, 16, 16), random(1, 16 * size, 16).abs(), -random(16).abs()]
    tensors += [random(1, 16 * size, 1, 32), random(1, 16 * size, 1, 32)]
    return ssd_scan, tensors


def spectral_filter_case(size, random):
    weight = torch.complex(random(4, 8 * size, 25), random(4, 8 * size, 25))
    return spectral_filter, [random(2, 4, 8 * size, 48), weight]


def focal_frequency_loss_case(size, random):
    return focal_frequency_loss, [random(2, 4, 8 * size, 48), random(2, 4, 8 * size, 48)]


def results(operator, seed=0, size=8):
    """Outputs and the gradients of all inputs, as bytes."""
    generator = torch.Generator().manual_seed(seed)
    function, tensors = globals()[f"{operator}_case"](size, lambda *shape: torch.randn(shape, generator=generator))
    assert max(t.numel() for t in tensors) <= MOST_ELEMENTS
    tensors = [t.requires_grad_() for t in tensors]
    with use_backend("native"):
        outputs = function(*tensors)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    grads = [torch.randn(out.shape, generator=generator) for out in outputs]
    found = [*outputs, *torch.autograd.grad(outputs, tensors, grads)]
    return b"".join(t.detach().contiguous().view(-1).numpy().tobytes() for t in found)


@pytest.fixture
def many_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("operator", NATIVE)
def test_the_thread_count_changes_no_bit(operator, many_threads):
    several = results(operator)
    torch.set_num_threads(1)
    assert results(operator) == several == results(operator)


@pytest.mark.parametrize("operator", NATIVE)
def test_calls_from_several_python_threads_do_not_meet(operator, many_threads):
    seeds = range(4)
    alone = [results(operator, seed) for seed in seeds]

    def repeated(seed):
        torch.set_num_threads(1 + seed % 2)
        return {results(operator, seed) for _ in range(10)}

    with concurrent.futures.ThreadPoolExecutor(len(seeds)) as pool:
        together = list(pool.map(repeated, seeds))
    assert together == [{one} for one in alone]


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@on_linux
@pytest.mark.parametrize("operator", NATIVE)
def test_memory_does_not_grow_from_call_to_call(operator):
    def call(times):
        for i in range(times):
            results(operator, size=3 + i % 6)

    call(120)
    before = resident_bytes()
    call(300)
    assert resident_bytes() - before < 300 * 4096, "more than a page a call"


@pytest.fixture(scope="module")
def in_other_processes():
    """What becomes of each operator in processes forked before and after there are threads."""
    script = """
        import json, os, sys, torch
        from medsora_ops import native
        from test_native_promises import NATIVE, results

        def threads():
            return len(os.listdir("/proc/self/task"))

        def in_child(work):
            ends = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(ends[1], json.dumps(work()).encode())
                os._exit(0)
            os.close(ends[1])
            with os.fdopen(ends[0]) as answer:
                text = answer.read()
            assert os.waitpid(child, 0)[1] == 0
            return json.loads(text)

        def woken(operator, wanted):
            native._forked = False  # no threads were lost: this process has not had any
            torch.set_num_threads(wanted)
            before = threads()
            results(operator)
            return threads() - before

        told = {operator: {"woken": [in_child(lambda: woken(operator, n)) for n in (1, 2, 3)]} for operator in NATIVE}
        torch.set_num_threads(3)
        for operator in NATIVE:
            expected = results(operator)
            assert threads() > 1
            told[operator]["same"] = in_child(lambda: native.threads() == 1 and results(operator) == expected)
        print(json.dumps(told))
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@on_linux
@pytest.mark.parametrize("operator", NATIVE)
def test_a_forked_child_gets_the_same_bits_without_threads(operator, in_other_processes):
    assert in_other_processes[operator]["same"]


@on_linux
@pytest.mark.parametrize("operator", NATIVE)
def test_as_many_threads_as_torch_is_told(operator, in_other_processes):
    if not native.extension().build_info()["openmp"]:
        pytest.skip("this build has no OpenMP")
    assert in_other_processes[operator]["woken"] == [0, 1, 2]
