"""`python -m medsora.evaluate` as its user meets it: a small run, folders of videos, interruptions and bad input."""

import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from micro_model import micro_pipeline

from medsora.data import FrameClips, PrepareSettings, prepare_frames
from medsora.errors import run_command
from medsora.evaluate import main
from medsora.evaluation import results
from medsora.evaluation.generated import FolderVideos, RunVideos
from medsora.evaluation.memorisation import nearest_recordings
from medsora.evaluation.reconstruction import measure_reconstruction
from medsora.evaluation.settings import EvaluateSettings
from medsora.media import write_mp4
from medsora.metrics import SpectralComparison, frechet_motion_distance, psnr, temporal_statistics
from medsora.training.evaluation import reconstruct

FEW = ("--num-videos", 6, "--steps", 2, "--reference_videos", 40, "--nearest", 3, "--batch-size", 4,
       "--reconstruction_clips", 5)  # fmt: skip


def call(*arguments):
    return run_command(lambda: main([str(argument) for argument in (*arguments, "--quiet")]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A saved pipeline of 32 x 32 pixels, 8 frames and 3 classes."""
    folder = tmp_path_factory.mktemp("model") / "run"
    micro_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """12 phantom clips of 24 frames at 32 x 32."""
    folder = tmp_path_factory.mktemp("data") / "phantom"
    prepare_frames("builtin:phantom:12", folder, PrepareSettings(size=32, num_frames=8, interval=2, val_fraction=0.3))
    return folder


@pytest.fixture(scope="module")
def evaluated(run, dataset, tmp_path_factory):
    """The run, evaluated with small numbers: the output folder and its result."""
    output = tmp_path_factory.mktemp("out")
    assert call(run, "--reference", dataset, "--output", output, *FEW) == 0
    return output, json.loads((output / "evaluation.json").read_text())


def test_a_folder_is_evaluated_again_without_what_was_written_into_it(dataset, tmp_path):
    samples, rng = tmp_path / "samples", np.random.default_rng(0)
    for number in range(2):
        write_mp4(samples / f"{number}.mp4", rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), 5)
    again = tmp_path / "again"
    few = ("--reference_videos", 4, "--nearest", 1)
    assert call(samples, "--reference", dataset, *few) == 0
    assert call(samples, "--reference", dataset, *few, "--output", again) == 0
    first, second = (json.loads((folder / "evaluation.json").read_text()) for folder in (samples / "evaluation", again))
    assert second["protocol"] == first["protocol"] and second["protocol"]["generated"]["videos"] == 2
    assert second["generation"] == first["generation"]


def test_an_output_that_is_a_file_is_told_in_one_line(run, dataset, tmp_path, capsys):
    output = tmp_path / "output"
    output.write_text("mine")
    assert call(run, "--reference", dataset, "--output", output, *FEW) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: cannot use {output}") and told.count("\n") == 1
    assert output.read_text() == "mine"


def names_in(value):
    """Every key of a result, at any depth, but those that are file names."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from [name] * ("/" not in name)
            yield from names_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from names_in(inner)


def test_result_has_what_its_description_lists(evaluated):
    _, result = evaluated
    described = (results, measure_reconstruction, nearest_recordings, temporal_statistics, SpectralComparison)
    known = set(re.findall(r"\w+", " ".join(thing.__doc__ for thing in described)))
    known |= set(EvaluateSettings.__dataclass_fields__) | set(results.versions())
    assert {name for name in names_in(result) if name not in known} == set()
    assert set(result) <= set(re.findall(r"\w+", results.__doc__))
    assert result["format"] == results.FORMAT and "not for diagnosis" in result["notice"]
    assert result["warnings"] == [] and result["device"] == "cpu"


def test_protocol_states_both_sides(evaluated, dataset, run):
    protocol = evaluated[1]["protocol"]
    real, generated = protocol["real"], protocol["generated"]
    assert (protocol["num_frames"], protocol["size"]) == (8, 32)
    assert (real["windows"], real["frames"], real["stride"], real["flips"], real["resize"]) == (
        40,
        320,
        2,
        True,
        "none",
    )
    assert real["manifest_sha256"] == hashlib.sha256((dataset / "manifest.json").read_bytes()).hexdigest()
    assert (generated["videos"], generated["frames"], generated["source"]) == (6, 48, "run")
    assert generated["settings"] == {"seed": 0, "steps": 2, "scheduler": None, "guidance_scale": 1.0}
    weights = "denoiser/diffusion_pytorch_model.safetensors"
    assert generated["sha256"][weights] == hashlib.sha256((run / weights).read_bytes()).hexdigest()


def test_motion_distance_is_that_of_the_clips(evaluated, dataset):
    """Recomputed from the kept samples and the same windows, by the function that holds all clips at once."""
    from medsora.evaluation.reference import Reference

    output, result = evaluated
    made = [np.load(path) for path in sorted((output / "generated").glob("*.npy"))]
    reference = Reference(dataset, "all", 32)
    windows = [reference.read(window, 8, 2) for window in reference.windows(8, 2, 40, True, 0)]
    found = result["generation"]["motion"]
    assert found["distance"] == pytest.approx(frechet_motion_distance(windows, made), rel=1e-6)
    assert (found["real"], found["generated"], found["protocol"]["proxy"]) == (40, 6, True)
    assert 0 < found["halves"] < found["distance"]


def test_reconstruction_is_that_of_held_out_clips(evaluated, dataset, run):
    from medsora import MedSoraPipeline

    found = evaluated[1]["reconstruction"]
    vae = MedSoraPipeline.from_pretrained(run).vae
    clips = FrameClips(dataset, "val").fixed_clips(8)
    chosen = [clips[i * len(clips) // 5] for i in range(5)]
    made = reconstruct(vae, chosen, 2)
    wanted = np.mean([float(psnr(a, b)) for a, b in zip(made, chosen, strict=True)])
    assert found["psnr"] == pytest.approx(wanted, abs=0.01)  # batches of another size round otherwise
    assert (found["clips"], found["split"], found["lpips"], found["frames"]) == (5, "val", None, 8)
    assert len(found["spectrum"]["energy_ratio"]) == 16 and found["ssim"] < 1
    for parameter in vae.compensation_parameters():
        parameter.data.zero_()
    plain = reconstruct(vae, chosen, 2)
    wanted = np.mean([float(psnr(a, b)) for a, b in zip(plain, chosen, strict=True)])
    assert found["without_compensation"]["psnr"] == pytest.approx(wanted, abs=0.01) != found["psnr"]


def close(one, other):
    """Whether two parts of a result agree, numbers within rounding: samples of other batches differ in last bits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == (pytest.approx(other, rel=0.02, abs=1e-3) if isinstance(one, float) else other)


def test_two_processes_find_what_one_finds(evaluated, run, dataset, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = ["medsora.evaluate", run, "--reference", dataset, "--output", tmp_path, *FEW, "--quiet"]
    done = subprocess.run([*launcher, *map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    together, alone = json.loads((tmp_path / "evaluation.json").read_text()), evaluated[1]
    for part in alone.keys() - {"settings"}:
        assert close(alone[part], together[part]), (part, alone[part], together[part])
    assert done.stdout.count("motion distance (weight-free proxy)  ") == 1  # one of them speaks


def test_a_warning_names_the_first_files_only():
    skipped = [(f"{number}.npy", "it is damaged") for number in range(7)]
    said = results.not_used(skipped)
    assert said.startswith("7 file(s) were skipped: 0.npy: it is damaged; 1.npy") and "5.npy" not in said
    assert said.endswith("4.npy: it is damaged; and 2 more, in evaluation.json.")


def test_page_table_and_pictures(evaluated, capsys, run, dataset):
    output, result = evaluated
    page = (output / "report.html").read_text()
    for words in ("motion distance (weight-free proxy)", "no substitute for FVD", "Nearest recordings", "Protocol",
                  "data:video/mp4", "not for diagnosis"):  # fmt: skip
        assert words in page
    assert (output / "nearest.png").is_file() and (output / "reconstruction.png").is_file()
    assert {record["split"] for record in result["memorisation"]["samples"]} <= {"train", "val"}
    assert len(result["memorisation"]["samples"]) == 3 and len(result["memorisation"]["pairs"]) == 3
    assert result["memorisation"]["threshold"] > 0 and len(result["memorisation"]["recorded"]) == 3


def test_samples_are_kept_and_measured_again(evaluated, run, dataset, monkeypatch, tmp_path):
    output, result = evaluated
    before = np.load(output / "generated" / "00002.npy").astype(int)
    (output / "generated" / "00002.npy").unlink()
    sampled, inner = [], RunVideos._call

    def noted(self, numbers):
        sampled.append(list(numbers))
        return inner(self, numbers)

    monkeypatch.setattr(RunVideos, "_call", noted)
    few = ("--num-videos", 6, "--steps", 2, "--reference_videos", 40, "--nearest", 0, "--batch-size", 4)
    again = ("--output", output, *few, "--reconstruction_clips", 0)
    assert call(run, "--reference", dataset, *again) == 0
    assert sampled == [[0], [2]]  # the check of arguments, then the one that was missing
    made = np.load(output / "generated" / "00002.npy").astype(int)
    assert np.abs(made - before).max() <= 2  # sampled alone it rounds otherwise than in a batch
    after = json.loads((output / "evaluation.json").read_text())
    distances = [found["generation"]["motion"]["distance"] for found in (after, result)]
    assert distances[0] == pytest.approx(distances[1], rel=0.01) and after["memorisation"] is None


def test_an_interruption_keeps_what_was_sampled(run, dataset, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("medsora.evaluation.measure.Evaluation._generated", interrupted)
    assert call(run, "--reference", dataset, "--output", tmp_path, "--num-videos", 2, "--steps", 1) == 130
    assert "what was sampled is kept" in capsys.readouterr().err
    assert len(list((tmp_path / "generated").glob("*.npy"))) == 2


def test_samples_of_other_settings_are_not_mixed(evaluated, run, dataset, capsys):
    assert call(run, "--reference", dataset, "--output", evaluated[0], "--steps", 3) == 2
    assert "holds samples made with --steps 2, now it is 3; give another --output" in capsys.readouterr().err
    record = evaluated[0] / "generated" / "made-by.json"
    before = record.read_text()
    record.write_text(json.dumps(json.loads(before) | {"sha256": {}}))
    assert call(run, "--reference", dataset, "--output", evaluated[0], "--steps", 2) == 2
    assert "holds samples of another model; give another --output" in capsys.readouterr().err
    record.write_text(before)


def test_a_claim_without_samples_gives_way(run, dataset, tmp_path, capsys):
    few = ("--output", tmp_path, "--num-videos", 2, "--nearest", 0, "--reconstruction_clips", 0, "--steps")
    assert call(run, "--reference", tmp_path / "nowhere", *few, 3) == 2  # nothing was sampled for it
    assert call(run, "--reference", dataset, *few, 1) == 0


@pytest.fixture
def folder(tmp_path):
    """Five generated videos of 10 frames, 40 x 32, one of them too short, and a file that is none."""
    rng = np.random.default_rng(0)
    place = tmp_path / "made"
    place.mkdir()
    for number in range(5):
        frames = rng.integers(0, 256, (4 if number == 3 else 10, 40, 32, 3), dtype=np.uint8)
        np.save(place / f"{number}.npy", frames)
    (place / "notes.txt").write_text("none")
    return place


def test_a_folder_against_recordings_that_are_not_prepared(folder, capsys):
    assert call(folder, "--reference", "builtin:phantom:3", "--num_frames", 5, "--stride", 2, "--nearest", 0) == 0
    result = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    generated, real = (result["protocol"][side] for side in ("generated", "real"))
    assert (generated["videos"], generated["stride"], generated["size"]) == (4, 2, [40, 32])
    assert generated["skipped"] == [["notes.txt", "it is not a kind of video this reads"],
                                    ["3.npy", "it has 2 frames at a step of 2, wants 5"]]  # fmt: skip
    assert generated["resize"] == "short side to 32, area (down) or bicubic (up), long side cut at the centre"
    assert (real["size"], real["resize"], real["clips"], real["flips"]) == ([32, 32], "none", 3, False)
    said = capsys.readouterr().out
    assert (
        "warning   2 file(s) were skipped: notes.txt: it is not" in said
        and "; 3.npy: it has 2 frames" in said
        and result["reconstruction"] is None
    )
    assert "motion distance (weight-free proxy)" in said
    again = FolderVideos(folder, 256, 2, 5, folder / "evaluation")  # its own output is no input
    assert again.names == [f"{number}.npy" for number in (0, 1, 2, 4)]


def test_recordings_for_a_run_are_cut_as_its_own_were(run, dataset, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    prepared = {"prepare": {"interval": 3, "flips": True, "crop_borders": False, "size": 32}}
    (tmp_path / "run" / "settings.json").write_text(json.dumps({"settings": prepared}))
    few = ("--num-videos", 2, "--steps", 1, "--nearest", 0, "--reference_videos", 6, "--reconstruction_clips", 0)
    assert call(tmp_path / "run", "--reference", "builtin:phantom:2", *few) == 0
    output = tmp_path / "run" / "evaluation"
    real = json.loads((output / "evaluation.json").read_text())["protocol"]["real"]
    assert (real["stride"], real["flips"], real["windows"]) == (3, True, 6)
    assert json.loads((output / "reference" / "manifest.json").read_text())["settings"]["crop_borders"] is False
    # the data set tells interval 2, but this run made another use of it
    assert call(tmp_path / "run", "--reference", dataset, *few) == 0
    real = json.loads((output / "evaluation.json").read_text())["protocol"]["real"]
    assert (real["path"], real["stride"], real["flips"]) == (str(dataset), 3, True)
    assert call(tmp_path / "run", "--reference", dataset, *few, "--reference_stride", 1, "--flips", "false") == 0
    real = json.loads((output / "evaluation.json").read_text())["protocol"]["real"]
    assert (real["stride"], real["flips"]) == (1, False)


def test_compressed_videos_are_warned_of(tmp_path, dataset):
    for number in range(2):
        frames = np.random.default_rng(number).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)
        write_mp4(tmp_path / "in" / f"{number}.mp4", frames, 6)
    assert call(tmp_path / "in", "--reference", dataset, "--output", tmp_path / "out", "--nearest", 1) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert ["compressed" in warning for warning in result["warnings"]] == [False, True]
    assert "stored at 32 x 32 and videos at 48 x 48" in result["warnings"][0]


def test_networks_are_measured_with_their_weights_and_few_samples_warned_of(folder, dataset, tmp_path):
    from transformers import VideoMAEConfig, VideoMAEModel

    torch.manual_seed(0)
    VideoMAEModel(
        VideoMAEConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=16,
            image_size=32,
            num_frames=4,
        )
    ).save_pretrained(tmp_path / "videomae")
    options = ("--videomae", tmp_path / "videomae", "--num_frames", 8, "--nearest", 0, "--reference_videos", 30)
    assert call(folder, "--reference", dataset, *options) == 0
    result = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    found = result["generation"]["cd_fvd"]
    weights = tmp_path / "videomae" / "model.safetensors"
    assert found["protocol"]["weights"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (found["size"], found["real"], found["generated"]) == (16, 30, 4) and found["distance"] > found["halves"] > 0
    assert [w for w in result["warnings"] if "CD-FVD" in w] == [
        "CD-FVD (VideoMAE): 4 generated clips are too few for features of 16 numbers, so the distance is too large and "
        "depends on their number; compare it only with distances of as many."
    ]


def test_images_are_clips_of_one_frame(dataset, tmp_path):
    from PIL import Image

    place = tmp_path / "made"
    place.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"image-{number}.png")
    listed = {f"image-{number}.png": {"index": number} for number in range(3)}
    (place / "samples.json").write_text(json.dumps({"videos": listed}))
    few = ("--reference_videos", 8, "--nearest", 1)
    assert call(place, "--reference", dataset, "--output", tmp_path / "out", *few) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["protocol"]["num_frames"] == 1 and result["temporal"] is None and result["generation"] == {}
    assert result["spectrum"]["difference"][-1] > 10  # white noise has more fine detail than a phantom


def bad_input_cases():
    return [
        (("nowhere", "--reference", "{data}"), "there is no folder nowhere"),
        (("{empty}", "--reference", "{data}"), "is empty: no video"),
        (("{texts}", "--reference", "{data}"), "holds no generated video that can be used: a.txt"),
        (("{made}",), "reference"),
        (("{made}", "--reference", "nowhere"), "nowhere does not exist"),
        (("{made}", "--reference", "{texts}"), "nothing in"),
        (("{made}", "--reference", "{data}", "--num_frames", 40), "it has 10 frames, wants 40"),
        (("{made}", "--reference", "{data}", "--reference_stride", 9), "holds 10 frames at a step of 9"),
        (("{made}", "--reference", "{data}", "--split", "test"), "--split: got 'test', wants one of all, train, val"),
        (("{made}", "--reference", "{data}", "--num-videos", 1), "--num_videos: got 1, wants 2 or more"),
        (("{made}", "--reference", "{data}", "--bands", 17), "--bands: got 17, wants at most 16"),
        (("{made}", "--reference", "{data}", "--i3d", "i3d.pt"), "--i3d: i3d.pt is a program"),
        (("{made}", "--reference", "{data}", "--inception", "none.pth"), "pt_inception-2015-12-05-6726825d.pth"),
        (("{made}", "--reference", "{data}", "--lpips", "none"), "--lpips: cannot load 'none', there is no such path"),
        (("{made}", "--reference", "{data}", "--flow", "raft"), "--flow_weights: got none"),
        (("{unfinished}", "--reference", "{data}"), "error: the run in"),
        (("{run}", "--reference", "{data}", "--num_frames", 9), "--num_frames: got 9, wants at most 8"),
        (("{run}", "--reference", "{data}", "--scheduler", "euler"), "--scheduler: got 'euler'"),
        (("{run}", "--reference", "{data}", "--steps", 5000), "--steps: got 5000"),
    ]


@pytest.mark.parametrize(("arguments", "words"), bad_input_cases())
def test_bad_input_is_one_sentence(arguments, words, folder, dataset, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("empty", "texts"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "settings.json").write_text("{}")
    places = {"made": folder, "data": dataset, "run": run} | {n: tmp_path / n for n in ("empty", "texts", "unfinished")}
    assert call(*(str(a).format(**places) for a in arguments), "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said and said.startswith("error: "), said


def test_frames_that_are_gone(folder, dataset, tmp_path, capsys):
    from medsora.data import Manifest
    from medsora.data.manifest import frames_path

    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "manifest.json").write_bytes((dataset / "manifest.json").read_bytes())
    assert call(folder, "--reference", moved) == 2
    first = frames_path(moved, Manifest.read(moved).clips[0].id)
    assert f"lists 12 clip(s) whose files are gone, such as {first}" in capsys.readouterr().err


FEW_OF_A_FOLDER = ("--reference_videos", 8, "--nearest", 1)


def test_videos_of_another_size_or_length_are_skipped_by_name(folder, dataset, capsys):
    """The first of the folder among them; what most of the first videos have is what is measured."""
    np.save(folder / "0.npy", np.zeros((10, 32, 32, 3), np.uint8))
    np.save(folder / "5.npy", np.zeros((12, 40, 32, 3), np.uint8))
    assert call(folder, "--reference", dataset, *FEW_OF_A_FOLDER) == 0
    protocol = json.loads((folder / "evaluation" / "evaluation.json").read_text())["protocol"]
    assert protocol["num_frames"] == 10 and protocol["generated"]["size"] == [40, 32]
    assert (protocol["generated"]["videos"], protocol["generated"]["frames"]) == (3, 30)
    assert protocol["generated"]["skipped"][1:] == [
        ["0.npy", "unlike the others: it is 32 x 32, they are 40 x 32"],
        ["3.npy", "unlike the others: it has 4 frames, they have 10"],
        ["5.npy", "unlike the others: it has more than their 10 frames"],
    ]
    assert "4 file(s) were skipped: notes.txt: it is not" in capsys.readouterr().out
    with_length = ("--num_frames", 4, "--output", folder / "evaluation")
    assert call(folder, "--reference", dataset, *FEW_OF_A_FOLDER, *with_length) == 0
    protocol = json.loads((folder / "evaluation" / "evaluation.json").read_text())["protocol"]
    assert protocol["generated"]["videos"] == 5  # lengths differ no longer; one is of another size


def test_a_folder_whose_videos_mostly_differ_is_one_sentence(folder, dataset, capsys):
    for number in range(5, 10):
        np.save(folder / f"{number}.npy", np.zeros((10 + number, 40, 32, 3), np.uint8))
    assert call(folder, "--reference", dataset, *FEW_OF_A_FOLDER) == 2
    assert "6 of 10 videos are unlike the other 4, such as 3.npy (it has 4 frames, they have 10); wants one size" in (
        capsys.readouterr().err
    )
    for number in (0, 2, 3, *range(4, 10)):
        (folder / f"{number}.npy").write_bytes(b"damaged")
    assert call(folder, "--reference", dataset, *FEW_OF_A_FOLDER) == 2
    assert "1 generated video(s) can be used, wants at least 2; notes.txt: it is not" in capsys.readouterr().err


def test_help_names_sources_measures_and_settings():
    shown = subprocess.run([sys.executable, "-m", "medsora.evaluate", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    for word in ("RUN/dataset", "builtin:cine", "--num_videos", "--i3d", "#sha256=HEX", "CD-FVD", "examples:"):
        assert word in shown.stdout
