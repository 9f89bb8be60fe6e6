"""Where do two revisions run side by side? Each in a git worktree of its own, with an extension built from its sources.

    build/revisions/<process>/<name>        the worktrees of a run; they go when it ends, however it ends
    build/revisions/extensions/<digest>/    extensions that have been built, by what they were built from; they stay

The working tree takes part as a commit that no branch knows, made of all files that git does not ignore, so that both
sides are alike and editing may go on while they run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medsora.errors import UserError

FOLDER = Path("build") / "revisions"
EXTENSION = f"medsora_ops/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
BUILT_FROM = ("setup.py", "medsora_ops/version.py", "csrc")
COMPILERS = ("c++", "g++", "clang++")
NOBODY = {f"GIT_{who}_{what}": "medsora" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Git tells its hooks by these which index and tree are the user's; a worktree that is made must not write to them.
OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY")
NO_HOOKS = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.hooksPath", "GIT_CONFIG_VALUE_0": os.devnull}


def git(repository: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> str:
    """What git prints; no hook of the user's runs. Raises UserError with what it complained of."""
    inherited = {name: value for name, value in os.environ.items() if name not in OF_A_HOOK}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=repository,
            capture_output=True,
            text=True,
            check=True,
            env=inherited | NO_HOOKS | (variables or {}),
        )
    except OSError as error:
        raise UserError(f"git does not run: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"git {arguments[0]} in {repository}: {complaint(error.stderr)}") from error
    return done.stdout.strip()


def commit_of(repository: Path, revision: str) -> str:
    """Its full name, 40 hex digits. Raises UserError where git knows no such commit."""
    try:
        return git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except UserError as error:
        git(repository, "rev-parse", "--git-dir")  # whether there is a repository at all
        raise UserError(f"got revision {revision!r}, wants a commit, branch or tag of {repository}") from error


def working_tree_commit(repository: Path) -> str:
    """A commit of all files as they are now, untracked ones too; neither the index nor a branch moves."""
    with tempfile.TemporaryDirectory() as folder:
        aside = {"GIT_INDEX_FILE": f"{folder}/index", **NOBODY}
        git(repository, "read-tree", "HEAD", variables=aside)
        # By a pattern: git refuses a plain path inside a folder that it ignores, even one that is to be left out.
        git(repository, "add", "--all", "--", ".", f":(exclude,glob)**/{FOLDER}/**", variables=aside)
        tree = git(repository, "write-tree", variables=aside)
        return git(repository, "commit-tree", tree, "-p", "HEAD", "-m", "the working tree", variables=aside)


@contextlib.contextmanager
def checkouts(repository: Path, commits: Mapping[str, str]) -> Iterator[dict[str, Path]]:
    """Within the block, name -> folder with the sources of its commit; afterwards they are gone.

    SIGTERM and SIGHUP end the block as Ctrl-C does. What a run that was killed outright left is removed first.
    """
    shared = repository / FOLDER
    for left in shared.glob("[0-9]*"):
        if left.name.isdecimal() and not running(int(left.name)):
            remove(repository, left)
    own = shared / str(os.getpid())
    folders = {name: own / name for name in commits}
    before = {number: signal.signal(number, interrupt) for number in ENDINGS}
    try:
        for name, commit in commits.items():
            git(repository, "worktree", "add", "--detach", "--quiet", str(folders[name]), commit)
        yield folders
    finally:
        for number in ENDINGS:  # a second Ctrl-C must not stop the clearing up
            signal.signal(number, signal.SIG_IGN)
        remove(repository, own)
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt(number: int, frame) -> None:
    raise KeyboardInterrupt


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def remove(repository: Path, folder: Path) -> None:
    """A run's folder with its worktrees, also those that git had not finished or that have lost files."""
    for worktree in sorted(folder.glob("*/")):
        with contextlib.suppress(UserError):  # git does not know it: it was never begun, or is gone
            git(repository, "worktree", "remove", "--force", "--force", str(worktree))
    shutil.rmtree(folder, ignore_errors=True)


def provide_extension(repository: Path, checkout: Path) -> str:
    """Puts the native extension of these sources into a checkout, and says where it comes from.

    Taken from the working tree where that has one of the same sources, or from an earlier run; built otherwise. CUDA
    is left out unless MEDSORA_CUDA says otherwise. Raises UserError if it does not build.
    """
    target = checkout / EXTENSION
    if not (checkout / "setup.py").exists():
        return "no extension belongs to it"
    digest = digest_of(checkout)
    kept = repository / FOLDER / "extensions" / digest / target.name
    if up_to_date(repository) and digest_of(repository) == digest:
        shutil.copy2(repository / EXTENSION, target)
        return "the extension of the working tree, whose sources are the same"
    if not kept.exists():
        if not any(map(shutil.which, COMPILERS)):
            return "no extension: there is no C++ compiler, plain PyTorch serves"
        print(f"building the extension of {checkout.name}, which takes minutes", file=sys.stderr, flush=True)
        variables = {"MEDSORA_CUDA": "0", **os.environ, "MEDSORA_REQUIRE_EXT": "1"}
        code, output = run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], checkout, variables)
        if code or not target.exists():
            raise UserError(f"the extension of {checkout.name} does not build: {complaint(output)}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f".{os.getpid()}")
        shutil.copy2(target, partial)
        os.replace(partial, kept)
    shutil.copy2(kept, target)
    return "an extension built from its sources"


def digest_of(sources: Path) -> str:
    """Of all that an extension is built from, and by which Python."""
    found = hashlib.sha256(sys.version.encode())
    for path in built_from(sources):
        found.update(f"{path.relative_to(sources)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def up_to_date(sources: Path) -> bool:
    """Whether there is an extension that is newer than all it is built from."""
    extension = sources / EXTENSION
    if not extension.exists():
        return False
    return all(path.stat().st_mtime <= extension.stat().st_mtime for path in built_from(sources))


def built_from(sources: Path) -> list[Path]:
    named = [sources / name for name in BUILT_FROM]
    inside = [path for folder in named if folder.is_dir() for path in folder.rglob("*") if path.is_file()]
    return sorted([path for path in named if path.is_file()] + inside)


def run(command: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit status and output of a command; it and what it started end with this process's interruption."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as child:
        try:
            output, _ = child.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise
    return child.returncode, output


def complaint(output: str) -> str:
    """The first line of a command's output that names an error, else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = (line for line in lines if re.search(r"\berror: (?!usage)", line, re.IGNORECASE))
    return next(named, lines[-1] if lines else "no reason given")
