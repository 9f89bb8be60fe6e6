"""`python -m medsora.prepare` as its user meets it."""

import json
import re
import subprocess
import sys
import time

import pytest
import torch
from made_recordings import moving_frames, write_video
from micro_model import micro_vae
from safetensors.torch import load_file, save_file

from medsora.data import LatentClips, Manifest
from medsora.data.latents import read_latents_index
from medsora.errors import UserError, run_command
from medsora.prepare import main


def call(*arguments):
    return run_command(lambda: main([str(argument) for argument in arguments]))


def test_frames_then_latents(tmp_path, capsys):
    for number in range(2):
        write_video(tmp_path / "in" / f"p{number}" / "a.avi", moving_frames(20, seed=number))
    (tmp_path / "in" / "p0" / "notes.mp4").write_text("no video")
    small = ("--size", 16, "--num_frames", 8, "--windows_per_clip", 2, "--images_per_clip", 1)
    assert call(tmp_path / "in", "--output", tmp_path / "out", *small) == 0
    said = capsys.readouterr().out
    assert "clips     2 with 40 frames, of 2 patient(s)" in said
    assert "train   1 of 1 patient(s)" in said and "val     1 of 1 patient(s)" in said
    assert "p0/notes.mp4: it cannot be opened as a video" in said and str(tmp_path / "out" / "manifest.json") in said

    from diffusers import AutoencoderKLCogVideoX

    AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
    ).save_pretrained(tmp_path / "vae")
    encode = (*small, "--vae", tmp_path / "vae", "--alignment.motionless", "0.1")
    assert call(tmp_path / "in", "--output", tmp_path / "out", *encode) == 0
    captured = capsys.readouterr()
    assert "latents   8 windows and 4 images, flips included; scaling factor" in captured.out
    assert re.search(r"latents: +100%.* 12/12 ", captured.err)  # the bar, with counts
    record = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    assert f"vae       {record['psnr']:.2f} dB PSNR, SSIM {record['ssim']:.3f}, spectra" in captured.out
    assert record["vae"] == read_latents_index(tmp_path / "out")["vae"]
    assert LatentClips(tmp_path / "out", "train").entry(0)["mean"].shape == (2, 2, 4, 4)
    wrong = ("--vae", f"{tmp_path / 'vae'}#sha256={'0' * 64}")
    assert call(tmp_path / "in", "--output", tmp_path / "out", *small, *wrong) == 2
    assert "has the SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "nowhere does not exist"),
        (("builtin:cine", "--size", "50"), "size is 50"),
        (("builtin:cine", "--size", "wide"), "size"),
        (("builtin:cine", "--sizes", "50"), "sizes"),
        (("builtin:cine", "--reconstruction_clips", "-1"), "--reconstruction_clips: got -1"),
        (("builtin:cine", "--vae", "nowhere"), "--vae nowhere is not the folder of a saved video VAE"),
        (("builtin:cine", "--vae", "nowhere", "--alignment.flow", "guess"), "alignment.flow: got 'guess'"),
        (("builtin:cine", "--vae", "nowhere", "--alignment.flow", "raft"), "alignment.flow_weights: got none"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, words):
    assert call(*arguments, "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said and said.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_killed_run_goes_on(tmp_path):
    """SIGKILL in the middle; the same command again keeps what was done and finishes the rest."""
    run = [sys.executable, "-m", "medsora.prepare", "builtin:phantom:24", "--output", str(tmp_path), "--quiet"]
    process = subprocess.Popen([*run, "--size", "64"])
    finished = "frames/[!.]*.safetensors"  # not the one that is being written
    while process.poll() is None and len(list(tmp_path.glob(finished))) < 3:
        time.sleep(0.02)
    process.kill()
    process.wait()
    made = {path: path.read_bytes() for path in tmp_path.glob(finished)}
    assert 3 <= len(made) < 24
    with pytest.raises(UserError, match="was interrupted"):
        Manifest.read(tmp_path)
    assert subprocess.run([*run, "--size", "64"]).returncode == 0
    assert len(Manifest.read(tmp_path).clips) == len(list(tmp_path.glob("frames/*"))) == 24
    assert all(path.read_bytes() == content for path, content in made.items())


def test_interruption_is_one_sentence(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("medsora.data.frames._prepare_source", interrupted)
    assert call("builtin:cine", "--output", tmp_path) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err


def test_vae_of_another_kind(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert call("builtin:cine", "--output", tmp_path / "out", "--vae", tmp_path) == 2
    assert "holds a UNet2DModel" in capsys.readouterr().err


def test_a_vae_that_is_not_whole(tmp_path, capsys):
    micro_vae().save_pretrained(tmp_path / "vae")
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors, command = load_file(weights), ("builtin:cine", "--output", tmp_path / "out", "--vae", tmp_path / "vae")
    save_file({name: tensor for name, tensor in tensors.items() if name != "decoder.conv_in.conv.bias"}, weights)
    assert call(*command) == 2
    assert "lacks 1 weights of its config, such as decoder.conv_in.conv.bias" in capsys.readouterr().err
    save_file(tensors | {"decoder.conv_in.conv.bias": torch.zeros(3)}, weights)
    assert call(*command) == 2
    assert "cannot be loaded" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_help_and_module(tmp_path):
    """Run as a module, from elsewhere: help names the sources and every setting, and a run leaves a manifest."""
    shown = subprocess.run([sys.executable, "-m", "medsora.prepare", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    for word in ("builtin:phantom:N", "--num_frames", "--val_fraction", "--alignment.flow", "examples:", "--vae"):
        assert word in shown.stdout
    run = [sys.executable, "-m", "medsora.prepare", "builtin:phantom:2", "--output", str(tmp_path), "--size", "16"]
    done = subprocess.run([*run, "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert "labels    normal 1, polyp 1" in done.stdout and "synthetic" in done.stdout
    assert len(Manifest.read(tmp_path).clips) == 2
