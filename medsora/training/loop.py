"""The training loop of both stages: steps, averages, checkpoints, exact resume.

A stage hands over a `Task`: one module whose forward turns a batch into a loss, and a pure function from (step, part of
the global batch) to that batch. Everything else is here and knows nothing of videos.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from medsora.errors import UserError
from medsora.training.checkpoint import Checkpoint, CheckpointFolder, require_same_tensors
from medsora.training.draws import Draws, Part
from medsora.training.ema import MovingAverage, trained_parameters
from medsora.training.metrics_log import MetricsLog
from medsora.training.optimization import learning_rate_at, uses_bf16
from medsora.training.progress import step_bar
from medsora.training.settings import LoopSettings, samples_at_once
from medsora.training.sharding import laid_out
from medsora.training.stopping import Interrupted, StopRequests

_log = logging.getLogger("medsora")
T = TypeVar("T")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Task:
    """What a stage trains.

    name: of the stage, for folders and logs.
    module: forward(batch) -> (loss, {name: value}), scalars, means over the batch it is given.
    draw: (step, part) -> the batch of that part, CPU tensors by name; a pure function.
    inputs: a fingerprint of the data; a checkpoint of other inputs is not continued.
    after_step: called in every process with (steps done, trainer) after each step, before a checkpoint.
    """

    name: str
    module: nn.Module
    draw: Callable[[int, Part], dict[str, torch.Tensor]]
    inputs: str = ""
    after_step: Callable[[int, "Trainer"], None] = lambda step, trainer: None


class TrainingDiverged(RuntimeError):
    """The loss or its gradient was not finite for several steps in a row."""


@dataclass
class Counters:
    """What a checkpoint remembers besides tensors; all of it decides what comes next or what is logged."""

    step: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    summed: int = 0
    sums: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains one task in a run folder, from its last checkpoint on.

    After `train(limit)` the task's module holds the trained weights and `average` their moving average.
    """

    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        run: Path,
        accelerator: Accelerator,
        stops: StopRequests,
        seed: int,
    ):
        self.task, self.settings, self.run = task, settings, Path(run)
        self.accelerator, self.stops = accelerator, stops
        self.draws = Draws(seed, task.name)
        self.parts = accelerator.num_processes * settings.accumulation
        samples_at_once(
            f"{task.name}.batch_size", settings.batch_size, accelerator.num_processes, settings.accumulation
        )
        self.checkpoints = CheckpointFolder(self.run / "checkpoints" / task.name, settings.keep_checkpoints)
        self.counters = Counters()
        self.bf16 = uses_bf16(settings.precision, accelerator.device)
        self._prepare_module()
        self._resume()

    @property
    def step(self) -> int:
        """Steps done, skipped ones included."""
        return self.counters.step

    def train(self, limit: int) -> None:
        """Trains until `limit` steps are done and saves a checkpoint there.

        Raises TrainingDiverged after `max_bad_steps` non-finite losses in a row, and Interrupted, after saving, when
        a stop was requested.
        """
        if self.step >= limit:
            return
        self.task.module.train()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.stops.deferred())
            log = stack.enter_context(self._metrics_log())
            bar = stack.enter_context(step_bar(self.task.name, self.step, limit, self.accelerator.is_main_process))
            started, first = time.perf_counter(), self.step
            for batches in self._batches(limit):
                values, stop = self._step(batches)
                if self.step % self.settings.log_every == 0 or self.step == limit:
                    self._write_log(log, (self.step - first) / (time.perf_counter() - started))
                bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
                bar.update()
                self.task.after_step(self.step, self)
                if self.step % self.settings.checkpoint_every == 0 or self.step == limit or stop:
                    self._save()
                if stop and self.step < limit:
                    raise Interrupted(stop, f"{self.task.name} step {self.step} of {limit}")

    def look(self, at: Callable[[nn.Module], T]) -> T | None:
        """at(the task's module with the averaged weights, whole) in the first process, where alone it is called.

        Every process calls this; in the others it returns None at once.
        """
        with self.layout.averaged(self.average) as module:
            return None if module is None else at(module)

    def _step(self, batches: list[dict[str, torch.Tensor]]) -> tuple[dict[str, float], int]:
        """One optimizer step; returns the values averaged over the global batch and a stop request's signal or 0."""
        counters, settings = self.counters, self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(counters.step, settings)
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(batches):
            with self.layout.exchanging(last=number == settings.accumulation - 1):
                loss, parts = self._forward(batch, number)
                (loss / settings.accumulation).backward()
            for name, value in {"loss": loss, **parts}.items():
                totals[name] = totals.get(name, 0.0) + value.detach().float() / settings.accumulation
        norm = self._clipped_norm()
        values, stop = self._averaged_over_processes(totals)
        values["gradient_norm"] = norm
        counters.step += 1
        if math.isfinite(norm) and math.isfinite(values["loss"]):
            self.optimizer.step()
            self.average.update()
            counters.bad_in_a_row = 0
            counters.summed += 1
            for name, value in values.items():
                counters.sums[name] = counters.sums.get(name, 0.0) + value
        else:
            self._count_bad_step(values["loss"], norm)
        return values, stop

    def _clipped_norm(self) -> float:
        """The gradient's norm before it is clipped. A gradient that is short enough is not written again."""
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        length, limit = float(self.layout.whole(norm)), self.settings.gradient_clip
        if 0 < limit < length:
            nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)
        return length

    def _forward(self, batch: dict[str, torch.Tensor], number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        # Dropout inside a module draws from torch's generator: seeding it here keeps that a function of the step too.
        first = self.accelerator.process_index * self.settings.accumulation + number
        torch.manual_seed(self.draws.integer("module", self.step, first))
        batch = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(batch)

    def _averaged_over_processes(self, totals: dict[str, torch.Tensor]) -> tuple[dict[str, float], int]:
        names = sorted(totals)
        vector = torch.stack([totals[n] for n in names] + [totals["loss"].new_tensor(bool(self.stops.pending))])
        if self.accelerator.num_processes > 1:
            vector = self.accelerator.reduce(vector, reduction="mean")
        *means, stopping = vector.tolist()
        stop = (self.stops.pending or 15) if stopping else 0  # 15: another process was asked to stop
        return dict(zip(names, means, strict=True)), stop

    def _count_bad_step(self, loss: float, norm: float) -> None:
        counters = self.counters
        counters.bad_steps += 1
        counters.bad_in_a_row += 1
        _log.warning(
            "%s step %d: loss %g, gradient norm %g: not finite, the step is skipped (%d in a row)",
            self.task.name, counters.step, loss, norm, counters.bad_in_a_row,
        )  # fmt: skip
        if counters.bad_in_a_row >= self.settings.max_bad_steps:
            kept = self.checkpoints.steps()
            raise TrainingDiverged(
                f"{self.task.name}: {counters.bad_in_a_row} losses in a row were not finite (step {counters.step}); "
                + (f"the checkpoint of step {kept[-1]} is kept; " if kept else "there is no checkpoint yet; ")
                + f"try a lower {self.task.name}.learning_rate or --{self.task.name}.precision fp32, "
                "with another --output"
            )

    def _batches(self, limit: int) -> Iterator[list[dict[str, torch.Tensor]]]:
        """This process's micro-batches of each step.

        On a GPU the next step's are drawn while one is trained on; on a CPU both would want the same cores.
        """
        first = self.accelerator.process_index * self.settings.accumulation
        parts = [Part(first + i, self.parts) for i in range(self.settings.accumulation)]

        def draw(step: int) -> list[dict[str, torch.Tensor]]:
            return [self.task.draw(step, part) for part in parts]

        if self.accelerator.device.type == "cpu":
            yield from map(draw, range(self.step, limit))
            return
        with ThreadPoolExecutor(1) as executor:
            coming = executor.submit(draw, self.step)
            while self.step < limit:
                batches = coming.result()
                if self.step + 1 < limit:
                    coming = executor.submit(draw, self.step + 1)
                yield batches

    def _metrics_log(self):
        if not self.accelerator.is_main_process:
            return contextlib.nullcontext()
        return MetricsLog(self.run, self.task.name, self.step)

    def _write_log(self, log: MetricsLog | None, steps_per_second: float) -> None:
        counters = self.counters
        means = {name: value / counters.summed for name, value in counters.sums.items()} if counters.summed else {}
        if counters.step % self.settings.log_every == 0:  # else it is the last step of a limited run, to be extended
            counters.sums, counters.summed = {}, 0
        if log is not None:
            log.write(
                counters.step,
                **means,
                learning_rate=learning_rate_at(counters.step - 1, self.settings),
                bad_steps=counters.bad_steps,
                steps_per_second=steps_per_second,
            )

    def _prepare_module(self) -> None:
        self.layout = laid_out(self.task.module, self.accelerator)
        self.model = self.layout.model
        if self.settings.compile:
            self.model = torch.compile(self.model)
        self.names = [name for name, _ in trained_parameters(self.task.module)]
        self.parameters = [p for _, p in trained_parameters(self.task.module)]
        if not self.parameters:
            raise UserError(f"{self.task.name}: the model has no parameter to train")
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.settings.learning_rate,
            betas=tuple(self.settings.betas),
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        self.average = MovingAverage(self.task.module, self.settings.ema_decay)

    def _model_tensors(self) -> dict[str, torch.Tensor]:
        """Trained parameters and buffers; frozen weights are where they came from."""
        persistent = self.task.module.state_dict()
        buffers = {n: b for n, b in self.task.module.named_buffers() if n in persistent}
        return dict(zip(self.names, self.parameters, strict=True)) | buffers

    def _save(self) -> None:
        moments = {
            f"{moment}.{name}": self.optimizer.state[p][moment]
            for name, p in zip(self.names, self.parameters, strict=True)
            if p in self.optimizer.state
            for moment in MOMENTS
        }
        held = {"model": self._model_tensors(), "ema": self.average.values, "optimizer": moments}
        tensors = {stem: self.layout.gathered(some) for stem, some in held.items()}
        if self.accelerator.is_main_process:
            state = {**vars(self.counters), "ema_updates": self.average.updates, "inputs": self.task.inputs}
            self.checkpoints.save(Checkpoint(self.step, tensors, state))

    def _resume(self) -> None:
        checkpoint = self.checkpoints.load_latest()
        if checkpoint is None:
            return
        state = dict(checkpoint.state)
        if state.pop("inputs") != self.task.inputs:
            _log.warning("%s: its inputs have changed since its last checkpoint: starting anew", self.task.name)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self.checkpoints.clear()
            self.accelerator.wait_for_everyone()
            return
        where = str(self.checkpoints.folder(checkpoint.step))
        model = self._model_tensors()
        by_name = dict(zip(self.names, self.parameters, strict=True))
        count = torch.zeros((), device=self.accelerator.device)  # of steps, one for each parameter
        wanted = {f"{m}.{n}": count if m == "step" else p for n, p in by_name.items() for m in MOMENTS}
        found = checkpoint.tensors
        require_same_tensors(found["model"], model, f"{where}/model.safetensors")
        require_same_tensors(found["ema"], self.average.values, f"{where}/ema.safetensors")
        require_same_tensors(found["optimizer"], wanted, f"{where}/optimizer.safetensors", optional=True)
        with torch.no_grad():
            for held, file in ((model, "model"), (self.average.values, "ema")):
                for name, tensor in held.items():
                    tensor.copy_(self.layout.share(found[file][name], tensor))
        for key, tensor in found["optimizer"].items():
            moment, _, name = key.partition(".")
            self.optimizer.state[by_name[name]][moment] = self.layout.share(tensor, wanted[key])
        self.average.updates = state.pop("ema_updates")
        self.counters = Counters(**state)
