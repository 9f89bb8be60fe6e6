"""Settings: where they come from, how bad ones are told, which may differ when a run goes on."""

import json
import re
from dataclasses import fields, is_dataclass

import pytest
import yaml

from medsora.config import PRESETS, TrainSettings, differences, preset_values, read_command_line
from medsora.errors import UserError
from medsora.models import FrequencyCompensatedVAE, MedSora
from medsora.train import main
from medsora.training.optimization import learning_rate_at
from medsora.training.run_folder import RunFolder
from medsora.training.settings import LoopSettings


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_read_and_says_what_its_file_says(preset):
    settings, dry_run = read_command_line(["--preset", preset])
    assert not dry_run and settings.preset == preset and settings.output == f"runs/{preset}"
    values = settings.as_dict()
    for part, inner in preset_values(preset).items():
        for name, value in inner.items() if isinstance(inner, dict) else ():
            assert values[part][name] == value, (part, name)


def test_options_stand_over_files_and_files_over_the_preset(tmp_path):
    (tmp_path / "a.yaml").write_text("denoiser: {steps: 11, batch_size: 6}\nvae: {steps: 5}\nsampling: {fps: 9}\n")
    (tmp_path / "b.yaml").write_text("vae: {steps: 6}\n")
    arguments = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--denoiser.steps", "12"]
    settings, _ = read_command_line([*arguments, "--vae.model.layers_per_block", "2", "--max-steps=3", "--seed", "4"])
    assert (settings.denoiser.steps, settings.denoiser.batch_size, settings.vae.steps) == (12, 6, 6)
    assert (settings.sampling.fps, settings.vae.model["layers_per_block"]) == (9, 2)
    assert (settings.max_steps, settings.seed, settings.limit("vae")) == (3, 4, 3)
    assert settings.vae.learning_rate == preset_values("tiny")["vae"]["learning_rate"]


def test_a_file_can_name_the_preset(tmp_path):
    (tmp_path / "a.yaml").write_text("preset: B\nvae: {pretrained: here}\n")
    settings, _ = read_command_line(["--config", str(tmp_path / "a.yaml")])
    assert (settings.preset, settings.denoiser.preset, settings.vae.pretrained) == ("B", "B", "here")


def test_settings_written_down_are_read_back(tmp_path):
    """The settings that --dry-run prints serve as a --config."""
    given = ["--preset", "S", "--denoiser.betas", "[0.8, 0.9]", "--vae.model", '{"pixel_unshuffle": 1}', "--seed", "7"]
    settings, _ = read_command_line([*given, "--output", "there"])
    values = settings.as_dict()
    assert json.loads(json.dumps(values)) == values
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    again, _ = read_command_line(["--config", str(tmp_path / "settings.yaml")])
    assert again.as_dict() == values


BAD = {
    "an unknown option": (["--vae.stepz", "3"], "--vae.stepz"),
    "an abbreviation": (["--vae.batch_siz", "3"], "--vae.batch_siz"),
    "a stray word": (["videos"], "videos"),
    "a wrong type": (["--vae.steps", "many"], "vae.steps"),
    "out of range": (["--denoiser.batch_size", "0"], "denoiser.batch_size: got 0"),
    "an unknown choice": (["--vae.schedule", "sine"], "vae.schedule: got 'sine', wants one of constant, cosine"),
    "an unknown preset": (["--preset", "huge"], "preset: got 'huge'"),
    "a missing file": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "no steps": (["--max-steps", "0"], "max_steps: got 0"),
    "frames that do not fit": (["--prepare.num_frames", "12"], "num_frames"),
    "sizes that do not fit": (["--prepare.size", "72", "--denoiser.model.patch_size", "2"], "prepare.size: got 72"),
    "frames the VAE refuses": (["--vae.num_frames", "12"], "num_frames: got 12"),
    "an unknown option of a model": (["--denoiser.model.colour", "2"], "colour"),
    "raft without weights": (["--alignment.flow", "raft"], "alignment.flow_weights: got none"),
    "an encoder that is not there": (
        ["--alignment.representation", "dino", "--alignment.representation_weights", "no/where/dino"],
        "alignment.representation_weights: cannot load 'no/where/dino'",
    ),
    "a size of frames": (["--prepare.size", "60"], "prepare.size is 60"),
    "another part's error": (["--diffusion.beta_end", "2"], "diffusion.beta_start, beta_end"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_option_is_one_line_and_exit_code_2(case, capsys, tmp_path, monkeypatch):
    from medsora.errors import run_command

    monkeypatch.chdir(tmp_path)
    arguments, words = BAD[case]
    assert run_command(lambda: main(arguments)) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and told.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_help_explains_every_part(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for words in ("--denoiser.images_per_batch", "--dry-run", "--max-steps", "builtin:cine", "Micro-batches a process"):
        assert words in told


def test_every_option_has_a_sentence_of_its_own(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    parts = {part.name: part.default_factory for part in fields(TrainSettings) if is_dataclass(part.default_factory)}
    names = [f"--{part}.{option.name}" for part, kind in parts.items() for option in fields(kind)]
    assert len(names) > 60 and all(name in told for name in names)
    silent = [name for name in names if re.search(re.escape(name) + r" \S+ (\(type|--)", told)]
    assert silent == []


def test_only_free_settings_may_differ():
    recorded = json.loads(json.dumps(TrainSettings().as_dict()))
    given = TrainSettings(max_steps=5, device="cpu")
    given.vae.log_every, given.denoiser.sample_every, given.vae.checkpoint_every = 3, 7, 9
    assert differences(recorded, given.as_dict()) == []
    given.denoiser.learning_rate, given.data = 0.5, "elsewhere"
    assert sorted(differences(recorded, given.as_dict())) == [
        ("data", "builtin:cine", "elsewhere"),
        ("denoiser.learning_rate", 1e-4, 0.5),
    ]


def test_a_run_of_other_settings_is_refused_with_name_values_and_remedy(tmp_path):
    folder = RunFolder(tmp_path / "run")
    settings, _ = read_command_line(["--output", str(tmp_path / "run")])
    folder.claim(settings)
    folder.finish("frames")
    folder.check(settings)
    other, _ = read_command_line(["--output", str(tmp_path / "run"), "--vae.learning_rate", "0.5"])
    recorded = re.escape(json.dumps(settings.vae.learning_rate))
    with pytest.raises(UserError, match=rf"vae\.learning_rate {recorded}, now it is 0\.5.*another --output"):
        folder.check(other)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.docx").write_text("precious")
    settings, _ = read_command_line(["--output", str(tmp_path)])
    with pytest.raises(UserError, match=r"holds files that are no run.*thesis\.docx"):
        RunFolder(tmp_path).check(settings)


def test_finishing_a_stage_reopens_the_later_ones(tmp_path):
    folder = RunFolder(tmp_path)
    for stage in ("frames", "vae", "latents"):
        folder.finish(stage, seconds=1)
    folder.finish("vae", steps=9)
    assert folder.done("frames") and folder.done("vae") == {"steps": 9} and folder.done("latents") is None


@pytest.mark.parametrize("data", ["builtin:cine", "builtin:phantom:3"])
def test_a_dry_run_tells_much_and_writes_nothing(tmp_path, monkeypatch, capsys, data):
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run", "--data", data, "--denoiser.steps", "7"]) == 0
    told = capsys.readouterr().out
    settings = yaml.safe_load(told.split("# data")[0])
    assert settings["denoiser"]["steps"] == 7 and settings["data"] == data
    channels = FrequencyCompensatedVAE.preset("tiny").config.latent_channels
    options = {"in_channels": channels, "num_classes": 2 if "phantom" in data else 0} | settings["denoiser"]["model"]
    count = MedSora.preset("tiny", **options).num_parameters()
    for words in ("recordings:", f"denoiser: {count:,} parameters", "MiB", "activations", "nothing was written"):
        assert words in told
    assert not list(tmp_path.iterdir())


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    settings = LoopSettings(steps=110, warmup_steps=10, learning_rate=2.0, schedule="cosine", final_learning_rate=0.1)
    rates = [learning_rate_at(step, settings) for step in range(111)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0) == rates[10]
    assert rates[60] == pytest.approx(1.1) and rates[110] == pytest.approx(0.2)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
