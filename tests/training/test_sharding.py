"""Parameters divided over processes by accelerate's FSDP: the weights of one process, whole checkpoints, refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_denoiser import prediction, small_trainer

from medsora.errors import UserError
from medsora.training.checkpoint import CheckpointFolder
from medsora.training.metrics_log import read_metrics
from medsora.training.sharding import fsdp_plugin

PROGRAM = Path(__file__).parent / "small_denoiser.py"
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


def in_two_processes(run, limit):
    """Trains the small denoiser, divided; returns what each process found."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2])} | FSDP
    done = subprocess.run(
        [*launcher, str(PROGRAM), str(run), str(limit)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((run / f"process-{number}.json").read_text()) for number in range(2)]


def last_tensors(run):
    checkpoint = CheckpointFolder(run / "checkpoints" / "small").load_latest()
    tensors = {f"{file}/{name}": t for file, some in checkpoint.tensors.items() for name, t in some.items()}
    return checkpoint.step, checkpoint.state, tensors


def assert_alike(first, second):
    (step, state, expected), (other, found_state, found) = last_tensors(first), last_tensors(second)
    assert step == other and expected.keys() == found.keys()
    assert state["bad_steps"] == found_state["bad_steps"] == 1  # the NaN of one process's clip
    for name, tensor in expected.items():
        # Of whole tensors: AdamW makes a full step of a gradient that is all rounding, in one place or another.
        bound = 3e-4 if name.startswith("optimizer/") else 5e-6
        assert (found[name] - tensor).double().norm() <= bound * tensor.double().norm(), name


def test_divided_training_equals_one_process_and_each_goes_on_where_the_other_stopped(tmp_path):
    """Divided to step 4, in one process to step 8, divided again to step 12; beside it one process all the way."""
    one, both = tmp_path / "one", tmp_path / "both"
    whole = small_trainer(one)
    for limit in (4, 8, 12):
        whole.train(limit)
        if limit == 8:
            resumed = small_trainer(both)
            assert resumed.step == 4
            resumed.train(limit)
        else:
            first, second = in_two_processes(both, limit)
            for held in first["held"] + second["held"]:
                assert 0.48 < held < 0.52  # a share of parameters, of moments, of averages
            assert first["gathered"] == ["", "denoiser.blocks.0", "denoiser.blocks.1"]
            assert second["prediction"] is None
            assert first["prediction"] == pytest.approx(prediction(whole), rel=1e-4)
        assert_alike(one, both)
    losses = [{r["step"]: r["loss"] for r in read_metrics(run, "small")} for run in (one, both)]
    assert losses[0].keys() == losses[1].keys()
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), rel=1e-4)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "true"}, "got DEEPSPEED, wants distributed_type"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "got MEGATRON_LM, wants distributed_type"),
        ({"FSDP_VERSION": "1"}, "got fsdp_version: 1, wants fsdp_version: 2"),
        ({"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, "got fsdp_auto_wrap_policy: NO_WRAP"),
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": "Layer"}, "got fsdp_transformer_layer_cls_to_wrap: Layer"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "got fsdp_offload_params: true"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--denoiser.gradient_checkpointing true"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "--denoiser.precision"),
    ],
)
def test_what_is_not_served_is_refused_by_name(monkeypatch, change, told):
    for name, value in (FSDP | change).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        fsdp_plugin()


def test_accelerates_settings_are_read(monkeypatch):
    assert fsdp_plugin() is None
    for name, value in (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}).items():
        monkeypatch.setenv(name, value)
    plugin = fsdp_plugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is False
