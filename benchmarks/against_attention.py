"""What do the mixers cost beside attention? A recorded run as a table in Markdown and a sentence.

    python -m benchmarks.against_attention benchmarks/results/NAME.json

Of layers, which differ in nothing but how tokens look at each other, and of whole steps. Each number is the median time
with the mixers over that with attention, in the same run: below 1 the mixers are the faster. Of several ways to compute
the same (backends, torch.compile) the fastest counts, on both sides.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.harness.record import duration
from benchmarks.harness.work import PASSES
from benchmarks.reports.curves import OURS
from benchmarks.reports.pictures import COMPILED
from benchmarks.reports.records import Row, read_record
from benchmarks.reports.scaling import Points, about, crossover
from medsora.errors import UserError, run_command

ATTENTIONS = ("full-attention", "factorised-attention", "windowed-attention")
FULL = ATTENTIONS[0]
DASH = "-"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and the sentence."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.against_attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("record", type=Path, metavar="RECORD", help="of `pytest benchmarks --record NAME`")
    made.add_argument("--passes", choices=PASSES, default=PASSES[1], help="of layers (%(default)s)")
    options = made.parse_args(arguments)
    print("\n".join(against_attention(options.record, options.passes)))


def against_attention(record: Path, passes: str = PASSES[1]) -> list[str]:
    """Lines of Markdown. passes: of the layers; steps are shown with those that they have.

    Raises UserError for what is no record, or one that has no mixers beside attention.
    """
    rows = read_record(record).rows
    layers = [row for row in rows if row.level == "layer" and row.passes == passes]
    models = [row for row in rows if row.level == "model"]
    lines = [line for chosen in (layers, models) for line in table_rows(chosen)]
    if not lines:
        raise UserError(f"{record}: has no mixers beside attention, wants a run of `pytest benchmarks -k layer`")
    header = ["", "with the mixers", *(f"over {name.replace('-', ' ')}" for name in ATTENTIONS)]
    return [markdown(header), "|---" * len(header) + "|", *lines, "", *map(sentence, by_type(layers).items())]


def table_rows(rows: Iterable[Row]) -> list[str]:
    """One for each case that has the mixers and any attention."""
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        best = cases.setdefault(row.case, {})
        name = way(row)
        if name not in best or row.time.median < best[name].time.median:
            best[name] = row
    lines = []
    for best in cases.values():
        if (ours := best.get(OURS)) and any(name in best for name in ATTENTIONS):
            times = [ours.times_as_long(best[name]) if name in best else None for name in ATTENTIONS]
            what = f"layer, {ours.tokens:,} tokens" if ours.level == "layer" else f"{ours.subject}, {ours.shape}"
            cells = [f"{time:.2f}" if time else DASH for time in times]
            lines.append(markdown([f"{what}, {ours.dtype}", duration(ours.time.median), *cells]))
    return lines


def way(row: Row) -> str:
    """ "mixers" on any backend, or which attention; both also where compiled."""
    name = row.variant.removesuffix(COMPILED)
    return OURS if name.startswith(OURS) else name


def by_type(rows: Iterable[Row]) -> dict[str, dict[str, Points]]:
    """dtype -> mixers or attention -> the points (tokens, seconds) of the fastest way."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows:
        points = found.setdefault(row.dtype, {}).setdefault(way(row), {})
        points[row.tokens] = min(row.time.median, points.get(row.tokens, row.time.median))
    return {dtype: {name: sorted(p.items()) for name, p in curves.items()} for dtype, curves in found.items()}


def sentence(item: tuple[str, dict[str, Points]]) -> str:
    """Where the mixers overtake full attention."""
    dtype, curves = item
    ours, full = curves.get(OURS, ()), curves.get(FULL, ())
    sizes = sorted(dict(ours).keys() & dict(full).keys())
    if not sizes:
        return f"In {dtype} there is no full attention to compare with."
    measured = f"measured: {sizes[0]:,} to {sizes[-1]:,}"
    if (tokens := crossover(ours, full)) is not None:
        return f"In {dtype} the mixers are faster than full attention from {about(tokens)} tokens on ({measured})."
    if dict(ours)[sizes[-1]] < dict(full)[sizes[-1]]:
        return f"In {dtype} the mixers are faster than full attention at all sizes ({measured})."
    return f"In {dtype} the mixers are slower than full attention at the largest size ({measured})."


def markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
