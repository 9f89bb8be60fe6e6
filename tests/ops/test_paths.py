"""Paths: every one a bijection, spirals and snakes step to neighbours, tables are what the operators need."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medsora_ops import ScanPath, raster_order, snake_order, spiral_order

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "spiral_orders.json").read_text())
KINDS = ("fw", "fh", "hw", "temporal", "raster")
sizes = st.integers(1, 9)
grids = st.tuples(sizes, sizes, sizes)


def make(kind, grid, order=None):
    if kind in ("temporal", "raster"):
        return getattr(ScanPath, kind)(grid)
    return ScanPath.plane(kind, grid, order)


def plane_of(kind, grid):
    frames, height, width = grid
    return {"fw": (frames, width), "fh": (frames, height), "hw": (height, width)}[kind]


@pytest.mark.parametrize("size", GOLDEN)
def test_spirals_are_the_fixed_ones(size):
    rows, cols = (int(part) for part in size.split("x"))
    for variant in range(8):
        order = spiral_order(rows, cols, variant)
        assert order.dtype == torch.int64
        assert order.tolist() == GOLDEN[size]["order"][2 * variant]
        assert order.flip(0).tolist() == GOLDEN[size]["order"][2 * variant + 1]


@given(rows=sizes, cols=sizes, variant=st.integers(0, 7))
def test_spirals_and_snakes_visit_every_cell_and_step_to_a_neighbour(rows, cols, variant):
    for order in (spiral_order(rows, cols, variant), snake_order(rows, cols)):
        assert sorted(order.tolist()) == list(range(rows * cols))
        r, c = order // cols, order % cols
        steps = (r.diff().abs() + c.diff().abs()).tolist()
        assert steps == [1] * (rows * cols - 1)


def test_a_spiral_ends_in_the_centre():
    assert spiral_order(5, 7).tolist()[-1] // 7 == 2
    assert spiral_order(3, 3)[-1] == 4


def test_an_order_handed_out_can_be_written_to():
    spiral_order(3, 4).fill_(0)
    assert spiral_order(3, 4).tolist() == GOLDEN["3x4"]["order"][0]


@given(grid=grids, kind=st.sampled_from(KINDS), variant=st.integers(0, 7))
def test_every_path_visits_every_token_once_and_its_table_says_where(grid, kind, variant):
    order = None if kind in ("temporal", "raster") else spiral_order(*plane_of(kind, grid), variant)
    path = make(kind, grid, order)
    tokens = path.tokens()
    assert tokens.shape == (path.sequences, path.length)
    assert sorted(tokens.flatten().tolist()) == list(range(grid[0] * grid[1] * grid[2]))
    offsets = path.offsets()
    assert offsets.dtype == torch.int32 and offsets.shape == (path.length,)
    for n in range(path.sequences):
        assert tokens[n].tolist() == [n * path.stride + offset for offset in offsets.tolist()]


@given(grid=grids, kind=st.sampled_from(("fw", "fh", "hw")), seed=st.integers(0, 99))
def test_planes_hold_the_tokens_of_their_row_column_or_frame(grid, kind, seed):
    frames, height, width = grid
    rows, cols = plane_of(kind, grid)
    order = torch.randperm(rows * cols, generator=torch.Generator().manual_seed(seed))
    tokens = ScanPath.plane(kind, grid, order).tokens()
    cube = torch.arange(frames * height * width).view(grid)
    planes = {"fw": cube.permute(1, 0, 2), "fh": cube.permute(2, 0, 1), "hw": cube}[kind]
    assert torch.equal(tokens, planes.reshape(len(tokens), -1)[:, order])


def test_temporal_and_raster():
    assert ScanPath.temporal((3, 2, 2)).tokens().tolist() == [[n, n + 4, n + 8] for n in range(4)]
    assert ScanPath.raster((2, 2, 3)).tokens().tolist() == [list(range(12))]
    assert raster_order(2, 3).tolist() == list(range(6))


def test_the_released_order_can_be_expressed():
    grid, rank = (3, 2, 4), torch.argsort(spiral_order(3, 4))
    there, back = ScanPath.plane("fw", grid, rank), ScanPath.plane("fw", grid, len(rank) - 1 - rank)
    rows = torch.arange(24).view(3, 2, 4).permute(1, 0, 2).reshape(2, 12)
    assert torch.equal(there.tokens(), rows[:, rank])
    assert torch.equal(back.tokens(), rows.flip(1)[:, rank])


@pytest.mark.parametrize("convert", [list, tuple, np.array, torch.tensor, lambda o: np.array(o, dtype=np.int16)])
def test_an_order_may_be_any_kind_of_sequence(convert):
    order = spiral_order(2, 4, 5).tolist()
    assert ScanPath.plane("fw", (2, 3, 4), convert(order)) == ScanPath.plane("fw", (2, 3, 4), order)


def test_equal_paths_are_one_key():
    first, again = (ScanPath.plane("fh", (2, 3, 4), spiral_order(2, 3)) for _ in range(2))
    assert first == again and hash(first) == hash(again) and len({first, again}) == 1
    assert first != ScanPath.plane("fh", (2, 3, 4))
    with pytest.raises(AttributeError):
        first.stride = 2


def test_a_table_is_made_once_a_device_and_serves_inference_and_training():
    path = ScanPath.temporal((2, 3, 4))
    with torch.inference_mode():
        table = path.offsets("meta")
    assert path.offsets("meta") is table and path.offsets() is path.offsets("cpu")
    assert not table.is_inference()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: spiral_order(0, 3), r"rows: got 0, wants an integer of at least 1"),
        (lambda: spiral_order(2, 3, 8), r"variant: got 8, wants an integer from 0 to 7"),
        (lambda: snake_order(2, -1), r"cols: got -1"),
        (lambda: ScanPath.plane("wf", (1, 2, 3)), r"kind: got 'wf', wants one of fw, fh, hw"),
        (lambda: ScanPath.plane("fw", (1, 0, 3)), r"grid: got \(1, 0, 3\), wants three sizes"),
        (lambda: ScanPath.temporal((2, 3)), r"grid: got \(2, 3\), wants three sizes"),
        (lambda: ScanPath.raster((2048, 2048, 2048)), r"grid: .* wants at most 2147483647 tokens"),
        (lambda: ScanPath.plane("fw", (2, 1, 2), [0, 1, 1, 3]), r"order: wants each of the cells 0 to 3 exactly once"),
        (lambda: ScanPath.plane("fw", (2, 1, 2), [0, 1, 2]), r"order: got int64 of shape \(3,\), wants 4 integers"),
        (lambda: ScanPath.plane("fw", (2, 1, 2), [0.0, 1, 2, 3]), r"order: got float64"),
        (lambda: ScanPath((1, 1, 1), 1, 2, 0, b"\0" * 4), r"table: got 1 offsets .* wants a length of 2"),
        (lambda: ScanPath((1, 1, 2), 2, 1, -1, b"\1\0\0\0"), r"table: .* stride of -1, wants .* at least 0"),
        (lambda: ScanPath((1, 1, 2), 1, 2, 0, b"\0" * 8), r"table: got a walk that does not visit each token"),
    ],
)
def test_what_is_no_path_is_refused_in_words(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_a_compiled_function_takes_paths_and_may_make_them():
    x = torch.zeros(4)

    def use(x, path):
        return x + path.offsets(x.device)

    whole = torch.compile(use, fullgraph=True, backend="eager")
    for order in (spiral_order(2, 2), spiral_order(2, 2, 6)):
        path = ScanPath.plane("fw", (2, 3, 2), order)
        assert torch.equal(whole(x, path), path.offsets().float())

    def build(x):
        return x.sin() + ScanPath.plane("fw", (2, 3, 2), spiral_order(2, 2, 3)).offsets(x.device)

    assert torch.equal(torch.compile(build, backend="eager")(x), build(x))
