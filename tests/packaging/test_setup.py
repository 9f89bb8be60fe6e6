"""The files that set a checkout up agree with each other, and make says in words what it cannot do."""

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonicalize_name(pin.name): pin for pin in (Requirement(line) for line in lines if line and line[0] != "#")
    }


def test_every_pin_lies_within_the_range_the_package_accepts():
    wanted = [Requirement(text) for text in METADATA["dependencies"] + METADATA["optional-dependencies"]["test"]]
    for requirement in wanted:
        pin = pins()[canonicalize_name(requirement.name)]
        (version,) = (clause.version for clause in pin.specifier)
        assert requirement.specifier.contains(version), f"{pin} is outside {requirement}"


def test_everything_that_is_imported_is_asked_for():
    """Else it works only where something happens to be installed already. torchvision, for RAFT, is left to users."""
    asked_for = METADATA["dependencies"] + METADATA["optional-dependencies"]["test"]
    distributions = {canonicalize_name(Requirement(text).name) for text in asked_for}
    provided_by = importlib.metadata.packages_distributions()
    own = {"medsora", "medsora_ops", "benchmarks", "torchvision"} | {
        file.stem for file in (ROOT / "tests").rglob("*.py")
    }
    files = [
        file for folder in ("medsora", "medsora_ops", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")
    ]
    for name in {name for file in files for name in imported_by(file)} - own - set(sys.stdlib_module_names):
        assert distributions & {canonicalize_name(d) for d in provided_by.get(name, [])}, f"nobody asks for {name}"


def imported_by(file):
    """The top-level names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_torch_is_pinned_for_set_ups_and_ranged_for_users():
    (accepted,) = (Requirement(text) for text in METADATA["dependencies"] if text.startswith("torch"))
    assert all(accepted.specifier.contains(version) for version in ("2.11.0", "2.13.0"))
    assert str(pins()["torch"].specifier).startswith("==")


def make(*arguments):
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_make_lists_its_targets():
    done = make()
    assert done.returncode == 0
    listed = {line.split()[0] for line in done.stdout.splitlines()[1:]}
    assert {"train", "test", "test-full", "lint", "setup", "help"} <= listed


@pytest.mark.parametrize(
    "program, told",
    [
        ("exit 1", "is missing or older than Python 3.11"),
        ('case "$2" in *version_info*) exit 0;; *) exit 1;; esac', "install the package python3-venv"),
    ],
    ids=("old python", "no venv"),
)
def test_make_says_what_is_missing(program, told, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    done = make("setup", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0 and told in done.stderr
    assert not (tmp_path / "venv").exists()
