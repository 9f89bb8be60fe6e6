"""The program of `make sanitize`, built here for one operator and one instruction set: it stops at what is wrong.

All operators on all instruction sets take minutes to compile; that is `make sanitize` itself.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
REORDER = ["cpu/reorder.cpp", "cpu/reorder_steps_baseline.cpp", "cpu/reorder_in_blocks.cpp"]
SOURCES = ["cpu/isa.cpp", "cpu/threads.cpp", *REORDER, "sanitize/main.cpp"]


def compiled(sources, folder, name):
    program = folder / name
    built = subprocess.run(
        [COMPILER, *FLAGS, "-DMEDSORA_X86_VARIANTS=0", *map(str, sources), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return program


def run(program, *names):
    return subprocess.run([program, *names], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def reorder_check(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("there is no g++ here")
    folder = tmp_path_factory.mktemp("sanitize")
    (folder / "empty.cpp").write_text("int main() { return 0; }")
    probe = [COMPILER, *FLAGS, str(folder / "empty.cpp"), "-o", str(folder / "empty")]
    if subprocess.run(probe, capture_output=True, check=False).returncode or run(folder / "empty").returncode:
        pytest.skip("this g++ has no sanitizers, or no OpenMP beside them")
    sources = [ROOT / "csrc" / source for source in SOURCES]
    return compiled([*sources, ROOT / "csrc/sanitize/threads.cpp", ROOT / "csrc/sanitize/reorder.cpp"], folder, "check")


def test_reorder_is_clean(reorder_check):
    done = run(reorder_check)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == "baseline; 1 and 2 threads"
    assert sorted(line.split() for line in lines) == [["gather", "right"], ["merge", "right"], ["threads", "right"]]


def test_an_operator_that_is_not_there_is_an_error(reorder_check):
    done = run(reorder_check, "rotate")
    assert done.returncode == 1 and "no operator has such a name" in done.stdout


@pytest.fixture(scope="module")
def wrong_check(reorder_check, tmp_path_factory):
    """Three operators, each wrong in its own way."""
    source = tmp_path_factory.mktemp("wrong") / "wrong.cpp"
    source.write_text(f"""
        #include "{ROOT}/csrc/sanitize/check.h"
        namespace medsora::check {{
        int one = 1;
        void value(const Setting&) {{
            Guarded<int> ones(4);
            std::fill_n(ones.data(), 4, one);
            ones[3] = 2;
            expect_near(values_of(ones), {{1, 1, 1, 1}}, 1e-6, "ones");
        }}
        void address(const Setting&) {{ Guarded<int>(4, 1)[4] = one; }}
        void undefined(const Setting&) {{ one <<= 40 * one; }}
        const Registered a("value", value), b("address", address), c("undefined", undefined);
        }}
    """)
    main = [ROOT / "csrc" / source for source in ("cpu/isa.cpp", "cpu/threads.cpp", "sanitize/main.cpp")]
    return compiled([*main, source], source.parent, "check")


@pytest.mark.parametrize(
    ("operator", "told"),
    [
        ("value", "WRONG on baseline, threads 1: ones: relative error 0.5, wants at most 1e-06"),
        ("address", "AddressSanitizer: use-after-poison"),
        ("undefined", "runtime error: shift exponent 40 is too large"),
    ],
)
def test_what_is_wrong_stops_it(wrong_check, operator, told):
    done = run(wrong_check, operator)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr
