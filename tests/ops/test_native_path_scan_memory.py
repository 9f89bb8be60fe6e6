"""What path_scan of the extension takes of memory: nothing but its results, and no matter what it held before."""

import hashlib
import itertools
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from test_native_path_scan import Case, of_extension, of_length, spiral
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medsora_ops import native
from medsora_ops.scan import native as native_scan

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


class Allocations(TorchDispatchMode):
    """Bytes of every new tensor made within."""

    def __init__(self, known):
        super().__init__()
        self.known, self.sizes = {t.untyped_storage().data_ptr() for t in known}, []
        self.kept = []  # alive, so that no address comes twice

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for t in tree_leaves(found):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.known.add(t.untyped_storage().data_ptr())
                self.kept.append(t)
                self.sizes.append(t.untyped_storage().nbytes())
        return found


@pytest.mark.parametrize("length", [4, 48, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_results_are_allocated(dtype, length):
    case = Case((spiral("fw", (length, 3, 1)), spiral("fh", (length, 3, 1))), 40, dtype=dtype)
    tensors, grads = case.tensors()
    parameters = 4 * sum(t.numel() for t in tensors[1:])
    output, rows = grads[0].nbytes, tensors[0].nbytes
    assert parameters < output
    settings = case.settings()
    for wanted, call in (
        ([output, output], lambda: native_scan.path_scan(*tensors, *settings)),
        ([rows], lambda: native_scan.path_scan_backward(grads, *tensors, *settings)),
    ):
        with Allocations([*tensors, *grads]) as made:
            call()
        assert [size for size in made.sizes if size > parameters] == wanted
        assert sum(made.sizes) - sum(wanted) <= 4 * parameters + 4096


PEAK = r"""
    import re, sys, torch
    from pathlib import Path
    from medsora_ops import ScanPath, path_scan, use_backend
    torch.set_num_threads(1)
    sequences, length, heads, head_dim, state = map(int, sys.argv[1:])
    width = heads * head_dim
    mixed = width + 2 * state

    def status(line):
        return int(re.search(line + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    def run(videos, grid):
        rows = torch.empty(videos, grid[0] * grid[2], width + mixed + heads).uniform_(-1, 1).requires_grad_()
        small = [torch.rand(n).requires_grad_() for n in (mixed, heads, heads, heads, width)]
        small[2] = (-small[2].detach()).requires_grad_()
        taps = torch.rand(mixed, 4).requires_grad_()
        grad = torch.ones(videos, grid[0] * grid[2], width)
        resident = status("VmRSS")
        with use_backend("native"):
            out = path_scan(rows, taps, *small, ScanPath.temporal(grid), head_dim=head_dim)
        found = torch.autograd.grad(out, (rows, taps, *small), grad)
        return status("VmHWM") - resident - out.nbytes - sum(g.nbytes for g in found)

    run(1, (3, 1, 2))
    print(run(1, (length, 1, sequences)) / 2**20)
"""


def in_a_process(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", [(512, 16, 16, 64, 32), (1, 8192, 16, 64, 128)], ids=["short", "long"])
def test_peak_memory_is_that_of_inputs_and_results_and_at_most_64_mib(case):
    assert float(in_a_process(PEAK, *case)) < 64


def fingerprint():
    found = hashlib.sha256()
    for length, dtype in itertools.product((3, 48, 300), (torch.float32, torch.bfloat16)):
        for t in tree_leaves(of_extension(Case((of_length(length),), head_dim=7, state=5, taps=5, dtype=dtype))):
            found.update(t.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc to fill what it allocates")
def test_what_fresh_scratch_memory_holds_changes_nothing():
    script = "import test_native_path_scan_memory as test; print(test.fingerprint())"
    assert in_a_process(script, MALLOC_PERTURB_="128").strip() == fingerprint()
