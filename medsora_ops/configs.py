"""How a Triton kernel is cut: which block sizes and warps serve which chip and size, measured or assumed.

Three sources, the first that knows the case wins: the user's table (`MEDSORA_CONFIGS`, or configs.json in
~/.config/medsora_ops, written by `python -m medsora_ops.tune`), the table that ships beside this file, and the defaults
in the code, the same everywhere and measured nowhere. Nothing is tuned at a first call.

A table is {"format": 1, "entries": [{"kernel", "architecture", "length", "head_dim", "state", "dtype", "values",
"measured"}]}; `length` is the bucket, the power of two that a sequence's length does not exceed, and `measured` tells
the chip, date, versions and microseconds.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from medsora_ops import launch

Config = TypeVar("Config")
FORMAT = 1
SHIPPED = Path(__file__).with_name("configs.json")


@dataclass(frozen=True)
class Case:
    """What a configuration is chosen for. length: its bucket, see `bucket`; dtype: "bfloat16"."""

    kernel: str
    architecture: str
    length: int
    head_dim: int
    state: int
    dtype: str


def bucket(length: int) -> int:
    """The power of two, at least 4, that `length` does not exceed."""
    return max(4, 1 << (length - 1).bit_length())


def choose(kernel: str, default: Config, x: torch.Tensor, length: int, head_dim: int, state: int) -> Config:
    """`default`, a dataclass of block sizes, with what the tables say for `kernel` on x's device and dtype."""
    return _chosen(kernel, default, launch.architecture(x.device), bucket(length), head_dim, state, x.dtype)


@functools.lru_cache(maxsize=4096)  # asked at every call
def _chosen(kernel, default, architecture, length, head_dim, state, dtype):
    case = Case(kernel, architecture, length, head_dim, state, str(dtype).removeprefix("torch."))
    entry = next((table[case] for table in (user_table(), read(SHIPPED)) if case in table), None)
    return default if entry is None else dataclasses.replace(default, **entry["values"])


def user_path() -> Path:
    """Where the user's table is, or would be."""
    return Path(os.environ.get("MEDSORA_CONFIGS") or Path.home() / ".config" / "medsora_ops" / "configs.json")


def user_table() -> dict[Case, dict]:
    """The user's entries, none if there is no table; a table that MEDSORA_CONFIGS names must be there."""
    path = user_path()
    if not path.exists() and not os.environ.get("MEDSORA_CONFIGS"):
        return {}
    return read(path)


def told() -> str:
    """For the report: "3 measured in /home/me/configs.json, 0 shipped, else defaults, measured nowhere"."""
    found = [f"{len(user_table())} measured in {user_path()}", f"{len(read(SHIPPED))} shipped"]
    return ", ".join([*found, "else defaults, measured nowhere"])


def read(path: Path) -> dict[Case, dict]:
    """The entries of a table. Raises ValueError, naming the file, if it is missing, damaged or of another format."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        names = [field.name for field in dataclasses.fields(Case)]
        return {Case(*(entry[name] for name in names)): entry for entry in content["entries"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: is no table of kernel configurations ({error}); remove it, or write it anew by"
            " `python -m medsora_ops.tune`"
        ) from error


def write(path: Path, entries: dict[Case, dict]) -> None:
    """Write a table whole or not at all. entries: for each case "values" and "measured"."""
    rows = [{**dataclasses.asdict(case), **entry} for case, entry in sorted(entries.items(), key=lambda e: str(e[0]))]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps({"format": FORMAT, "entries": rows}, indent=1) + "\n")
    beside.replace(path)
    _chosen.cache_clear()
