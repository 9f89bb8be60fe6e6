"""The tuner, from candidates to a table that calls use. In the interpreter its times mean nothing."""

import dataclasses

import pytest
import torch

from medsora_ops import configs, launch, tune
from medsora_ops.scan import tile_launch


def arguments(tmp_path, *more):
    sizes = ("--head-dims", "16", "--states", "16", "--dtypes", "float32", "--tokens", "12", "--rounds", "1")
    return [*sizes, "--most", "2", "--output", str(tmp_path / "table.json"), *more]


def test_a_table_is_made_added_to_and_used(tmp_path, monkeypatch, capsys, device):
    monkeypatch.setattr(tune, "HEADS", 1)
    assert tune.main(arguments(tmp_path, "--lengths", "6")) == 0
    assert tune.main(arguments(tmp_path, "--lengths", "66", "--most", "1")) == 0
    table = configs.read(tmp_path / "table.json")
    assert {(case.kernel, case.length) for case in table} == {
        *((f"path_scan_tile_{way}", 8) for way in ("fwd", "bwd")),
        *(
            (f"{kernel}_{way}", 128)
            for kernel in ("path_scan_sequence", "path_scan_chunk", "ssd_scan")
            for way in ("fwd", "bwd")
        ),
    }
    monkeypatch.setenv("MEDSORA_CONFIGS", str(tmp_path / "table.json"))
    configs._chosen.cache_clear()
    chosen = configs.choose("path_scan_tile_fwd", tile_launch.FORWARD, torch.empty(1, device=device), 6, 16, 16)
    (entry,) = (e for case, e in table.items() if case.kernel == "path_scan_tile_fwd")
    assert chosen == dataclasses.replace(tile_launch.FORWARD, **entry["values"])
    assert entry["measured"]["microseconds"] > 0 and "[2/2, about" in capsys.readouterr().out
    configs._chosen.cache_clear()


def test_a_configuration_that_is_wrong_or_fails_never_wins(device, capsys):
    def run(config):
        if config == "fails":
            raise RuntimeError("out of shared memory")
        return [torch.full((3,), 2.0 if config == "wrong" else 1.0)]

    winner, medians = tune.best(run, ["default", "fails", "wrong", "good"], torch.device("cpu"), 1)
    assert winner in ("default", "good") and set(medians) == {"default", "good"}
    said = capsys.readouterr().err
    assert "fails: RuntimeError" in said and "wrong: results differ" in said


def test_candidates_hold_the_sequence():
    for length in (4, 40, 64):
        for way in ("fwd", "bwd"):
            tried = list(tune.candidates(f"path_scan_tile_{way}", length, torch.bfloat16, 128))
            assert len(tried) == len(set(tried)) > 10 and all(c.tokens >= length for c in tried)


def test_damaged_tables_and_missing_gpus_are_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "table.json").write_text("{")
    assert tune.main(arguments(tmp_path)) == 2
    assert "table.json: is no table" in capsys.readouterr().err
    monkeypatch.setattr(launch, "unavailable", lambda: "torch sees no GPU")
    assert tune.main(arguments(tmp_path)) == 2
    assert capsys.readouterr().err == "error: there is nothing to tune: torch sees no GPU\n"


@pytest.mark.parametrize("option", ["--lengths", "--output", "--dtypes"])
def test_help_teaches(option, capsys):
    with pytest.raises(SystemExit):
        tune.main(["--help"])
    assert option in capsys.readouterr().out
