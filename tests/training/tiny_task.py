"""A task of a few hundred numbers for the loop's tests, and a run of it as a program for tests of processes.

Usage: python tiny_task.py RUN_FOLDER LIMIT [SETTING=VALUE ...]
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from medsora.processes import leave_group
from medsora.training.draws import Draws
from medsora.training.loop import Task, Trainer
from medsora.training.settings import LoopSettings
from medsora.training.stopping import StopRequests

SEED = 5


class Regression(nn.Module):
    """Two layers with dropout and a buffer, fitted to a fixed function; `poison` in a batch makes the loss NaN."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Dropout(0.0), nn.Linear(16, 3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch):
        if self.training:
            self.seen += 1
        error = self.frozen(self.net(batch["x"])) - batch["y"]
        loss = error.square().mean() + batch["poison"].mean()
        return loss, {"error": error.abs().mean()}


def tiny_task(total: int, poisoned=(), dropout: float = 0.0, after_step=None, pause: float = 0.0) -> Task:
    """A task with batches of `total`; the loss of `poisoned` steps is NaN on sample 0 alone."""
    draws = Draws(SEED, "tiny")

    def draw(step, part):
        time.sleep(pause)
        indices = part.indices(total)
        x = draws.normal("x", step, indices, (6,))
        poison = torch.zeros(len(indices))
        if step in poisoned and 0 in indices:
            poison[0] = float("nan")
        return {"x": x, "y": torch.stack([x[:, 0], x[:, 1] * x[:, 2], x[:, 3].abs()], dim=1), "poison": poison}

    module = Regression()
    module.net[2].p = dropout
    return Task("tiny", module, draw, "inputs", after_step or (lambda step, trainer: None))


def tiny_trainer(run, task=None, **settings) -> Trainer:
    """A trainer of `tiny_task` with settings good for 10 to 50 steps."""
    defaults = {"steps": 40, "batch_size": 8, "learning_rate": 1e-2, "checkpoint_every": 10, "precision": "fp32"}
    settings = LoopSettings(**defaults | settings)
    task = task or tiny_task(settings.batch_size)
    return Trainer(task, settings, Path(run), Accelerator(cpu=True), StopRequests(), SEED)


def main() -> None:
    """Trains to LIMIT; the environment says what happens on the way (see the tests)."""
    run, limit = sys.argv[1], int(sys.argv[2])
    settings = {name: json.loads(value) for name, value in (a.split("=") for a in sys.argv[3:])}
    kill_at = int(os.environ.get("TINY_KILL_AT", -1))

    def after_step(step, trainer):
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    logging.basicConfig(level=logging.WARNING)
    task = tiny_task(settings.get("batch_size", 8), after_step=after_step, poisoned=(3,))
    trainer = tiny_trainer(run, task, **settings)
    trainer.train(limit)
    leave_group()


if __name__ == "__main__":
    main()
