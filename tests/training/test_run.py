"""Whole runs: killed and resumed, limited and extended, in two processes, sampled from, and refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_run import run
from safetensors.torch import load_file

from medsora.data import FrameClips, LatentClips
from medsora.errors import UserError
from medsora.media import SYNTHETIC_MARK, read_mark
from medsora.training.metrics_log import read_metrics

PROGRAM = Path(__file__).parent / "micro_run.py"
FILES = ("vae/diffusion_pytorch_model.safetensors", "denoiser/diffusion_pytorch_model.safetensors")


def in_a_process(output, *more, stop=None, processes=1, configuration=None):
    """The micro run as a program, signalled at `stop`; a configuration is for accelerate to launch it with."""
    launcher = [sys.executable]
    if configuration is not None:
        launcher += ["-m", "accelerate.commands.launch", "--config_file", str(configuration)]
        launcher += ["--num_processes", str(processes), "--main_process_port", "0"]
    elif processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    threads = str(max(torch.get_num_threads() // processes, 1))
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[2]), "OMP_NUM_THREADS": threads}
    if stop:
        environment["MICRO_STOP"] = stop
    return subprocess.run(
        [*launcher, str(PROGRAM), str(output), *more], env=environment, capture_output=True, text=True, timeout=300
    )


def weights(run_folder):
    """Final weights and, since they decide every later step, the last checkpoints."""
    last = [max((run_folder / "checkpoints" / stage).iterdir()) for stage in ("vae", "denoiser")]
    paths = [run_folder / name for name in FILES] + [p for folder in last for p in sorted(folder.glob("*.safetensors"))]
    return {f"{path.relative_to(run_folder)}: {n}": t for path in paths for n, t in load_file(path).items()}


def assert_same_bits(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different[:5]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(folder) == 0
    return folder


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(uninterrupted, tmp_path):
    """SIGKILL while a checkpoint is written, SIGKILL between checkpoints, SIGTERM; then it is let be."""
    folder = tmp_path / "killed"
    killed = in_a_process(folder, stop="checkpoint:vae:8:SIGKILL")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    names = {p.name for p in (folder / "checkpoints" / "vae").iterdir()}
    assert "step-0000004" in names and "step-0000008" not in names and len(names) == 2  # the other is half a one

    killed = in_a_process(folder, stop="step:denoiser:7:SIGKILL")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert [p.name for p in (folder / "checkpoints" / "denoiser").iterdir()] == ["step-0000004"]

    stopped = in_a_process(folder, stop="step:denoiser:10:SIGTERM")
    assert stopped.returncode == 143, stopped.stderr[-2000:]
    # a step that was under way when the signal came is finished first
    assert re.search(r"Stopped: saved denoiser step 1[01] of 14\. The same command goes on from there", stopped.stdout)
    assert "Traceback" not in stopped.stderr

    assert run(folder) == 0
    assert_same_bits(uninterrupted, folder)
    assert [r["step"] for r in read_metrics(folder, "vae")] == list(range(1, 11))
    assert [r["step"] for r in read_metrics(folder, "denoiser")] == list(range(1, 15))
    measured = [json.loads((f / "stages.json").read_text())["denoiser"] for f in (uninterrupted, folder)]
    assert measured[0]["baseline"] == measured[1]["baseline"]
    assert measured[0]["denoising_loss"] == measured[1]["denoising_loss"]


@pytest.mark.slow
def test_a_limited_run_is_whole_equals_two_processes_and_can_be_extended(uninterrupted, tmp_path):
    """Two processes that each hold the model, and two that divide it, by the configuration that SCALING.md shows."""
    configuration = tmp_path / "fsdp.yaml"
    guide = (PROGRAM.parents[2] / "medsora" / "SCALING.md").read_text("utf-8")
    configuration.write_text(re.search(r"```yaml\n(.*?)```", guide, re.DOTALL)[1])
    one, two, divided = (tmp_path / name for name in ("one", "two", "divided"))
    options = ["--max-steps", "3", "--vae.precision=fp32", "--denoiser.precision=fp32"]
    options += ["--evaluation.baseline_step=2", "--denoiser.sample_every=3"]
    assert run(one, *options) == 0
    assert (one / "report.html").is_file()
    for folder, how in ((two, None), (divided, configuration)):
        launched = in_a_process(folder, *options, "--device", "cpu", processes=2, configuration=how)
        assert launched.returncode == 0, launched.stderr[-3000:]
        assert launched.stdout.count("[2/5]") == 1  # only the main process speaks
        assert (folder / "samples" / "step-0000003.png").is_file() and (folder / "report.html").is_file()
        assert_close_runs(one, folder)

    limited = tmp_path / "limited"
    assert run(limited, "--max-steps", "3") == 0
    assert run(limited) == 0
    assert_same_bits(uninterrupted, limited)


def assert_close_runs(one, other):
    """Weights, losses and measurements of two runs of few steps, but for rounding."""
    first, second = ({n: t for n, t in weights(f).items() if "diffusion" in n or "/model" in n} for f in (one, other))
    for name in first:
        # AdamW's first steps have the gradient's sign: where it is next to nothing, rounding decides a weight's way.
        torch.testing.assert_close(second[name], first[name], rtol=1e-3, atol=1e-4, msg=name)
    losses = [[r["loss"] for r in read_metrics(f)] for f in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 6
    found, expected = (json.loads((f / "stages.json").read_text()) for f in (other, one))
    assert found["vae"]["psnr"] == pytest.approx(expected["vae"]["psnr"], rel=1e-3)
    for name in ("denoising_loss", "baseline"):
        assert found["denoiser"][name]["mse"] == pytest.approx(expected["denoiser"][name]["mse"], rel=1e-3)


def test_a_run_leaves_what_it_promises(uninterrupted):
    there = {str(p.relative_to(uninterrupted)) for p in uninterrupted.rglob("*") if p.is_file()}
    promised = {
        "settings.json", "stages.json", "metrics.jsonl", "report.html", "README.md", "model_index.json",
        "plots/vae.png",
        "plots/denoiser.png", "plots/reconstruction.png", "samples/all.mp4", "samples/all.gif", *FILES,
        "samples/contact-sheet.png", "samples/video-0001.mp4", "samples/step-0000010.png", "dataset/manifest.json",
    }  # fmt: skip
    assert promised <= there
    assert any(name.startswith("tensorboard/denoiser/events") for name in there)
    assert not [name for name in there if Path(name).suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt")]
    for name in ("all.mp4", "all.gif", "contact-sheet.png", "video-0001.mp4", "step-0000010.png"):
        assert read_mark(uninterrupted / "samples" / name) == SYNTHETIC_MARK
    assert read_mark(uninterrupted / "samples" / "real.mp4") is None
    facts = json.loads((uninterrupted / "stages.json").read_text())
    assert facts["denoiser"]["baseline"]["step"] == 6 and facts["vae"]["split"] == "held-out"
    assert set(facts["results"]["distances"]) == {"generated", "untrained model", "mean clip", "shuffled in time"}
    page = (uninterrupted / "report.html").read_text()
    for words in ("Numbers", "Data", "Settings", "denoiser.learning_rate", "same patient", "Motion distance"):
        assert words.lower() in page.lower(), words
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)  # needs no other file
    config = json.loads((uninterrupted / "vae" / "config.json").read_text())
    assert config["scaling_factor"] == pytest.approx(facts["latents"]["scaling_factor"]) != 1.0
    configs = [uninterrupted / "model_index.json", *uninterrupted.glob("*/config.json")]
    assert len(configs) == 3 and not [path for path in configs if str(uninterrupted.parent) in path.read_text()]


@pytest.mark.parametrize("stage", ["vae", "denoiser"])
def test_what_is_saved_is_the_moving_average(uninterrupted, stage):
    last = max((uninterrupted / "checkpoints" / stage).iterdir())
    own, average = load_file(last / "model.safetensors"), load_file(last / "ema.safetensors")
    saved = {f"{stage}.{n}": t for n, t in load_file(uninterrupted / stage / FILES[0].split("/")[1]).items()}
    trained = saved.keys() & average.keys()
    assert len(trained) > 20 and all(torch.equal(saved[name], average[name]) for name in trained)
    assert sum(not torch.equal(saved[name], own[name]) for name in trained) > len(trained) / 2


def test_a_finished_run_says_so_and_changes_nothing(uninterrupted, capsys):
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*") if p.is_file()}
    assert run(uninterrupted) == 0
    told = capsys.readouterr().out
    assert "finished" in told and str(uninterrupted / "report.html") in told
    assert before == {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*") if p.is_file()}


def test_another_setting_is_refused(uninterrupted, capsys):
    assert run(uninterrupted, "--denoiser.learning_rate", "0.5") == 2
    told = capsys.readouterr().err
    assert "denoiser.learning_rate" in told and "0.5" in told and "--output" in told and told.count("\n") == 1
    assert run(uninterrupted, "--denoiser.log_every", "7") == 0


def test_a_run_of_another_preset_is_refused(uninterrupted, capsys):
    assert run(uninterrupted, "--preset", "S") == 2
    told = capsys.readouterr().err
    assert 'was started with preset "tiny", now it is "S"' in told and told.count("\n") == 1


def test_checkpoints_of_another_size_are_refused(uninterrupted, tmp_path, capsys):
    """A denoiser's checkpoints in a run whose settings say another size: a copied folder, say."""
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    for name, key in (("settings.json", "settings"), ("stages.json", None)):
        record = json.loads((folder / name).read_text())
        if key:
            record["settings"]["denoiser"]["model"] = {"hidden_size": 128, "depth": 1, "state_size": 8, "head_dim": 32}
        else:
            record = {stage: record[stage] for stage in ("frames", "vae", "latents")}
            record["frames"]["dataset"] = str(folder / "dataset")
        (folder / name).write_text(json.dumps(record))
    capsys.readouterr()
    size = '{"hidden_size": 128, "depth": 1, "state_size": 8, "head_dim": 32}'
    assert run(folder, "--denoiser.model", size) == 2
    told = capsys.readouterr().err
    assert "step-0000014" in told and "of another shape" in told and told.count("\n") == 1


@pytest.mark.parametrize("lost", ["frames", "latents"])
def test_a_prepared_folder_whose_files_moved_is_refused(uninterrupted, tmp_path, capsys, lost):
    folder = shutil.copytree(uninterrupted / "dataset", tmp_path / "data")
    gone = [path.rename(tmp_path / path.name) for path in (folder / lost).iterdir()]
    with pytest.raises(UserError, match=rf"files that the index of .*data lists are not there, the first {lost}/"):
        (FrameClips if lost == "frames" else LatentClips)(folder, "train")
    if lost == "frames":
        assert gone and run(tmp_path / "run", "--data", str(folder)) == 2
        told = capsys.readouterr().err
        assert "are not there" in told and told.count("\n") == 1


def test_data_that_cannot_be_used_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "run", "--data", str(tmp_path / "empty")) == 2
    assert "empty" in capsys.readouterr().err.splitlines()[-1]


def test_frames_that_do_not_divide_are_refused_before_anything_is_trained(tmp_path, capsys):
    assert run(tmp_path / "run", "--denoiser.accumulation", "2", "--denoiser.images_per_batch", "3") == 2
    told = capsys.readouterr().err
    assert "denoiser.images_per_batch: got 3, wants a multiple of 2" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "options, words",
    [
        (
            ("--vae.pretrained", "nowhere", "--vae.model", "{}"),
            "vae.pretrained: cannot load 'nowhere', there is no",
        ),
        (
            ("--vae.lpips", "1", "--vae.lpips_weights", "nowhere"),
            "vae.lpips_weights: cannot load 'nowhere', there",
        ),
    ],
)
def test_weights_that_are_not_there_are_told_before_anything_is_prepared(tmp_path, capsys, options, words):
    assert run(tmp_path / "run", *options) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("way, wants", [("FSDP", "wants fsdp_version: 2"), ("DEEPSPEED", "wants distributed_type")])
def test_other_ways_to_divide_parameters_are_refused(tmp_path, capsys, monkeypatch, way, wants):
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    assert run(tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert way in told and wants in told and told.count("\n") == 1 and not (tmp_path / "run").exists()


def test_the_model_can_be_sampled_from(uninterrupted):
    from medsora import MedSoraPipeline

    pipeline = MedSoraPipeline.from_pretrained(uninterrupted)
    videos = pipeline(num_videos=2, num_inference_steps=2, progress=False).videos
    assert videos.shape == (2, 8, 32, 32, 3) and np.isfinite(videos).all()
