"""Which backend serves a size first on a GPU, where several can: a table of what was measured, and one default.

The table, preferred.json beside this file, is {"format": 1, "default": {"backend", "measured"}, "entries":
[{"operator", "architecture", "size", "dtype", "backend", "measured"}]}. `size` is the power of two that the longest
side of an image or patch, or the number of channels of `gather` and `merge`, does not exceed; `measured` tells the
chip, date, versions and microseconds of each backend, and null that nobody has measured.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

from medsora_ops import configs, launch

FORMAT = 1
_SHIPPED = Path(__file__).with_name("preferred.json")

# The size of a call, from the arguments of an operator's forward.
SIZES: dict[str, Callable[..., int]] = {
    "gather": lambda x, *_: x.shape[-1],
    "merge": lambda y, *_: y.shape[-1],
    "spectral_filter": lambda x, *_: max(x.shape[-2:]),
    "focal_frequency_loss": lambda pred, target, alpha, patch_factor, *_: max(pred.shape[-2:]) // patch_factor,
}


@dataclass(frozen=True)
class Case:
    """What a backend is preferred for. architecture: "sm_90"; size: its bucket; dtype: "bfloat16"."""

    operator: str
    architecture: str
    size: int
    dtype: str


@dataclass(frozen=True)
class Table:
    """The backend of each case that was measured, and of all others; default_measured: None if nobody has."""

    default: str
    default_measured: dict | None
    entries: dict[Case, str]

    def told(self) -> str:
        """For the report: "cuda, not measured; measured otherwise: none"."""
        known = "measured" if self.default_measured else "not measured"
        cases = (" ".join(map(str, astuple(case))) + f": {name}" for case, name in self.entries.items())
        return f"{self.default}, {known}; measured otherwise: {', '.join(cases) or 'none'}"


def backend(operator: str, *arguments) -> str | None:
    """The backend that is to serve a call, by the arguments of its forward; None for operators without a table."""
    if operator not in SIZES:
        return None
    x = arguments[0]
    size = configs.bucket(SIZES[operator](*arguments))
    return _backend(operator, launch.architecture(x.device), size, x.dtype)


@functools.lru_cache(maxsize=4096)  # asked at every call
def _backend(operator, architecture, size, dtype) -> str:
    found = table()
    return found.entries.get(Case(operator, architecture, size, str(dtype).removeprefix("torch.")), found.default)


@functools.cache
def table() -> Table:
    """The table that ships with this package."""
    return read(_SHIPPED)


def read(path: Path) -> Table:
    """Raises ValueError, naming the file, if it is missing, damaged or of another format."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        names = ("operator", "architecture", "size", "dtype")
        entries = {Case(*(entry[name] for name in names)): entry["backend"] for entry in content["entries"]}
        return Table(content["default"]["backend"], content["default"]["measured"], entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no table of preferred backends ({error})") from error
