"""The Triton kernels are tested natively where torch sees a GPU, else in Triton's interpreter, chosen for the process:

TRITON_INTERPRET=1 pytest tests/triton

Without either nothing here is collected; `make test` and `make test-gpu` see to it.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

from medsora_ops.launch import INTERPRETED

# Without it cuBLAS refuses every product while deterministic algorithms are demanded; read when a GPU is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))  # where the oracles are

if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]

if INTERPRETED:
    from triton.language import core
    from triton.runtime import interpreter

    def call_from_a_kernel(function, *args, **kwargs):
        """Triton patches triton.language at each launch and again in each call within a kernel: a third of the time of
        these tests, of use only to functions of Triton's own such as `zeros`, the first time."""
        if function.fn.__globals__.get("core") is core and core.is_builtin(core.full):
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call_from_a_kernel


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
