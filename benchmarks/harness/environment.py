"""Where and of what was something measured? Everything a reader needs to judge a figure, or to measure it again."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from medsora_ops import native
from medsora_ops.version import __version__

VARIABLES = ("MEDSORA_", "OMP_", "MKL_", "KMP_", "TORCHINDUCTOR_")
ROOT = Path(__file__).parents[2]


def environment() -> dict[str, object]:
    """Processor, cores, threads, systems and versions; plain values for JSON."""
    built = native.build_info()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": native.threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "medsora": __version__,
        "compiler": built.get("compiler", native.unavailable()),
        "isa": built.get("isa", torch.backends.cpu.get_cpu_capability().lower()),
        "variables": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(VARIABLES) and not name.endswith("_DIR")  # a folder tells nothing of speed
        },
    }


def processor() -> str:
    """Its name as the system gives it; family and model beside it, for names that say little."""
    found = {}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']} (family {found.get('cpu family', '?')}, model {found.get('model', '?')})"


def load_average() -> list[float] | None:
    """Of the last 1, 5 and 15 minutes: on a machine with nothing else to do, the first one is this run itself."""
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def revision() -> dict[str, object]:
    """The revision of the sources and what in the tree differs from it. A copy without git's history is what the
    environment variable MEDSORA_REVISION says, and what differs is not known."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": os.environ.get("MEDSORA_REVISION"), "changed": None}
    changed = _git("status", "--porcelain", "--untracked-files=no").splitlines()
    return {"commit": commit, "changed": [line[3:] for line in changed]}


def command() -> str:
    """As a shell takes it, such as "python -m pytest benchmarks -k 'gather and native'"."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    return shlex.join([*name, *sys.argv[1:]])


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.rstrip("\n")
