"""Pictures of rows of recorded runs, as PNG: bars over the floor, bars of times, memory and parts.

The colours are those of Okabe and Ito, told apart by all kinds of colour vision; grey is plain PyTorch. The ground is
white, so that they print; within a case the variants stand in the order of the legend.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.harness.record import duration
from benchmarks.reports.records import Row
from medsora.files import write_bytes

BLUE, GREY = "#0072B2", "#8C8C8C"
PINNED = {
    **dict.fromkeys(("native", "triton", "default", "mixers-native", "mixers-triton", "mixers"), BLUE),
    **dict.fromkeys(("reference", "definition", "mixers-reference"), GREY),
    "cuda": "#56B4E9",
    "torch.compile": "#E69F00",
    "without scans": "#F0E442",
}
OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#3B3B3B", "#F0E442")
PARTS = (BLUE, "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", GREY, "#3B3B3B")
HATCHES = ("", "...", "xxx")  # once all colours are taken
COMPILED = "+compiled"
INK, SOFT, FAINT = "#1c2430", "#5b6675", "#c9d0d8"
DPI = 130
BAR = 0.17  # inches
QUARTILES = Line2D([], [], color=INK, linewidth=0.9, label="quartiles")
WIDE = 10.0  # a ratio beyond which calls are not drawn to one scale
Style = dict[str, str]


def styles_of(variants: Iterable[str]) -> dict[str, Style]:
    """A colour for each variant, and a hatch where colours come round again; the same in all pictures of a page.

    What is a variant through torch.compile ("mixers+compiled") has its colour, striped.
    """
    names = list(dict.fromkeys(variants))
    plain = list(dict.fromkeys(name.removesuffix(COMPILED) for name in names))
    colors = {name: PINNED[name] for name in plain if name in PINNED}
    free = [color for color in OTHERS if color not in colors.values()] or list(OTHERS)
    hatches = dict.fromkeys(plain, "")
    for number, name in enumerate(name for name in plain if name not in PINNED):
        colors[name] = free[number % len(free)]
        hatches[name] = HATCHES[number // len(free) % len(HATCHES)]
    return {
        name: {
            "color": colors[name.removesuffix(COMPILED)],
            "hatch": hatches[name.removesuffix(COMPILED)] + ("////" if name.endswith(COMPILED) else ""),
        }
        for name in names
    }


def draw_floor_bars(path: Path, rows: Sequence[Row], styles: Mapping[str, Style], title: str) -> None:
    """Median times as multiples of each case's floor, which is the line at 1; thin lines are quartiles. A logarithmic
    axis; the times stand beside the bars. All rows have floors."""
    panels = _panels(rows)
    figure, axes = _figure(panels, title)
    spans = [row.time.upper / row.floor for row in rows] + [row.eager.upper / row.floor for row in rows if row.eager]
    lowest = min(min(row.time.lower / row.floor for row in rows), 1.0)
    for panel, (passes, groups) in zip(axes, panels.items()):
        panel.set_xscale("log")
        room = 6.5 if any(row.eager for row in rows) else 2.6  # for the times beside the bars
        panel.set_xlim(lowest / 1.15, max(max(spans), 2.0) * room)
        panel.axvline(1, color=INK, linewidth=1.4, zorder=3)
        for y, row in _placed(panel, groups, 1.04):
            _bar(panel, y, row, styles, left=1.0, scale=row.floor)
            end = max(row.time.upper, row.eager.upper if row.eager else 0.0) / row.floor
            _beside(panel, y, max(end, 1.0) * 1.06, _labelled(row))
        for y, floor in _group_tops(groups, lambda row: row.floor):
            _beside(panel, y, 1.04, f"floor {duration(floor)}", color=SOFT)
        _log_ticks(panel)
        panel.set_title(passes, fontsize=9.5, loc="left", color=SOFT)
        panel.set_xlabel("median time, multiples of the floor", fontsize=9)
    upright = {"marker": "|", "markersize": 13, "markeredgewidth": 1.4, "color": INK, "linestyle": ""}
    floor = Line2D([], [], **upright, label="floor: the limits of this machine, data from memory")
    _legend(figure, rows, styles, [QUARTILES, *_eager_mark(rows), floor])
    write(figure, path)


def draw_time_bars(path: Path, rows: Sequence[Row], styles: Mapping[str, Style], title: str) -> None:
    """Median times from zero, thin lines are quartiles; logarithmic where they span more than a factor of 30."""
    _draw_bars(path, rows, styles, title, lambda row: row.time.median, "median time", duration, whiskers=True)


def draw_memory_bars(path: Path, rows: Sequence[Row], styles: Mapping[str, Style], title: str) -> None:
    """Peak memory from zero; logarithmic where it spans more than a factor of 30. All rows have a peak above 0."""
    _draw_bars(path, rows, styles, title, lambda row: row.peak_memory, "peak memory", memory_text)


def draw_breakdown(
    path: Path,
    rows: Sequence[Row],
    title: str,
    of: Callable[[Row], Mapping[str, float]] = lambda row: row.breakdown,
    most: int = 9,
) -> None:
    """What the time of a call is spent on: a bar a row, what takes longest over all rows first; beyond `most` kinds all
    is one, "other". The outline is the median that was timed without the profiler, which may take time itself."""
    sums: dict[str, float] = {}
    for row in rows:
        for kind, seconds in of(row).items():
            sums[kind] = sums.get(kind, 0.0) + seconds
    longest = sorted(sums, key=lambda kind: -sums[kind])[:most]
    colors = dict(zip(longest, PARTS)) | {"other": FAINT}
    wholes = [row.time.median for row in rows]
    unit, size = _unit(max(max(row.time.median, sum(of(row).values())) for row in rows))
    shares = max(wholes) > WIDE * min(wholes)
    sizes = wholes if shares else [size] * len(rows)
    what = "share of a call's median time without the profiler, which the outline is"
    figure = Figure(figsize=(9.6, 1.5 + 0.42 * len(rows) + 0.2 * math.ceil(len(colors) / 3)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, (row, size) in enumerate(zip(rows, sizes)):
        parts = {kind: of(row).get(kind, 0.0) for kind in longest}
        parts["other"] = sum(of(row).values()) - sum(parts.values())
        left = 0.0
        for kind, seconds in parts.items():
            axes.barh(y, seconds / size, left=left, height=0.62, edgecolor="white", linewidth=0.6, color=colors[kind])
            left += seconds / size
        axes.barh(y, row.time.median / size, height=0.62, facecolor="none", edgecolor=INK, linewidth=0.9)
    right = axes.get_xlim()[1]
    for y, (row, size) in enumerate(zip(rows, sizes)):
        end = max(row.time.median, sum(of(row).values())) / size
        _beside(axes, y, end + 0.01 * right, duration(row.time.median))
    axes.set_yticks(range(len(rows)), [f"{row.variant}\n{row.shape}" for row in rows], fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(0, right * 1.1)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(what if shares else f"time of a call, {unit}; outline: its median without the profiler", fontsize=9)
    _plain(axes)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    shown = [kind for kind in colors if kind != "other" or len(sums) > most]
    add_legend(figure, [Patch(facecolor=colors[kind], label=kind[:48]) for kind in shown], most=3, fontsize=8)
    write(figure, path)


def memory_text(size: float) -> str:
    """Three digits and a unit: 1.23 MB, which are 1.23e6 bytes."""
    unit, bytes_ = next(((u, b) for u, b in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= b), ("B", 1))
    return f"{size / bytes_:.3g} {unit}"


def _draw_bars(
    path: Path,
    rows: Sequence[Row],
    styles: Mapping[str, Style],
    title: str,
    value: Callable[[Row], float],
    what: str,
    text: Callable[[float], str],
    whiskers: bool = False,
) -> None:
    panels = _panels(rows)
    figure, axes = _figure(panels, title)
    largest = max(max(value(row), row.time.upper if whiskers else 0) for row in rows)
    wide = largest > 30 * min(map(value, rows))
    least = min(map(value, rows)) / 2 if wide else 0.0
    for panel, (passes, groups) in zip(axes, panels.items()):
        panel.set_xscale("log" if wide else "linear")
        panel.set_xlim(least, largest * (4.0 if wide else 1.25))
        for y, row in _placed(panel, groups, least * 1.05 + (0.0 if wide else 0.01 * largest)):
            if whiskers:
                _bar(panel, y, row, styles, left=least)
            else:
                panel.barh(y, value(row) - least, left=least, height=0.86, edgecolor="white", **styles[row.variant])
            end = max(value(row), row.time.upper if whiskers else 0)
            _beside(panel, y, end * 1.06 if wide else end + 0.01 * largest, text(value(row)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda number, _: text(number) if number else "0"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.tick_params(axis="x", labelsize=8)
        panel.set_title(passes, fontsize=9.5, loc="left", color=SOFT)
        panel.set_xlabel(what, fontsize=9)
    _legend(figure, rows, styles, [QUARTILES, *_eager_mark(rows)] if whiskers else [])
    write(figure, path)


def _panels(rows: Sequence[Row]) -> dict[str, dict[str, list[Row | str]]]:
    """Passes -> shape -> rows, a panel each; a variant that another panel has of the shape keeps its place by name."""
    order: dict[str, dict[str, None]] = {}
    for row in rows:
        order.setdefault(row.shape, {})[row.variant] = None
    panels = {}
    for passes in dict.fromkeys(row.passes for row in rows):
        found = {(row.shape, row.variant): row for row in rows if row.passes == passes}
        panels[passes] = {shape: [found.get((shape, name), name) for name in names] for shape, names in order.items()}
    return panels


def _figure(panels: Mapping[str, Mapping[str, list]], title: str):
    groups = next(iter(panels.values()))
    bars = sum(len(rows) + 1 for rows in groups.values())
    figure = Figure(figsize=(5.2 * max(len(panels), 1.5), 1.5 + BAR * 1.25 * bars), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    starts = _starts(groups)
    centres = [start + (len(rows) - 1) / 2 for start, rows in zip(starts, groups.values())]
    axes[0].set_yticks(centres, [_wrapped(shape) for shape in groups], fontsize=8.5)
    axes[0].set_ylim(bars - 0.2, -0.4)
    for panel in axes:
        _plain(panel)
    return figure, axes


def _starts(groups: Mapping[str, list]) -> list[int]:
    """The place of each group's first bar: one row is left above it."""
    starts, y = [], 1
    for rows in groups.values():
        starts.append(y)
        y += len(rows) + 1
    return starts


def _placed(panel, groups: Mapping[str, list], x: float):
    """(y, row) of each bar; a place without one says so at x."""
    for start, rows in zip(_starts(groups), groups.values()):
        for y, row in enumerate(rows, start):
            if isinstance(row, Row):
                yield y, row
            else:
                _beside(panel, y, x, f"{row}: not timed", color=SOFT)


def _group_tops(groups: Mapping[str, list], value: Callable[[Row], float]):
    for start, rows in zip(_starts(groups), groups.values()):
        if first := next((row for row in rows if isinstance(row, Row)), None):
            yield start - 0.9, value(first)


def _bar(panel, y: float, row: Row, styles: Mapping[str, Style], left: float, scale: float = 1.0) -> None:
    median, lower, upper = (seconds / scale for seconds in (row.time.median, row.time.lower, row.time.upper))
    panel.barh(y, median - left, left=left, height=0.86, edgecolor="white", linewidth=0.4, **styles[row.variant])
    panel.plot([lower, upper], [y, y], color=INK, linewidth=0.9, solid_capstyle="butt", zorder=4)
    if row.eager:
        panel.plot(row.eager.median / scale, y, marker="D", markersize=4, color="white", markeredgecolor=INK, zorder=4)


def _beside(axes, y: float, x: float, text: str, color: str = INK) -> None:
    axes.text(x, y, text, fontsize=7.5, va="center", color=color, zorder=5)


def _legend(figure: Figure, rows: Sequence[Row], styles: Mapping[str, Style], further: Sequence = ()) -> None:
    """What the colours are, and then what else there is to see."""
    names = dict.fromkeys(row.variant for row in rows)
    handles = [Patch(facecolor=styles[n]["color"], hatch=styles[n]["hatch"], edgecolor="white", label=n) for n in names]
    add_legend(figure, [*handles, *further], most=5)


def add_legend(figure: Figure, handles: Sequence, most: int, fontsize: float = 9, **look) -> None:
    """Below the picture, in as many columns as fit into its width, at most so many."""
    look |= {"handles": handles, "loc": "outside lower center", "fontsize": fontsize, "frameon": False}
    for columns in range(min(len(handles), most), 0, -1):
        legend = figure.legend(ncols=columns, **look)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _eager_mark(rows: Sequence[Row]) -> list[Line2D]:
    look = {"marker": "D", "linestyle": "", "color": "white", "markeredgecolor": INK}
    return [Line2D([], [], label="one eager call", **look)] if any(row.eager for row in rows) else []


def _plain(axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _log_ticks(axes) -> None:
    low, high = axes.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(axis="x", labelsize=8)


def _unit(largest: float) -> tuple[str, float]:
    return next(((unit, size) for unit, size in (("s", 1.0), ("ms", 1e-3)) if largest >= size), ("us", 1e-6))


def _labelled(row: Row) -> str:
    """Its time, and that of one eager call where it is another one."""
    if row.eager:
        return f"{duration(row.time.median)}, eager {duration(row.eager.median)}"
    return duration(row.time.median) + (" eager" if row.clock == "eager" else "")


def _wrapped(label: str) -> str:
    return label.replace(", ", ",\n", 1) if len(label) > 16 else label


def write(figure: Figure, path: str | os.PathLike) -> None:
    """As PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    write_bytes(path, buffer.getvalue())
