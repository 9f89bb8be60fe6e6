"""How files come to be, whole or not at all, and how weights and hashes are read from them.

Each writer makes a file of a temporary name in the target's own folder, syncs it to disk, renames it into place and
syncs the folder. A reader, or a run that was killed, sees the old file or the new one and never a part. What a killed
one leaves under a temporary name the next command clears; what another is still writing holds a lock, and stays.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed anyway
    fcntl = None

TEMPORARY_PREFIX = ".writing-"
_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + "[0-9a-f]{8}-.+")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path` (same suffix) to write to; on success it takes `path`'s place.

    Missing parent folders are made. If the block raises, the temporary file is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        temporary.touch(exist_ok=False)
        with being_written(temporary):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def being_written(temporary: Path) -> Iterator[None]:
    """Within the block, `clear_leftovers` of any command leaves this file or folder alone.

    It is a lock, which the system lifts when the process ends, however it ends. On a file system without locks there
    is none, and nothing is cleared either.
    """
    descriptor = _locked(temporary)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def clear_leftovers(*folders: str | os.PathLike) -> None:
    """Removes what commands that were killed left directly in these folders under temporary names."""
    for folder in map(Path, folders):
        if not folder.is_dir():
            continue
        for path in [entry for entry in folder.iterdir() if _TEMPORARY.fullmatch(entry.name)]:
            descriptor = _locked(path)
            if descriptor is None:
                continue  # somebody is writing it
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder, or None where another holds it or there are no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except (OSError, AttributeError):
        os.close(descriptor)
        return None


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to `path`, replacing a file that is there; missing parent folders are made."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` to `path` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: object) -> None:
    """Writes `value` as indented JSON; NaN and infinity are a ValueError, since JSON has no such numbers."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_tensors(path: str | os.PathLike, tensors: Mapping, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file of torch tensors (any device, any layout), whole or not at all."""
    from safetensors.torch import save_file

    ready, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # the format refuses tensors that share memory
        storages.add(tensor.untyped_storage().data_ptr())
        ready[name] = tensor
    with replacing(path) as temporary:
        save_file(ready, temporary, metadata=dict(metadata) if metadata else None)


def load_tensors(path: str | os.PathLike) -> dict:
    """The tensors of a .safetensors file or, without running any code of theirs, of PyTorch's .pth or .pt; on the CPU.

    Raises ValueError if it cannot be read or holds anything but tensors by name.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file shows in many exception types
        raise ValueError(f"cannot read {path} as a file of tensors: {first_sentence(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"got {path}, wants a file that maps names to tensors")
    return content


def first_sentence(error: BaseException) -> str:
    """What an error says, without the advice to programmers that libraries add (PyTorch's is to run a file's code)."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")


def file_sha256(path: str | os.PathLike) -> str | None:
    """Hash of a file's bytes, 64 hex digits, or None where there is no file that can be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


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
