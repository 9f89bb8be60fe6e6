"""Estimates of memory against what PyTorch allocates, and the table of SCALING.md against the code."""

from pathlib import Path

import pytest
import torch

from benchmarks.cases.trainer import Size, random_batch, step_settings, untrained
from medsora.errors import UserError
from medsora.models import MedSora
from medsora.train import main
from medsora.training.memory import (
    StageMemory,
    denoiser_activations,
    divided_row,
    kept_bytes,
    scaling_row,
    size_text,
    stage_memory,
    vae_activations,
)
from medsora.training.settings import VAESettings
from medsora.training.vae_stage import build_vae

SCALING = Path(__file__).parents[2] / "medsora" / "SCALING.md"
LATENTS = (4, 8, 8, 8)  # (F, C, h, w) of the tiny preset's clips


def highest(step):
    """Bytes that the allocator handed out during a call and had not got back, at most."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("precision, videos, images", [("fp32", 4, 1), ("bf16", 4, 1)])
def test_a_step_of_the_tiny_denoiser_takes_what_is_estimated(tmp_path, precision, videos, images):
    size = Size(videos, images, (LATENTS[1], LATENTS[0], *LATENTS[2:]))
    settings = step_settings("tiny", precision, size)
    trainer, batch = untrained(settings, size, tmp_path), random_batch(settings, size)
    trainer._step([batch])  # makes the moments
    trainer.optimizer.zero_grad(set_to_none=True)
    model = trainer.task.module
    held = [*model.parameters(), *trainer.average.values.values()]
    held += [moment for state in trainer.optimizer.state.values() for moment in state.values() if moment.dim()]
    before = sum(tensor.nbytes for tensor in held)
    measured = before + highest(lambda: trainer._step([batch]))
    kept = denoiser_activations(model.denoiser, LATENTS, videos, images, precision == "bf16")
    estimate = stage_memory(model, kept)
    assert before == estimate.static - 4 * estimate.trained  # all but the gradients
    assert 0.9 < estimate.total / measured < 1.15


def test_activations_of_the_vae_are_carried_on_from_small_frames():
    vae, frames = build_vae(VAESettings()), torch.zeros(2, 3, 8, 64, 64)
    kept = kept_bytes(vae, lambda: vae.decode(vae.encode(frames).latent_dist.mode()))
    assert 0.9 < vae_activations(vae, 8, 64, 2, bf16=False) / kept < 1.1


def test_recomputing_blocks_keeps_less():
    model = MedSora.preset("tiny", in_channels=8, hidden_size=64, state_size=8, head_dim=32)
    whole = denoiser_activations(model, LATENTS, 4, 0, bf16=False)
    model.enable_gradient_checkpointing()
    latents, timestep = torch.zeros(4, *LATENTS), torch.zeros(4, dtype=torch.int64)
    kept = kept_bytes(model, lambda: model(latents, timestep))
    assert kept < denoiser_activations(model, LATENTS, 4, 0, bf16=False) < 0.5 * whole


def test_bytes_by_the_formulas():
    memory = StageMemory(parameters=100, trained=60, activations=7.0)
    assert memory.static == 100 * 4 + 60 * 16 and memory.total == memory.static + 7
    assert memory.sent(1) == 0 and memory.sent(2) == 240 and memory.sent(8) == 2 * 7 / 8 * 240
    assert size_text(2**20 + 1) == "2 MiB" and size_text(3 * 2**29) == "1.50 GiB"


def test_a_dry_run_tells_of_one_process_of_several(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    small = ["--dry-run", "--output", str(tmp_path / "run"), "--device", "cpu", "--vae.batch_size", "2"]
    assert main(small) == 0
    told = capsys.readouterr().out
    assert "(4 clips, 1 frames at a time)" in told and "denoiser: each of 2 processes sends 29 MiB a step" in told
    with pytest.raises(UserError, match=r"denoiser\.images_per_batch: got 3, wants a multiple of 2"):
        main([*small, "--denoiser.images_per_batch", "3"])


def test_divided_parameters_by_the_formulas():
    model = MedSora.preset("tiny", in_channels=8)
    parameters = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.blocks[0].parameters())
    memory = stage_memory(model, 0.0, shares=4)
    assert memory.gathered == 20 * block + 8 * (parameters - len(model.blocks) * block)
    assert memory.static == 5 * parameters + memory.gathered
    assert memory.sent(4, micro_batches=2) == 2 * 3 * 3 / 4 * 4 * parameters
    joint = stage_memory(model, 0.0, shares=4, passes=2)
    assert joint.gathered == memory.gathered + 4 * len(model.blocks) * block
    assert joint.sent(4) == 5 * 3 / 4 * 4 * parameters
    assert stage_memory(model.blocks[0].attention, 0.0, shares=4).gathered == 8 * sum(
        p.numel() for p in model.blocks[0].attention.parameters()
    )


def test_a_dry_run_tells_of_divided_parameters(tmp_path, monkeypatch, capsys):
    launched = {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    for name, value in (launched | {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}).items():
        monkeypatch.setenv(name, value)
    small = ["--dry-run", "--output", str(tmp_path / "run"), "--device", "cpu", "--vae.batch_size", "2"]
    assert main(small) == 0
    told = capsys.readouterr().out
    assert "denoiser: parameters are divided (FSDP): a process holds 1/2" in told and "and 65 MiB while some" in told
    assert "denoiser: each of 2 processes sends 73 MiB a step" in told
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match="wants fsdp_version: 2"):
        main(small)


def rows_of_the_document(columns=7):
    lines = [line.strip("| \n").split(" | ") for line in SCALING.read_text().splitlines() if line.startswith("| ")]
    return {row[0]: row for row in lines if len(row) == columns}


def test_the_table_of_the_document_is_what_the_code_says():
    assert rows_of_the_document()["tiny"] == list(scaling_row("tiny", (4, 16, 16, 16)).values())
    for preset in ("S", "B", "L", "XL"):
        with torch.device("meta"):
            memory = stage_memory(MedSora.preset(preset, in_channels=16), 0.0)
        found = rows_of_the_document()[preset]
        assert found[1:3] == [f"{memory.parameters / 1e6:.1f} M", size_text(memory.static)]
        assert found[6] == size_text(memory.sent(8))
        assert rows_of_the_document(4)[preset] == list(divided_row(preset).values())
