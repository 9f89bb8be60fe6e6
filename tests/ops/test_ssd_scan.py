"""ssd_scan: mamba_ssm's meaning of every argument, against the recurrence."""

import pytest
import torch
import torch.nn.functional as F
from recurrence import recurrence, relative_error
from sampling import sampled

from medsora_ops import ssd_scan
from medsora_ops.scan.chunked import CHUNK

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
EDGES = (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 1)


def make(batch=2, length=6, heads=4, head_dim=3, state=2, groups=2, dtype=torch.float64, channel_D=False):
    made = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    values = {
        "x": normal(batch, length, heads, head_dim),
        "dt": normal(batch, length, heads),
        "A": -torch.rand(heads, generator=made, dtype=torch.float64) - 0.05,
        "B": normal(batch, length, groups, state),
        "C": normal(batch, length, groups, state),
        "D": normal(heads, head_dim) if channel_D else normal(heads),
        "z": normal(batch, length, heads, head_dim),
        "dt_bias": normal(heads),
        "initial_states": normal(batch, heads, head_dim, state),
    }
    return {name: value.to(dtype).requires_grad_() for name, value in values.items()}


def expected(x, dt, A, B, C, D=None, z=None, dt_bias=None, initial_states=None, dt_softplus=False):
    step = dt if dt_bias is None else dt + dt_bias
    y, final = recurrence(x, F.softplus(step) if dt_softplus else step, A, B, C, initial_states)
    if D is not None:
        y = y + x * (D if D.dim() == 2 else D[:, None])
    return (y if z is None else y * F.silu(z)), final


def registered(x, dt, A, B, C, *, D=None, z=None, dt_bias=None, initial_states=None, dt_softplus=False):
    arguments = (x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, True, "")
    return tuple(torch.ops.medsora_ops.ssd_scan(*arguments))


def public(**values):
    return ssd_scan(**values, return_final_states=True)


def agree(values, got, wanted, bound=1e-10):
    grads = [torch.randn(w.shape, generator=torch.Generator().manual_seed(3), dtype=w.dtype) for w in wanted]
    for g, w in zip(got, wanted, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype and relative_error(g, w) < bound
    inputs = list(values.values())
    pairs = zip(torch.autograd.grad(got, inputs, grads), torch.autograd.grad(wanted, inputs, grads), strict=True)
    for name, (g, w) in zip(values, pairs, strict=True):
        assert relative_error(g, w) < bound, name


@pytest.mark.parametrize("scan", [public, registered])
@pytest.mark.parametrize("length", sorted({*sampled(range(1, 131), 8), *EDGES}))
def test_every_length_agrees_with_the_recurrence(length, scan):
    values = make(length=length)
    agree(values, scan(**values, dt_softplus=True), expected(**values, dt_softplus=True))


@pytest.mark.parametrize("length", [5, CHUNK + 3])
@pytest.mark.parametrize("left_out", ["D", "z", "dt_bias", "initial_states", "all"])
def test_each_argument_may_be_left_out(length, left_out):
    values = make(length=length)
    if left_out == "all":
        values = {name: values[name] for name in NAMES[:5]}
        values["dt"] = F.softplus(values["dt"]).detach().requires_grad_()
        agree(values, public(**values), expected(**values))
    else:
        del values[left_out]
        agree(values, registered(**values, dt_softplus=True), expected(**values, dt_softplus=True))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("channel_D", [False, True])
def test_groups_and_both_forms_of_D(groups, channel_D):
    values = make(groups=groups, channel_D=channel_D)
    agree(values, public(**values, dt_softplus=True), expected(**values, dt_softplus=True))


def test_one_output_unless_states_are_asked_for():
    values = make(length=70)
    y = ssd_scan(**values)
    assert isinstance(y, torch.Tensor)
    assert torch.equal(y, public(**values)[0])


def test_states_hand_over_from_one_call_to_the_next():
    values = {name: value.detach() for name, value in make(length=90).items()}
    along = [name for name, value in values.items() if value.dim() > 2 and value.shape[1] == 90]
    cut, rest = (values | {name: values[name][:, part] for name in along} for part in (slice(37), slice(37, None)))
    first, states = public(**cut, dt_softplus=True)
    second, final = public(**(rest | {"initial_states": states}), dt_softplus=True)
    whole, wanted = public(**values, dt_softplus=True)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    torch.testing.assert_close(final, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_lose_little_more_than_their_rounding(dtype):
    values = make(length=CHUNK + 9, dtype=dtype)
    exact = {name: value.detach().double() for name, value in values.items()}
    y, final = public(**values, dt_softplus=True)
    wanted, wanted_final = expected(**exact, dt_softplus=True)
    assert y.dtype == dtype and final.dtype == torch.float32
    assert relative_error(y, wanted) <= 1.1 * relative_error(wanted.to(dtype), wanted)
    assert relative_error(final, wanted_final) < 1e-5


def test_gradcheck_and_an_empty_batch():
    values = make(1, 3, 2, 2, 2, 1)
    names = list(values)

    def call(*tensors):
        return registered(**dict(zip(names, tensors, strict=True)), dt_softplus=True)

    assert torch.autograd.gradcheck(call, list(values.values()))
    empty = make(batch=0)
    for scan in (public, registered):
        y, final = scan(**empty)
        assert y.shape == (0, 6, 4, 3) and final.shape == (0, 4, 3, 2)
        assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum() + final.sum(), list(empty.values())))


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("left_out", [(), ("D", "initial_states"), ("z", "dt_bias")])
def test_registered_as_torch_wants_it(states, left_out):
    values = make(dtype=torch.float32)
    tensors = [None if name in left_out else values[name] for name in NAMES]
    arguments = (*tensors, True, states, "")
    results = torch.library.opcheck(torch.ops.medsora_ops.ssd_scan.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    tensors = [None if t is None else t.detach() for t in tensors]
    grads = [torch.randn(2, 6, 4, 3), torch.randn(2, 4, 3, 2)][: 1 + states]
    backward = torch.ops.medsora_ops.ssd_scan_backward.default
    results = torch.library.opcheck(backward, (grads, *tensors, True, states, ""))
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_whole_forward_and_backward():
    values = make(length=CHUNK + 1)
    whole = torch.compile(lambda **v: public(**v, dt_softplus=True), fullgraph=True)
    agree(values, whole(**values), expected(**values, dt_softplus=True))


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("seq_idx", torch.zeros(2, 6), r"seq_idx: got a Tensor, wants None: not supported"),
        ("cu_seqlens", torch.tensor([0, 6]), r"cu_seqlens: .* not supported"),
        ("dt_limit", (0.001, 0.1), r"dt_limit: got \(0.001, 0.1\), wants \(0.0, inf\): not supported"),
        ("x", torch.zeros(2, 6, 4), r"x: got shape \(2, 6, 4\), wants \(batch, length, heads, head_dim\)"),
        ("x", torch.zeros(2, 0, 4, 3), r"x: got shape \(2, 0, 4, 3\), wants at least one token"),
        ("dt", torch.zeros(2, 6, 3).double(), r"dt: got shape \(2, 6, 3\), wants \(2, 6, 4\)"),
        ("A", torch.zeros(3), r"A: got shape \(3,\), wants \(4,\) \(heads,\)"),
        ("B", torch.zeros(2, 6, 3, 2).double(), r"B's number of groups: got 3, wants .* the number of heads, 4"),
        ("C", torch.zeros(2, 6, 1, 2).double(), r"C: got shape \(2, 6, 1, 2\), wants \(2, 6, 2, 2\)"),
        ("C", torch.zeros(2, 6, 2, 2).half(), r"C: got torch.float16, wants that of x, torch.float64 or torch.float32"),
        ("D", [1.0] * 4, r"D: got list, wants a tensor \(heads,\)"),
        ("D", torch.zeros(4, 2), r"D: got shape \(4, 2\), wants \(4, 3\)"),
        ("z", torch.zeros(2, 6, 4, 2), r"z: got shape"),
        ("dt_bias", torch.zeros(1), r"dt_bias: got shape \(1,\), wants \(4,\)"),
        ("initial_states", torch.zeros(2, 4, 2, 3), r"initial_states: got shape \(2, 4, 2, 3\), wants \(2, 4, 3, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(name, value, named):
    with pytest.raises(ValueError, match=named):
        ssd_scan(**(make() | {name: value}))


def test_the_neutral_values_of_unsupported_arguments_are_accepted():
    values, neutral = make(), {"seq_idx": None, "cu_seqlens": None, "dt_limit": (0, float("inf"))}
    assert torch.equal(ssd_scan(**values, **neutral), ssd_scan(**values))
