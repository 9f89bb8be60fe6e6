"""Which benchmarks got slower, or faster, from one revision to another? Both are run by turns, so that whatever slows
the machine down falls on both.

    python -m benchmarks.revisions main                           main against the working tree as it is now
    python -m benchmarks.revisions v0.1 HEAD                      two commits, branches or tags
    python -m benchmarks.revisions main -k "path_scan and native" --threshold 1.03
    python -m benchmarks.revisions main -k native -- --full       what follows -- goes to pytest

Each revision is checked out into a folder of its own under build/revisions, with an extension built from its sources
(or copied, where a built one is of the same sources), and runs the benchmarks that it has itself. A run is one process
of `pytest benchmarks --benchmark-only`; runs alternate, base new new base. The ratio of a benchmark is the median, over
all pairs of runs, of new median / base median; its interval holds the true one with at least 95 %, by the sign test,
which supposes nothing of the noise. What stands out (an interval on one side of 1, and a ratio beyond the threshold)
is run again on its own, and counts only if it stands out again.

Exit status: 0 if nothing got slower, 1 if something did, 2 if there was nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.harness import checkouts
from benchmarks.harness.record import duration
from medsora.errors import UserError, run_command

ROOT = Path(__file__).parents[1]
BASE, NEW = "base", "new"
CONFIDENCE = 0.95
LEAST_ROUNDS = 6  # of fewer pairs not even the whole range has this confidence
NOTHING_CHOSEN, WITH_FAILURES = 5, 1  # pytest's exit status
Medians = dict[str, list[float]]


@dataclass(frozen=True)
class Change:
    """One benchmark in both revisions. base, new: median seconds. ratio: new over base, low to high its interval."""

    name: str
    base: float
    new: float
    low: float
    ratio: float
    high: float

    def verdict(self, threshold: float) -> str:
        """ "slower" or "faster" where the ratio is beyond the threshold and its interval on one side of 1; "same"."""
        if self.low > 1 and self.ratio > threshold:
            return "slower"
        return "faster" if self.high < 1 and self.ratio < 1 / threshold else "same"


def main(arguments: Sequence[str] | None = None, repository: Path = ROOT) -> int:
    """Compares, prints a table. Returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    own, further = split_at_dashes(arguments)
    options = parser().parse_args(own)
    check(options)
    commits = {
        BASE: checkouts.commit_of(repository, options.base),
        NEW: checkouts.commit_of(repository, options.new) if options.new else checkouts.working_tree_commit(repository),
    }
    try:
        with checkouts.checkouts(repository, commits) as folders:
            for name, folder in folders.items():
                shown = options.base if name == BASE else options.new or "the working tree"
                origin = checkouts.provide_extension(repository, folder)
                print(f"{name}: {shown} ({commits[name][:10]}), {origin}", flush=True)
                require_own_package(folder)
            return compared(folders, options, further)
    except KeyboardInterrupt:
        print("interrupted; the checkouts are removed", file=sys.stderr)
        return 130


def compared(folders: Mapping[str, Path], options: argparse.Namespace, further: Sequence[str]) -> int:
    """Runs, runs again what stands out, prints. Returns the exit status."""
    chosen = ["benchmarks", *(["-k", options.keyword] if options.keyword else [])]
    found = alternating(folders, [*chosen, *further], options, "runs")
    changes = changes_between(found)
    if not changes:
        raise UserError("no benchmark was timed in every run of both revisions: some fail now and then")
    standing_out = [change.name for change in changes if change.verdict(options.threshold) != "same"]
    again = {}
    if standing_out:
        runs = alternating(folders, [*standing_out, *further], options, "again")
        again = {change.name: change for change in changes_between(runs)}
    lines, slower = table(changes, again, options.threshold)
    print("\n".join([*lines, *missing(found)]))
    return 1 if slower else 0


def alternating(
    folders: Mapping[str, Path], chosen: Sequence[str], options: argparse.Namespace, what: str
) -> dict[str, Medians]:
    """Revision -> benchmark -> the median seconds of each run: base new, new base, base new, ...

    Raises UserError where the first two have no benchmark in common.
    """
    found: dict[str, Medians] = {name: {} for name in folders}
    with tqdm(total=2 * options.rounds, desc=what, unit="run", disable=None) as bar:
        for number in range(options.rounds):
            for name in (BASE, NEW) if number % 2 == 0 else (NEW, BASE):
                for benchmark, median in medians_of(folders[name], name, chosen, options.budget).items():
                    found[name].setdefault(benchmark, []).append(median)
                bar.update()
            if not set(found[BASE]) & set(found[NEW]):
                raise UserError("no benchmark was timed in both revisions: try another -k, or later revisions")
    return found


def medians_of(folder: Path, name: str, chosen: Sequence[str], budget: float) -> dict[str, float]:
    """Those of one run of a revision's benchmarks, by their full names. What fails there is left out.

    Raises UserError where nothing was chosen or pytest did not run.
    """
    path = folder.parent / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, "--benchmark-only"]
    command += ["--benchmark-quiet", f"--budget={budget}", f"--benchmark-json={path}"]
    code, output = checkouts.run(command, folder)
    if code == NOTHING_CHOSEN:
        return {}
    if code not in (0, WITH_FAILURES) or not path.exists() or not path.stat().st_size:
        raise UserError(f"the benchmarks of {name} do not run: {checkouts.complaint(output)}")
    return {row["fullname"]: row["stats"]["median"] for row in json.loads(path.read_text())["benchmarks"]}


def changes_between(found: Mapping[str, Medians]) -> list[Change]:
    """Of the benchmarks that every run of both revisions has timed."""
    rounds = max((len(times) for medians in found.values() for times in medians.values()), default=0)
    changes = []
    for name, base in found[BASE].items():
        new = found[NEW].get(name, [])
        if len(base) == len(new) == rounds:
            low, ratio, high = median_and_interval([after / before for before, after in zip(base, new)])
            changes.append(Change(name, statistics.median(base), statistics.median(new), low, ratio, high))
    return changes


def median_and_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Low, median, high: the k-th smallest and k-th largest value hold the true median between them unless fewer than
    k of n values fall on one of its sides, which has the chance 2 * sum of C(n, i) / 2^n for i < k. The largest k is
    taken whose chance is at most 1 - confidence. Raises ValueError where there are too few values for any.
    """
    ordered, n = sorted(values), len(values)
    missed, k = 0.0, 0
    while k <= n // 2 and (missed := missed + 2 * math.comb(n, k) / 2**n) <= 1 - confidence:
        k += 1
    if k == 0:
        raise ValueError(f"values: got {n}, wants at least {LEAST_ROUNDS} for a confidence of {confidence:.0%}")
    return ordered[k - 1], statistics.median(ordered), ordered[-k]


def table(changes: Sequence[Change], again: Mapping[str, Change], threshold: float) -> tuple[list[str], list[Change]]:
    """Lines for a terminal, and what got slower: what stood out once and, on its own, did so the same way again."""
    lines, slower = [], []
    for verdict in ("slower", "faster"):
        first = [change for change in changes if change.verdict(threshold) == verdict]
        both = [again[c.name] for c in first if c.name in again and again[c.name].verdict(threshold) == verdict]
        lines += ["", f"{verdict} by more than {threshold:g}: {len(both) or 'nothing'}"]
        lines += [change_line(change) for change in sorted(both, key=lambda change: -abs(math.log(change.ratio)))]
        if len(first) > len(both):
            lines.append(f"  {len(first) - len(both)} more looked {verdict} and did not a second time")
        slower += both if verdict == "slower" else []
    within = [change for change in changes if change.verdict(threshold) == "same"]
    if within:
        widest = max(within, key=lambda change: change.high / change.low)
        lines += ["", f"no change beyond noise and threshold: {len(within)}; the least certain of them"]
        lines.append(change_line(widest))
    return lines, slower


def change_line(change: Change) -> str:
    return (
        f"  {duration(change.base):>9} -> {duration(change.new):>9}  x {change.ratio:.3f}"
        f"  ({change.low:.3f} to {change.high:.3f})  {change.name.partition('::')[2] or change.name}"
    )


def missing(found: Mapping[str, Medians]) -> list[str]:
    """Lines on the benchmarks that only one revision has timed, in words that leave open why."""
    lines = []
    for name, other in ((BASE, NEW), (NEW, BASE)):
        alone = [benchmark for benchmark in found[name] if benchmark not in found[other]]
        if alone:
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            lines.append(f"timed in {name} only: {', '.join(alone[:3])}{more}")
    return lines


def require_own_package(folder: Path) -> None:
    """Python, started in a checkout, must find that checkout's operators and no installed ones."""
    code, output = checkouts.run(
        [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('medsora_ops').origin)"], folder
    )
    if code or not Path(output.strip()).is_relative_to(folder):
        raise UserError(f"{folder.name}: wants medsora_ops of its own, Python finds {checkouts.complaint(output)}")


def check(options: argparse.Namespace) -> None:
    if options.rounds < LEAST_ROUNDS:
        raise UserError(f"--rounds: got {options.rounds}, wants at least {LEAST_ROUNDS}; fewer tell noise from nothing")
    if not (math.isfinite(options.threshold) and options.threshold >= 1):
        raise UserError(f"--threshold: got {options.threshold:g}, wants a ratio of at least 1, such as 1.05")
    if not (math.isfinite(options.budget) and options.budget > 0):
        raise UserError(f"--budget: got {options.budget:g}, wants seconds above 0")


def split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Before and after the first "--"."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.revisions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("base", metavar="BASE", help="the revision to compare with: a commit, branch or tag")
    made.add_argument("new", metavar="NEW", nargs="?", help="the other one; the working tree if not given")
    made.add_argument("-k", dest="keyword", metavar="EXPR", help="which benchmarks, as pytest's -k; all if not given")
    made.add_argument(
        "--budget", type=float, default=0.1, metavar="SECONDS", help="for each variant, in each run (%(default)s)"
    )
    made.add_argument("--rounds", type=int, default=LEAST_ROUNDS, metavar="N", help="runs of each (%(default)s)")
    made.add_argument(
        "--threshold", type=float, default=1.05, metavar="RATIO", help="changes below do not count (%(default)s)"
    )
    return made


if __name__ == "__main__":
    sys.exit(run_command(main))
