"""Curves over training steps as a PNG."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence

from medsora.files import write_bytes

COLUMNS = 3
PANEL = (4.4, 2.9)  # inches
LINE, FAINT = "#0b7285", "#9bc9d1"
SMOOTHED_FROM = 40  # points from which a running mean is drawn over the values
LOG_SPAN = 3  # a logarithmic axis where the largest value exceeds the smallest so many times


def plot_curves(
    path: str | os.PathLike,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str = "",
    xlabel: str = "step",
    log_y: bool = False,
) -> None:
    """Draws each series in a panel of its own, since losses differ in scale; written whole or not at all.

    series: name -> (x, y), equally long and not empty. Values that are not finite leave a gap. From 40 points on, a
    running mean lies over the values. log_y: logarithmic where all values are above 0 and span a factor of 3 or more.
    Raises ValueError for no series, or one that is empty or whose x and y differ in length.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not series:
        raise ValueError("series: got none, wants at least one")
    for name, (x, y) in series.items():
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(f"series: got {len(x)} x and {len(y)} y values for {name}, wants as many of each, not 0")
    columns = min(COLUMNS, len(series))
    rows = math.ceil(len(series) / columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + (0.4 if title else 0)), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    for number, (name, (x, y)) in enumerate(series.items()):
        _draw(figure.add_subplot(rows, columns, number + 1), name, x, y, xlabel, log_y)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write_bytes(path, buffer.getvalue())


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and up to width // 2 on either side, those not finite left out."""
    means, reach = [], width // 2
    for middle in range(len(values)):
        window = [v for v in values[max(0, middle - reach) : middle + reach + 1] if math.isfinite(v)]
        means.append(sum(window) / len(window) if window else math.nan)
    return means


def _draw(axes, name: str, x: Sequence[float], y: Sequence[float], xlabel: str, log_y: bool) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    y = [float(value) if math.isfinite(value) else math.nan for value in y]
    smooth = len(y) >= SMOOTHED_FROM
    axes.plot(x, y, color=FAINT if smooth else LINE, linewidth=1.0 if smooth else 1.6, marker="." if len(y) < 8 else "")
    if smooth:
        axes.plot(x, running_mean(y, len(y) // 15), color=LINE, linewidth=1.6)
    finite = [value for value in y if math.isfinite(value)]
    if log_y and finite and min(finite) > 0 and max(finite) >= LOG_SPAN * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(name, fontsize=11)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, which="both", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
