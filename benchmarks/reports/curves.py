"""Pictures of growth: time and memory of layers over tokens, with fitted exponents and where layers cross."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.harness.record import duration
from benchmarks.reports.pictures import COMPILED, FAINT, INK, SOFT, Style, add_legend, memory_text, write
from benchmarks.reports.records import Row
from benchmarks.reports.scaling import Points, about, crossover, exponent, fit

MARKERS = "osD^vP*X"
OURS = "mixers"
PANEL = (5.4, 3.9)  # inches
GAP, LINE = 0.055, 0.045  # between labels, and of text, in heights of a panel


def draw_scaling(path: Path, rows: Sequence[Row], styles: Mapping[str, Style], title: str) -> None:
    """Time above and, where it was measured, memory below, over tokens; a column for each kind of passes.

    The number at the end of a curve is its exponent, with "~" where it bends away from a power by more than a tenth.
    Circles are where our fastest layer crosses another one.
    """
    figures = {"median time": (duration, "time")}
    if any(row.peak_memory for row in rows):
        figures["peak memory beyond inputs"] = (memory_text, "memory")
    passes = list(dict.fromkeys(row.passes for row in rows))
    size = (PANEL[0] * len(passes), PANEL[1] * len(figures) + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(figures), len(passes), squeeze=False, sharex=True, sharey="row")
    looks = looks_of([row.variant for row in rows], styles)
    drawn = []
    for line, (label, (text, what)) in zip(panels, figures.items()):
        for panel, one in zip(line, passes):
            drawn.append((panel, curves_of([row for row in rows if row.passes == one], what)))
            _draw_curves(*drawn[-1], looks, text)
            panel.set_title(f"{one}: {what}", fontsize=9.5, loc="left", color=SOFT)
        line[0].set_ylabel(label, fontsize=9)
    for number, line in enumerate(panels):
        _make_room(line, [curves for _, curves in drawn[: len(passes)]] if number == 0 else [{}])
    for panel, curves in drawn[: len(passes)]:
        _mark_crossings(panel, curves)
    figure.canvas.draw()  # places the axes, which panels share
    for panel, curves in drawn:
        _label_ends(panel, curves, styles)
    for panel in panels[-1]:
        panel.set_xlabel("tokens", fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    add_legend(figure, handles, most=3, handlelength=3)
    write(figure, path)


def curves_of(rows: Sequence[Row], what: str = "time") -> dict[str, Points]:
    """Variant -> (tokens, seconds or bytes) by tokens. what: "time" or "memory"."""
    found: dict[str, list] = {}
    for row in rows:
        value = row.time.median if what == "time" else row.peak_memory
        if value and row.tokens:
            found.setdefault(row.variant, []).append((row.tokens, value))
    return {name: sorted(points) for name, points in found.items()}


def exponents(rows: Sequence[Row]) -> list[tuple[str, str, str, str, str]]:
    """(variant, tokens, exponent of time, residual, exponent of memory) as text, for variants of two sizes or more."""
    times, memory, found = curves_of(rows), curves_of(rows, "memory"), []
    for name, points in times.items():
        if len(points) > 1:
            of_time, weights = fit(points), memory.get(name, ())
            of_memory = exponent(weights) if len(weights) > 1 else "-"
            sizes = f"{points[0][0]:,} to {points[-1][0]:,}"
            residual = f"{of_time.residual:.2f}" if len(points) > 2 else "-"  # any power goes through two points
            found.append((name, sizes, exponent(points), residual, of_memory))
    return found


def crossings(curves: Mapping[str, Points]) -> list[tuple[str, float | None, str]]:
    """Our fastest layer against each that is not ours: (other, tokens where they cross or None, sentence).

    A sentence ends with how far apart the two are at the largest size that both have: beyond, nothing is said.
    """
    ours = [name for name in curves if name.startswith(OURS)]
    if not ours:
        return []
    longest = max(tokens for name in ours for tokens, _ in curves[name])
    best = min(ours, key=lambda name: dict(curves[name]).get(longest, float("inf")))
    found = []
    for other in curves:
        shared = dict(curves[best]).keys() & dict(curves[other]).keys()
        if other in ours or not shared:
            continue
        most = max(shared)
        gain = dict(curves[other])[most] / dict(curves[best])[most]
        end = f"({max(gain, 1 / gain):.3g} times at {most:,})"
        if (tokens := crossover(curves[best], curves[other])) is not None:
            found.append((other, tokens, f"faster than {other} from {about(tokens)} tokens on {end}"))
        elif (tokens := crossover(curves[other], curves[best])) is not None:
            found.append((other, tokens, f"slower than {other} from {about(tokens)} tokens on {end}"))
        else:
            found.append((other, None, f"{'faster' if gain > 1 else 'slower'} than {other} at all sizes {end}"))
    return [(other, tokens, f"{best}: {sentence}") for other, tokens, sentence in found]


def _draw_curves(panel, curves: Mapping[str, Points], looks: Mapping[str, Mapping], text) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    for name, points in curves.items():
        panel.plot(*zip(*points), **looks[name])
    sizes = sorted({tokens for points in curves.values() for tokens, _ in points})
    panel.xaxis.set_major_locator(FixedLocator(sizes))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=12))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    panel.tick_params(labelsize=8)
    panel.grid(color=FAINT, linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)
    if sizes:
        panel.set_xlim(sizes[0] / 1.25, sizes[-1] * max((sizes[-1] / sizes[0]) ** 0.16, 1.25))  # room for the exponents


def _label_ends(panel, curves: Mapping[str, Points], styles: Mapping[str, Style]) -> None:
    """The exponents beside the ends of the curves, moved apart where they would lie on one another."""
    place = panel.transData + panel.transAxes.inverted()
    ends = {name: place.transform(points[-1]) for name, points in curves.items() if len(points) > 1}
    order = sorted(ends, key=lambda name: (curves[name][-1][0], ends[name][1]))
    heights = []
    for _, together in itertools.groupby(order, lambda name: curves[name][-1][0]):  # those that end at the same size
        heights += below_top(apart([ends[name][1] for name in together], GAP), GAP)
    for name, height in zip(order, heights):
        x, y = ends[name]
        to_label = {"transform": panel.transAxes, "clip_on": False, "in_layout": False}
        panel.plot([x + 0.012, x + 0.04], [y, height], color=styles[name]["color"], linewidth=0.8, **to_label)
        panel.text(x + 0.045, height, exponent(curves[name]), fontsize=7.5, va="center", color=INK, **to_label)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """The rising places, moved as a whole group about its middle where neighbours would be closer than `gap`."""
    groups: list[tuple[float, int]] = []  # the middle of each group and how many it holds
    for place in places:
        groups.append((place, 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (middle, count), (other, more) = groups.pop(), groups.pop()
            groups.append(((middle * count + other * more) / (count + more), count + more))
    return [middle + gap * (i - (count - 1) / 2) for middle, count in groups for i in range(count)]


def below_top(places: Sequence[float], gap: float, top: float = 1.0) -> list[float]:
    """The rising places, those at the top moved down until the last is at `top` at most and all keep their gaps."""
    return [min(place, top - gap * after) for after, place in zip(reversed(range(len(places))), places)]


def _mark_crossings(panel, curves: Mapping[str, Points]) -> None:
    """Circles, and below the curves from how many tokens on which one is the faster."""
    found = [(other, tokens, sentence) for other, tokens, sentence in crossings(curves) if tokens is not None]
    lines = sentences_below(found)
    low, high = panel.get_ylim()
    below = low * (high / low) ** (LINE * len(lines) + 0.03)
    for other, tokens, _ in found:
        height = _between(curves[other], tokens)
        circle = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "", "zorder": 5}
        panel.plot(tokens, height, marker="o", **circle)
        panel.plot([tokens, tokens], [below, height], color=INK, linewidth=0.8, linestyle=":")
    place = {"transform": panel.transAxes, "in_layout": False}
    panel.text(0.03, 0.02, "\n".join(lines), fontsize=7.5, color=INK, **place)


def _make_room(panels, each: Sequence[Mapping[str, Points]]) -> None:
    """Above the curves for exponents, below for sentences on where they cross; the panels share their axis."""
    most = max(len(sentences_below(crossings(curves))) for curves in each)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low / (high / low) ** (1.7 * LINE * most), high * (high / low) ** 0.08)


def sentences_below(crossed: Sequence[tuple[str, float | None, str]]) -> list[str]:
    """Lines of a picture on the crossings in it by tokens, whose layer is named once."""
    told = [sentence.split(": ") for _, tokens, sentence in sorted(crossed, key=lambda each: each[1] or 0) if tokens]
    return [f"{told[0][0]}:", *(rest for _, rest in told)] if told else []


def _between(points: Points, tokens: float) -> float:
    """A curve's figure at tokens between measured sizes, on the straight line of a logarithmic picture."""
    (before, low), (after, high) = next(pair for pair in zip(points, points[1:]) if tokens <= pair[1][0])
    return fit([(before, low), (after, high)]).at(tokens)


def looks_of(variants: Iterable[str], styles: Mapping[str, Style]) -> dict[str, dict[str, object]]:
    """Variant -> how its line is drawn; one through torch.compile is dashed, with the marker of what was compiled."""
    names = list(dict.fromkeys(variants))
    plain = list(dict.fromkeys(name.removesuffix(COMPILED) for name in names))
    return {
        name: {
            "color": styles[name]["color"],
            "linestyle": "--" if name.endswith(COMPILED) else "-",
            "marker": MARKERS[plain.index(name.removesuffix(COMPILED)) % len(MARKERS)],
            "markerfacecolor": "white" if name.endswith(COMPILED) else styles[name]["color"],
            "markersize": 5,
            "linewidth": 1.6,
        }
        for name in names
    }
