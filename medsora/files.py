"""How files and folders come to be, whole or not at all, and how weights and hashes are read from them.

Each is written within a temporary folder beside its place, synced to disk, renamed into place, and its parent synced. A
reader, or a run that was killed, sees the old one or the new one and never a part. What a killed command leaves, the
next one clears; a lock tells it from what another is still writing.
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
except ImportError:  # Windows
    fcntl = None

TEMPORARY_PREFIX = ".writing-"
LOCK = ".lock"
_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + "[0-9a-f]{8}")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path of the same name to write to; on success it takes `path`'s place.

    Missing parent folders are made. If the block raises, the temporary file is removed and `path` stays as it was.
    """
    path = Path(path)
    with _temporary_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        _sync_file(temporary)
        os.replace(temporary, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """As `replacing`, of a folder: yields an empty one to fill, which takes the place of `path` and all within it."""
    path = Path(path)
    with _temporary_folder(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        for place, _, names in os.walk(temporary):
            for name in names:
                _sync_file(Path(place) / name)
            sync_folder(place)
        if path.exists():
            os.replace(path, folder / f"{path.name}.before")
        os.replace(temporary, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, removed at the end of the block with what is in it then.

    It is locked meanwhile: the system lifts the lock when the process ends, however it ends. On a file system without
    locks there is none, and `clear_leftovers` clears nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_path(path)
    folder.mkdir()
    lock = _locked(folder)
    try:
        yield folder
    finally:
        if lock is not None:
            os.close(lock)  # first, since network file systems keep the folder of a file that is open
        shutil.rmtree(folder, ignore_errors=True)


def clear_leftovers(*folders: str | os.PathLike) -> None:
    """Removes what commands that were killed left directly in these folders under temporary names."""
    for parent in map(Path, folders):
        for folder in parent.iterdir() if parent.is_dir() else ():
            if not (_TEMPORARY.fullmatch(folder.name) and folder.is_dir()):
                continue
            lock = _locked(folder)
            if lock is not None:  # else somebody is writing there
                os.close(lock)
                shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder, or None where another holds it or there are no locks."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except (OSError, AttributeError):
        os.close(descriptor)
        return None


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


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
    """A free name beside `path`, hidden."""
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}")


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
