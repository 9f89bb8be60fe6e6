"""A run's folder: where things lie in it, which settings it belongs to, and which of its stages are done.

settings.json   the settings the run was started with      stages.json   each finished stage and what it found
dataset/        prepared frames and latents                 checkpoints/  where training stands
vae/ denoiser/ scheduler/ model_index.json                  the trained pipeline
metrics.jsonl  tensorboard/  plots/  samples/  report.html  what there is to see
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from medsora.errors import UserError
from medsora.files import TEMPORARY_PREFIX, clear_leftovers, write_json

if TYPE_CHECKING:
    from medsora.config import TrainSettings

STAGES = ("frames", "vae", "latents", "denoiser", "results")


class RunFolder:
    """A run's folder; making the object changes nothing on disk."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.settings_file = self.path / "settings.json"
        self.stages_file = self.path / "stages.json"

    def check(self, settings: TrainSettings) -> None:
        """Raises UserError if the folder holds something else, or a run of other settings."""
        from medsora.config import differences

        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"output: {self.path} is a file, wants a folder")
        if not self.settings_file.is_file():
            foreign = [p.name for p in self.path.iterdir() if not p.name.startswith(TEMPORARY_PREFIX)]
            if foreign:
                raise UserError(
                    f"output: {self.path} holds files that are no run of ours ({foreign[0]}), wants another"
                )
            return
        if not self.stages_file.is_file():
            return  # it stopped before anything was done, perhaps for a setting that is put right now
        recorded = _read(self.settings_file)["settings"]
        found = differences(recorded, settings.as_dict())
        if found:
            name, before, now = found[0]
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise UserError(
                f"{self.path} was started with {name} {json.dumps(before)}, now it is {json.dumps(now)}{more}; "
                "give the recorded settings to go on, or another --output for a new run"
            )

    def claim(self, settings: TrainSettings) -> None:
        """Records the settings, those that may change brought up to date, and clears what a killed command left."""
        from medsora import __version__

        clear_leftovers(self.path, self.path / "samples", self.path / "plots")
        write_json(self.settings_file, {"medsora": __version__, "settings": settings.as_dict()})

    def done(self, stage: str) -> dict | None:
        """What a finished stage found, or None where it is still to do."""
        return self._stages().get(stage)

    def finish(self, stage: str, **facts) -> None:
        """Records a stage as done; later stages, which are built on it, are to be done again."""
        kept = {name: self._stages()[name] for name in STAGES[: STAGES.index(stage)] if name in self._stages()}
        write_json(self.stages_file, kept | {stage: facts})

    def _stages(self) -> dict:
        return _read(self.stages_file) if self.stages_file.is_file() else {}


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); use another --output") from None
