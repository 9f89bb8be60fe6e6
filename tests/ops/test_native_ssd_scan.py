"""ssd_scan of the extension against its float64 definition, on every instruction set.

An error may be at most twice what the definition makes in the same dtype; of a few numbers, where that is a matter of
luck, four times.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from recurrence import recurrence
from sampling import sampled

from medsora_ops import native, ssd_scan, use_backend
from medsora_ops.backends import select
from medsora_ops.scan import native as native_scan
from medsora_ops.scan import reference

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

ISAS = native.extension().build_info()["isa_supported"] if native.unavailable() is None else []
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
OPTIONAL = NAMES[5:]
LENGTHS = sampled(range(1, 131), 14)
LONG = (255, 256, 257, 300, 383, 511, 512, 513)
HEAD_DIMS = (1, 5, 32, 64, 128)
STATES = (1, 5, 16, 64, 128, 256)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", request.param)
    return request.param


def case(
    length=20,
    heads=4,
    head_dim=8,
    groups=2,
    state=16,
    *,
    batch=2,
    without=(),
    channel_D=False,
    softplus=True,
    states=True,
    dtype=torch.float32,
    parameter_dtype=None,
):
    """All arguments of the definition, and gradients of its results."""
    made = torch.Generator().manual_seed(length + heads + state)

    def normal(*shape):
        return torch.randn(*shape, generator=made)

    values = {
        "x": normal(batch, length, heads, head_dim),
        "dt": normal(batch, length, heads) - 1 if softplus else 0.3 * torch.rand(batch, length, heads, generator=made),
        "A": -torch.rand(heads, generator=made) - 0.05,
        "B": normal(batch, length, groups, state),
        "C": normal(batch, length, groups, state),
        "D": normal(heads, head_dim) if channel_D else normal(heads),
        "z": normal(batch, length, heads, head_dim),
        "dt_bias": 0.1 * normal(heads).abs(),
        "initial_states": normal(batch, heads, head_dim, state),
    }
    types = dict.fromkeys(NAMES, dtype)
    types |= dict.fromkeys(("A", "D", "dt_bias"), parameter_dtype or dtype)
    tensors = [None if name in without else values[name].to(types[name]) for name in NAMES]
    grads = [normal(batch, length, heads, head_dim).to(dtype), normal(batch, heads, head_dim, state)]
    return [*tensors, softplus, states], grads[: 1 + states]


def widened(value):
    return value.double() if isinstance(value, torch.Tensor) else value


def error(found, right):
    found, right = widened(found), widened(right)
    return float((found - right).norm() / right.norm().clamp_min(1e-300))


def judge(arguments, grads):
    """Values and gradients; nothing is nearer than a few roundings."""
    wide = [widened(value) for value in arguments]
    given = [name for name, value in zip(NAMES, arguments, strict=False) if value is not None]
    forward = (native_scan.ssd_scan(*arguments), reference.ssd_scan(*arguments), reference.ssd_scan(*wide))
    backward = (
        native_scan.ssd_scan_backward(grads, *arguments),
        reference.ssd_scan_backward(grads, *arguments),
        reference.ssd_scan_backward([g.double() for g in grads], *wide),
    )
    results = [*zip(("y", "final states")[: len(grads)], *forward, strict=True), *zip(given, *backward, strict=True)]
    for name, found, plain, right in results:
        assert found.dtype == plain.dtype and found.shape == plain.shape and found.is_contiguous(), name
        plain_error = max(error(plain, right), 2 * torch.finfo(found.dtype).eps)
        assert error(found, right) <= (2 if found.numel() > 32 else 4) * plain_error, name


@pytest.mark.parametrize("length", [*LENGTHS, *LONG])
def test_every_length(length, isa):
    judge(*case(length, heads=3, groups=3 if length % 2 else 1, head_dim=5, state=7))


@pytest.mark.parametrize(("head_dim", "state"), sampled(itertools.product(HEAD_DIMS, STATES), 12))
@pytest.mark.parametrize("length", [33, 270])
def test_every_size(length, head_dim, state, isa):
    judge(*case(length, heads=2, groups=1, head_dim=head_dim, state=state, batch=1))


@pytest.mark.parametrize("groups", [1, 2, 18])
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_groups_and_their_parts(groups, batch, isa):
    """With few sequences and groups, the heads of a group are parted; 18 in parts of unequal size."""
    judge(*case(260 if batch == 1 else 17, heads=18, groups=groups, batch=batch))


SWITCHES = list(itertools.product(*[(False, True)] * 6))


@pytest.mark.parametrize("length", [18, 259])
@pytest.mark.parametrize("switches", sampled(SWITCHES, 16))
def test_every_argument_on_and_off(switches, length, isa):
    *given, softplus, states = switches
    without = [name for name, there in zip(OPTIONAL, given, strict=True) if not there]
    judge(*case(length, without=without, softplus=softplus, states=states, channel_D=states != softplus))


@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [3, 100, 300])
def test_bfloat16(length, parameter_dtype, isa):
    judge(*case(length, head_dim=40, dtype=torch.bfloat16, parameter_dtype=parameter_dtype, channel_D=length == 100))


def test_float32_beside_bfloat16_along_the_sequence():
    arguments, grads = case(300, dtype=torch.bfloat16)
    for name in ("dt", "B", "z", "initial_states"):
        arguments[NAMES.index(name)] = arguments[NAMES.index(name)].float()
    judge(arguments, grads)


def strided(tensor):
    """The same values, a gap behind each row and the other dimensions in the opposite order in memory."""
    order = (*reversed(range(tensor.dim() - 1)), tensor.dim() - 1)
    wide = torch.full([tensor.shape[i] + (i == order[-1]) * 3 for i in order], torch.nan, dtype=tensor.dtype)
    view = wide.narrow(-1, 0, tensor.shape[-1]).permute(order)
    return view.copy_(tensor)


@pytest.mark.parametrize("change", [strided, lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2)])
@pytest.mark.parametrize("length", [9, 280])
def test_any_strides(length, change, isa):
    arguments, grads = case(length)
    changed = [change(a) if isinstance(a, torch.Tensor) and a.dim() > 1 else a for a in arguments]
    changed_grads = [change(g) for g in grads]
    assert not any(t.is_contiguous() for t in (changed[0], changed[3], *changed_grads))
    wanted = native_scan.ssd_scan(*arguments) + native_scan.ssd_scan_backward(grads, *arguments)
    found = native_scan.ssd_scan(*changed) + native_scan.ssd_scan_backward(changed_grads, *changed)
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dimension", range(4))
def test_expanded(dimension, isa):
    arguments, grads = case(40, heads=3, groups=3)

    def expanded(tensor):
        if not isinstance(tensor, torch.Tensor) or tensor.dim() <= dimension:
            return tensor
        return tensor.narrow(dimension, 0, 1).expand(tensor.shape)

    judge([expanded(a) for a in arguments], [expanded(g) for g in grads])


@pytest.mark.parametrize("length", [30, 300])
def test_steps_that_are_zero_negative_or_large(length, isa):
    """Without softplus dt is anything: 0 keeps the state, below 0 it grows; large forgets everything."""
    arguments, grads = case(length, softplus=False, without=("dt_bias",))
    dt = arguments[1]
    dt[:, ::3] = 0
    dt[:, 1::7] = -0.2
    dt[:, 5::11] = 300
    judge(arguments, grads)
    dt.zero_()
    judge(arguments, grads)


def recurrence_of(x, dt, A, B, C, D, z, dt_bias, initial_states):
    y, final = recurrence(x, F.softplus(dt + dt_bias), A, B, C, initial_states)
    return (y + x * D[:, None]) * F.silu(z), final


@pytest.mark.parametrize("name", NAMES)
def test_nan_comes_out_where_it_must(name, isa):
    """Wherever the recurrence, step by step, has a NaN; of values also nowhere much earlier."""
    arguments, grads = case(270, heads=2, groups=2, head_dim=3, state=5)
    spoilt = arguments[NAMES.index(name)]
    along = name in ("x", "dt", "B", "C", "z")
    (spoilt[1, 100, 1] if along else spoilt[1]).fill_(torch.nan)
    tensors = [a.double().requires_grad_() for a in arguments[:9]]
    right = recurrence_of(*tensors)
    right += torch.autograd.grad(right, tensors, [g.double() for g in grads])
    found = native_scan.ssd_scan(*arguments) + native_scan.ssd_scan_backward(grads, *arguments)
    for f, w in zip(found, right, strict=True):
        assert (f.isnan() | ~w.isnan()).all()
    if along:  # a few steps share a product
        assert not found[0][0].isnan().any() and not found[0][1, :94].isnan().any()


@pytest.mark.parametrize(("length", "batch", "groups"), [(20, 3, 2), (300, 1, 1), (2, 80, 1)])
def test_the_thread_count_changes_no_bit(length, batch, groups, isa):
    arguments, grads = case(length, heads=8, batch=batch, groups=groups)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        found.append(native_scan.ssd_scan(*arguments) + native_scan.ssd_scan_backward(grads, *arguments))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_few_states_are_kept_when_they_are_large():
    """48 MiB of states for a sequence: most of them are computed again, from one in every few chunks."""
    arguments, grads = case(128 * 48, heads=1, groups=1, head_dim=512, state=512, batch=1, without=("z", "D"))
    found = native_scan.ssd_scan_backward(grads, *arguments)
    wanted = reference.ssd_scan_backward(grads, *arguments)
    for f, w in zip(found, wanted, strict=True):
        assert error(f, w) < 1e-5


def test_an_empty_batch():
    arguments, grads = case(20, batch=0)
    y, final = native_scan.ssd_scan(*arguments)
    assert y.shape == (0, 20, 4, 8) and final.shape == (0, 4, 8, 16)
    found = native_scan.ssd_scan_backward(grads, *arguments)
    assert [f.shape for f in found] == [a.shape for a in arguments[:9]]
    assert all(torch.equal(f, torch.zeros_like(f)) for f in found)


def test_results_do_not_share_memory():
    arguments, grads = case(5)
    tensors = [t for t in (*arguments, *grads) if isinstance(t, torch.Tensor)]
    results = native_scan.ssd_scan(*arguments) + native_scan.ssd_scan_backward(grads, *arguments)
    places = [t.untyped_storage().data_ptr() for t in (*tensors, *results)]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("without", [(), OPTIONAL])
def test_registered_as_torch_wants_it(without):
    arguments, grads = case(6, without=without)
    grown = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    results = torch.library.opcheck(torch.ops.medsora_ops.ssd_scan.default, (*grown, "native"))
    assert set(results.values()) == {"SUCCESS"}
    plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    results = torch.library.opcheck(torch.ops.medsora_ops.ssd_scan_backward.default, (grads, *plain, "native"))
    assert set(results.values()) == {"SUCCESS"}


def test_serves_a_cpu_by_default():
    arguments, _ = case(6)
    x, dt, A, B, C = arguments[:5]
    with use_backend("native"):
        y = ssd_scan(x, dt, A, B, C)
    assert torch.equal(ssd_scan(x, dt, A, B, C), y)
    assert select("ssd_scan", "cpu", *arguments).backend == "native"
    wide = [widened(a) for a in arguments]
    assert select("ssd_scan", "cpu", *wide).backend == "reference"
    no_state = [*arguments[:3], B[..., :0], C[..., :0], None, None, None, None, True, False]
    assert select("ssd_scan", "cpu", *no_state).backend == "reference"
