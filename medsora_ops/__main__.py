"""`python -m medsora_ops`: which implementation serves which operator here, and what this installation consists of."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch

from medsora_ops import backend_report, backends, configs, native, preferred
from medsora_ops.version import __version__


def installation() -> dict[str, object]:
    """Versions, devices, the state of the extension and the backend asked for, as plain values.

    Raises ValueError if MEDSORA_ISA or MEDSORA_BACKEND names something unknown, and for a damaged MEDSORA_CONFIGS.
    """
    return {
        "medsora_ops": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "triton": _version_of("triton"),
        "numpy": _version_of("numpy"),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "extension": native.build_info() or None,
        "extension_missing": native.unavailable(),
        "backend_asked_for": backends.requested() or None,
        "preferred_on_gpu": preferred.table().told(),
        "kernel_configurations": configs.told(),
    }


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def table() -> str:
    """The backend report as aligned text: operator, backend, available, devices it serves, why it is not available."""
    lines = [("operator", "backend", "available", "serves", "why not")]
    for row in backend_report():
        lines.append((row.operator, row.backend, "yes" if row.available else "no", " ".join(row.serves), row.reason))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def summary(facts: dict[str, object]) -> str:
    """`installation()` as a few lines of text."""
    lines = [
        f"medsora_ops {facts['medsora_ops']}, Python {facts['python']} on {facts['platform']}",
        f"torch {facts['torch']}, triton {facts['triton'] or 'not installed'}, numpy {facts['numpy']}",
        f"CUDA device: {facts['cuda_device'] or 'none that torch can use'}",
        f"{', '.join(preferred.SIZES)} on a GPU, by size: {facts['preferred_on_gpu']}",
        f"how the scans' Triton kernels are cut: {facts['kernel_configurations']}",
    ]
    if facts["backend_asked_for"]:
        lines.append(f"MEDSORA_BACKEND={facts['backend_asked_for']} asks that backend for every operator")
    extension = facts["extension"]
    if extension is None:
        return "\n".join([*lines, f"native extension: absent, {facts['extension_missing']}"])
    cuda = f"with CUDA {extension['cuda']}" if extension["cuda"] else "without CUDA"
    openmp = f"OpenMP {extension['openmp']}" if extension["openmp"] else "no OpenMP, one thread"
    return "\n".join(
        [
            *lines,
            f"native extension: {extension['compiler']}, {openmp}, {cuda}",
            f"threads: {extension['threads_seen']} of {extension['threads']} asked for",
            f"instruction set: {extension['isa']} of {', '.join(extension['isa_supported'])} (MEDSORA_ISA chooses)",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report, as text or with --json as one JSON object. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m medsora_ops", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    options = parser.parse_args(arguments)
    try:
        facts = installation()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"installation": facts, "operators": [asdict(row) for row in backend_report()]}, indent=2))
    else:
        print(f"{table()}\n\n{summary(facts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
