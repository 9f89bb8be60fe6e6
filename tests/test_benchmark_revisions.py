"""Two revisions compared: by turns, in checkouts that go away, with verdicts that follow from the medians.

The benchmarks of the small repository here tell fixed times to pytest-benchmark, so nothing is timed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scipy.stats import binom

from benchmarks import revisions
from benchmarks.harness import checkouts
from benchmarks.revisions import Change, changes_between, median_and_interval, missing, table
from medsora.errors import UserError, run_command

ROOT = Path(__file__).parents[1]
FILES = {
    ".gitignore": "build/\n__pycache__/\n.benchmarks/\n*.so\n",
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\n',
    "medsora_ops/__init__.py": "",
    "benchmarks/conftest.py": "def pytest_addoption(parser):\n    parser.addoption('--budget', type=float)\n",
    "benchmarks/times.json": json.dumps({"scan": 1.0, "merge": 1.0, "loss": 1.0, "old": 1.0}),
    "benchmarks/test_told.py": """
import itertools, json, os, pathlib, time
import pytest

TIMES = json.loads((pathlib.Path(__file__).parent / "times.json").read_text())
clock = itertools.count(0.0)

@pytest.mark.parametrize("name", TIMES)
def test_told(benchmark, name):
    with open(os.environ["TOLD"], "a") as log:
        print(os.getpid(), pathlib.Path.cwd().name, name, file=log)
    if os.environ.get("HANGS"):
        time.sleep(600)
    now = [0.0]
    benchmark._timer = lambda: now[0]
    benchmark.pedantic(lambda: now.__setitem__(0, now[0] + TIMES[name]), rounds=3)
""",
}


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "repository"
    write(folder, FILES)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "-m", "first")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # others take most of a run's time
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_benchmark.plugin")
    return folder


def told(repository: Path) -> list[list[str]]:
    """Process, checkout and benchmark of each call."""
    log = repository.parent / "told"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def require_clean(repository: Path) -> None:
    assert git(repository, "worktree", "list").count("\n") == 1
    left = list((repository / checkouts.FOLDER).glob("[0-9]*"))
    assert not left


def test_what_changed_is_told_and_what_got_slower_is_the_exit_status(repository, capsys):
    times = {"scan": 1.5, "merge": 0.5, "loss": 1.01, "fresh": 1.0}
    write(repository, {"benchmarks/times.json": json.dumps(times)})
    write(repository, {"benchmarks/untracked.py": ""})
    before = git(repository, "status", "--porcelain"), git(repository, "log", "--all", "--format=%H")
    assert revisions.main(["HEAD"], repository) == 1
    lines = capsys.readouterr().out.splitlines()
    slower, faster = lines.index("slower by more than 1.05: 1"), lines.index("faster by more than 1.05: 1")
    assert lines[slower + 1].split() == "1 s -> 1.5 s x 1.500 (1.500 to 1.500) test_told[scan]".split()
    assert lines[faster + 1].split() == "1 s -> 500 ms x 0.500 (0.500 to 0.500) test_told[merge]".split()
    assert "no change beyond noise and threshold: 1; the least certain of them" in lines
    assert "timed in base only: benchmarks/test_told.py::test_told[old]" in lines
    assert "timed in new only: benchmarks/test_told.py::test_told[fresh]" in lines
    require_clean(repository)
    assert (git(repository, "status", "--porcelain"), git(repository, "log", "--all", "--format=%H")) == before
    # By turns, first all, then what stood out.
    turns = list(dict.fromkeys((process, name) for process, name, _ in told(repository)))
    assert [name for _, name in turns] == ["base", "new", "new", "base"] * 6
    assert {name for process, _, name in told(repository) if process == turns[-1][0]} == {"scan", "merge"}


def test_the_same_revision_is_not_slower_than_itself(repository, capsys):
    assert revisions.main(["HEAD", "HEAD", "-k", "scan"], repository) == 0
    out = capsys.readouterr().out
    assert "slower by more than 1.05: nothing" in out and "test_told[scan]" in out and "loss" not in out
    assert len(told(repository)) == 12


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(repository, ending):
    code = "import sys; from pathlib import Path; from benchmarks import revisions\n"
    code += "sys.exit(revisions.main(['HEAD'], Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(repository)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"HANGS": "1"}, stderr=subprocess.PIPE) as run:
        wait_for(lambda: told(repository))
        run.send_signal(ending)
        _, complaint = run.communicate(timeout=60)
    assert run.returncode == 130 and complaint.decode().endswith("interrupted; the checkouts are removed\n")
    require_clean(repository)
    hanging = int(told(repository)[0][0])
    wait_for(lambda: not checkouts.running(hanging))


def wait_for(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def test_started_by_a_hook_it_leaves_what_is_staged_alone_and_starts_no_hooks(repository, monkeypatch):
    write(
        repository, {"staged.py": "", "benchmarks/times.json": "{}", ".git/hooks/post-checkout": "#!/bin/sh\n>hooked\n"}
    )
    (repository / ".git/hooks/post-checkout").chmod(0o755)
    git(repository, "add", "staged.py", "benchmarks/times.json")
    before = git(repository, "status", "--porcelain")
    with monkeypatch.context() as inside:
        inside.setenv("GIT_INDEX_FILE", str(repository / ".git" / "index"))  # as a commit hook finds them
        inside.setenv("GIT_DIR", str(repository / ".git"))
        commits = {"base": checkouts.commit_of(repository, "HEAD"), "new": checkouts.working_tree_commit(repository)}
        with checkouts.checkouts(repository, commits) as folders:
            assert not (folders["base"] / "staged.py").exists() and (folders["new"] / "staged.py").exists()
    assert git(repository, "status", "--porcelain") == before
    assert not list(repository.rglob("hooked"))
    require_clean(repository)


@pytest.mark.parametrize("ignored", [True, False])
def test_the_working_tree_is_taken_without_the_checkouts_of_other_runs(repository, ignored):
    if not ignored:
        write(repository, {".gitignore": ""})
    other = repository / checkouts.FOLDER / "1" / "base"
    git(repository, "worktree", "add", "--quiet", "--detach", str(other), "HEAD")
    write(repository, {"fresh.py": "", "build/log": ""})
    kept = git(repository, "ls-tree", "-r", "--name-only", checkouts.working_tree_commit(repository)).split()
    assert set(kept) == FILES.keys() | {"fresh.py"} | ({"build/log"} if not ignored else set())


def test_what_a_killed_run_left_is_removed_by_the_next(repository):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    left = repository / checkouts.FOLDER / str(done.pid)
    git(repository, "worktree", "add", "--quiet", "--detach", str(left / "base"), "HEAD")
    mine = repository / checkouts.FOLDER / str(os.getppid())  # a run that is going on
    git(repository, "worktree", "add", "--quiet", "--detach", str(mine / "base"), "HEAD")
    with checkouts.checkouts(repository, {"base": "HEAD"}) as folders:
        assert not left.exists() and mine.exists() and folders["base"].is_dir()
        assert str(left) not in git(repository, "worktree", "list")
    assert mine.exists() and not folders["base"].exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such"], "got revision 'no-such', wants a commit, branch or tag"),
        (["HEAD", "--rounds=5"], "--rounds: got 5, wants at least 6"),
        (["HEAD", "--threshold=0.9"], "--threshold: got 0.9, wants a ratio of at least 1"),
        (["HEAD", "--budget=nan"], "--budget: got nan, wants seconds above 0"),
        (["HEAD", "-k", "no_such_benchmark"], "no benchmark was timed in both revisions"),
        (
            ["HEAD", "--", "--no-such-option"],
            "the benchmarks of base do not run: .*error: unrecognized arguments: --no-such-option",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_sentence(repository, capsys, arguments, message):
    assert run_command(lambda: revisions.main(arguments, repository)) == 2
    complaint = capsys.readouterr().err
    assert complaint.splitlines()[-1].startswith("error: ")
    with pytest.raises(UserError, match=message):
        raise UserError(complaint)
    require_clean(repository)


def test_outside_a_repository_git_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UserError, match="not a git repository"):
        revisions.main(["HEAD"], tmp_path)


def test_the_benchmarks_of_this_project_run_in_a_checkout():
    if not (ROOT / ".git").exists():
        pytest.skip("the sources are not in a git repository")
    head = checkouts.commit_of(ROOT, "HEAD")
    chosen = ["benchmarks/test_operators.py", "-k", "merge-1024x512-float32-forward-reference"]
    with checkouts.checkouts(ROOT, {"base": head}) as folders:
        revisions.require_own_package(folders["base"])
        (found,) = revisions.medians_of(folders["base"], "base", chosen, budget=0.01).items()
    assert found[0].endswith("[merge-1024x512-float32-forward-reference]") and found[1] > 0


# The extension


SETUP = """
import os, pathlib, sys
if "wrong" in pathlib.Path("csrc/a.cpp").read_text():
    sys.exit("a.cpp is wrong")
assert os.environ["MEDSORA_REQUIRE_EXT"] == "1"
pathlib.Path("{extension}").write_text("built from " + pathlib.Path("csrc/a.cpp").read_text())
"""


@pytest.fixture
def sources(tmp_path):
    """(working tree, checkout) of the same sources; what stands for the compiler writes a text."""
    files = {
        "setup.py": SETUP.format(extension=checkouts.EXTENSION),
        "medsora_ops/version.py": "",
        "csrc/a.cpp": "one",
    }
    write(tmp_path / "tree", files)
    write(tmp_path / "base", files)
    return tmp_path / "tree", tmp_path / "base"


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_an_extension_of_the_same_sources_is_copied(sources):
    tree, base = sources
    write(tree, {checkouts.EXTENSION: "built before"})
    assert checkouts.provide_extension(tree, base).startswith("the extension of the working tree")
    assert (base / checkouts.EXTENSION).read_text() == "built before"


def test_an_extension_older_than_its_sources_or_of_others_is_built_and_kept(sources):
    tree, base = sources
    write(tree, {checkouts.EXTENSION: "built before"})
    age(tree / checkouts.EXTENSION, 1000)
    assert checkouts.provide_extension(tree, base) == "an extension built from its sources"
    assert (base / checkouts.EXTENSION).read_text() == "built from one"
    (base / checkouts.EXTENSION).unlink()
    (kept,) = (tree / checkouts.FOLDER / "extensions").glob("*/*")
    kept.write_text("kept")
    checkouts.provide_extension(tree, base)
    assert (base / checkouts.EXTENSION).read_text() == "kept"
    write(tree, {"csrc/a.cpp": "two", checkouts.EXTENSION: "built before"})
    write(base, {"csrc/a.cpp": "three"})
    checkouts.provide_extension(tree, base)
    assert (base / checkouts.EXTENSION).read_text() == "built from three"


def test_an_extension_that_does_not_build_is_an_error(sources):
    tree, base = sources
    write(base, {"csrc/a.cpp": "wrong"})
    with pytest.raises(UserError, match="the extension of base does not build: a.cpp is wrong"):
        checkouts.provide_extension(tree, base)


# Medians, intervals, verdicts


@pytest.mark.parametrize("n", [6, 7, 8, 9, 12, 17, 40])
def test_the_interval_is_the_narrowest_that_the_sign_test_allows(n):
    values = [float(value) for value in range(1, n + 1)]
    low, median, high = median_and_interval(values[::-1])
    assert median == (n + 1) / 2 and low + high == n + 1
    k = int(low)
    assert 2 * binom.cdf(k - 1, n, 0.5) <= 0.05 < 2 * binom.cdf(k, n, 0.5)


def test_five_values_have_no_interval():
    with pytest.raises(ValueError, match="got 5, wants at least 6"):
        median_and_interval([1.0] * 5)


@pytest.mark.parametrize(
    ("low", "ratio", "high", "verdict"),
    [
        (1.01, 1.2, 1.4, "slower"),
        (0.99, 1.2, 1.4, "same"),  # noise
        (1.01, 1.04, 1.05, "same"),  # below the threshold
        (0.7, 0.8, 0.99, "faster"),
        (0.7, 0.8, 1.01, "same"),
        (0.95, 0.96, 0.97, "same"),
    ],
)
def test_a_verdict_takes_an_interval_beside_1_and_a_ratio_beyond_the_threshold(low, ratio, high, verdict):
    assert Change("x", 1.0, ratio, low, ratio, high).verdict(1.05) == verdict


def test_ratios_are_those_of_pairs_so_that_drift_falls_out():
    base = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    (change,) = changes_between({"base": {"x": base}, "new": {"x": [1.1 * value for value in base]}})
    assert (change.low, change.ratio, change.high) == (pytest.approx(1.1),) * 3
    assert change.base == 6.0 and change.new == pytest.approx(6.6)


def test_benchmarks_of_one_revision_or_of_some_runs_are_not_compared():
    six = [1.0] * 6
    found = {"base": {"x": six, "gone": six, "fails": six}, "new": {"x": six, "came": six, "fails": six[:2]}}
    assert [change.name for change in changes_between(found)] == ["x"]
    assert missing(found) == ["timed in base only: gone", "timed in new only: came"]


def test_what_stands_out_only_once_does_not_count():
    def change(name, ratio):
        return Change(name, 1.0, ratio, ratio, ratio, ratio)

    first = [change("always", 1.3), change("once", 1.3), change("turned", 1.3), change("same", 1.0)]
    again = {"always": change("always", 1.2), "once": change("once", 1.0), "turned": change("turned", 0.5)}
    lines, slower = table(first, again, 1.05)
    assert [change.name for change in slower] == ["always"] and slower[0].ratio == 1.2
    assert "  2 more looked slower and did not a second time" in lines
    assert "faster by more than 1.05: nothing" in lines
