"""Where a stage of training stood: folders of safetensors and JSON, written whole, the last few kept.

    checkpoints/<stage>/step-0000120/
        model.safetensors, ema.safetensors, optimizer.safetensors
        state.json      counters and, for each file, its size and SHA-256

A folder is written under a temporary name, synced and renamed, so a killed run leaves a whole checkpoint or none.
"""

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medsora.errors import UserError
from medsora.files import clear_leftovers, file_sha256, replacing_folder, save_tensors, temporary_path, write_json

STATE_FILE = "state.json"
_STEP_FOLDER = re.compile(r"step-(\d{7,})")
_log = logging.getLogger("medsora")


class DamagedCheckpoint(Exception):
    """A checkpoint whose files are missing, cut short or changed; the message names the file."""


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    step: optimizer steps (skipped ones included) done so far.
    tensors: for each file's stem, tensors by name.
    state: plain JSON values.
    """

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict = field(default_factory=dict)


class CheckpointFolder:
    """The checkpoints of one stage; the newest `keep` stay."""

    def __init__(self, path: str | os.PathLike, keep: int = 2):
        if keep < 1:
            raise UserError(f"keep_checkpoints: got {keep}, wants at least 1")
        self.path = Path(path)
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending; their content is not looked at."""
        if not self.path.is_dir():
            return []
        matches = (_STEP_FOLDER.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint whole, then removes those beyond the last `keep`; returns its folder."""
        target = self.folder(checkpoint.step)
        clear_leftovers(self.path)
        files = {}
        with replacing_folder(target) as temporary:  # in the place of one of this step that could not be read
            for stem, tensors in checkpoint.tensors.items():
                path = temporary / f"{stem}.safetensors"
                save_tensors(path, tensors)
                files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            write_json(temporary / STATE_FILE, {"step": checkpoint.step, "files": files, "state": checkpoint.state})
        for step in self.steps()[: -self.keep]:
            _remove(self.folder(step))
        return target

    def load_latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, on the CPU, or None. Damaged ones are passed over with a warning."""
        for step in reversed(self.steps()):
            try:
                return read_checkpoint(self.folder(step))
            except DamagedCheckpoint as error:
                _log.warning("checkpoint %s is damaged (%s): going back to the one before", self.folder(step), error)
        return None

    def clear(self) -> None:
        """Removes every checkpoint, newest last, so that an interrupted removal never revives an older one."""
        for step in self.steps():
            _remove(self.folder(step))

    def folder(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps."""
        return self.path / f"step-{step:07d}"


def read_checkpoint(folder: str | os.PathLike) -> Checkpoint:
    """Reads one checkpoint folder and checks each file's size and digest; raises DamagedCheckpoint."""
    folder = Path(folder)
    try:
        record = json.loads((folder / STATE_FILE).read_text("utf-8"))
        step, files, state = record["step"], record["files"], record["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{STATE_FILE}: {error}") from None
    tensors = {}
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise DamagedCheckpoint(f"{name} has {path.stat().st_size} bytes, wants {expected['bytes']}")
        if file_sha256(path) != expected["sha256"]:
            raise DamagedCheckpoint(f"{name} has changed since it was written")
        try:
            tensors[path.stem] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise DamagedCheckpoint(f"{name}: {error}") from None
    return Checkpoint(step, tensors, state)


def require_same_tensors(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], what: str, optional: bool = False
) -> None:
    """Raises UserError naming the keys by which `found` does not fit `wanted`: missing, unexpected or of another shape.

    optional: keys of `wanted` may be missing.
    """
    missing = [] if optional else sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    reshaped = [
        f"{name} {tuple(found[name].shape)} where {tuple(wanted[name].shape)} is wanted"
        for name in sorted(found.keys() & wanted.keys())
        if found[name].shape != wanted[name].shape
    ]
    problems = [
        f"{label}: {_shortened(names)}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise UserError(f"{what}: the tensors do not fit the model; " + "; ".join(problems))


def _shortened(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _remove(folder: Path) -> None:
    """Renames first, so that a half-removed checkpoint cannot be taken for a whole one."""
    doomed = temporary_path(folder)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
