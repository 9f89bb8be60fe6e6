"""The chain of separate kernels, to which the benchmarks on GPUs compare, against the definition in float64."""

import pytest
import torch
from scan_case import Case, compare

from benchmarks.gpu import chain
from benchmarks.harness.case import Unavailable


def run_chain(case, tensors, grads):
    tensors = [t.detach().requires_grad_() for t in tensors]
    outputs = chain.chain_path_scan(
        *tensors, case.paths, head_dim=case.head_dim, bidirectional=case.bidirectional, eps=case.settings["eps"]
    )
    return [out.detach() for out in outputs], torch.autograd.grad(outputs, tensors, grads)


@pytest.mark.parametrize("longest, block", [(128, 64), (20, 16)])
@pytest.mark.parametrize(
    "case",
    [
        Case(kinds=("fw", "temporal"), grid=(3, 2, 2), batch=2),
        Case(kinds=("raster",), grid=(2, 4, 5), heads=3, head_dim=24, state=20),
        Case(kinds=("hw",), grid=(2, 1, 5), taps=2, bidirectional=False),
    ],
    ids=["two_paths", "several_chunks", "one_direction"],
)
def test_the_chain_is_right(device, monkeypatch, case, longest, block):
    monkeypatch.setattr(chain, "LONGEST_CHUNK", longest)
    monkeypatch.setattr(chain, "BLOCK", block)
    tensors, grads = case.tensors(device)
    compare(case, tensors, grads, *run_chain(case, tensors, grads))


def test_the_chain_refuses_uneven_chunks(device, monkeypatch):
    monkeypatch.setattr(chain, "LONGEST_CHUNK", 4)
    case = Case(kinds=("raster",), grid=(1, 1, 6))
    with pytest.raises(Unavailable, match="multiples"):
        run_chain(case, *case.tensors(device))
