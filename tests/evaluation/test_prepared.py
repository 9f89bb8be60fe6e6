"""The VAE's reconstruction of a prepared data set: recorded beside it, and measured again when something changed."""

import json

import numpy as np
import pytest
from micro_model import micro_vae

from medsora.data import FrameClips, PrepareSettings, prepare_frames
from medsora.errors import UserError
from medsora.evaluation import prepared
from medsora.evaluation.prepared import record_reconstruction
from medsora.metrics import psnr
from medsora.training.evaluation import reconstruct


@pytest.fixture
def dataset(tmp_path):
    prepare_frames("builtin:phantom:3", tmp_path, PrepareSettings(size=16, val_fraction=0.3), False)
    return tmp_path


def test_it_is_measured_on_held_out_clips_and_recorded(dataset):
    vae = micro_vae()
    found = record_reconstruction(dataset, vae, "cpu", 16, False)
    clips = FrameClips(dataset, "val").fixed_clips(8)
    made = reconstruct(vae, clips, 1)
    assert found["psnr"] == pytest.approx(np.mean([float(psnr(a, b)) for a, b in zip(made, clips, strict=True)]))
    assert (found["split"], found["clips"], len(found["spectrum"]["energy_ratio"])) == ("val", len(clips), 8)
    assert json.loads((dataset / "reconstruction.json").read_text()) == found


def test_it_is_measured_again_only_for_another_vae_or_number(dataset, monkeypatch):
    first, calls = record_reconstruction(dataset, micro_vae(), "cpu", 2, False), []
    inner = prepared.measure_reconstruction

    def counted(*arguments, **more):
        calls.append(1)
        return inner(*arguments, **more)

    monkeypatch.setattr(prepared, "measure_reconstruction", counted)
    assert record_reconstruction(dataset, micro_vae(), "cpu", 2, False) == first and not calls
    assert record_reconstruction(dataset, micro_vae(compensation="none"), "cpu", 2, False)["vae"] != first["vae"]
    record_reconstruction(dataset, micro_vae(compensation="none"), "cpu", 1, False)
    (dataset / "reconstruction.json").write_text("damaged")
    record_reconstruction(dataset, micro_vae(compensation="none"), "cpu", 1, False)
    assert len(calls) == 3


def test_what_cannot_be_measured_is_said(tmp_path):
    prepare_frames("builtin:phantom:2", tmp_path, PrepareSettings(size=24, max_clip_frames=7, min_clip_frames=7), False)
    assert record_reconstruction(tmp_path, micro_vae(), "cpu", 4, False) is None
    prepare_frames("builtin:phantom:2", tmp_path, PrepareSettings(size=24), False)
    with pytest.raises(UserError, match="--vae: it cannot take the data: .* wants multiples of 16"):
        record_reconstruction(tmp_path, micro_vae(pixel_unshuffle=4), "cpu", 4, False)
