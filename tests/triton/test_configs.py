"""Which configuration serves a kernel: the user's table, the shipped one, the default."""

import dataclasses
import json

import pytest
import torch
from scan_case import Case, check

from medsora_ops import configs, path_scan, ssd_scan, use_backend
from medsora_ops.launch import architecture
from medsora_ops.scan import chunk_launch, chunk_path_launch, tile_launch
from medsora_ops.scan.chunk_config import FORWARD, fitting
from medsora_ops.scan.tile_launch import TileConfig


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSORA_CONFIGS", str(tmp_path / "configs.json"))
    configs.write(tmp_path / "configs.json", {})
    yield tmp_path / "configs.json"
    configs._chosen.cache_clear()


def test_lengths_share_buckets():
    assert [configs.bucket(length) for length in (1, 4, 5, 48, 64, 65)] == [4, 4, 8, 64, 64, 128]


def test_a_table_is_used_and_says_what_was_measured(own_table, device, monkeypatch):
    case = Case(kinds=("hw",), grid=(2, 3, 4), head_dim=32)
    key = configs.Case("path_scan_tile_fwd", architecture(device), 16, 32, 16, "float32")
    configs.write(own_table, {key: {"values": {"tokens": 16, "num_warps": 2}, "measured": {"chip": "here"}}})
    taken = []
    forward = tile_launch.forward
    monkeypatch.setattr(tile_launch, "forward", lambda *a: taken.append(a[-1]) or forward(*a))
    check(case, device)
    assert taken[0] == dataclasses.replace(tile_launch.FORWARD, tokens=16, num_warps=2) != tile_launch.FORWARD
    assert configs.user_table()[key]["measured"] == {"chip": "here"}
    assert configs.told().startswith(f"1 measured in {own_table}, ")
    for change in (dict(head_dim=16), dict(grid=(1, 5, 5)), dict(dtype=torch.float16)):
        taken.clear()
        changed = dataclasses.replace(case, **change)
        check(changed, device)
        assert taken[0] == tile_launch.FORWARD


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2, "entries": []}', '{"format": 1, "entries": [{}]}'])
def test_a_damaged_table_is_named(own_table, content, device):
    own_table.write_text(content)
    configs._chosen.cache_clear()
    with pytest.raises(ValueError, match="configs.json: is no table of kernel configurations .*medsora_ops.tune"):
        configs.choose("path_scan_tile_fwd", TileConfig(), torch.empty(1, device=device), 48, 64, 128)


def test_the_shipped_table_is_sound():
    for case, entry in configs.read(configs.SHIPPED).items():
        assert entry["measured"].keys() >= {"chip", "date", "torch", "triton"}
        whole = case.kernel.startswith(("path_scan_tile", "path_scan_sequence"))
        dataclasses.replace(TileConfig() if whole else FORWARD, **entry["values"])
    assert json.loads(configs.SHIPPED.read_text())["format"] == configs.FORMAT


@pytest.mark.parametrize("dtype, state", [(torch.float32, 16), (torch.float16, 160)])
def test_large_tiles_are_cut_smaller_for_long_sequences(device, dtype, state, monkeypatch):
    """By default, where a chunk of full size would not fit the shared memory of every chip."""
    taken = []
    for module, name in ((chunk_launch, "ssd_scan"), (chunk_path_launch, "path_scan_chunked")):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, run=run, config: taken.append(config) or run(*a, config=config))
    case = Case(kinds=("raster",), grid=(1, 1, 257), heads=1, state=state, dtype=dtype)
    tensors, _ = case.tensors(device)
    x, steps, groups = torch.ones(1, 3, 1, 16), torch.ones(1, 3, 1), torch.ones(1, 3, 1, state)
    x, steps, groups = (t.to(device, dtype) for t in (x, steps, groups))
    with use_backend("triton"), torch.no_grad():
        path_scan(*tensors, case.paths, **case.settings)
        ssd_scan(x, steps, -steps[0, 0], groups, groups)
    assert taken == [fitting(FORWARD, dtype, state)] * 2 and taken[0] != FORWARD
