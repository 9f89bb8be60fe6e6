"""What every benchmark shares: one seed, and a check of the result before its time is taken."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def checked(benchmark):
    """Time `variant()` after comparing what it returns with `expected` (relative RMS error at most `tolerance`)."""

    def run(variant, expected, tolerance=1e-4):
        got, want = torch.as_tensor(variant()).double(), torch.as_tensor(expected).double()
        error = float((got - want).square().mean().sqrt() / want.square().mean().sqrt().clamp_min(1e-30))
        assert error <= tolerance, (
            f"relative RMS error {error:.2e} against the reference, wants at most {tolerance:.0e}"
        )
        benchmark.pedantic(variant, rounds=15, warmup_rounds=3)
        benchmark.extra_info.update(relative_rms_error=error, threads=torch.get_num_threads(), torch=torch.__version__)

    return run
