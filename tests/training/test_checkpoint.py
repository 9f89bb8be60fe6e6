"""Checkpoints are whole or absent, the newest whole one is read, and what does not fit is named."""

import json
import os
import shutil

import pytest
import torch

from medsora.errors import UserError
from medsora.training.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    DamagedCheckpoint,
    read_checkpoint,
    require_same_tensors,
)


def a_checkpoint(step):
    torch.manual_seed(step)
    tensors = {"model": {"w": torch.randn(4, 3), "t": torch.randn(3, 4).T}, "optimizer": {"step.w": torch.tensor(1.0)}}
    return Checkpoint(step, tensors, {"bad_steps": 1, "sums": {"loss": 0.1}})


def test_what_is_saved_is_read_back_bit_for_bit(tmp_path):
    folder = CheckpointFolder(tmp_path / "vae")
    assert folder.load_latest() is None
    saved = a_checkpoint(7)
    folder.save(saved)
    read = folder.load_latest()
    assert (read.step, read.state) == (7, saved.state)
    assert all(torch.equal(read.tensors["model"][n], saved.tensors["model"][n]) for n in ("w", "t"))
    assert read.tensors["optimizer"]["step.w"].shape == ()


def test_the_last_ones_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (5, 10, 15, 20):
        folder.save(a_checkpoint(step))
    assert folder.steps() == [15, 20]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000015", "step-0000020"]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-8])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [cut_short, os.unlink, flip_a_bit])
def test_a_damaged_newest_one_is_passed_over_with_a_warning(tmp_path, caplog, name, damage):
    if name == "state.json" and damage is flip_a_bit:
        damage = cut_short
    folder = CheckpointFolder(tmp_path)
    folder.save(a_checkpoint(1))
    newest = folder.save(a_checkpoint(2))
    damage(newest / name)
    with pytest.raises(DamagedCheckpoint, match=name.split(".")[0]):
        read_checkpoint(newest)
    assert folder.load_latest().step == 1
    assert "step-0000002 is damaged" in caplog.text
    folder.save(a_checkpoint(2))  # the run comes to the same step again
    assert folder.load_latest().step == 2


def test_what_stops_while_writing_leaves_no_checkpoint_and_leftovers_are_removed(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    folder.save(a_checkpoint(1))
    names = []

    def stopped(*args):
        names.extend(path.name for path in tmp_path.glob(".writing-*/step-*"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medsora.training.checkpoint.write_json", stopped)
        with pytest.raises(KeyboardInterrupt):
            folder.save(a_checkpoint(2))
    assert names == ["step-0000002"] and folder.steps() == [1]
    (tmp_path / ".writing-0123abcd" / "step-0000002").mkdir(parents=True)  # what a killed run leaves
    folder.save(a_checkpoint(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000001", "step-0000002"]


def test_a_folder_without_its_state_is_no_checkpoint(tmp_path):
    (tmp_path / "step-0000009").mkdir()
    assert CheckpointFolder(tmp_path).load_latest() is None


def test_no_pickle_is_written(tmp_path):
    written = CheckpointFolder(tmp_path).save(a_checkpoint(3))
    assert {p.suffix for p in written.iterdir()} == {".safetensors", ".json"}
    json.loads((written / "state.json").read_text())


def test_tensors_that_do_not_fit_are_named():
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    found = {"a": torch.zeros(2), "b": torch.zeros(4), "d": torch.zeros(1)}
    with pytest.raises(UserError) as error:
        require_same_tensors(found, wanted, "run/model.safetensors")
    assert all(
        words in str(error.value)
        for words in ("run/model.safetensors", "missing: c", "unexpected: d", "b (4,) where (3,)")
    )
    require_same_tensors({}, wanted, "optimizer", optional=True)


def test_clearing_removes_all(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(a_checkpoint(1))
    shutil.copytree(folder.folder(1), folder.folder(2))
    folder.clear()
    assert folder.steps() == []
