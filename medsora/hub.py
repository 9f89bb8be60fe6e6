"""A pipeline that is saved with its model card, and goes to a hub as exactly what was saved."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import create_repo, upload_folder

from medsora.errors import UserError
from medsora.files import write_json, write_text
from medsora.model_card import CARD_FILE, plain_card

UPLOADED = (".safetensors", ".json", ".md")


class SharedPipeline(DiffusionPipeline):
    """Saving, loading and uploading of a pipeline together with its card."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **options):
        """As diffusers' own; the card of a folder stays with the pipeline."""
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **options)
        card = Path(pretrained_model_name_or_path) / CARD_FILE
        if card.is_file():
            pipeline._card = card.read_text("utf-8")
        return pipeline

    @property
    def model_card(self) -> str:
        """The text of the card it was loaded with, or one that says what its parts are."""
        return getattr(self, "_card", None) or plain_card(self)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **options) -> None:
        """As diffusers' own, and README.md beside it, the model card. No file names the folder it was loaded from.

        push_to_hub: also upload it, as `push_to_hub(repo_id=...)` does, whose arguments are then taken here too.
        """
        pushed = {name: options.pop(name) for name in _PUSH_OPTIONS if name in options}
        super().save_pretrained(save_directory, **options)
        folder = Path(save_directory)
        for path in (folder / "model_index.json", *folder.glob("*/config.json")):
            values = json.loads(path.read_text("utf-8"))
            if values.pop("_name_or_path", None) is not None:
                write_json(path, values)
        write_text(folder / CARD_FILE, self.model_card)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": folder.name} | pushed)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = True,
        token: str | None = None,
        create_pr: bool = False,
        variant: str | None = None,
    ) -> str:
        """Uploads weights, configurations and the card to the Hugging Face hub, and nothing else; returns the address.

        repo_id: "user/name"; made where it is not there yet. private: who can see a new one; True unless told
        otherwise, since a model of medical recordings should be published on purpose only. token: of an account that
        may write; None for the one of `hf auth login`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant)
            require_only_safe_files(Path(folder))
            repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
            message = commit_message or "Upload a MedSora pipeline"
            return upload_folder(
                repo_id=repo_id, folder_path=folder, token=token, commit_message=message, create_pr=create_pr
            )


_PUSH_OPTIONS = ("repo_id", "commit_message", "private", "token", "create_pr")


def require_only_safe_files(folder: Path) -> None:
    """Raises UserError if a folder to be published holds anything but safetensors, JSON and Markdown."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in UPLOADED:
            raise UserError(f"{path.relative_to(folder)} is none of {', '.join(UPLOADED)} and is not uploaded")
