"""GridMamba2: it is the mixer between two projections, takes mamba_ssm's weights, and begins where it should."""

import pytest
import torch
from recurrence import mixer, mixer_along, relative_error

from medsora_ops import GridMamba2, ScanPath, spiral_order

GRID = (2, 3, 4)


def mamba2_weights(d_model=12, width=16, heads=4, state=3, groups=1, taps=4):
    """A state_dict as mamba_ssm's Mamba2 layer has it."""
    made = torch.Generator().manual_seed(0)
    mixed = width + 2 * groups * state
    shapes = {
        "in_proj.weight": (width + mixed + heads, d_model),
        "conv1d.weight": (mixed, 1, taps),
        "conv1d.bias": (mixed,),
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "norm.weight": (width,),
        "out_proj.weight": (d_model, width),
    }
    return {name: torch.randn(shape, generator=made, dtype=torch.float64) for name, shape in shapes.items()}


def parameters(w):
    A = -w["A_log"].exp()
    return w["conv1d.weight"][:, 0], w["conv1d.bias"], w["dt_bias"], A, w["D"], w["norm.weight"]


@pytest.mark.parametrize("groups", [1, 2])
def test_agrees_with_the_mamba2_layer_whose_weights_it_takes(groups):
    weights = mamba2_weights(groups=groups)
    layer = GridMamba2.from_mamba2(weights, n_groups=groups, walks=("raster",), bidirectional=False)
    x = torch.randn(2, 24, 12, dtype=torch.float64)
    rows = x @ weights["in_proj.weight"].T
    # mamba_ssm normalises each group of channels by itself
    wanted = mixer(rows, *parameters(weights), head_dim=4, groups=groups, norm_group_size=16 // groups)
    wanted = wanted @ weights["out_proj.weight"].T
    assert relative_error(layer(x, (1, 1, 24)), wanted) < 1e-12
    assert relative_error(layer(x, ScanPath.raster(GRID)), wanted) < 1e-12


def test_takes_sizes_and_settings_from_a_layer():
    source = GridMamba2(12, 3, 2, 6, 2, 3, eps=1e-3, conv_bias=False)
    source.ngroups = 2  # as mamba_ssm calls it
    taken = GridMamba2.from_mamba2(source)
    source.norm_group_size = 12
    x = torch.randn(1, 24, 12)
    assert torch.equal(taken(x, GRID), source(x, GRID))
    source.norm.norm_before_gate = True
    with pytest.raises(ValueError, match="layer: got norm_before_gate=True, wants False"):
        GridMamba2.from_mamba2(source)


def test_a_layer_that_clamps_its_time_steps_is_refused():
    source = GridMamba2(12, 3, 2, 6, norm_group_size=24)
    source.dt_limit = (0.0, float("inf"))  # as a mamba_ssm layer holds it when it clamps nothing
    GridMamba2.from_mamba2(source)
    source.dt_limit = (0.001, 0.1)
    with pytest.raises(ValueError, match=r"layer: got dt_limit=\(0.001, 0.1\), wants \(0.0, inf\)"):
        GridMamba2.from_mamba2(source)


def test_walks_and_directions_are_summed_before_the_projection():
    weights = mamba2_weights()
    layer = GridMamba2.from_mamba2(weights, variant=3)
    x = torch.randn(2, 24, 12, dtype=torch.float64)
    rows = x @ weights["in_proj.weight"].T
    order = {"fw": spiral_order(2, 4, 3), "fh": spiral_order(2, 3, 3)}
    paths = tuple(ScanPath.plane(kind, GRID, order[kind]) for kind in ("fw", "fh"))
    mixed = sum(mixer_along(path, rows, *parameters(weights), head_dim=4, groups=1) for path in paths)
    wanted = mixed @ weights["out_proj.weight"].T
    assert relative_error(layer(x, GRID), wanted) < 1e-12
    assert torch.equal(layer(x, GRID), layer(x, paths))


@pytest.mark.parametrize("walks", [("fw",), ("hw", "temporal"), ("raster",)])
@pytest.mark.parametrize("grid", [(1, 1, 1), (4, 2, 2), (1, 5, 3)])
def test_any_walk_over_any_grid_with_gradients_everywhere(walks, grid):
    layer = GridMamba2(8, 4, head_dim=8, walks=walks)
    x = torch.randn(2, grid[0] * grid[1] * grid[2], 8)
    layer(x, grid).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert layer.in_proj.weight.grad.abs().sum() > 0


def test_initial_values():
    torch.manual_seed(0)
    layer = GridMamba2(512, 8, head_dim=4)
    A, step = layer.A_log.exp(), torch.nn.functional.softplus(layer.dt_bias)
    assert 1 <= A.min() < 1.5 and 15.5 < A.max() <= 16.001 and abs(A.mean() - 8.5) < 1
    assert 0.00099 < step.min() < 0.0012 and 0.085 < step.max() < 0.101
    assert abs(step.log10().mean() + 2) < 0.1
    assert layer.D.eq(1).all() and layer.norm.weight.eq(1).all()
    bound = (6 / sum(layer.in_proj.weight.shape)) ** 0.5
    assert 0.99 * bound < layer.in_proj.weight.abs().max() <= bound


def test_its_own_weights_go_round_in_float32_bfloat16_and_compiled():
    layer = GridMamba2(16, 4, head_dim=8)
    again = GridMamba2(16, 4, head_dim=8)
    again.load_mamba2(layer.state_dict())
    x, path = torch.randn(2, 24, 16), ScanPath.temporal(GRID)
    assert torch.equal(again(x, GRID), layer(x, GRID))
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x, path), layer(x, path))
    half = layer.bfloat16()(x.bfloat16(), path)
    assert half.dtype == torch.bfloat16
    assert relative_error(half, again(x, path)) < 0.02


def test_parameters_keep_their_own_types():
    weights = {n: v if n in ("A_log", "D", "dt_bias") else v.bfloat16() for n, v in mamba2_weights().items()}
    weights = {n: v.float() if v.dtype == torch.float64 else v for n, v in weights.items()}
    layer = GridMamba2.from_mamba2(weights)
    assert all(torch.equal(value, weights[name]) for name, value in layer.state_dict().items())
    assert {layer.A_log.dtype, layer.in_proj.weight.dtype} == {torch.float32, torch.bfloat16}
    assert layer(torch.randn(1, 24, 12).bfloat16(), GRID).dtype == torch.bfloat16
    layer.A_log.data.zero_()
    assert weights["A_log"].abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: GridMamba2(12, head_dim=7), r"head_dim: got 7, wants .* expand \* d_model, 24"),
        (lambda: GridMamba2(12, head_dim=6, n_groups=3), r"n_groups: got 3, wants .* heads, 4"),
        (
            lambda: GridMamba2(12, head_dim=6, walks=("wf",)),
            r"walks: got \('wf',\), wants some of fw, fh, hw, ",
        ),
        (lambda: GridMamba2(12, head_dim=6, variant=8), r"variant: got 8"),
        (lambda: GridMamba2(8, 2, head_dim=4)(torch.zeros(1, 23, 8), GRID), r"path: got a path over the grid"),
        (lambda: GridMamba2.from_mamba2({}), r"layer: got a layer without in_proj.weight, .*rmsnorm=True"),
        (
            lambda: GridMamba2.from_mamba2(mamba2_weights() | {"in_proj.bias": torch.zeros(42)}),
            r"state_dict: got the wrong parameters .* not known \['in_proj.bias'\]",
        ),
        (
            lambda: GridMamba2.from_mamba2(mamba2_weights() | {"D": torch.zeros(16)}),
            r"state_dict\['D'\]: got shape \(16,\), wants \(4,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, named):
    with pytest.raises(ValueError, match=named):
        call()
