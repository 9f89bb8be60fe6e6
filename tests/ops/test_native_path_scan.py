"""path_scan of the extension against its float64 definition, on every instruction set of this machine.

An error may be at most twice what the definition makes in the same dtype.
"""

import functools
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from recurrence import mixer_along, mixer_inputs, relative_error
from safetensors.torch import load_file
from sampling import sampled
from torch.utils._pytree import tree_leaves

from medsora_ops import GridMamba2, ScanPath, native, path_scan, spiral_order, use_backend
from medsora_ops.backends import select
from medsora_ops.scan import native as native_scan
from medsora_ops.scan import reference

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

ISAS = native.extension().build_info()["isa_supported"] if native.unavailable() is None else []
GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "ssd.safetensors")
NAMES = ("zxbcdt", "conv_weight", "conv_bias", "dt_bias", "A", "D", "norm_weight")
ONE_A_HEAD = ("dt_bias", "A", "D")
FEW = 64  # numbers
KINDS = ("fw", "fh", "hw", "temporal", "raster")
# Both sides of where the extension changes its ways: sequences packed into a tile up to 8 steps, one tile up to 256,
# chunks of at most 128 beyond; and of vectors and register tiles.
BOUNDARIES = (1, 2, 5, 7, 8, 9, 15, 16, 17, 128, 255, 256, 257, 384, 385, 511, 512, 513, 1023, 1024, 1025)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    paths: tuple[ScanPath, ...]
    batch: int = 2
    heads: int = 2
    head_dim: int = 32
    state: int = 16
    groups: int = 1
    taps: int = 4
    norm_groups: int = 1
    bias: bool = True
    bidirectional: bool = True
    eps: float = 0.1  # a row that happens to be near zero must not blow up its rounding errors beyond all others
    dtype: torch.dtype = torch.float32
    parameters: torch.dtype = torch.float32
    bias_and_A: tuple[float, float] | None = None  # of dt, the same for all heads
    seed: int = 0

    def tensors(self):
        """The seven tensors of `path_scan`, and a gradient for each output."""
        tokens, width = self.paths[0].sequences * self.paths[0].length, self.heads * self.head_dim
        sizes = (self.batch, tokens, width, self.head_dim, self.state, self.groups, self.taps)
        rows, *parameters = (t.detach() for t in mixer_inputs(*sizes, seed=self.seed))
        made = torch.Generator().manual_seed(self.seed + 1)
        grads = [torch.randn(self.batch, tokens, width, generator=made).to(self.dtype) for _ in self.paths]
        if self.bias_and_A is not None:
            for parameter, value in zip(parameters[2:4], self.bias_and_A, strict=True):
                parameter.fill_(value)
        parameters = [t.to(self.parameters) for t in parameters]
        if not self.bias:
            parameters[1] = None
        return [rows.to(self.dtype), *parameters], grads

    def settings(self):
        """What stands behind the tensors."""
        width = self.heads * self.head_dim
        tables, strides = [p.offsets() for p in self.paths], [p.stride for p in self.paths]
        return tables, strides, self.head_dim, self.groups, self.bidirectional, self.eps, width // self.norm_groups


def results(implementation, tensors, grads, settings):
    """Outputs, then the gradients of all tensors by their names."""
    given = [name for name, t in zip(NAMES, tensors, strict=True) if t is not None]
    found = implementation.path_scan_backward(grads, *tensors, *settings)
    return implementation.path_scan(*tensors, *settings), dict(zip(given, found, strict=True))


def of_extension(case):
    return results(native_scan, *case.tensors(), case.settings())


@functools.lru_cache(maxsize=256)
def of_definition(case):
    """In the case's own types and in float64."""
    tensors, grads = case.tensors()
    exact = [None if t is None else t.double() for t in tensors], [g.double() for g in grads]
    return results(reference, tensors, grads, case.settings()), results(reference, *exact, case.settings())


ROUNDING = 2**-24  # of float32: how exact plain PyTorch is by luck depends on the processor's libraries


def too_far(found, plain, right, what, times=2):
    """None if `found` is at most so many times as far from `right` as `plain` is, else both errors in words."""
    assert found.dtype == plain.dtype and found.shape == plain.shape, what
    error, allowed = relative_error(found, right), times * relative_error(plain, right) + ROUNDING
    return None if error <= allowed else f"{what}: error {error:.2e}, allowed {allowed:.2e}"


def judge_all(cases):
    """Outputs and large gradients of every case; gradients of few numbers of all cases at once.

    Each of the latter is one sum with one rounding error, which either side may have small by luck: only many together
    tell how exact it is. Random contributions add up to about the root of their number, by which cases are weighed.
    """
    faults, pools = [], {name: ([], [], []) for name in NAMES}
    for case in cases:
        outputs, grads = of_extension(case)
        (plain_outputs, plain_grads), (right_outputs, right_grads) = of_definition(case)
        for trio in zip(outputs, plain_outputs, right_outputs, strict=True):
            faults.append(too_far(*trio, f"output of {case}"))
        for name, right in right_grads.items():
            trio = grads[name], plain_grads[name], right
            if name not in ONE_A_HEAD and right.numel() >= FEW:
                faults.append(too_far(*trio, f"gradient of {name} in {case}"))
                continue
            for pool, one in zip(pools[name], trio, strict=True):
                pool.append(one.double().flatten() * outputs[0].numel() ** -0.5)
    for name, pool in pools.items():
        if name in ONE_A_HEAD or pool[0]:
            found, plain, right = map(torch.cat, pool)
            assert len(right) >= FEW // 2, f"too few gradients of {name} to tell"
            faults.append(too_far(found, plain, right, f"gradients of {name}"))
    assert not any(faults), "\n".join(filter(None, faults))


def spiral(kind, grid, variant=6):
    if kind in ("temporal", "raster"):
        return getattr(ScanPath, kind)(grid)
    frames, height, width = grid
    rows, cols = {"fw": (frames, width), "fh": (frames, height), "hw": (height, width)}[kind]
    return ScanPath.plane(kind, grid, spiral_order(rows, cols, variant))


def of_length(length):
    """Short sequences are many, so that some share a tile and the last tile is not full."""
    return ScanPath.temporal((length, 1, 11 if length <= 17 else 2 if length <= 130 else 1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_length(dtype, isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    lengths = sorted({*sampled(range(1, 131), 14), *BOUNDARIES})
    judge_all([Case((of_length(length),), dtype=dtype, seed=length) for length in lengths])


STATES = (1, 3, 16, 17, 33, 64, 128, 256)
SIZES = [
    (head_dim, state, groups, length)
    for head_dim, state, groups, length in itertools.product(
        (1, 5, 7, 32, 33, 64, 128), STATES, (1, 2, 4), (6, 48, 300)
    )
    if head_dim * state * length <= 1 << 20
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_dimensions_states_and_groups(dtype, isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    judge_all(
        Case((of_length(length),), 1, 4, head_dim, state, groups, dtype=dtype)
        for head_dim, state, groups, length in sampled(SIZES, 14)
    )


WAYS = [
    Case((spiral(kind, grid, variant),), 2, 4, 8, 5, 2, taps, norm_groups, bias, bidirectional)
    for kind, grid, variant, taps, norm_groups, bias, bidirectional in itertools.product(
        KINDS, ((3, 2, 4), (1, 5, 3), (12, 4, 6), (2, 17, 16)), range(0, 8, 3), range(1, 10), (1, 4, 32), (0, 1), (0, 1)
    )
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("dtype", "parameters"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
def test_paths_taps_norm_groups_bias_and_directions(dtype, parameters, isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    judge_all(replace(case, dtype=dtype, parameters=parameters) for case in sampled(WAYS, 16))


def test_several_paths_share_one_gradient():
    for grid, dtype in itertools.product(((3, 2, 4), (16, 4, 6)), (torch.float32, torch.bfloat16)):
        paths = tuple(spiral(kind, grid) for kind in ("fw", "fh"))
        judge_all(Case(paths, heads=8, head_dim=4, dtype=dtype, seed=seed) for seed in range(4))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("length", "taps"), [(257, 64), (9217, 4), (9218, 9)])
def test_a_last_chunk_of_few_steps_and_taps_that_reach_beyond(length, taps, isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    judge_all([Case((of_length(length),), 1, 32, 2, 4, taps=taps, bidirectional=False)])


def test_more_states_than_are_kept_at_once():
    """Then a first walk keeps every few of them, and a second one those between two."""
    length, case = 6700, Case((of_length(6700),), 1, 32, 16, 256, bidirectional=False)
    assert length // 128 * case.heads * case.head_dim * case.state * 4 > 24 << 20
    judge_all([case])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("length", [6, 48, 300])
@pytest.mark.parametrize(("bias", "A"), [(60.0, -50.0), (-1.0, 0.2), (0.0, -1e-6)], ids=["strong", "growth", "none"])
def test_strong_decay_growth_and_none(bias, A, length, isa, monkeypatch):
    """Large y are divided by their size, so that most of their gradient cancels: one bound for all of it."""
    monkeypatch.setenv("MEDSORA_ISA", isa)
    case = Case((of_length(length),), heads=4, head_dim=8, bias_and_A=(bias, A))
    (out,), grads = of_extension(case)
    _, ((right,), right_grads) = of_definition(case)
    assert relative_error(out, right) < 2e-6
    for name in set(NAMES) - set(ONE_A_HEAD):
        assert relative_error(grads[name], right_grads[name]) < 2e-5, name
    assert all(g.isfinite().all() for g in grads.values())


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [3, 48, 300])
def test_the_same_bits_every_time_with_any_threads_and_for_each_video_alone(length, dtype, threads):
    case = Case((of_length(length), spiral("raster", (length, 1, of_length(length).sequences))), 3, dtype=dtype)
    threads(1)
    once = of_extension(case)
    assert equal(of_extension(case), once)
    threads(2)
    assert equal(of_extension(case), once)
    tensors, grads = case.tensors()
    alone = results(native_scan, [tensors[0][2:], *tensors[1:]], [g[2:] for g in grads], case.settings())
    assert equal(alone[0], [out[2:] for out in once[0]]) and torch.equal(alone[1]["zxbcdt"], once[1]["zxbcdt"][2:])


def spread(x):
    """The same values, no dimension where it usually lies, rows not one after the other."""
    wide = torch.full((x.shape[1], x.shape[0], x.shape[2] + 9), float("nan"), dtype=x.dtype)
    wide[..., 4:-5] = x.transpose(0, 1)
    return wide[..., 4:-5].transpose(0, 1)


@pytest.mark.parametrize("length", [3, 48, 300])
def test_strided_tensors(length):
    case = Case((of_length(length),))
    tensors, grads = case.tensors()
    wanted = of_extension(case)
    assert equal(
        results(native_scan, [spread(tensors[0]), *tensors[1:]], [spread(g) for g in grads], case.settings()), wanted
    )
    channels_first = [t.mT.contiguous().mT for t in (tensors[0], grads[0])]
    parameters = [tensors[1].t().contiguous().t(), *(torch.stack((t, t), dim=-1)[..., 0] for t in tensors[2:])]
    assert equal(results(native_scan, [channels_first[0], *parameters], channels_first[1:], case.settings()), wanted)


@pytest.mark.parametrize("length", [3, 48, 300])
def test_expanded_tensors(length):
    case = Case((of_length(length),))
    (rows, *others), (grad,) = case.tensors()
    for dim in range(3):
        rows_given, grad_given = (t.narrow(dim, 0, 1).expand(t.shape) for t in (rows, grad))
        found = results(native_scan, [rows_given, *others], [grad_given], case.settings())
        assert equal(found, results(native_scan, [rows_given.clone(), *others], [grad_given.clone()], case.settings()))
    ones = torch.ones(()).expand(grad.shape)
    found = results(native_scan, [rows, *others], [ones], case.settings())
    assert equal(found, results(native_scan, [rows, *others], [ones.contiguous()], case.settings()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch(dtype):
    case = Case((of_length(48), of_length(48)), 0, dtype=dtype)
    outputs, grads = of_extension(case)
    assert [out.shape for out in outputs] == [(0, 96, 64)] * 2
    assert grads.pop("zxbcdt").shape == (0, 96, 162)
    assert len(grads) == 6 and all(g.eq(0).all() for g in grads.values())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["temporal", "raster"])
@pytest.mark.parametrize("channel", [5, 40, 65, 70, 72], ids=["z", "x", "B", "C", "dt"])
def test_nan_reaches_its_own_steps_and_those_after_and_no_other_video(channel, kind, isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    path, token = spiral(kind, (24, 1, 3)), 31
    case = Case((path,), 3, 2, 16, 4, bidirectional=False)
    tensors, grads = case.tensors()
    tensors[0][1, token, channel] = float("nan")
    (out,), found = results(native_scan, tensors, grads, case.settings())
    settings = dict(head_dim=16, groups=1, eps=case.eps, bidirectional=False)
    must = mixer_along(path, *(t.double() for t in tensors), **settings).isnan()
    assert must.any() and out[must].isnan().all(), "it was lost"
    assert out[0].isfinite().all() and out[2].isfinite().all()
    walked = path.tokens()
    ((sequence, step),) = (walked == token).nonzero().tolist()
    if channel != 40:  # steps before that share a register tile with it take 0 times x
        assert out[1, walked[sequence, :step]].isfinite().all(), "it went back in time"
    others = [n for n in range(path.sequences) if n != sequence]
    assert out[1, walked[others]].isfinite().all(), "it reached another sequence"
    assert found["zxbcdt"][1, token].isnan().any() and found["zxbcdt"][[0, 2]].isfinite().all()


def public(case):
    """`path_scan` as it is called, with what it needs."""
    tensors, grads = case.tensors()
    tensors = [None if t is None else t.requires_grad_() for t in tensors]
    settings = dict(head_dim=case.head_dim, groups=case.groups, bidirectional=case.bidirectional, eps=case.eps)
    return lambda *given: path_scan(*given, case.paths, **settings), tensors, grads


TWO_PATHS = Case((spiral("fw", (4, 3, 5)), spiral("fh", (4, 3, 5))), head_dim=8)


@pytest.mark.parametrize("bias", [True, False])
def test_the_public_operator_is_served_forward_and_backward(bias):
    case = replace(TWO_PATHS, bias=bias)
    function, tensors, grads = public(case)
    wanted_outputs, wanted = of_extension(case)
    with use_backend("native"):
        outputs = function(*tensors)
    assert equal(list(outputs), wanted_outputs) and equal(list(function(*tensors)), wanted_outputs)
    given = [t for t in tensors if t is not None]
    assert equal(list(torch.autograd.grad(outputs, given, grads)), list(wanted.values()))
    compiled = torch.compile(function, fullgraph=True)(*tensors)
    assert equal(list(compiled), wanted_outputs)
    assert equal(list(torch.autograd.grad(compiled, given, grads)), list(wanted.values()))


@pytest.mark.parametrize("bias", [True, False])
def test_registered_as_torch_wants_it(bias):
    case = replace(TWO_PATHS, bias=bias)
    tensors, grads = case.tensors()
    arguments = (*tensors, *case.settings(), "native")
    asking = [None if t is None else t.clone().requires_grad_() for t in tensors]
    for operator, given in (("path_scan", (*asking, *arguments[7:])), ("path_scan_backward", (grads, *arguments))):
        found = torch.library.opcheck(getattr(torch.ops.medsora_ops, operator).default, given)
        assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", range(3))
def test_fixed_vectors(case):
    _, length, _, head_dim, _, groups = GOLDEN[f"{case}.shape"].tolist()
    inputs = [GOLDEN[f"{case}.{name}"].float().requires_grad_() for name in NAMES]
    with use_backend("native"):
        out = path_scan(
            *inputs, ScanPath.temporal((length, 1, 1)), head_dim=head_dim, groups=groups, bidirectional=False
        )
    assert relative_error(out, GOLDEN[f"{case}.out"]) < 2e-5
    grads = torch.autograd.grad(out, inputs, GOLDEN[f"{case}.grad_out"].float())
    for name, grad in zip(NAMES, grads, strict=True):
        assert relative_error(grad, GOLDEN[f"{case}.grad.{name}"]) < 2e-5, name


def test_a_layer_agrees_with_the_definition():
    torch.manual_seed(0)
    layer, x = GridMamba2(16, 8, head_dim=8), torch.randn(2, 60, 16)

    def run(backend):
        with use_backend(backend):
            out = layer(x, (4, 3, 5))
        return out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))

    for found, wanted in zip(run("native"), run("reference"), strict=True):
        assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(dtype=torch.float16), "serves float32 and bfloat16, not torch.float16"),
        (dict(dtype=torch.float64, parameters=torch.float64), "serves float32 and bfloat16, not torch.float64"),
        (dict(taps=65), "serves at most 64 taps, not 65"),
    ],
)
def test_what_is_not_served_goes_to_the_definition(change, reason):
    case = replace(TWO_PATHS, **change)
    function, tensors, _ = public(case)
    assert select("path_scan", "cpu", *tensors, *case.settings()).backend == "reference"
    with pytest.raises(ValueError, match=reason), use_backend("native"):
        function(*tensors)
    assert equal(list(function(*tensors)), list(reference.path_scan(*tensors, *case.settings())))


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (torch.arange(6), "offsets: got torch.int64"),
        (torch.arange(12, dtype=torch.int32)[::2], "wants contiguous int32"),
        (torch.arange(1, 7, dtype=torch.int32), "offsets: reach tokens 1 to 6, wants 0 to 5"),
        (torch.arange(-1, 5, dtype=torch.int32), "offsets: reach tokens -1"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(table, named):
    case = Case((of_length(1), ScanPath.raster((1, 1, 6))))
    tensors, grads = replace(case, paths=case.paths[1:]).tensors()
    settings = ([table], [6], *case.settings()[2:])
    for call in (native_scan.path_scan, functools.partial(native_scan.path_scan_backward, grads)):
        with pytest.raises(ValueError, match=named):
            call(*tensors, *settings)
