"""A run with classes and given first frames, from data to videos of a named class and any length."""

import json

import pytest
from micro_run import run

from medsora import MedSoraPipeline
from medsora.data.readers import read_video
from medsora.errors import run_command
from medsora.sample import main as sample

WINDOWS = ("--prepare.num_frames", "16", "--prepare.windows_per_clip", "1", "--prepare.val_fraction", "0.2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditioned") / "run"
    more = ("--data", "builtin:phantom:4", *WINDOWS, "--denoiser.first_frame_conditioning", "true", "--max-steps", "4")
    assert run(folder, *more) == 0
    return folder


def test_what_the_data_says_of_classes_and_windows_is_saved_with_the_model(trained):
    config = json.loads((trained / "model_index.json").read_text())
    assert config["class_names"] == ["normal", "polyp"] and config["given_frames"] == [1, 8]
    denoiser = MedSoraPipeline.from_pretrained(trained).denoiser.config
    assert denoiser.num_classes == 2 and denoiser.first_frame_conditioning


def test_a_long_video_of_a_class(trained, tmp_path, capsys):
    command = ["--model", trained, "--steps", 2, "--num-videos", 1, "--num-frames", 30, "--class-label", "polyp"]
    arguments = [*command, "--guidance-scale", 2, "--output", tmp_path]
    assert run_command(lambda: sample([str(argument) for argument in arguments])) == 0
    assert read_video(tmp_path / "video-00000.mp4").frames.shape == (30, 32, 32, 3)
    settings = json.loads((tmp_path / "samples.json").read_text())["settings"]
    assert (settings["class_label"], settings["window"], settings["overlap"]) == (1, 16, 8)


def test_quality_against_steps_is_measured_once(trained, tmp_path, capsys):
    from benchmarks import sampler_quality

    record = tmp_path / "quality.json"
    command = ["--model", str(trained), "--sets", "1", "--predictions", "3", "2", "--output", str(record)]
    sampler_quality.main([*command, "--samplers", "heun"])
    first = json.loads(record.read_text())["rows"]
    assert [(row["steps"], row["predictions"]) for row in first] == [(2, 3), (1, 1)]
    assert "psnr_to_most_db" not in first[0] and 0 < first[1]["psnr_to_most_db"] < 100
    sampler_quality.main([*command, "--samplers", "ddim", "heun"])
    rows = json.loads(record.read_text())["rows"]
    assert [row["sampler"] for row in rows] == ["ddim"] * 2 + ["heun"] * 2 and rows[2:] == first
    assert all(row["motion_distance"] > 0 for row in rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["quality.json", "quality.png"]
    capsys.readouterr()
    assert run_command(lambda: sampler_quality.main([*command, "--seed", "1"])) == 2
    assert "holds a measurement of another model or of other videos" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words",
    [
        (("--denoiser.model", '{"num_classes": 3}'), "denoiser.model.num_classes: got 3, wants 2, or 0"),
        (("--denoiser.first_frame_conditioning", "true", "--denoiser.given_frames", "[2]"), "denoiser.given_frames"),
    ],
)
def test_conditions_that_do_not_fit_the_data_are_told_before_anything_trains(tmp_path, capsys, options, words):
    assert run(tmp_path / "run", "--data", "builtin:phantom:4", *options) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ") and words in told
    assert not (tmp_path / "run" / "vae").exists()
