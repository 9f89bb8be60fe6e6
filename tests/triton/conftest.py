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
    from triton.runtime.interpreter import InterpretedFunction

    # The interpreter patches triton.language at a launch, and once more, to no effect, in each function that the kernel
    # calls: a third of the time of these tests.
    InterpretedFunction.__call__ = lambda function, *args, **kwargs: function.rewrite()(*args, **kwargs)


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
