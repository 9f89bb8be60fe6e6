"""On a GPU only: the scans within a CUDA graph, and after `warmup`."""

import pytest
import torch
from scan_case import Case, run
from test_chunk_scan import ssd_case
from test_tile_scan import taken_whole  # noqa: F401

from medsora_ops import path_scan, ssd_scan, use_backend, warmup
from medsora_ops.launch import INTERPRETED

if INTERPRETED:
    pytest.skip("the interpreter has no graphs", allow_module_level=True)

from triton import knobs  # noqa: E402

HALF = dict(dtype=torch.bfloat16, parameters=torch.float32, head_dim=32, state=32)
CASES = [
    Case(kinds=("fw", "fh"), **HALF),  # in tiles
    Case(kinds=("fw", "fh"), grid=(5, 17, 20), **HALF),  # in blocks
    Case(kinds=("raster",), grid=(1, 17, 20), **HALF),  # chunk by chunk
]


def captured(call):
    """A graph of it, and what it gives."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # kernels are compiled and loaded before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = call()
    return graph, found


@pytest.mark.parametrize("case", CASES, ids=["tiles", "blocks", "chunks"])
def test_path_scan_in_a_graph(device, case):
    """Both ways, on inputs that change after the capture."""
    tensors, grads = case.tensors(device)
    graph, (outputs, found) = captured(lambda: run(case, tensors, grads))
    tensors[0].mul_(-0.5)
    graph.replay()
    right, right_found = run(case, tensors, grads)
    assert all(map(torch.equal, [*outputs, *found], [*right, *right_found]))


def test_ssd_scan_in_a_graph(device):
    arguments, _ = ssd_case(200, heads=2, head_dim=32, state=32)
    x, dt, A, B, C, D, z, dt_bias, _, _, _ = (a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)

    def call():
        given = [t.detach().requires_grad_() for t in (x, dt, A, B, C)]
        with use_backend("triton"):
            y = ssd_scan(*given, D=D, z=z, dt_bias=dt_bias, dt_softplus=True)
        return y.detach(), *torch.autograd.grad(y, given, torch.ones_like(y))

    graph, found = captured(call)
    x.mul_(-0.5)
    graph.replay()
    assert all(map(torch.equal, found, call()))


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kinds", [("fw", "temporal"), ("raster",)], ids=["short", "long"])
def test_nothing_is_left_to_compile_after_warmup(device, kinds, parameters, monkeypatch):
    case = Case(kinds=kinds, grid=(3, 12, 9), heads=3, head_dim=48, state=24, dtype=torch.bfloat16)
    tensors, grads = case.tensors(device)
    tensors[1:] = [t.to(parameters) for t in tensors[1:]]
    tensors[4] = tensors[4].float()  # A, as the layer computes it
    sizes = dict(head_dim=case.head_dim, state=case.state, norm_group_size=case.width)
    assert warmup(case.paths, width=case.width, **sizes, parameters=parameters)
    compiled = []
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **told: compiled.append(told["repr"]))
    run(case, tensors, grads)
    with use_backend("triton"), torch.no_grad():
        path_scan(*tensors, case.paths, **case.settings)
    assert not compiled
