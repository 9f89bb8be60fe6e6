"""Pictures and one page of recorded runs.

    python -m benchmarks.report                                         every record in benchmarks/results
    python -m benchmarks.report benchmarks/results/train-step-cpu.json  one, or several
    python -m benchmarks.report --output pages/                         where to

Writes index.html, one file that holds all it shows, and the pictures in it as PNG files of their own. Every chip and
every processor has its section, every run its pictures, a table of all figures, what was not timed and why, and the
command, revision and versions that it was made with. Runs are never mixed: figures of one picture come from one run.

Operators are shown as multiples of their floor, the least the machine could take by the limits measured in the same
run (benchmarks/harness/limits.py); layers as curves over tokens with fitted exponents; models by time, memory and
parts.
"""

from __future__ import annotations

import argparse
import math
import operator
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.harness.record import RESULTS, duration
from benchmarks.reports import curves, pictures
from benchmarks.reports.records import NoTimes, Record, Row, read_record
from medsora.errors import UserError, run_command
from medsora.report import Report

OUTPUT = Path("build") / "benchmark-report"
MOST = 12  # shapes in a picture
PLAIN = ("reference", "definition")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the records, draws the pictures, writes the page."""
    options = parser().parse_args(arguments)
    if options.output.exists() and not options.output.is_dir():
        raise UserError(f"--output: got {options.output}, which is a file, wants a folder")
    records = read_records(options.records)
    page = write_report(records, options.output)
    print(f"{page}: {len(records)} records, {len(list(options.output.glob('*.png')))} pictures beside it")


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Those in the files; without any, those in benchmarks/results, where files that hold no times are passed over."""
    found = []
    for path in paths or sorted(RESULTS.glob("*.json")):
        try:
            found.append(read_record(path))
        except NoTimes as error:
            if paths:
                raise
            print(f"left out: {error}", file=sys.stderr)
    if not found:
        raise UserError(f"no records in {RESULTS}: make one with `make bench ARGS='--record NAME'`")
    return found


def write_report(records: Sequence[Record], folder: Path) -> Path:
    """Writes the pictures and index.html into `folder`, which is made if it is not there; returns the page."""
    styles = pictures.styles_of([row.variant for record in records for row in record.rows])
    report = Report(
        "MedSora benchmarks",
        "Recorded runs, each with the machine, the versions and the command that made it. Figures compare within a run,"
        " where variants took turns; between runs and machines they compare less well.",
    )
    report.paragraph(
        "In the tables, floors is the median over the floor, the least that the machine's limits allow with all data"
        " from memory; what fits into a cache can fall below it. Speed-up is against plain PyTorch, the reference or"
        " definition, in the same case of the same run. Memory is the most that a call"
        " takes beyond its inputs. On GPUs, times are those of the device; eager is the wall time of one call."
    )
    machines = list(dict.fromkeys(record.machine for record in records))
    rows = [row for record in records for row in record.rows]
    cases = {(record.name, row.case) for record in records for row in record.rows}
    report.figures([("machines", len(machines)), ("runs", len(records)), ("cases", len(cases)), ("rows", len(rows))])
    names = unique_names(records)
    with tqdm(total=len(records), desc="records", unit="record", disable=None) as bar:
        for machine in machines:
            report.heading(machine)
            for record, name in zip(records, names):
                if record.machine == machine:
                    add_record(report, record, name, styles, folder)
                    bar.update()
    page = folder / "index.html"
    report.write(page)
    return page


def add_record(report: Report, record: Record, name: str, styles, folder: Path) -> None:
    """A run: of each subject the pictures and the tables, then what was not timed, and its circumstances."""
    report.heading(f"{name}, {record.facts['date'][:10]}", level=3)
    for (level, subject, dtype), rows in by_subject(record).items():
        title = ", ".join(filter(None, (subject, dtype)))
        for path, caption in draw_subject(record, rows, title, folder / slug(f"{name}-{title}"), styles):
            report.image(path, caption)
        if level == "layer" and (grown := growth(rows)):
            report.table([f"{title}: growth", "variant", "tokens", "time ^", "residual", "memory ^"], grown)
            report.table([f"{title}: crossings", "times at equal width and tokens"], crossings(rows))
        report.table(*table_of(rows, title))
    if record.not_timed:
        report.table(["not timed", "why", "cases"], not_timed(record))
    report.table(["made", "with"], record.facts.items())


def draw_subject(record: Record, rows: Sequence[Row], title: str, start: Path, styles) -> Iterator[tuple[Path, str]]:
    """The pictures of one subject of a run, a file and a caption each; the files' names begin with `start`."""
    below = f"{record.machine}, {record.facts['date'][:10]}"
    if rows[0].level != "model" or not all(row.breakdown for row in rows):
        yield from draw_figures(start, rows, styles, title, below)
    for passes, chosen in broken_down(rows):
        what = ", ".join(filter(None, (title, passes)))
        for kind, of in (("kinds of work", "breakdown"), ("parts of the model", "parts")):
            if any(getattr(row, of) for row in chosen):
                path = start.with_name(slug(f"{start.name}-{passes}-{of}") + ".png")
                pictures.draw_breakdown(path, chosen, f"{what}: {kind}", operator.attrgetter(of))
                yield path, f"{what}: what the time of a call is spent on, by {kind}, as profiled. {below}"


def draw_figures(start: Path, rows: Sequence[Row], styles, title: str, below: str) -> Iterator[tuple[Path, str]]:
    """Time, over the floor or over tokens where there are such, and memory; many shapes in several pictures."""
    if rows[0].level == "layer" and len({row.tokens for row in rows} - {None}) > 1:
        path = start.with_name(f"{start.name}.png")
        curves.draw_scaling(path, rows, styles, title)
        fits = "at the end of a curve its fitted exponent, with ~ where more than a tenth lies between points and fit"
        yield path, f"{title}: time and memory over tokens; {fits}. {below}"
        return
    floors = all(row.floor for row in rows)
    draw, what = (pictures.draw_floor_bars, "times over the floor") if floors else (pictures.draw_time_bars, "times")
    for number, some in enumerate(by_shapes(rows), start=1):
        path = start.with_name(start.name + (f"-{number}" if number > 1 else "") + ".png")
        draw(path, some, styles, title)
        yield path, f"{title}: median {what}, quartiles as thin lines. {below}"
        if weighed := [row for row in some if row.peak_memory]:
            path = path.with_name(f"{path.stem}-memory.png")
            pictures.draw_memory_bars(path, weighed, styles, f"{title}: peak memory")
            yield path, f"{title}: the most memory that a call takes beyond its inputs. {below}"


def by_shapes(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows in parts of at most MOST shapes each, about equally many."""
    shapes = list(dict.fromkeys(row.shape for row in rows))
    each = math.ceil(len(shapes) / math.ceil(len(shapes) / MOST))
    for first in range(0, len(shapes), each):
        chosen = shapes[first : first + each]
        yield [row for row in rows if row.shape in chosen]


def growth(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Rows of a table of layers: the exponents of each variant."""
    return [(passes, *line) for passes, some in by_passes(rows) for line in curves.exponents(some)]


def crossings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Rows of a table of layers: where our fastest one crosses the others, or that it does not."""
    return [
        (passes, sentence)
        for passes, some in by_passes(rows)
        for _, _, sentence in curves.crossings(curves.curves_of(some))
    ]


def by_passes(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each kind of passes."""
    for passes in dict.fromkeys(row.passes for row in rows):
        yield passes, [row for row in rows if row.passes == passes]


def not_timed(record: Record) -> list[tuple[str, str, str]]:
    """(variant, why, cases), those of one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for case, variant, why in record.not_timed:
        found.setdefault((variant, why), []).append(case)
    return [
        (variant, why, "; ".join(cases) if len(cases) <= 4 else f"{len(cases)} cases")
        for (variant, why), cases in found.items()
    ]


def by_subject(record: Record) -> dict[tuple[str, str, str], list[Row]]:
    """Rows by (level, subject, dtype), in the order of the record."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in record.rows:
        found.setdefault((row.level, row.subject, row.dtype), []).append(row)
    return found


def broken_down(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Passes and the rows of one picture of breakdowns: of each operator case the fastest variant, else all."""
    found = [row for row in rows if row.breakdown]
    if found and found[0].level == "operator":
        best: dict[str, Row] = {}
        for row in found:
            if row.case not in best or row.time.median < best[row.case].time.median:
                best[row.case] = row
        found = list(best.values())
    yield from by_passes(found)


def table_of(rows: Sequence[Row], title: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of rows of one subject; columns that none of them has are left out."""
    plain = {row.case: row for row in rows if row.variant.removeprefix("mixers-") in PLAIN}
    cells: dict[str, list[str]] = {}
    for row in rows:
        median, definition = row.time.median, plain.get(row.case)
        line = {
            title: ", ".join(filter(None, (row.shape, row.passes))),
            "variant": row.variant,
            "median": duration(median),
            "quartiles": spread(row.time.lower, row.time.upper),
            "rounds": str(row.time.rounds),
            "floors": f"{median / row.floor:.2f}" if row.floor else "",
            "speed-up": f"{definition.times_as_long(row):.2f}" if definition else "",
            "clips/s": f"{row.clips_per_second:.3g}" if row.clips_per_second else "",
            "eager": duration(row.eager.median) if row.eager else "",
            "memory": pictures.memory_text(row.peak_memory) if row.peak_memory else "",
            "parameters": f"{row.parameters / 1e6:.2f} M" if row.parameters else "",
            "attention by": row.note,
        }
        for name, text in line.items():
            cells.setdefault(name, []).append(text)
    shown = {name: column for name, column in cells.items() if any(column)}
    return list(shown), [[text or "-" for text in line] for line in zip(*shown.values())]


def spread(lower: float, upper: float) -> str:
    """From one duration to another, the unit once where both have it."""
    one, other = duration(lower), duration(upper)
    shared = one.split()[1] == other.split()[1]
    return f"{one.split()[0] if shared else one} to {other}"


def unique_names(records: Sequence[Record]) -> list[str]:
    """The records' names, numbered where files of several folders share one."""
    seen: dict[str, int] = {}
    names = []
    for record in records:
        seen[record.name] = seen.get(record.name, 0) + 1
        names.append(record.name + (f"-{seen[record.name]}" if seen[record.name] > 1 else ""))
    return names


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_.]+", "-", text.lower()).strip("-")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("records", nargs="*", type=Path, metavar="RECORD", help="JSON files; all of benchmarks/results")
    made.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER", help="made if missing (%(default)s)")
    return made


if __name__ == "__main__":
    sys.exit(run_command(main))
