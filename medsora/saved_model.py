"""A model that was saved as a folder: what it consists of, and loading it with errors its user understands."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from medsora.errors import UserError
from medsora.files import file_sha256, first_sentence
from medsora.processes import local_device

if TYPE_CHECKING:
    import torch

    from medsora.pipeline import MedSoraPipeline

PARTS = ("denoiser", "vae", "scheduler")
SHAPES = re.compile(r"because (\S+) expected shape torch\.Size\(\[(.*?)\]\), but got torch\.Size\(\[(.*?)\]\)")


def model_hashes(model: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of each weight and config file of a saved pipeline, by its path within the folder.

    Raises UserError where there is no such folder, or no finished model in it.
    """
    model = Path(model)
    if not model.is_dir():
        raise UserError(f"--model: there is no folder {model}")
    if not (model / "model_index.json").is_file():
        if (model / "settings.json").is_file():
            raise UserError(
                f"--model: the run in {model} has not finished (no model_index.json); run its training command again"
            )
        raise UserError(f"--model: {model} holds no model (no model_index.json); wants the folder of a training run")
    files = sorted(f for part in PARTS for kind in ("*.safetensors", "*.json") for f in (model / part).glob(kind))
    for part in PARTS[:2]:
        if not any(f.parent.name == part and f.suffix == ".safetensors" for f in files):
            raise UserError(f"--model: {model / part} holds no weights (no .safetensors file)")
    return {f.relative_to(model).as_posix(): file_sha256(f) for f in files}


def load_pipeline(model: str | os.PathLike, device: str) -> MedSoraPipeline:
    """Loads a saved pipeline on `device` ("auto": CUDA where there is one; of several processes each on its own GPU).

    Raises UserError for weights or configs that cannot be read or do not fit each other, and for a device that is not
    here.
    """
    import torch
    from safetensors import SafetensorError

    from medsora.pipeline import MedSoraPipeline

    device = local_device(device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device: got {device!r}, which cannot be used here ({first_sentence(error)})") from None
    try:
        with quiet_diffusers():
            pipeline = MedSoraPipeline.from_pretrained(model, local_files_only=True)
        check_weights(Path(model), pipeline)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise UserError(f"--model: {model} cannot be loaded ({why_not_loaded(error)})") from error
    return pipeline.to(device)


def why_not_loaded(error: Exception) -> str:
    """Why a model was not loaded; diffusers' sentence on a tensor of another shape, with what it mostly means."""
    found = SHAPES.search(str(error))
    if found is None:
        return f"{type(error).__name__}: {first_sentence(error)}"
    name, wanted, got = found.groups()
    return f"its weights are of another preset or size than its config: {name} is [{got}], wants [{wanted}]"


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Within the block diffusers shows errors only: no bar for three parts, no advice to train missing weights."""
    from diffusers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_weights(model: Path, pipeline: MedSoraPipeline) -> None:
    """Raises UserError if the weight files lack tensors of the models: diffusers only warns and leaves them empty."""
    for part in ("denoiser", "vae"):
        lacking = lacking_tensors(model / part, getattr(pipeline, part))
        if lacking:
            raise UserError(
                f"--model: the weights in {model / part} lack {len(lacking)} tensors of its config, such as "
                f"{lacking[0]}; save the model again"
            )


def lacking_tensors(folder: Path, model: torch.nn.Module) -> list[str]:
    """Names in the state of `model`, sorted, that no safetensors file directly in `folder` holds."""
    from safetensors import safe_open

    stored: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            stored |= set(file.keys())
    return sorted(model.state_dict().keys() - stored)
