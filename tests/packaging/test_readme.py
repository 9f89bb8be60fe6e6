"""What the README shows works as it stands there: the examples of the operators, and the files it points to."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
EXAMPLES = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "from medsora_ops" in block]


def test_there_are_three_examples():
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[1])
def test_an_example_of_the_operators_runs(example):
    exec(compile(example, "README.md", "exec"), {})


@pytest.mark.slow
def test_the_benchmarks_run():
    """Each variant of an operator once, compared with its reference and not timed; the sizes that take seconds and what
    is not installed here left out."""
    quick = "not 4x4096 and not 16x256 and not 8192x2320 and not mamba_ssm and not fla"
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-disable", "benchmarks/test_operators.py", "-k", quick]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout) and "skipped" not in done.stdout


def test_the_files_it_points_to_are_there():
    targets = {target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT) if "://" not in target}
    assert "LICENSE" in targets
    assert not [target for target in targets if not (ROOT / target).exists()]
