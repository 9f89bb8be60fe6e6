"""The loop: accumulation, processes, exact resume, non-finite losses, stop requests."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_task import tiny_task, tiny_trainer

from medsora.errors import UserError
from medsora.training.checkpoint import CheckpointFolder
from medsora.training.draws import Part
from medsora.training.loop import TrainingDiverged
from medsora.training.metrics_log import read_metrics
from medsora.training.stopping import Interrupted

PROGRAM = Path(__file__).parent / "tiny_task.py"


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.task.module.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def last_tensors(run):
    checkpoint = CheckpointFolder(Path(run) / "checkpoints" / "tiny").load_latest()
    return checkpoint.step, {f"{f}/{n}": t for f, ts in checkpoint.tensors.items() for n, t in ts.items()}


def test_it_learns_and_writes_its_log(tmp_path):
    trainer = tiny_trainer(tmp_path, log_every=5)
    trainer.train(40)
    records = read_metrics(tmp_path, "tiny")
    assert [r["step"] for r in records] == list(range(5, 41, 5))
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    assert {"loss", "error", "gradient_norm", "learning_rate", "bad_steps", "steps_per_second"} <= records[0].keys()
    assert list((tmp_path / "tensorboard" / "tiny").glob("events*"))


def test_frozen_parameters_stay_and_are_not_checkpointed(tmp_path):
    trainer = tiny_trainer(tmp_path)
    before = trainer.task.module.frozen.weight.clone()
    trainer.train(10)
    assert torch.equal(before, trainer.task.module.frozen.weight)
    _, tensors = last_tensors(tmp_path)
    assert "model/net.0.weight" in tensors and "model/seen" in tensors and "model/frozen.weight" not in tensors


def test_a_damaged_checkpoint_is_written_again(tmp_path):
    tiny_trainer(tmp_path).train(20)
    step, whole = last_tensors(tmp_path)
    (tmp_path / "checkpoints" / "tiny" / "step-0000020" / "ema.safetensors").unlink()
    tiny_trainer(tmp_path).train(20)
    again, tensors = last_tensors(tmp_path)
    assert step == again == 20
    assert_same(whole, tensors)


@pytest.mark.parametrize("accumulation", [2, 8])
def test_accumulated_micro_batches_equal_one_big_batch(tmp_path, accumulation):
    whole, split = tiny_trainer(tmp_path / "whole"), tiny_trainer(tmp_path / "split", accumulation=accumulation)
    whole.train(12)
    split.train(12)
    for name, p in whole.task.module.named_parameters():
        torch.testing.assert_close(p, dict(split.task.module.named_parameters())[name], rtol=1e-5, atol=1e-6)
    first, second = (read_metrics(tmp_path / n)[-1]["loss"] for n in ("whole", "split"))
    assert first == pytest.approx(second, rel=1e-5)


def test_steps_are_those_of_adamw_on_clipped_gradients(tmp_path):
    settings = dict(learning_rate=0.02, warmup_steps=3, betas=(0.8, 0.9), weight_decay=0.1, gradient_clip=0.3)
    trainer = tiny_trainer(tmp_path / "clipped", **settings)
    task = tiny_task(8)
    trained = [p for p in task.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.8, 0.9), weight_decay=0.1)
    norms = []
    for step in range(8):
        optimizer.param_groups[0]["lr"] = 0.02 * min((step + 1) / 3, 1)
        optimizer.zero_grad()
        task.module(task.draw(step, Part()))[0].backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 0.3)))
        optimizer.step()
    assert min(norms) > 0.3 and max(norms) > 1.5 * min(norms)  # each is clipped, by different factors
    trainer.train(8)
    for name, p in task.module.named_parameters():
        torch.testing.assert_close(trainer.task.module.get_parameter(name), p, rtol=1e-5, atol=1e-6)
    free = tiny_trainer(tmp_path / "free", **settings | {"gradient_clip": 0})
    free.train(8)
    assert (free.task.module.net[0].weight - trainer.task.module.net[0].weight).abs().max() > 1e-3


def test_bf16_computes_in_bf16_and_keeps_float32_weights(tmp_path):
    seen, exact = [], tiny_trainer(tmp_path / "fp32")
    mixed = tiny_trainer(tmp_path / "bf16", precision="bf16")
    for trainer in (exact, mixed):
        trainer.task.module.net[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        trainer.train(3)
    assert seen == [torch.float32] * 3 + [torch.bfloat16] * 3
    for name, p in mixed.task.module.named_parameters():
        assert p.dtype == torch.float32
        torch.testing.assert_close(p, exact.task.module.get_parameter(name), rtol=0, atol=0.02)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_a_compiled_module_trains_alike_and_resumes_uncompiled(tmp_path):
    plain, compiled = tiny_trainer(tmp_path / "plain"), tiny_trainer(tmp_path / "compiled", compile=True)
    assert isinstance(compiled.model, torch._dynamo.eval_frame.OptimizedModule)
    plain.train(4)
    compiled.train(4)
    assert last_tensors(tmp_path / "plain")[1].keys() == last_tensors(tmp_path / "compiled")[1].keys()
    resumed = tiny_trainer(tmp_path / "compiled")
    assert resumed.step == 4
    for name, p in plain.task.module.named_parameters():
        torch.testing.assert_close(resumed.task.module.get_parameter(name), p, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    """Dropout, a skipped step, the average, the moments and the half-filled log window all come back."""

    def trainer(run):
        return tiny_trainer(
            run, tiny_task(8, poisoned=(3,), dropout=0.3), schedule="cosine", warmup_steps=4, log_every=8
        )

    whole = trainer(tmp_path / "whole")
    whole.train(30)
    for limit in (10, 20, 30):
        part = trainer(tmp_path / "parts")
        part.train(limit)
    assert_same(weights(whole), weights(part))
    assert_same(last_tensors(tmp_path / "whole")[1], last_tensors(tmp_path / "parts")[1])
    assert part.counters.bad_steps == 1
    logged = [{r["step"]: r["loss"] for r in read_metrics(tmp_path / n)} for n in ("whole", "parts")]
    assert all(logged[1][step] == logged[0][step] for step in (8, 24))


def test_resuming_drops_log_lines_after_the_checkpoint(tmp_path):
    tiny_trainer(tmp_path, log_every=1).train(10)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "tiny", "step": 11, "loss": 9}\n{"stage": "other", "step": 99}\n{"stage": "tiny", "st')
    tiny_trainer(tmp_path, log_every=1).train(13)
    assert [r["step"] for r in read_metrics(tmp_path, "tiny")] == list(range(1, 14))
    assert [r["step"] for r in read_metrics(tmp_path, "other")] == [99]


def test_other_inputs_start_anew(tmp_path, caplog):
    tiny_trainer(tmp_path).train(10)
    task = tiny_task(8)
    task.inputs = "other"
    assert tiny_trainer(tmp_path, task).step == 0
    assert "starting anew" in caplog.text


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    tiny_trainer(tmp_path).train(10)
    task = tiny_task(8)
    task.module.net[0] = torch.nn.Linear(6, 16, bias=False)
    with pytest.raises(UserError, match=r"unexpected: net\.0\.bias"):
        tiny_trainer(tmp_path, task)


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_task(8, poisoned=(4,)))
    trainer.train(4)
    before, average = weights(trainer), {n: v.clone() for n, v in trainer.average.values.items()}
    trainer.train(5)
    after = weights(trainer)
    assert_same({n: before[n] for n in average}, {n: after[n] for n in average})
    assert_same(average, trainer.average.values)
    assert (trainer.step, trainer.counters.bad_steps, trainer.counters.bad_in_a_row) == (5, 1, 1)
    trainer.train(6)
    assert trainer.counters.bad_in_a_row == 0
    assert all(torch.isfinite(t).all() for t in weights(trainer).values())


def test_several_in_a_row_end_the_run_and_keep_the_checkpoint(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_task(8, poisoned=range(12, 40)), max_bad_steps=3)
    with pytest.raises(TrainingDiverged, match=r"3 losses in a row.*step 15.*checkpoint of step 10 is kept"):
        trainer.train(40)
    assert last_tensors(tmp_path)[0] == 10


@pytest.mark.parametrize("asked, exit_code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_request_saves_and_says_where(tmp_path, asked, exit_code):
    def ask(step, trainer):
        if step == 7:
            os.kill(os.getpid(), asked)

    trainer = tiny_trainer(tmp_path, tiny_task(8, after_step=ask))
    with trainer.stops.listening(), pytest.raises(Interrupted) as stopped:
        trainer.train(40)
    assert stopped.value.exit_code == exit_code
    assert stopped.value.saved.startswith("tiny step 7") or stopped.value.saved.startswith("tiny step 8")
    assert last_tensors(tmp_path)[0] in (7, 8)


def test_batches_that_do_not_split_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"tiny\.batch_size: got 8, wants a multiple of 3"):
        tiny_trainer(tmp_path, accumulation=3)


def test_the_average_is_what_its_definition_says(tmp_path):
    trainer = tiny_trainer(tmp_path, ema_decay=0.5)
    expected = {n: p.detach().clone() for n, p in trainer.task.module.named_parameters() if p.requires_grad}
    for step in range(1, 8):
        trainer.train(step)
        decay = min(0.5, step / (9 + step))
        for name in expected:
            weight = dict(trainer.task.module.named_parameters())[name].detach()
            expected[name] = decay * expected[name] + (1 - decay) * weight
    for name, value in trainer.average.values.items():
        torch.testing.assert_close(value, expected[name])
    own = weights(trainer)
    with trainer.average.applied():
        torch.testing.assert_close(trainer.task.module.net[0].weight.detach(), expected["net.0.weight"])
    assert_same(own, weights(trainer))


def run_program(*arguments, processes=1, **environment):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2])} | environment
    command = [*launcher, str(PROGRAM), *(str(a) for a in arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_two_processes_equal_one(tmp_path):
    """The NaN of step 3 lies on one process only; both skip the step."""
    one = run_program(tmp_path / "one", 12, "batch_size=8", "accumulation=2")
    two = run_program(tmp_path / "two", 12, "batch_size=8", "accumulation=2", processes=2)
    assert one.returncode == 0 and two.returncode == 0, one.stderr[:4000] + two.stderr[:4000]
    (step, first), (other, second) = last_tensors(tmp_path / "one"), last_tensors(tmp_path / "two")
    assert step == other == 12
    assert first.keys() == second.keys()
    for name in first.keys() - {"model/seen"}:
        torch.testing.assert_close(first[name], second[name], rtol=2e-5, atol=1e-6)
    losses = [{r["step"]: (r["loss"], r["bad_steps"]) for r in read_metrics(tmp_path / n)} for n in ("one", "two")]
    assert json.dumps(sorted(losses[0])) == json.dumps(sorted(losses[1]))
    assert losses[1][12][0] == pytest.approx(losses[0][12][0], rel=1e-4)
    assert losses[0][12][1] == losses[1][12][1] == 1


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, before, after):
    """Weights, average and moments are those of one process from the first step to the last, but for rounding."""
    settings = {"batch_size": 8, "accumulation": 2, "checkpoint_every": 6}
    tiny_trainer(tmp_path / "one", tiny_task(8, poisoned=(3,)), **settings).train(12)
    for processes, limit in ((before, 6), (after, 12)):
        if processes == 1:
            tiny_trainer(tmp_path / "both", tiny_task(8, poisoned=(3,)), **settings).train(limit)
        else:
            options = [f"{name}={value}" for name, value in settings.items()]
            done = run_program(tmp_path / "both", limit, *options, processes=processes)
            assert done.returncode == 0, done.stderr[-4000:]
    (step, whole), (other, both) = last_tensors(tmp_path / "one"), last_tensors(tmp_path / "both")
    assert step == other == 12 and whole.keys() == both.keys()
    assert sum(name.startswith("optimizer/exp_avg_sq") for name in both) == 4
    for name in whole.keys() - {"model/seen"}:
        torch.testing.assert_close(both[name], whole[name], rtol=2e-5, atol=1e-6)
