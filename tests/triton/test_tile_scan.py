"""path_scan of short sequences by Triton kernels against its float64 definition."""

import itertools
from dataclasses import replace

import pytest
import torch
from sampling import sampled
from scan_case import Case, check, compare, run

from medsora_ops import dispatch, path_scan, use_backend
from medsora_ops.launch import INTERPRETED
from medsora_ops.scan import tile_launch
from medsora_ops.scan import triton as triton_scans
from medsora_ops.scan.tile_launch import Mixer, TileConfig

HALF = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def taken_whole(monkeypatch):
    """Also on a chip that these few sequences do not fill, where they would go chunk by chunk."""
    monkeypatch.setattr(triton_scans, "_HEADS_APART", 10**9)


@pytest.mark.parametrize("length", sampled(range(1, 65), 5))
def test_every_length(device, length):
    """Raster paths of `length` tokens in 5 videos, packed into tiles of 64."""
    check(Case(kinds=("raster",), grid=(1, 1, length), batch=5, seed=length), device)


@pytest.mark.parametrize(
    "change",
    [
        dict(kinds=("fw", "fh", "hw", "temporal")),
        dict(kinds=("hw",), bidirectional=False),
        dict(kinds=("temporal",), grid=(6, 5, 4), batch=2),
        dict(heads=3, head_dim=24, state=20),
        dict(heads=3, head_dim=5, state=7),
        dict(heads=4, groups=2, norm_groups=2),
        dict(heads=2, groups=2, state=5),
        dict(heads=1, head_dim=40, state=128),
        dict(heads=2, head_dim=128),
        dict(heads=2, head_dim=80),
        dict(taps=1),
        dict(taps=2, bias=False),
        dict(grid=(1, 1, 1)),
        dict(grid=(1, 1, 1), kinds=("fw", "fw")),
        dict(batch=0, kinds=("fw", "fh")),
    ],
    ids=str,
)
def test_every_shape(device, change):
    check(replace(Case(), **change), device)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("parameters", [None, torch.float32])
def test_half_types(device, dtype, parameters):
    check(Case(kinds=("fw", "fh"), heads=4, head_dim=32, state=32, dtype=dtype, parameters=parameters), device)


CHOICES = [(16, 32, 64)] * 3
CONFIGS = [  # every three of the sizes, and every two of all that is chosen
    TileConfig(
        *(sizes[i] for sizes, i in zip(CHOICES, at, strict=True)),
        programs=(1, 2, 4)[sum(at) % 3],
        num_warps=(4, 8, 16)[(sum(at) + at[1]) % 3],
    )
    for at in itertools.product(range(3), repeat=3)
]


@pytest.mark.parametrize("config", sampled(CONFIGS, 4), ids=str)
def test_every_way_of_cutting(device, config):
    case = Case(kinds=("fw", "temporal"), grid=(2, 3, 5), batch=2, heads=1, head_dim=40, state=40, seed=3)
    tensors, grads = case.tensors(device)
    rows, *parameters = tensors
    tables, strides = [p.offsets(device) for p in case.paths], [p.stride for p in case.paths]
    mixer = Mixer.of(parameters[0], parameters[2], parameters[5], *case.settings.values())
    outputs = tile_launch.forward(rows, parameters, tables, strides, mixer, config)
    grad_rows = torch.empty_like(rows)
    found = tile_launch.backward(grads, grad_rows, rows, parameters, tables, strides, mixer, config)
    compare(case, tensors, grads, outputs, [grad_rows, *found])


STRIDED = dict(kinds=("fw", "hw")), dict(kinds=("raster", "fw"), grid=(1, 1, 70), heads=1, bidirectional=False)


@pytest.mark.parametrize("change", STRIDED, ids=["tiles", "blocks"])
def test_any_strides(device, change):
    """Rows cut out of wider ones, videos every other one, or all the same one; channels apart; parameters with gaps.

    Gradients expanded over channels.
    """
    case = Case(batch=2, **change)
    (rows, *parameters), grads = case.tensors(device)
    wide = torch.full((4, rows.shape[1], rows.shape[2] + 7), float("nan"), device=device)
    wide[::2, :, 3:-4] = rows
    one = torch.randn(1, rows.shape[1], 1, device=device).expand(2, -1, case.width)
    check(case, device, [wide[::2, :, 3:-4], *parameters], [one, grads[1]])
    apart = rows.transpose(1, 2).contiguous().transpose(1, 2)
    gaps = [torch.stack([p, p], dim=-1)[..., 0] for p in parameters]
    assert not any(gap.is_contiguous() for gap in gaps if gap.numel() > 1)
    check(case, device, [apart, *gaps], grads)
    check(case, device, [rows[:1].expand_as(rows), *parameters], grads)


@pytest.mark.parametrize("length", [40, 70])
def test_a_bad_number_stays_in_its_video(device, length):
    """A NaN may reach the sequences that share its tile, here none, and never others."""
    case = Case(kinds=("raster",), grid=(1, 1, length), batch=3, heads=1)
    tensors, grads = case.tensors(device)
    before, _ = run(case, tensors, grads)
    tensors[0][1, 5] = float("nan")
    after, found = run(case, tensors, grads)
    assert after[0][1].isnan().any() and torch.equal(after[0][[0, 2]], before[0][[0, 2]])
    assert found[0][[0, 2]].isfinite().all()


@pytest.mark.parametrize("length", [12, 70])
def test_without_an_epsilon(device, length):
    """Where a tile holds no token the norm divides by zero."""

    class Case0(Case):
        @property
        def settings(self):
            return super().settings | {"eps": 0.0}

    check(Case0(kinds=("raster",), grid=(1, 1, length), heads=1, bidirectional=False), device)


@pytest.mark.parametrize("ordinary", [True, False])
def test_double_backward_is_refused(device, ordinary, monkeypatch):
    """Also where the gradient that comes in is a constant, and whichever way the operator is called."""
    case = Case()
    tensors, _ = case.tensors(device)
    rows = tensors[0].requires_grad_()
    if not ordinary:  # then by torch's library
        monkeypatch.setattr(dispatch, "_ordinary", lambda _: False)
    with use_backend("triton"):
        (out,) = path_scan(*tensors, case.paths, **case.settings)
        (grad,) = torch.autograd.grad(out.sum(), rows, create_graph=True)
    for loss in (grad.sum(), grad.square().sum()):
        with pytest.raises(RuntimeError, match="path_scan: cannot differentiate twice"):
            torch.autograd.grad(loss, rows, retain_graph=True)


@pytest.mark.parametrize("what", ["dtype", "head_dim"])
def test_what_is_not_served_says_so(device, what):
    case = Case(head_dim=512) if what == "head_dim" else Case(dtype=torch.float64)
    tensors, _ = case.tensors(device)
    with use_backend("triton"), pytest.raises(ValueError, match="backend 'triton' cannot serve path_scan"):
        path_scan(*tensors, case.paths, **case.settings)


def test_torch_compile_sees_one_node(device):
    case = Case(kinds=("fw", "fh"))
    tensors, grads = case.tensors(device)
    expected, _ = run(case, tensors, grads)
    graphs = []

    def look(graph, _):
        graphs.append(graph)
        return graph.forward

    paths, settings = case.paths, case.settings
    compiled = torch.compile(lambda *t: path_scan(*t, paths, **settings), fullgraph=True, backend=look)
    with use_backend("triton"), torch.no_grad():
        found = compiled(*tensors)
    targets = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("path_scan" in target for target in targets) == 1 and len(targets) <= 3  # and a choice of each result
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_opcheck(device):
    case = Case(grid=(1, 2, 3))
    tensors, _ = case.tensors(device)
    tables, strides = [p.offsets(device) for p in case.paths], [p.stride for p in case.paths]
    arguments = (*(t.requires_grad_() for t in tensors), tables, strides, *case.settings.values(), "triton")
    torch.use_deterministic_algorithms(False)  # it compares fresh outputs of runs that fill none
    torch.library.opcheck(torch.ops.medsora_ops.path_scan.default, arguments)
