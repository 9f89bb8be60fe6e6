"""How files come to be: whole or not at all.

Each writer makes a file of a temporary name in the target's own folder, syncs it to disk, renames it into place and
syncs the folder. A reader, or a run that was killed, sees the old file or the new one and never a part.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

TEMPORARY_PREFIX = ".writing-"


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to `path`, replacing a file that is there; missing parent folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` to `path` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: object) -> None:
    """Writes `value` as indented JSON; NaN and infinity are a ValueError, since JSON has no such numbers."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_tensors(path: str | os.PathLike, tensors: Mapping, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file of torch tensors (any device, any layout), whole or not at all."""
    from safetensors.torch import save

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    storages = {tensor.untyped_storage().data_ptr() for tensor in ready.values() if tensor.numel()}
    if len(storages) < sum(1 for tensor in ready.values() if tensor.numel()):  # shared memory is refused by the format
        ready = {name: tensor.clone() for name, tensor in ready.items()}
    write_bytes(path, save(ready, metadata=dict(metadata) if metadata else None))


def temporary_path(path: Path) -> Path:
    """A free name beside `path`, hidden, with the same suffix (some writers choose the format by it)."""
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")


def sync_folder(folder: str | os.PathLike) -> None:
    """Makes the names in `folder` durable. Systems that cannot open a folder (Windows) are left as they are."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync a folder; the rename itself stays atomic
    finally:
        os.close(descriptor)
