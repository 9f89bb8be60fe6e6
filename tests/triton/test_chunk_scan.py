"""ssd_scan, and path_scan of long sequences, by the Triton kernels that walk chunk by chunk, against float64."""

import itertools
from dataclasses import replace

import pytest
import torch
from recurrence import relative_error
from sampling import sampled
from scan_case import ALLOWED, Case, check, compare

from medsora_ops.launch import INTERPRETED
from medsora_ops.scan import chunk_path_launch, reference, triton
from medsora_ops.scan.chunk_config import BACKWARD, FORWARD, ChunkConfig, fitting
from medsora_ops.scan.chunk_launch import ssd_scan, ssd_scan_backward
from medsora_ops.scan.chunk_path_launch import path_scan_chunked, path_scan_chunked_backward
from medsora_ops.scan.runs import segments_of_a_run

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
ONE_A_HEAD = ("A", "D", "dt_bias")
EDGES = (1, 2, 31, 32, 33, 63, 64, 65, 130, 200)
# A chunk of 128 tokens may ask for more shared memory than a chip has; who tunes finds out.
CHOICES = (16, 32, 64, 128) if INTERPRETED else (16, 32, 64), (16, 32, 64), (1, 2, 8)
CONFIGS = [  # every three of the sizes, and every two of all that is chosen
    ChunkConfig(
        tokens=CHOICES[0][i],
        channels=CHOICES[1][j],
        segment=CHOICES[2][k],
        num_warps=(4, 8)[(j + k) % 2],
        num_stages=(1, 2)[(i + j) % 2],
        row_numbers=(256, 4096)[(i + j + k) % 2],
        row_programs=(1, 256)[(i + k) % 2],
        conv_channels=CHOICES[1][j],
    )
    for i, j, k in itertools.product(*(range(len(sizes)) for sizes in CHOICES))
]


def ssd_case(
    length=70, heads=2, head_dim=16, groups=1, state=16, *, batch=1, without=(), channel_D=False, softplus=True,
    states=True, dtype=torch.float32, parameters=None,
):  # fmt: skip
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
    types = dict.fromkeys(NAMES, dtype) | dict.fromkeys(("A", "D", "dt_bias"), parameters or dtype)
    tensors = [None if name in without else values[name].to(types[name]) for name in NAMES]
    grads = [normal(batch, length, heads, head_dim).to(dtype), normal(batch, heads, head_dim, state)]
    return [*tensors, softplus, states], grads[: 1 + states]


def moved(values, device):
    return [v.to(device) if isinstance(v, torch.Tensor) else v for v in values]


def widened(values):
    return [v.double().cpu() if isinstance(v, torch.Tensor) else v for v in values]


def check_ssd(arguments, grads, device, forward=FORWARD, backward=BACKWARD, twice=False, hard=False):
    """Values and every gradient; twice: and the same bits again."""
    given, given_grads = moved(arguments, device), moved(grads, device)
    outputs = ssd_scan(*given, config=forward)
    found = ssd_scan_backward(given_grads, *given, config=backward)
    if twice:
        again = ssd_scan(*given, config=forward) + ssd_scan_backward(given_grads, *given, config=backward)
        assert all(torch.equal(a, b) for a, b in zip((*outputs, *found), again, strict=True))
    wide = widened(arguments)
    right, right_grads = reference.ssd_scan(*wide), reference.ssd_scan_backward(widened(grads), *wide)
    values, sums = ALLOWED[arguments[0].dtype]
    if hard:  # also for the definition in the same types, which then sets the measure
        values = sums = 3 * max(map(relative_error, reference.ssd_scan(*arguments), right))
    types = [arguments[0].dtype, torch.float32]
    for out, true, dtype in zip(outputs, right, types[: len(right)], strict=True):
        assert out.dtype == dtype and out.shape == true.shape and relative_error(out.cpu(), true) < values
    tensors = [(name, t) for name, t in zip(NAMES, arguments, strict=False) if t is not None]
    for (name, tensor), grad, true in zip(tensors, found, right_grads, strict=True):
        assert grad.dtype == tensor.dtype and grad.shape == tensor.shape, name
        error, allowed = relative_error(grad.cpu(), true), sums if name in ONE_A_HEAD else 2 * values
        assert error < allowed, f"{name}: {error:.2e}"


@pytest.mark.parametrize("length", sorted({*sampled(range(1, 201), 4), *sampled(EDGES, 4)}))
def test_ssd_every_length(device, length):
    check_ssd(*ssd_case(length, groups=2 if length % 2 else 1), device)


def cut(config, splits, segment=1):
    return replace(config, tokens=16, segment=segment, splits=splits)


@pytest.mark.parametrize(("length", "splits"), [(33, 2), (50, 3), (70, 9)])
def test_ssd_cut_into_runs(device, length, splits):
    """Uneven runs; two, which need no chain; more than there are segments."""
    arguments = ssd_case(length, groups=2, channel_D=splits == 3, without=("z",) if splits == 2 else ())
    check_ssd(*arguments, device, cut(FORWARD, splits), cut(BACKWARD, splits, 1 + splits // 9), twice=splits == 2)


def test_runs_fill_the_chip_and_no_more():
    """One (video, direction, head, part) is a program; 132 multiprocessors; segments of 512 tokens."""
    assert segments_of_a_run(32, 128, 132) == 32
    assert segments_of_a_run(1, 128, 132) == 4  # not more than 32 runs
    assert segments_of_a_run(132, 128, 132) == 128 and segments_of_a_run(264, 128, 132) == 128
    assert segments_of_a_run(32, 1, 132) == 1 and segments_of_a_run(0, 9, 132) == 9 and segments_of_a_run(9, 0, 2) == 1
    for programs, segments in itertools.product((1, 15, 70, 140, 200, 263), (2, 5, 64, 1000)):
        assert 1 <= segments_of_a_run(programs, segments, 132) <= segments


@pytest.mark.parametrize(("head_dim", "state"), sampled(itertools.product((5, 16, 24, 64, 96), (5, 16, 20, 128)), 4))
def test_ssd_every_size(device, head_dim, state):
    check_ssd(*ssd_case(70, heads=2, head_dim=head_dim, state=state), device)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_ssd_groups(device, groups):
    check_ssd(*ssd_case(20, heads=6, groups=groups), device, twice=True)


@pytest.mark.parametrize("switches", sampled(itertools.product(*[(False, True)] * 6), 5))
def test_ssd_every_argument_on_and_off(device, switches):
    *given, softplus, states = switches
    without = [name for name, there in zip(NAMES[5:], given, strict=True) if not there]
    arguments = ssd_case(
        50, without=without, softplus=softplus, states=states, channel_D=states != softplus, head_dim=20
    )
    check_ssd(*arguments, device, backward=replace(BACKWARD, channels=16))


@pytest.mark.parametrize("parameters", [None, torch.float32])
def test_ssd_float16(device, parameters):
    check_ssd(*ssd_case(130, head_dim=24, dtype=torch.float16, parameters=parameters, channel_D=True), device)


def test_ssd_float32_beside_float16(device):
    arguments, grads = ssd_case(70, dtype=torch.float16)
    for name in ("dt", "B", "z", "initial_states"):
        arguments[NAMES.index(name)] = arguments[NAMES.index(name)].float()
    check_ssd(arguments, grads, device)


@pytest.mark.parametrize("config", sampled(CONFIGS, 3), ids=str)
def test_ssd_every_way_of_cutting(device, config):
    check_ssd(*ssd_case(100, head_dim=40, state=20, heads=1), device, config, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ssd_without_a_config(device, dtype):
    check_ssd(*ssd_case(50, head_dim=40, state=144, dtype=dtype), device, None, None)


@pytest.mark.parametrize(("architecture", "state"), [("sm_80", 20), ("sm_100", 20), ("sm_80", 144), ("sm_90", 144)])
def test_defaults_of_an_architecture(device, architecture, state):
    """Others have the defaults without one, which most tests take."""
    half = torch.float16
    configs = [fitting(config, half, state, architecture) for config in (FORWARD, BACKWARD)]
    assert configs != [FORWARD, BACKWARD]
    check_ssd(*ssd_case(70, head_dim=40, state=state, dtype=half, heads=1), device, *configs)
    case = Case(kinds=("raster",), grid=(1, 1, 70), heads=1, head_dim=40, state=state, dtype=half)
    check_path(case, device, None, None, *configs)


def strided(tensor):
    """The same values, a gap behind each row and the other dimensions in the opposite order in memory."""
    order = (*reversed(range(tensor.dim() - 1)), tensor.dim() - 1)
    wide = torch.full([tensor.shape[i] + (i == order[-1]) * 3 for i in order], torch.nan, dtype=tensor.dtype)
    return wide.narrow(-1, 0, tensor.shape[-1]).permute(order).copy_(tensor)


@pytest.mark.parametrize("change", [strided, lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2)])
def test_ssd_any_strides(device, change):
    arguments, grads = ssd_case(40, groups=2, batch=2)
    changed = [change(a) if isinstance(a, torch.Tensor) and a.dim() > 1 else a for a in arguments]
    check_ssd(changed, [change(g) for g in grads], device)


@pytest.mark.parametrize("dimension", range(4))
def test_ssd_expanded(device, dimension):
    def expanded(tensor):
        if not isinstance(tensor, torch.Tensor) or tensor.dim() <= dimension:
            return tensor
        return tensor.narrow(dimension, 0, 1).expand(tensor.shape)

    arguments, grads = ssd_case(40, groups=2, batch=2)
    check_ssd([expanded(a) for a in arguments], [expanded(g) for g in grads], device)


def test_ssd_steps_that_are_zero_negative_or_large(device):
    arguments, grads = ssd_case(80, softplus=False, without=("dt_bias",))
    arguments[1][:, ::3] = 0
    arguments[1][:, 1::7] = -0.2
    arguments[1][:, 5::11] = 300
    check_ssd(arguments, grads, device, hard=True)


def test_ssd_of_nothing(device):
    arguments, grads = ssd_case(20, batch=0)
    assert [t.shape[0] for t in ssd_scan(*moved(arguments, device))] == [0, 0]
    found = ssd_scan_backward(moved(grads, device), *moved(arguments, device))
    assert all(torch.equal(f, torch.zeros_like(f)) for f in found)


def check_path(case, device, tensors=None, grads=None, forward=FORWARD, backward=BACKWARD, twice=False):
    """Values and every gradient, all paths launched together. twice: and the same bits again."""
    if tensors is None:
        tensors, grads = case.tensors(device)
    outputs, found = run_paths(case, tensors, grads, forward, backward)
    if twice:
        again, found_again = run_paths(case, tensors, grads, forward, backward)
        assert all(torch.equal(a, b) for a, b in zip(outputs + found, again + found_again, strict=True))
    compare(case, tensors, grads, outputs, found)


def run_paths(case, tensors, grads, forward, backward):
    grad_rows = torch.empty(tensors[0].shape, dtype=tensors[0].dtype, device=tensors[0].device)
    tables, strides = [path.offsets(grad_rows.device) for path in case.paths], [path.stride for path in case.paths]
    along = (tables, strides, *case.settings.values())
    outputs = path_scan_chunked(*tensors, *along, config=forward)
    found = path_scan_chunked_backward(grads, grad_rows, *tensors, *along, config=backward)
    given = [t for t in tensors[1:] if t is not None]
    return outputs, [grad_rows, *(t.to(p.dtype) for t, p in zip(found, given, strict=True))]


@pytest.mark.parametrize("length", sampled(EDGES, 4))
@pytest.mark.parametrize("bidirectional", [True, False])
def test_path_every_length(device, length, bidirectional):
    case = Case(kinds=("raster",), grid=(1, 1, length), bidirectional=bidirectional, seed=length)
    check_path(replace(case, heads=1 if bidirectional else 2), device)


@pytest.mark.parametrize(
    ("splits", "change"),
    [(2, dict(bidirectional=False, batch=2, dtype=torch.float16)), (3, dict(groups=2, norm_groups=4))],
    ids=str,
)
def test_path_cut_into_runs(device, splits, change):
    case = replace(Case(kinds=("raster",), grid=(1, 1, 16 * splits - 7)), **change)
    check_path(case, device, None, None, cut(FORWARD, splits), cut(BACKWARD, splits))


@pytest.mark.parametrize(
    ("segment", "change"),
    [
        (1, dict(kinds=("fw", "raster"), heads=1, batch=2)),
        (1, dict(kinds=("fw", "raster"), heads=2, head_dim=24)),
        (1, dict(kinds=("raster", "fh", "fw"), bidirectional=False, norm_groups=4)),
        (8, dict(kinds=("hw", "raster"), groups=2, state=5, bias=False)),
        (8, dict(kinds=("hw", "raster"), bidirectional=False, dtype=torch.float16)),
    ],
    ids=str,
)
def test_paths_together(device, segment, change):
    """Of different lengths, so that some have more sequences, and more segments, than others."""
    small = dict(tokens=16, channels=16, segment=segment, row_programs=3, splits=1)
    case = replace(Case(grid=(2, 2, 9)), **change)
    check_path(
        case, device, None, None, replace(FORWARD, **small), replace(BACKWARD, **small), twice=len(case.kinds) > 2
    )


@pytest.mark.parametrize(("splits", "most", "wanted"), [(1, 32, [3]), (2, 32, [1, 1, 1]), (1, 0, [1, 1, 1])])
def test_long_paths_of_a_call(device, splits, most, wanted, monkeypatch):
    """Beside a short one: together, or each alone where sequences are cut into runs or are much work."""
    case = Case(kinds=("fw", "fh", "hw", "raster"), grid=(2, 2, 35), heads=1, bidirectional=False)
    assert [path.length for path in case.paths] == [70, 4, 70, 140]
    launch, seen = chunk_path_launch.launch, []
    monkeypatch.setattr(chunk_path_launch, "launch", lambda *a, **b: seen.append(b) or launch(*a, **b))
    monkeypatch.setattr(chunk_path_launch, "TOGETHER", most)
    monkeypatch.setattr(triton, "LONGEST", 64)
    small = ChunkConfig(tokens=32, segment=1, splits=splits)
    monkeypatch.setattr(triton, "choose", lambda kernel, default, *_: small if "chunk" in kernel else default)
    check(case, device)
    assert [options["PATHS"] for options in seen if "DIVISION" in options] == wanted * 2  # norms, of two calls


@pytest.mark.parametrize(
    "change",
    [
        dict(kinds=("fw", "hw"), heads=1),
        dict(heads=3, head_dim=24, state=20),
        dict(heads=4, groups=2, norm_groups=2, head_dim=16),
        dict(heads=2, groups=2, state=5, norm_groups=32),
        dict(heads=1, head_dim=80, state=128),
        dict(taps=1),
        dict(taps=2, bias=False),
        dict(taps=3, grid=(1, 1, 1)),
        dict(batch=0),
    ],
    ids=str,
)
def test_path_every_shape(device, change):
    check_path(replace(Case(grid=(2, 2, 9)), **change), device)


@pytest.mark.parametrize("parameters", [None, torch.float32])
def test_path_float16(device, parameters):
    check_path(
        Case(kinds=("fw",), grid=(7, 1, 10), heads=2, head_dim=24, dtype=torch.float16, parameters=parameters), device
    )


@pytest.mark.parametrize("config", sampled(CONFIGS, 2), ids=str)
def test_path_every_way_of_cutting(device, config):
    check_path(
        Case(kinds=("raster",), grid=(1, 1, 70), heads=1, head_dim=40, state=20), device, None, None, config, config
    )


def test_path_any_strides(device):
    """Rows cut out of wider ones, videos every other one; a gradient expanded over channels."""
    case = Case(kinds=("fw",), grid=(3, 2, 3), heads=1, batch=2)
    (rows, *parameters), _ = case.tensors(device)
    wide = torch.full((4, rows.shape[1], rows.shape[2] + 7), float("nan"), device=device)
    wide[::2, :, 3:-4] = rows
    grad = torch.randn(1, rows.shape[1], 1, device=device).expand(2, -1, case.width)
    check_path(case, device, [wide[::2, :, 3:-4], *parameters], [grad])
