"""path_scan of whole sequences block by block, by Triton kernels, against its float64 definition; and what goes so."""

from dataclasses import replace

import pytest
import torch
from sampling import sampled
from scan_case import Case, check, compare
from test_tile_scan import CONFIGS, HALF, taken_whole  # noqa: F401

from medsora_ops.scan import chunk_path_launch, sequence_launch, tile_launch, triton
from medsora_ops.scan.tile_launch import Mixer, TileConfig

SMALL = TileConfig(tokens=16, state=16, channels=16, programs=1)
SHAPES = [
    dict(kinds=("fw", "fh"), heads=1, grid=(3, 2, 6)),
    dict(kinds=("hw", "raster"), bidirectional=False, batch=2, grid=(2, 4, 5), heads=1),
    dict(heads=3, head_dim=24, state=20, bidirectional=False),
    dict(heads=3, head_dim=5, state=7, bidirectional=False),
    dict(heads=4, groups=2, norm_groups=2, bidirectional=False),
    dict(heads=2, groups=2, state=5),
    dict(heads=1, head_dim=40, state=128, bidirectional=False),
    dict(heads=1, head_dim=128, bidirectional=False),
    dict(taps=1),
    dict(taps=2, bias=False),
    dict(taps=3, grid=(1, 1, 1)),
    dict(batch=0, kinds=("fw", "fh")),
]


def check_blocks(case, device, config=SMALL, twice=False):
    """Values and every gradient, whatever the lengths. twice: and the same bits again."""
    tensors, grads = case.tensors(device)
    outputs, found = run_blocks(case, tensors, grads, config)
    if twice:
        again, found_again = run_blocks(case, tensors, grads, config)
        assert all(torch.equal(a, b) for a, b in zip(outputs + found, again + found_again, strict=True))
    compare(case, tensors, grads, outputs, found)


def run_blocks(case, tensors, grads, config):
    rows, *parameters = tensors
    tables, strides = [p.offsets(rows.device) for p in case.paths], [p.stride for p in case.paths]
    mixer = Mixer.of(parameters[0], parameters[2], parameters[5], *case.settings.values())
    outputs = sequence_launch.forward(rows, parameters, tables, strides, mixer, config)
    grad_rows = torch.empty_like(rows)
    found = sequence_launch.backward(grads, grad_rows, rows, parameters, tables, strides, mixer, config)
    return outputs, [grad_rows, *found]


@pytest.mark.parametrize("length", sorted({256, *sampled((65, 127, 128, 129, 191, 192, 193, 255), 1)}))
def test_every_edge(device, length):
    check(Case(kinds=("raster",), grid=(1, 1, length), heads=1, bidirectional=length % 2 == 0, seed=length), device)


@pytest.mark.parametrize("length", sampled(range(1, 50), 2))
def test_every_length(device, length):
    """In blocks of 16 tokens."""
    check_blocks(Case(kinds=("raster",), grid=(1, 1, length), batch=2, heads=1, seed=length), device)


@pytest.mark.parametrize("change", sampled(SHAPES, 4), ids=str)
def test_every_shape(device, change):
    check_blocks(replace(Case(grid=(2, 1, 17)), **change), device, twice="batch" in change)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("parameters", [None, torch.float32])
def test_half_types(device, dtype, parameters):
    check_blocks(
        Case(kinds=("fw",), grid=(2, 1, 17), head_dim=32, state=32, dtype=dtype, parameters=parameters), device
    )


@pytest.mark.parametrize("config", sampled(CONFIGS, 2), ids=str)
def test_every_way_of_cutting(device, config):
    check_blocks(Case(kinds=("raster",), grid=(1, 1, 70), heads=1, head_dim=40, state=40, seed=3), device, config)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_large_states_are_cut_smaller_on_the_way_back(device, dtype):
    assert sequence_launch.default("bwd", dtype, 144).tokens < sequence_launch.default("bwd", dtype, 128).tokens
    case = Case(kinds=("raster",), grid=(1, 1, 70), heads=1, state=144, bidirectional=False, dtype=dtype)
    check(case, device)


def test_paths_of_all_lengths_in_one_call(device, monkeypatch):
    """One in a tile, one in blocks, one chunk by chunk: gradients of all add up."""
    monkeypatch.setattr(triton, "LONGEST", 100)
    case = Case(kinds=("fh", "raster", "fw"), grid=(6, 2, 12), heads=1, bidirectional=False)
    lengths = [path.length for path in case.paths]
    assert lengths == [12, 144, 72] and routes(device, (12, 12), (144, 1), (72, 2), heads=1) == (
        [(tile_launch, [12]), (sequence_launch, [72])],
        [144],
    )
    check(case, device)


def routes(device, *paths, videos=1, heads=16):
    """The launches and lengths of whole sequences, and the lengths that go chunk by chunk. paths: length and count."""
    lengths = [length for length, _ in paths]
    rows = torch.empty(videos, paths[0][0] * paths[0][1], 0, device=device)
    mixer = Mixer(heads, 64, 1, 128, 4, 2, 1e-5, heads * 64)
    whole, long = triton._routes(rows, [torch.empty(length) for length in lengths], mixer)
    return [(room, [lengths[i] for i in which]) for room, _, which in whole], [lengths[i] for i in long]


def test_what_goes_which_way(device, monkeypatch):
    monkeypatch.setattr(triton.launch, "multiprocessors", lambda _: 132)
    monkeypatch.setattr(triton, "_HEADS_APART", 4)
    tiles, blocks = tile_launch, sequence_launch
    assert routes(device, (48, 8), (48, 8), videos=64) == ([(tiles, [48, 48])], [])
    assert routes(device, (96, 16), (64, 24), videos=8) == ([(blocks, [96, 64])], [])
    assert routes(device, (96, 16), (6, 256), videos=8) == ([(tiles, [6]), (blocks, [96])], [])
    assert routes(device, (256, 4), (512, 2), videos=64) == ([(blocks, [256])], [512])
    # Too few for the chip: heads go apart. Very short ones stay, as many lie in a tile.
    assert routes(device, (48, 8), (48, 8)) == ([], [48, 48])
    assert routes(device, (256, 4)) == ([], [256])
    assert routes(device, (6, 64), videos=2) == ([(tiles, [6])], [])
    assert routes(device, (48, 8), heads=1) == ([(tiles, [48])], [])
    assert routes(device, (48, 8), videos=0) == ([(tiles, [48])], [])


def test_few_sequences_go_by_heads(device, monkeypatch):
    """They give the same."""
    taken = []
    run = chunk_path_launch.path_scan_chunked
    monkeypatch.setattr(
        chunk_path_launch, "path_scan_chunked", lambda *a, config: taken.append(config) or run(*a, config=config)
    )
    monkeypatch.setattr(triton, "_HEADS_APART", 0)
    check(Case(kinds=("fw", "fh"), grid=(2, 3, 5), heads=1), device)
    assert taken
