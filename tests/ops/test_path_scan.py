"""path_scan: fixed vectors, the recurrence at every length, directions, groups, types, and its own gradient."""

from pathlib import Path

import pytest
import torch
from recurrence import mixer, mixer_along, mixer_inputs, relative_error
from safetensors.torch import load_file
from sampling import sampled

from medsora_ops import ScanPath, path_scan, spiral_order
from medsora_ops.scan.chunked import CHUNK

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "ssd.safetensors")
NAMES = ("zxbcdt", "conv_weight", "conv_bias", "dt_bias", "A", "D", "norm_weight")
GRID = (3, 2, 4)


def registered(*inputs, head_dim, groups=1, bidirectional=True, eps=1e-5, norm_group_size=None):
    """The operator as torch knows it, which eager mode passes by while the reference serves."""
    *tensors, path = inputs
    paths = path if isinstance(path, tuple) else (path,)
    norm_group_size = norm_group_size or tensors[6].shape[0]
    tables, strides = [p.offsets() for p in paths], [p.stride for p in paths]
    settings = (head_dim, groups, bidirectional, eps, norm_group_size, "")
    outputs = torch.ops.medsora_ops.path_scan(*tensors, tables, strides, *settings)
    return tuple(outputs) if isinstance(path, tuple) else outputs[0]


@pytest.fixture(params=[path_scan, registered], ids=["public", "registered"])
def scan(request):
    return request.param


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_fixed_vectors(case, dtype, bound, scan):
    _, length, _, head_dim, _, groups = GOLDEN[f"{case}.shape"].tolist()
    inputs = [GOLDEN[f"{case}.{name}"].to(dtype).requires_grad_() for name in NAMES]
    path = ScanPath.temporal((length, 1, 1))
    out = scan(*inputs, path, head_dim=head_dim, groups=groups, bidirectional=False)
    assert relative_error(out, GOLDEN[f"{case}.out"]) < bound
    grads = torch.autograd.grad(out, inputs, GOLDEN[f"{case}.grad_out"].to(dtype))
    for name, grad in zip(NAMES, grads, strict=True):
        assert relative_error(grad, GOLDEN[f"{case}.grad.{name}"]) < bound, name


def agree(inputs, got, wanted, bound=1e-10):
    """Outputs and all gradients agree, under one random gradient."""
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=wanted.dtype)
    assert got.shape == wanted.shape and relative_error(got, wanted) < bound
    wanted_grads = torch.autograd.grad(wanted, inputs, grad)
    for name, g, w in zip(NAMES, torch.autograd.grad(got, inputs, grad), wanted_grads, strict=False):
        assert relative_error(g, w) < bound, name


@pytest.mark.parametrize(
    "length", [*sampled(range(1, 131), 14), 1, 2, 3, 4, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1]
)
def test_every_length_agrees_with_the_recurrence(length):
    inputs = mixer_inputs(2, length, 8, 4, 3, seed=length)
    got = path_scan(*inputs, ScanPath.raster((1, 1, length)), head_dim=4, bidirectional=False)
    agree(inputs, got, mixer(*inputs, head_dim=4, groups=1))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("norm_group_size", [None, 8, 4])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_groups_norm_groups_and_directions(groups, norm_group_size, bidirectional):
    inputs = mixer_inputs(2, 24, 16, 4, 3, groups)
    path = ScanPath.plane("fh", GRID, spiral_order(3, 2, 5))
    settings = dict(head_dim=4, groups=groups, norm_group_size=norm_group_size, bidirectional=bidirectional, eps=1e-3)
    agree(inputs, path_scan(*inputs, path, **settings), mixer_along(path, *inputs, **settings))


@pytest.mark.parametrize("kind", ["fw", "fh", "hw", "temporal", "raster"])
def test_every_path(kind, scan):
    inputs = mixer_inputs(2, 24, 8, 4, 3)
    path = getattr(ScanPath, kind)(GRID) if kind in ("temporal", "raster") else ScanPath.plane(kind, GRID)
    agree(inputs, scan(*inputs, path, head_dim=4), mixer_along(path, *inputs, head_dim=4, groups=1))


@pytest.mark.parametrize(
    ("width", "head_dim", "state", "taps"), [(1, 1, 1, 1), (4, 4, 1, 2), (6, 2, 5, 4), (7, 7, 2, 3), (8, 8, 3, 9)]
)
def test_odd_sizes(width, head_dim, state, taps):
    inputs = mixer_inputs(1, 5, width, head_dim, state, taps=taps)
    path = ScanPath.raster((1, 1, 5))
    settings = dict(head_dim=head_dim, groups=1)
    agree(inputs, path_scan(*inputs, path, **settings), mixer_along(path, *inputs, **settings))


def test_without_a_convolution_bias(scan):
    inputs = mixer_inputs(1, 24, 8, 4, 3)
    given = [*inputs[:2], None, *inputs[3:]]
    path = ScanPath.temporal(GRID)
    left = [*inputs[:2], *inputs[3:]]
    agree(left, scan(*given, path, head_dim=4), mixer_along(path, *given, head_dim=4, groups=1))


def test_several_paths_from_one_read(scan):
    inputs = mixer_inputs(2, 24, 8, 4, 3)
    paths = (ScanPath.plane("fw", GRID, spiral_order(3, 4)), ScanPath.plane("fh", GRID))
    outputs = scan(*inputs, paths, head_dim=4)
    assert isinstance(outputs, tuple)
    singles = [path_scan(*inputs, path, head_dim=4) for path in paths]
    agree(inputs, outputs[0] + outputs[1].square(), singles[0] + singles[1].square())
    (one,) = scan(*inputs, paths[:1], head_dim=4)
    assert torch.equal(one, singles[0])
    (first_unused,) = torch.autograd.grad(scan(*inputs, paths, head_dim=4)[1].sum(), inputs[:1])
    (wanted,) = torch.autograd.grad(path_scan(*inputs, paths[1], head_dim=4).sum(), inputs[:1])
    assert relative_error(first_unused, wanted) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [7, 2 * CHUNK + 3])
def test_half_types_lose_little_more_than_their_rounding(dtype, length, scan):
    half = mixer_inputs(1, length, 32, 16, 8, dtype=dtype)
    exact = [t.detach().double().requires_grad_() for t in half]
    path = ScanPath.raster((1, 1, length))
    out, wanted = scan(*half, path, head_dim=16), mixer_along(path, *exact, head_dim=16, groups=1)
    assert out.dtype == dtype
    assert relative_error(out, wanted) <= 1.1 * relative_error(wanted.to(dtype), wanted)
    grad = torch.randn(out.shape, dtype=dtype)
    grads, wanted = (torch.autograd.grad(o, i, grad.to(o.dtype)) for o, i in ((out, half), (wanted, exact)))
    for name, g, w in zip(NAMES, grads, wanted, strict=True):
        assert g.dtype == dtype
        assert relative_error(g, w) <= 2 * max(relative_error(w.to(dtype), w), torch.finfo(dtype).eps / 4), name


def test_float32_parameters_beside_half_tokens_and_under_autocast(scan):
    inputs = [t.detach() for t in mixer_inputs(1, 24, 8, 4, 3, dtype=torch.float32)]
    rows = inputs[0].bfloat16()
    path = ScanPath.temporal(GRID)
    wanted = scan(rows.float(), *inputs[1:], path, head_dim=4).bfloat16()
    assert torch.equal(scan(rows, *inputs[1:], path, head_dim=4), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scan(rows, *inputs[1:], path, head_dim=4), wanted)


def test_the_same_bits_every_time_and_for_each_video_alone(scan):
    inputs = mixer_inputs(3, 24, 16, 8, 4, dtype=torch.float32)
    path = ScanPath.plane("fw", GRID, spiral_order(3, 4, 2))

    def run(first):
        out = scan(inputs[0][first:], *inputs[1:], path, head_dim=8)
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    once, again = run(0), run(0)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    torch.testing.assert_close(run(2)[0][0], once[0][2])


def test_strides_expanded_gradients_poisoned_memory_and_empty_batches(scan):
    inputs = mixer_inputs(2, 24, 8, 4, 3)
    path = ScanPath.plane("hw", GRID)
    rows = inputs[0].detach()
    strided = torch.stack((rows, rows + 1), dim=-1).transpose(0, 1)[..., 0].transpose(0, 1)
    assert not strided.is_contiguous()
    torch.use_deterministic_algorithms(True)  # fresh memory then holds NaN
    try:
        out = scan(strided.requires_grad_(), *inputs[1:], path, head_dim=4)
        (grad,) = torch.autograd.grad(out.sum(), strided)
    finally:
        torch.use_deterministic_algorithms(False)
    wanted = scan(*inputs, path, head_dim=4)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(grad, torch.autograd.grad(wanted, inputs[0], torch.ones_like(wanted))[0])
    empty = inputs[0][:0].detach().requires_grad_()
    out = scan(empty, *inputs[1:], path, head_dim=4)
    assert out.shape == (0, 24, 8)
    grads = torch.autograd.grad(out.sum(), (empty, *inputs[1:]))
    assert grads[0].shape == empty.shape and all(g.eq(0).all() for g in grads)


def test_strong_decay_does_not_spoil_the_gradient():
    inputs = mixer_inputs(1, 40, 8, 4, 3, dtype=torch.float32)
    with torch.no_grad():
        inputs[3].fill_(60)
        inputs[4].fill_(-50)
    out = path_scan(*inputs, ScanPath.raster((1, 1, 40)), head_dim=4)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), inputs))


def test_gradcheck(scan):
    inputs = mixer_inputs(1, 6, 4, 2, 2, groups=2)
    paths = (ScanPath.plane("fw", (3, 1, 2), spiral_order(3, 2)), ScanPath.temporal((3, 1, 2)))
    assert torch.autograd.gradcheck(lambda *t: scan(*t, paths, head_dim=2, groups=2), inputs)
    long = mixer_inputs(1, CHUNK + 2, 2, 2, 1)
    path = ScanPath.raster((1, 1, CHUNK + 2))
    assert torch.autograd.gradcheck(lambda *t: scan(*t, path, head_dim=2), long, fast_mode=True)


@pytest.mark.parametrize("conv_bias", [True, False])
def test_registered_as_torch_wants_it(conv_bias):
    inputs = mixer_inputs(2, 24, 8, 4, 3, dtype=torch.float32)
    inputs[2] = inputs[2] if conv_bias else None
    paths = (ScanPath.plane("fw", GRID), ScanPath.temporal(GRID))
    tables, strides = [p.offsets() for p in paths], [p.stride for p in paths]
    arguments = (*inputs, tables, strides, 4, 1, True, 1e-5, 8, "")
    results = torch.library.opcheck(torch.ops.medsora_ops.path_scan.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    tensors = [None if t is None else t.detach() for t in inputs]
    grads = [torch.randn(2, 24, 8) for _ in paths]
    backward = torch.ops.medsora_ops.path_scan_backward.default
    results = torch.library.opcheck(backward, (grads, *tensors, *arguments[7:]))
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_whole_forward_and_backward():
    inputs = mixer_inputs(2, 24, 8, 4, 3)
    paths = (ScanPath.plane("fw", GRID, spiral_order(3, 4)), ScanPath.plane("fh", GRID))

    def use(*inputs):
        first, second = path_scan(*inputs, paths, head_dim=4)
        return first * 2 + second.sin()

    agree(inputs, torch.compile(use, fullgraph=True)(*inputs), use(*inputs))


def change(index, value):
    """Arguments that fit, but for one."""

    def made():
        inputs = [t.detach() for t in mixer_inputs(1, 24, 8, 4, 3, dtype=torch.float32)]
        inputs[index] = value(inputs[index])
        return inputs

    return made


FITTING = change(0, lambda t: t)
PATH = ScanPath.plane("fw", GRID)


@pytest.mark.parametrize(
    ("inputs", "options", "named"),
    [
        (change(0, lambda t: t[0]), {}, r"zxbcdt: got shape \(24, 24\), wants \(batch, tokens, 2E"),
        (change(0, lambda t: t[..., 1:]), {}, r"zxbcdt: got shape \(1, 24, 23\), wants 24 channels: z 8, x 8, B"),
        (change(0, lambda t: t.int()), {}, r"zxbcdt: got torch.int32, wants a floating point dtype"),
        (change(0, lambda t: t[:, :23]), {}, r"path: got a path over the grid \(3, 2, 4\) of 24 tokens, wants .* 23 "),
        (change(0, lambda t: t.half()), {}, None),
        (change(0, lambda t: t.double()), {}, None),
        (change(1, lambda t: t[:-1]), {}, r"conv_weight: got shape \(13, 4\), wants \(8 \+ 2 \* 1 \* state size, taps"),
        (change(1, lambda t: t[:, None]), {}, r"conv_weight: got shape \(14, 1, 4\)"),
        (change(1, lambda t: t.half()), {}, r"conv_weight: got torch.float16, wants that of zxbcdt, torch.float32$"),
        (change(2, lambda t: t[1:]), {}, r"conv_bias: got shape \(13,\), wants \(14,\)"),
        (change(3, lambda t: t[1:]), {}, r"dt_bias: got shape \(1,\), wants \(2,\)"),
        (change(4, lambda t: t.to("meta")), {}, r"A: got device meta, wants that of zxbcdt, cpu"),
        (change(4, lambda t: None), {}, r"A: got NoneType, wants a tensor \(heads,\)"),
        (change(5, lambda t: t.bfloat16()), {}, r"D: got torch.bfloat16, wants that of zxbcdt, torch.float32"),
        (change(6, lambda t: t[:, None]), {}, r"norm_weight: got shape \(8, 1\), wants \(E,\)"),
        (FITTING, {"head_dim": 3}, r"head_dim: got 3, wants an integer of at least 1 that divides the width .* 8"),
        (FITTING, {"head_dim": 4.0}, r"head_dim: got 4.0"),
        (FITTING, {"groups": 3}, r"groups: got 3, wants .* the number of heads, 2"),
        (FITTING, {"norm_group_size": 5}, r"norm_group_size: got 5"),
        (FITTING, {"path": "fw"}, r"path: got str, wants a ScanPath"),
        (FITTING, {"path": ()}, r"path: got an empty tuple"),
        (FITTING, {"path": (PATH, ScanPath.raster((1, 1, 8)))}, r"path: got a path over the grid \(1, 1, 8\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(inputs, options, named):
    options = {"path": PATH, "head_dim": 4} | options
    if named is None:
        assert path_scan(*inputs(), **options).shape == (1, 24, 8)
        return
    with pytest.raises(ValueError, match=named):
        path_scan(*inputs(), **options)
