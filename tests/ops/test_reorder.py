"""gather and merge: one the adjoint of the other, on any path, for any strides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medsora_ops import ScanPath, gather, merge, spiral_order, use_backend

sizes = st.integers(1, 6)
BACKENDS = ("reference", None)  # None: what serves by default


@pytest.fixture(params=BACKENDS, ids=lambda name: name or "default")
def backend(request, monkeypatch):
    monkeypatch.delenv("MEDSORA_BACKEND", raising=False)
    if request.param is not None:
        monkeypatch.setenv("MEDSORA_BACKEND", request.param)


def spiral_path(kind, grid, variant=0):
    frames, height, width = grid
    plane = {"fw": (frames, width), "fh": (frames, height), "hw": (height, width)}[kind]
    return ScanPath.plane(kind, grid, spiral_order(*plane, variant))


def test_gather_reads_along_the_path_and_from_its_end(backend):
    path = spiral_path("fh", (3, 2, 4), 5)
    x = torch.randn(2, 24, 5)
    y = gather(x, path)
    assert y.shape == (2, 2, 4, 6, 5)
    assert torch.equal(y[:, 0], x[:, path.tokens()])
    assert torch.equal(y[:, 1], y[:, 0].flip(2))


@given(grid=st.tuples(sizes, sizes, sizes), kind=st.sampled_from(("fw", "fh", "hw")), seed=st.integers(0, 7))
def test_merge_is_the_adjoint_of_gather(grid, kind, seed):
    torch.manual_seed(seed)
    path = spiral_path(kind, grid, seed)
    x = torch.randn(2, path.sequences * path.length, 3, dtype=torch.float64)
    y = torch.randn(2, 2, path.sequences, path.length, 3, dtype=torch.float64)
    for name in ("reference", None):
        with use_backend(name) if name else torch.enable_grad():
            torch.testing.assert_close((gather(x, path) * y).sum(), (x * merge(y, path)).sum())
            assert torch.equal(merge(gather(x, path), path), 2 * x)


def test_each_is_the_gradient_of_the_other(backend):
    path = spiral_path("fw", (3, 2, 4), 2)
    x = torch.randn(2, 24, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 2, 2, 12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(torch.autograd.grad(gather(x, path), x, y)[0], merge(y, path))
    assert torch.equal(torch.autograd.grad(merge(y, path), y, x)[0], gather(x, path))
    assert torch.autograd.gradcheck(lambda x: gather(x, path), x)
    assert torch.autograd.gradcheck(lambda y: merge(y, path), y)
    assert torch.autograd.gradgradcheck(lambda x: gather(x, path) ** 2, x)


def test_any_strides_empty_batches_and_half_types(backend):
    path = spiral_path("hw", (2, 3, 4), 1)
    wide = torch.randn(2, 4, 24, 7)
    for x in (wide[:, 1, :, 2:5], wide.transpose(2, 3)[:, 0].transpose(1, 2), torch.randn(1, 1, 7).expand(2, 24, 7)):
        assert torch.equal(gather(x, path), gather(x.contiguous(), path))
    assert gather(torch.randn(0, 24, 3), path).shape == (0, 2, 2, 12, 3)
    assert merge(torch.randn(0, 2, 2, 12, 3), path).shape == (0, 24, 3)
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.randn(1, 24, 3).to(dtype).requires_grad_()
        y = gather(x, path)
        assert y.dtype == dtype and torch.equal(y, gather(x.float(), path).to(dtype))
        y.sum().backward()  # a gradient with stride 0 everywhere
        assert torch.equal(x.grad, torch.full_like(x, 2))


@pytest.mark.parametrize("operator", ["gather", "merge"])
@pytest.mark.parametrize("backend_name", ["reference", ""])
def test_registered_as_torch_wants_it(operator, backend_name):
    path = spiral_path("fw", (2, 2, 3))
    x = torch.randn(2, 12, 3, requires_grad=True)
    if operator == "merge":
        x = gather(x, path).detach().requires_grad_()
    registered = getattr(torch.ops.medsora_ops, operator).default
    results = torch.library.opcheck(registered, (x, path.offsets(), path.stride, backend_name))
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_whole():
    path = spiral_path("fw", (2, 2, 3))
    x = torch.randn(2, 12, 3, requires_grad=True)

    def use(x):
        return merge(gather(x, path).square(), path).sum()

    torch.testing.assert_close(torch.compile(use, fullgraph=True)(x), use(x))
    (compiled,) = torch.autograd.grad(torch.compile(use, fullgraph=True)(x), x)
    torch.testing.assert_close(compiled, torch.autograd.grad(use(x), x)[0])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda p: gather(torch.zeros(2, 23, 3), p), r"path: got a path over the grid \(2, 3, 4\) of 24 tokens, wants"),
        (lambda p: gather(torch.zeros(2, 24), p), r"x: got shape \(2, 24\), wants \(batch, tokens, channels\)"),
        (lambda p: gather(torch.zeros(2, 24, 3, dtype=torch.int64), p), r"x: got torch.int64, wants a floating point"),
        (lambda p: gather([1.0], p), r"x: got list, wants a tensor"),
        (lambda p: gather(torch.zeros(2, 24, 3), "fw"), r"path: got str, wants a ScanPath"),
        (lambda p: merge(torch.zeros(2, 24, 3), p), r"y: got shape \(2, 24, 3\), wants \(batch, 2, sequences"),
        (lambda p: merge(torch.zeros(2, 2, 4, 6, 3), p), r"y: got shape .* wants \(batch, 2, 3, 8, channels\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, named):
    with pytest.raises(ValueError, match=named):
        call(ScanPath.plane("fw", (2, 3, 4)))
