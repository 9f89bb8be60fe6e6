"""Networks that others trained: where they come from, and whether what was given is what is meant.

A part is given as a path or hub name, and may carry the checksum that it must have:

    i3d_torchscript.pt#sha256=3f1c...        facebook/dinov2-base        OWNER/REPOSITORY/FILE.pth#sha256=9a0e...

A hub name is that of a repository, for parts that are kept as such, or of a file in one, for any part.

The checksum is SHA-256, of the file; of a folder, that of its one weight file, or, of several, see `sha256_of`. Files
whose published names end in the first digits of their checksum (the habit of torch.hub) are held to them. Nothing is
downloaded but a hub name, by huggingface_hub and into its cache. Hashes are computed once a process.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from medsora.files import file_sha256, first_sentence

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
MARK = "#sha256="


@dataclass(frozen=True)
class Part:
    """A network of others: its title, what to download from where, and how its files may be given.

    hub: whole repositories are taken. subfolder: where in them it lies. runs_code: it is a program (TorchScript), so
    that it is opened only after its checksum was stated and met. digits: first digits of the SHA-256 of files, by their
    published names.
    """

    title: str
    download: str
    subfolder: str | None = None
    hub: bool = False
    runs_code: bool = False
    digits: tuple[tuple[str, str], ...] = ()


PARTS = {
    "cogvideox": Part(
        "the video VAE of CogVideoX-2b",
        "the folder vae (config.json and its safetensors file) of the hub's THUDM/CogVideoX-2b",
        subfolder="vae",
        hub=True,
    ),
    "raft": Part(
        "RAFT, optical flow",
        "raft_large_C_T_SKHT_V2-ff5fadd5.pth, which torchvision publishes",
        digits=(("raft_large_C_T_SKHT_V2-ff5fadd5.pth", "ff5fadd5"),),
    ),
    "dino": Part(
        "DINOv2, features of images",
        "config.json and model.safetensors of the hub's facebook/dinov2-base",
        hub=True,
    ),
    "lpips": Part(
        "VGG16 and the linear layers of LPIPS",
        "vgg16-397923af.pth, which torchvision publishes, and vgg.pth (v0.1) of the LPIPS project, into one folder",
        digits=(("vgg16-397923af.pth", "397923af"),),
    ),
    "i3d": Part(
        "I3D, features of videos for FVD",
        "i3d_torchscript.pt, to which the projects StyleGAN-V and fvd-comparison link",
        runs_code=True,
    ),
    "inception": Part(
        "Inception v3, features of frames for FID and IS",
        "pt_inception-2015-12-05-6726825d.pth, a release file of the project pytorch-fid",
        digits=(("pt_inception-2015-12-05-6726825d.pth", "6726825d"),),
    ),
    "videomae": Part(
        "VideoMAE, features of videos for CD-FVD",
        "vit_g_hybrid_pt_1200e_ssv2_ft.pth, which the project content-debiased-fvd uses, or config.json and "
        "model.safetensors of the hub's MCG-NJU/videomae-base",
        hub=True,
    ),
}


@dataclass(frozen=True)
class Found:
    """Where a part is, and the SHA-256 of its weights in hex."""

    path: Path
    sha256: str


def locate(name: str, given: str | Path, option: str, subfolder: str | None = None) -> Found:
    """The file or folder of part `name`, with its checksum.

    given: a path or hub name, with or without "#sha256=HEX". option: how the caller's message names the setting.
    subfolder: where in it the part lies, if not where the part usually does.
    Raises ValueError, one sentence: nothing there (with what to download), another checksum than stated or published,
    a malformed one, or none stated for a part that runs code.
    """
    part = PARTS[name]
    place, stated = split_checksum(given, option)
    if part.runs_code and stated is None:
        raise ValueError(
            f"{option}: {place} is a program (TorchScript), which runs only if you state the checksum that you trust: "
            f"{option} {place}{MARK}HEX"
        )
    path, below = Path(place), part.subfolder if subfolder is None else subfolder
    if not path.exists():
        path = _from_hub(name, place, option, below)
    elif below and (path / below).is_dir() and (subfolder is not None or not _weight_files(path)):
        path = path / below
    found = sha256_of(path)
    if found is None:
        raise ValueError(f"{option}: {path} holds no weights ({', '.join(WEIGHT_SUFFIXES)}); {advice(name, option)}")
    if stated is not None and found != stated:
        raise ValueError(f"{option}: {path} has the SHA-256 {found}, wants {stated}, as was stated")
    _check_published(part, path, option)
    return Found(path, found)


def split_checksum(given: str, option: str) -> tuple[str, str | None]:
    """A path or name and the checksum stated behind it, if any; ValueError for one that is not 64 hex digits."""
    place, mark, stated = str(given).partition(MARK)
    if mark and not re.fullmatch("[0-9a-fA-F]{64}", stated):
        raise ValueError(f"{option}: got {stated!r} after {MARK}, wants the 64 hex digits of a SHA-256")
    return place, stated.lower() if mark else None


def advice(name: str, option: str) -> str:
    """What to download and how to give it, to end a message with."""
    return f"download {PARTS[name].download}, on a machine with a connection, and give its place as {option} PATH"


def require_transformers(option: str) -> None:
    """Raises ValueError where the library that DINO and VideoMAE are loaded with is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(f'{option}: wants transformers, which is not installed: pip install "transformers>=4.50,<6"')


def sha256_of(path: Path) -> str | None:
    """Checksum of a file; of a folder's one weight file; of several, that of the lines "<sha256>  <name>", sorted.

    Beside safetensors files those ending in .bin, which hubs keep as doubles, do not count. None without weights.
    """
    if path.is_dir():
        files = _weight_files(path)
        if len(files) != 1:
            lines = "".join(f"{_hash(f, *_state(f))}  {f.name}\n" for f in files)
            return hashlib.sha256(lines.encode()).hexdigest() if files else None
        path = files[0]
    return _hash(path, *_state(path)) if path.is_file() else None


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.suffix in WEIGHT_SUFFIXES and f.is_file())
    doubled = any(f.suffix == ".safetensors" for f in files)
    return [f for f in files if not (doubled and f.suffix == ".bin")]


def _check_published(part: Part, path: Path, option: str) -> None:
    """Files of a published name must begin with the digits that the name carries."""
    for name, digits in part.digits:
        file = path / name if path.is_dir() else path
        if file.name == name and file.is_file():
            found = _hash(file, *_state(file))
            if not found.startswith(digits):
                raise ValueError(
                    f"{option}: {file} has the SHA-256 {found[:8]}..., wants {digits}..., as its name says; "
                    "it is damaged or another file"
                )


def _from_hub(name: str, place: str, option: str, below: str | None) -> Path:
    """The file, or folder of a repository, that huggingface_hub loads; its cache serves without a connection."""
    known = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)(?:/([\w./-]+))?", place)
    repository, file = known.groups() if known else (None, None)
    asked = repository and (Path(file).suffix in WEIGHT_SUFFIXES if file else PARTS[name].hub)
    if not asked or Path(repository).parts[0] in os.listdir():  # the latter is a path that misses its end
        raise ValueError(f"{option}: cannot load {place!r}, there is no such path; {advice(name, option)}")
    from huggingface_hub import hf_hub_download, snapshot_download

    within = f"{below}/" if below else ""
    try:
        if file:
            return Path(hf_hub_download(repository, file))
        return Path(snapshot_download(place, allow_patterns=[f"{within}*.json", f"{within}*.safetensors"])) / within
    except Exception as error:  # no connection, no such name, no right to it: each library has its own exceptions
        raise ValueError(
            f"{option}: cannot load {place!r}, there is no such path, and the hub did not give it "
            f"({first_sentence(error)}); {advice(name, option)}"
        ) from error


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _hash(path: Path, size: int, time: int) -> str:
    """size and time: under which the hash is remembered."""
    found = file_sha256(path)
    if found is None:
        raise ValueError(f"{path} cannot be read")
    return found
